"""A process that is told to end: it drains while it serves, and ends in the way of the signal."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

APP = """
import asyncio, sys
from fastapi import FastAPI
from tinsmith_common.http import serve

app = FastAPI()

async def drain():
    print("draining", flush=True)
    await asyncio.sleep(float(sys.argv[2]))
    print("drained", flush=True)

app.state.give_up, app.state.drain = None, drain
sys.exit(serve(app, "127.0.0.1", int(sys.argv[1])))
"""
Start = Callable[[float], tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the app with a time to drain; answers its process and address once it serves."""
    started: list[subprocess.Popen[str]] = []

    def run(seconds: float) -> tuple[subprocess.Popen[str], str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-c", APP, str(port), str(seconds)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        url = f"http://127.0.0.1:{port}/openapi.json"
        deadline = time.monotonic() + 60
        while not answers(url):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return started[-1], url

    yield run
    for process in started:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_it_serves_while_it_drains_and_then_ends_by_the_signal(start: Start) -> None:
    process, url = start(1.0)
    process.send_signal(signal.SIGTERM)
    assert said(process) == "draining\n"
    assert answers(url)
    assert process.wait(timeout=20) == -signal.SIGTERM
    assert said(process) == "drained\n"


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    process, _ = start(600)
    process.send_signal(signal.SIGTERM)
    assert said(process) == "draining\n"
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)
    assert said(process) == ""


def test_an_interrupt_is_no_reason_to_drain(start: Start) -> None:
    process, _ = start(600)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    assert said(process) == ""
