"""The SDK versions that are tested, and an environment for each, exactly as locked.

All share one lock of what they depend on; each has a lock of its own for the SDK itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
from pathlib import Path

from tools.packages import ROOT, UV, SetupError, pip_sources, require
from tools.resolving import compile_lock
from tools.setup import ensure_uv, interpreter_mark

VERSIONS = ("0.16.1", "0.24.1", "0.25.0", "0.30.4", "0.36.0", "0.38.0")
QUICK = ("0.16.1", "0.38.0")
"""The oldest and the newest: what an ordinary test run tries."""

LOCKS = ROOT / "locks" / "sdks"
SHARED_LOCK = LOCKS / "dependencies.txt"


def sdk_lock(version: str) -> Path:
    """The lock of one SDK, without what it depends on."""
    return LOCKS / f"tinker-{version}.txt"


def python_of(version: str) -> Path:
    """The interpreter that has this SDK."""
    return _folder(version) / "bin" / "python"


def make_environment(version: str) -> None:
    """Make the environment of one SDK, unless it is there as locked. Raises SetupError."""
    lock = sdk_lock(version)
    if not lock.is_file():
        raise SetupError(f"There is no lock for tinker {version}: known are {', '.join(VERSIONS)}.")
    folder, stamp = _folder(version), _folder(version) / ".tinsmith-stamp"
    digest = hashlib.sha256(SHARED_LOCK.read_bytes() + lock.read_bytes()).hexdigest()
    wanted = f"{interpreter_mark()}\n{digest}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        ensure_uv()
        shutil.rmtree(folder, ignore_errors=True)
        require([UV, "venv", "--quiet", "--python", sys.executable, folder], f"making {folder.name}")
        locks = ["-r", SHARED_LOCK, "-r", lock]
        install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", python_of(version)]
        require(
            [*install, "--no-deps", "--require-hashes", *pip_sources().flags(), *locks],
            f"installing tinker {version}",
        )
        stamp.write_text(wanted)


def write_locks(*, upgrade: bool) -> None:
    """Resolve every SDK; raises SetupError when two of them cannot have the same dependencies."""
    LOCKS.mkdir(exist_ok=True)
    shared: dict[str, str] = {}
    for version in VERSIONS:
        wish, target = LOCKS / f".{version}.in", LOCKS / f".{version}.txt"
        try:
            wish.write_text(f"tinker=={version}\n")
            if SHARED_LOCK.is_file():
                target.write_text(SHARED_LOCK.read_text())
            compile_lock(target, [wish], upgrade=upgrade)
            head, blocks = _split(target.read_text())
        finally:
            wish.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
        sdk_lock(version).write_text(head + blocks.pop("tinker"))
        if clash := [name for name in blocks if shared.get(name, blocks[name]) != blocks[name]]:
            raise SetupError(f"tinker {version} needs another {clash[0]} than the versions before it.")
        shared |= blocks
        SHARED_LOCK.write_text(head + "".join(shared[name] for name in sorted(shared)))


def _split(lock: str) -> tuple[str, dict[str, str]]:
    """The head of a lock, and its pins with their hashes by name."""
    lines = lock.splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if "==" in line)
    blocks: dict[str, str] = {}
    name = ""
    for line in lines[first:]:
        if "==" in line and not line.startswith(" "):
            name = line.partition("==")[0]
        blocks[name] = blocks.get(name, "") + line
    return "".join(lines[:first]), blocks


def _folder(version: str) -> Path:
    return ROOT / ".venv-sdks" / version
