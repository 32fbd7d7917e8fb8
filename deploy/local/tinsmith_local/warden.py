"""Runs one command and guarantees that nothing of it outlives the supervisor.

Started as a script of its own (standard library only) between the supervisor and each part of the stack:

    python -I -S warden.py CONTROL_FD GRACE_S REMOVE_DIR COMMAND...

As a child subreaper it inherits every orphan of the command, so that its process tree is always complete, however its
members detach themselves. CONTROL_FD is the read end of a pipe whose only writer is the supervisor:

    "S"          SIGTERM to the command, and after GRACE_S seconds SIGKILL to all that is left
    "K" or end   SIGKILL to all: the supervisor asked for it, or has itself died in any way, SIGKILL included

When the command ends, the rest of its tree is killed, REMOVE_DIR (unless empty) is deleted, and the exit status is the
command's (128 + n when a signal n ended it).
"""

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import sys
import time
from types import FrameType

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_LIMIT_S = 10.0
# Thousands of long polls are one socket each on both sides of the gateway.
_OPEN_FILES = 65536


def main(arguments: list[str]) -> int:
    """Run the command to its end; returns the exit status."""
    control, grace_s, remove_dir, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _raise_open_files()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, _wake_only)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    child = _spawn(libc, command)
    status = _watch(child, int(control), float(grace_s), wake_read)
    status = _kill_all(child, status)
    if remove_dir:
        shutil.rmtree(remove_dir, ignore_errors=True)
    return status


def _wake_only(_number: int, _frame: FrameType | None) -> None:
    """A handler for the signal's byte to reach the wake-up pipe."""


def _spawn(libc: ctypes.CDLL, command: list[str]) -> int:
    warden = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        # Should the warden itself be killed, the command at least goes with it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != warden:
            os._exit(1)
        for number in (
            signal.SIGCHLD,
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGPIPE,
        ):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _watch(child: int, control: int, grace_s: float, wake: int) -> int | None:
    """Wait for the child's end (its status) or for an order to kill (None)."""
    deadline = None
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(wake, select.POLLIN)
    while True:
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = dict(waiting.poll(None if remaining is None else remaining * 1000))
        stop = False
        if control in ready:
            order = os.read(control, 1)
            if order != b"S":
                return None
            stop = True
        if wake in ready:
            stop = stop or signal.SIGTERM in os.read(wake, 4096)
        if stop and deadline is None:
            os.kill(child, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        status = _reap(child)
        if status is not None:
            return status
        if deadline is not None and time.monotonic() >= deadline:
            return None


def _reap(child: int) -> int | None:
    """Collect every ended process; the child's exit status if it was among them."""
    status = None
    while True:
        try:
            pid, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            code = os.waitstatus_to_exitcode(raw)
            status = code if code >= 0 else 128 - code


def _kill_all(child: int, status: int | None) -> int:
    """SIGKILL until no descendant is left: having no child of one's own is the proof, orphans become ours."""
    give_up = time.monotonic() + _KILL_LIMIT_S
    while time.monotonic() < give_up:
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended = _reap(child)
        status = ended if ended is not None else status
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return 128 + signal.SIGKILL if status is None else status
        time.sleep(0.01)
    print("some processes could not be killed", file=sys.stderr, flush=True)
    return 128 + signal.SIGKILL


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The name may hold spaces and brackets; the parent's id is the second field after it.
                    parent = int(file.read().rsplit(b")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        direct = children.get(pending.pop(), [])
        found += direct
        pending += direct
    return found


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
