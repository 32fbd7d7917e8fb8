"""Nothing that a part starts outlives its warden, however it detaches itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tinsmith_local.console import Console
from tinsmith_local.process import Launch, PartProcess

# A daemon in its own session whose parents are gone, which ignores every polite signal.
DAEMON = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
"""
STAYS = DAEMON + "time.sleep(600)\n"
ENDS = DAEMON + "time.sleep(0.5)\nraise SystemExit(7)\n"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Started:
    """A part that runs a Python text, and the daemon that the text left behind."""

    def __init__(self, folder: Path, text: str, **options: float | Path) -> None:
        launch = Launch(name="part", command=(sys.executable, "-c", text), **options)  # pyright: ignore
        self.exits: list[int | None] = []
        self.part = PartProcess(launch, folder / "part.log", Console(show_logs=False), self._note)
        wait_for(lambda: any("daemon" in line for line in self.part.tail()))
        self.daemon = psutil.Process(int(self.part.tail()[0].split()[1]))

    def _note(self, part: PartProcess) -> None:
        self.exits.append(part.exit_code)


def test_a_killed_part_takes_its_daemons_with_it(tmp_path: Path) -> None:
    started = Started(tmp_path, STAYS)
    started.part.kill()
    assert started.part.wait(20)
    assert not started.daemon.is_running()


def test_a_part_that_ends_by_itself_reports_its_code_and_leaves_no_daemon(tmp_path: Path) -> None:
    started = Started(tmp_path, ENDS)
    assert started.part.wait(20)
    wait_for(lambda: started.exits == [7])
    assert not started.daemon.is_running()


def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    started = Started(tmp_path, STAYS, grace_s=0.2)
    started.part.stop()
    assert started.part.wait(20)
    assert started.part.exit_code == 128 + signal.SIGKILL
    assert not started.daemon.is_running()


def test_the_directory_of_a_part_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    (folder / "session").mkdir(parents=True)
    started = Started(tmp_path, STAYS, remove_dir=folder)
    started.part.kill()
    started.part.wait(20)
    assert not folder.exists()


def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    launch = Launch(name="part", command=("no-such-program",))
    part = PartProcess(launch, tmp_path / "part.log", Console(show_logs=False), lambda _: None)
    assert part.wait(20)
    assert part.exit_code == 127
    assert part.tail() == ["cannot run no-such-program: No such file or directory"]


SUPERVISOR = """
import signal, sys, time
# A shell's background job, as these tests may be part of, passes on that SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from tinsmith_local.console import Console
from tinsmith_local.process import Launch, PartProcess
launch = Launch(name="part", command=(sys.executable, "-c", sys.argv[1]))
part = PartProcess(launch, Path(sys.argv[2]), Console(show_logs=False), lambda _: None)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
def test_a_supervisor_that_dies_in_any_way_leaves_nothing(tmp_path: Path, number: int) -> None:
    log = tmp_path / "part.log"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, STAYS, log], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: log.exists() and b"daemon" in log.read_bytes())
        family = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(family) >= 3, "the warden, the command, the daemon"
    finally:
        os.kill(supervisor.pid, number)
        supervisor.wait()
    wait_for(lambda: not any(process.is_running() and process.status() != "zombie" for process in family))


def test_the_open_files_limit_is_raised_for_the_parts(tmp_path: Path) -> None:
    text = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    narrow = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096))\n" + SUPERVISOR
    log = tmp_path / "part.log"
    supervisor = subprocess.Popen([sys.executable, "-c", narrow, text, log])
    try:
        wait_for(lambda: log.exists() and log.read_bytes().endswith(b"\n"))
        assert log.read_text().strip() == "4096"
    finally:
        supervisor.kill()
        supervisor.wait()
