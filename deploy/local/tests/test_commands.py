"""The commands as a user meets them: ready lines, exit codes, and Ctrl-C at any moment."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tinsmith_local.config import StackConfig

pytestmark = pytest.mark.integration

# Long enough to be caught in.
SLOW_START_S = "1.5"


def left_behind(folder: Path, known: set[psutil.Process]) -> list[psutil.Process]:
    """Processes of a command that was run in `folder`: those seen before, and all that still work there."""
    found = {
        process for process in known if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    }
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(folder):
                found.add(process)
    return list(found)


class Command:
    """`python -m tinsmith_local …` in a folder and a process group of its own, as a terminal would start it."""

    def __init__(self, folder: Path, services: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.family: set[psutil.Process] = set()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tinsmith_local", *arguments],
            cwd=folder,
            env={**os.environ, **self.environment(services), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @staticmethod
    def environment(services: Path) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(services), os.environ.get("PYTHONPATH")))),
            "TINSMITH_SAMPLE_PYTHON": sys.executable,
            "STANDIN_START_S": SLOW_START_S,
        }

    def wait_for_line(self, text: str) -> None:
        deadline = time.monotonic() + 180
        while not any(text in line for line in self.lines):
            assert self._popen.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.02)

    def remember_family(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.family |= set(psutil.Process(self.pid).children(recursive=True))

    def end(self) -> int:
        status = self._popen.wait(60)
        self._reader.join(5)
        return status

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.lines.append(line.rstrip("\n"))


SERVE = ("serve", "--port", "0")


@pytest.fixture
def start(tmp_path: Path, services: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def begin(*arguments: str, **environment: str) -> Command:
        (tmp_path / "work").mkdir()
        started.append(Command(tmp_path / "work", services, *arguments, **environment))
        return started[-1]

    yield begin
    for command in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(command.pid, signal.SIGKILL)


PHASES = {
    "at once": "sample stand-in starts",
    "while Ray starts": "Usage stats collection is disabled",
    "while the train service starts": "train stand-in starts",
    "while the gateway starts": "train: ready",
    "when it serves": "Tinsmith is ready",
}


@pytest.mark.parametrize("line", PHASES.values(), ids=PHASES.keys())
def test_ctrl_c_leaves_no_process(start: Callable[..., Command], line: str) -> None:
    command = start(*SERVE, STANDIN_ACTOR="train")
    command.wait_for_line(line)
    command.remember_family()
    os.killpg(command.pid, signal.SIGINT)
    status = command.end()
    assert left_behind(command.folder, command.family) == []
    assert status == (0 if line == "Tinsmith is ready" else 130)
    assert not any("Traceback" in text for text in command.lines)


def test_ctrl_c_twice_leaves_no_process(start: Callable[..., Command]) -> None:
    command = start(*SERVE)
    command.wait_for_line("train stand-in starts")
    command.remember_family()
    os.killpg(command.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(command.pid, signal.SIGINT)
    command.end()
    assert left_behind(command.folder, command.family) == []


@pytest.mark.parametrize("line", ["Usage stats collection is disabled", "Tinsmith is ready"])
def test_kill_9_of_the_supervisor_leaves_no_process(start: Callable[..., Command], line: str) -> None:
    command = start(*SERVE, STANDIN_ACTOR="train")
    command.wait_for_line(line)
    command.remember_family()
    os.kill(command.pid, signal.SIGKILL)
    command.end()
    deadline = time.monotonic() + 20
    while left := left_behind(command.folder, command.family):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_run_gives_the_command_the_stacks_address_and_passes_its_status_on(
    start: Callable[..., Command],
) -> None:
    text = (
        "import os, httpx; url = os.environ['TINKER_BASE_URL']; "
        "print('told', httpx.get(url + '/healthz').status_code, os.environ['TINKER_API_KEY'], flush=True); "
        "raise SystemExit(5)"
    )
    command = start("run", "--", sys.executable, "-c", text, TINKER_API_KEY="secret", STANDIN_START_S="0")
    assert command.end() == 5
    assert "told 200 tml-secret" in command.lines
    assert left_behind(command.folder, set()) == []


def test_ctrl_c_ends_the_command_of_run_too(start: Callable[..., Command]) -> None:
    text = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "print('busy', flush=True); time.sleep(600)"
    )
    command = start("run", "--", sys.executable, "-c", text, STANDIN_START_S="0")
    command.wait_for_line("busy")
    command.remember_family()
    os.killpg(command.pid, signal.SIGINT)
    assert command.end() == 130
    assert left_behind(command.folder, command.family) == []


def test_a_crash_under_run_ends_the_command_and_says_which_part(start: Callable[..., Command]) -> None:
    text = "import time; print('busy', flush=True); time.sleep(600)"
    command = start("run", "--", sys.executable, "-c", text, STANDIN_START_S="0")
    command.wait_for_line("busy")
    command.remember_family()
    envoys = [process for process in command.family if process.name() == "envoy"]
    assert len(envoys) == 1
    envoys[0].kill()
    assert command.end() == 1
    assert any("gateway ended by itself with exit code 137" in line for line in command.lines)
    assert left_behind(command.folder, command.family) == []


def test_the_default_directory_is_in_the_working_directory() -> None:
    assert StackConfig().data_dir == Path(".tinsmith")
