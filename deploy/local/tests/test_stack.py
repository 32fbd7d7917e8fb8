"""The supervisor as a library: what its parts are told, what it says, what happens when a part ends."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import psutil
import pytest

from tinsmith_local import PartFailed, Stack, StackConfig, StackError

NewConfig: TypeAlias = Callable[..., StackConfig]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def environment(stack: Stack, path: str) -> dict[str, Any]:
    answer = httpx.post(stack.base_url + path, trust_env=False).raise_for_status()
    return answer.json()["environment"]


def test_a_taken_port_is_one_sentence_that_says_what_to_do(new_config: NewConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StackError) as raised:
            Stack(new_config(port=port)).start()
    assert str(raised.value) == (
        f"Port {port} is already in use: stop that program or choose another with PORT=…"
    )
    assert not new_config().data_dir.exists(), "nothing was started"


def test_a_missing_sample_interpreter_is_named(tmp_path: Path, new_config: NewConfig) -> None:
    with pytest.raises(StackError, match=r"There is no Python at .*missing/python.*make setup"):
        Stack(new_config(sample_python=str(tmp_path / "missing" / "python")))


def test_an_impossible_data_directory_is_one_sentence(tmp_path: Path, new_config: NewConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="Not a directory"):
        Stack(new_config(data_dir=tmp_path / "file" / "data")).start()


@pytest.mark.parametrize(("given", "sent"), [("slime-dev-key", "tml-slime-dev-key"), ("tml-own", "tml-own")])
def test_the_key_for_the_sdk_has_the_prefix_that_it_insists_on(given: str, sent: str) -> None:
    assert StackConfig(api_key=given).sdk_api_key == sent


def test_a_part_that_ends_during_the_start_stops_it_and_is_named(
    services: Path, new_config: NewConfig
) -> None:
    (services / "tinsmith_sample" / "__main__.py").write_text("print('no such model'); raise SystemExit(3)")
    stack = Stack(new_config())
    with pytest.raises(PartFailed) as raised:
        stack.start()
    assert (raised.value.part, raised.value.exit_code, raised.value.tail) == ("sample", 3, ["no such model"])
    assert stack.pids() == {}


def test_a_part_that_is_never_ready_is_given_up(new_config: NewConfig) -> None:
    stack = Stack(new_config(ready_timeout_s=1.0))
    with pytest.raises(PartFailed, match="ray was not ready within 1 s"):
        stack.start()
    assert stack.pids() == {}


@pytest.mark.integration
def test_both_services_are_told_the_same_store_and_key(stack: Stack) -> None:
    train, sample = environment(stack, "/api/v1/telemetry"), environment(stack, "/api/v1/asample")
    for name in ("METADATA_DIR", "FUTURES_DB_NAME", "TINKER_API_KEY", "KGATEWAY_LOG_LEVEL"):
        assert train[name] == sample[name] != ""
    assert Path(train["METADATA_DIR"]).is_absolute()


@pytest.mark.integration
def test_only_the_gateways_port_is_configured_and_all_listen_on_loopback(stack: Stack) -> None:
    addresses: set[str] = set()
    for root in stack.pids().values():
        for process in psutil.Process(root).children(recursive=True):
            listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            addresses |= {connection.laddr.ip.removeprefix("::ffff:") for connection in listening}
    assert addresses == {"127.0.0.1"}


@pytest.mark.integration
def test_a_second_stack_in_the_same_directory_is_refused(stack: Stack, new_config: NewConfig) -> None:
    with pytest.raises(StackError, match="Another stack is using"):
        Stack(new_config(data_dir=stack.config.data_dir)).start()
    assert stack.up


@pytest.mark.integration
def test_a_killed_part_comes_back_on_its_port_and_keeps_its_log(stack: Stack) -> None:
    before = environment(stack, "/api/v1/asample")["SAMPLING_PORT"]
    first = stack.pids()["sample"]
    stack.kill("sample")
    assert stack.up
    assert "sample" not in stack.pids()
    stack.restart("sample")
    assert environment(stack, "/api/v1/asample")["SAMPLING_PORT"] == before
    assert stack.pids()["sample"] != first
    assert stack.logs("sample").count("sample stand-in starts") >= 2


@pytest.mark.integration
def test_a_crash_of_any_part_takes_everything_down_and_is_explained(new_config: NewConfig) -> None:
    with Stack(new_config(env={"STANDIN_ACTOR": "train"})) as stack:
        family = [
            child for pid in stack.pids().values() for child in psutil.Process(pid).children(recursive=True)
        ]
        directory = stack.logs("ray").split("Process exit logs will be saved to: ")[1].split("/session_")[0]
        actor = int(stack.logs("train").split("actor ")[1].split()[0])
        assert actor in {process.pid for process in family}, "the stack's Ray runs it"
        (service,) = psutil.Process(stack.pids()["train"]).children()
        service.kill()
        wait_for(lambda: not stack.up)
        wait_for(lambda: not any(process.is_running() for process in family))
        assert stack.failure is not None
        assert (stack.failure.part, stack.failure.exit_code) == ("train", 137)
        assert "train stand-in starts" in str(stack.failure)
    assert (stack.log_dir / "ray-session" / "raylet.out").exists(), "Ray's own logs are kept"
    assert not Path(directory).exists(), "Ray's directory is gone"
