"""One part of the stack as a running process tree under its warden."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tinsmith_local.console import Console

_WARDEN = Path(__file__).with_name("warden.py")
_TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to run: `env` is added to the supervisor's own, `remove_dir` is deleted when all of it has ended."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    grace_s: float = 5.0
    remove_dir: Path | None = None


class PartProcess:
    """A started command, all of its descendants included, with its output in a log file and on the console."""

    def __init__(
        self, launch: Launch, log: Path, console: Console, on_exit: Callable[["PartProcess"], None]
    ) -> None:
        self.name = launch.name
        self.launch = launch
        self.log = log
        self.exit_code: int | None = None
        self.expected = False
        """Set before it is stopped or killed on purpose: its end is then no crash."""
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._console = console
        self._on_exit = on_exit
        self._ended = threading.Event()
        self._order_lock = threading.Lock()
        self._popen, self._control = _start_warden(launch, foreground=False)
        self._reader = threading.Thread(target=self._read, name=f"{self.name}-log", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name=f"{self.name}-wait", daemon=True).start()

    @property
    def pid(self) -> int:
        """The warden's process id, root of the part's tree."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether anything of it is left."""
        return not self._ended.is_set()

    def stop(self) -> None:
        """Ask it to end (SIGTERM, then SIGKILL after its grace); returns at once."""
        self._order(b"S")

    def kill(self) -> None:
        """SIGKILL the whole tree; returns at once."""
        self._order(b"K")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing of it is left; False when `timeout_s` passed first."""
        return self._ended.wait(timeout_s)

    def tail(self) -> list[str]:
        """The last lines of its output."""
        return list(self._tail)

    def _order(self, order: bytes) -> None:
        self.expected = True
        # The lock keeps the descriptor from being closed, and its number lent to another file, under the write.
        with self._order_lock, contextlib.suppress(BrokenPipeError):
            if self.running:
                os.write(self._control, order)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output, self.log.open("ab", buffering=0) as file:
            for raw in output:
                file.write(raw)
                # Of a progress bar only its last state.
                line = raw.decode(errors="replace").rstrip("\r\n").rsplit("\r", 1)[-1]
                self._tail.append(line)
                self._console.log(self.name, line)

    def _wait(self) -> None:
        self.exit_code = self._popen.wait()
        # Bounded: after the death of a warden something of the part may still hold the pipe.
        self._reader.join(timeout=2.0)
        with self._order_lock:
            self._ended.set()
            os.close(self._control)
        self._on_exit(self)


class ForegroundCommand:
    """A command on the caller's own terminal (Ctrl-C reaches it directly), under a warden all the same."""

    def __init__(self, launch: Launch) -> None:
        self._popen, self._control = _start_warden(launch, foreground=True)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._popen.poll()

    def stop(self) -> int:
        """End it (SIGTERM, then SIGKILL after its grace) and return its exit status."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, b"S")
        return self._popen.wait()


def _start_warden(launch: Launch, *, foreground: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The warden and the write end of its control pipe, which no other process inherits."""
    control_read, control_write = os.pipe()
    remove_dir = "" if launch.remove_dir is None else str(launch.remove_dir)
    warden = [sys.executable, "-I", "-S", str(_WARDEN), str(control_read), str(launch.grace_s), remove_dir]
    try:
        popen = subprocess.Popen(
            [*warden, *launch.command],
            env={**os.environ, **launch.env},
            stdin=None if foreground else subprocess.DEVNULL,
            stdout=None if foreground else subprocess.PIPE,
            stderr=None if foreground else subprocess.STDOUT,
            pass_fds=(control_read,),
            # Out of reach of the terminal's Ctrl-C: the supervisor decides who stops when.
            start_new_session=not foreground,
        )
    except BaseException:
        os.close(control_write)
        raise
    finally:
        os.close(control_read)
    return popen, control_write
