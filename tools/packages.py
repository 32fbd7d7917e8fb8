"""Runs uv and pip for the set-up: a log instead of chatter, and one sentence for what went wrong."""

from __future__ import annotations

import ast
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS_ENV = ROOT / ".venv-tools"
UV = TOOLS_ENV / "bin" / "uv"
LOG = ROOT / "out" / "setup.log"

_NETWORK_MARKS = (
    "error sending request",
    "dns error",
    "failed to fetch",
    "failed to establish a new connection",
    "connection refused",
    "connection reset",
    "connecttimeout",
    "network is unreachable",
    "name resolution",
    "timed out",
    "could not connect",
    "client error (connect)",
    "could not find a version that satisfies",
    "no matching distribution",
)
_DISK_MARKS = ("no space left on device", "disk quota exceeded", "os error 28", "errno 28")
_HASH_MARKS = ("hash mismatch", "do not match the hashes")


class SetupError(Exception):
    """The set-up cannot go on; the message is one sentence that says what to do."""


@dataclass(frozen=True)
class Sources:
    """Where this machine's pip looks for packages, so that uv looks there too."""

    find_links: tuple[str, ...] = ()
    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()

    def flags(self, *, extra_indexes: bool = False) -> list[str]:
        """Return uv's flags for these places; `extra_indexes` adds pip's second-rank indexes."""
        flags = [flag for place in self.find_links for flag in ("--find-links", place)]
        if self.index_url:
            flags += ["--default-index", self.index_url]
        if extra_indexes:
            flags += [flag for url in self.extra_index_urls for flag in ("--index", url)]
        return flags


def parse_pip_config(listing: str) -> Sources:
    """Read the output of `pip config list`; the environment outranks `[install]`, which outranks `[global]`."""
    values: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.strip().rpartition(".")
        if section in values:
            values[section][name] = str(ast.literal_eval(value))
    merged = values["global"] | values["install"] | values[":env:"]
    return Sources(
        find_links=tuple(merged.get("find-links", "").split()),
        index_url=merged.get("index-url"),
        extra_index_urls=tuple(merged.get("extra-index-url", "").split()),
    )


def pip_sources() -> Sources:
    """Ask the set-up's own pip for its configuration."""
    listing = subprocess.run(
        [TOOLS_ENV / "bin" / "python", "-m", "pip", "config", "list"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return parse_pip_config(listing.stdout if listing.returncode == 0 else "")


def clean_environment() -> dict[str, str]:
    """Return the environment without what would lead pip or uv to another Python or environment."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT"}
    }
    return environment | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}


def explain(output: str, doing: str) -> str:
    """Turn the output of a failed installer into one sentence."""
    text = output.lower()
    log = LOG.relative_to(ROOT)
    if any(mark in text for mark in _DISK_MARKS):
        return f"The disk is full ({doing}): free about 6 GB, then run `make setup` again (details: {log})."
    if any(mark in text for mark in _HASH_MARKS):
        return (
            f"A download does not match its locked hash ({doing}): clear the cache with "
            f"`.venv-tools/bin/uv cache clean` and run `make setup` again (details: {log})."
        )
    if any(mark in text for mark in _NETWORK_MARKS):
        return (
            f"The package registry cannot be reached, or lacks a package ({doing}): check the network and pip's index "
            f"settings, then run `make setup` again (details: {log})."
        )
    return f"The set-up failed ({doing}): read the end of {log}, then run `make setup` again."


def attempt(command: list[str | Path], *, cwd: Path = ROOT) -> tuple[bool, str]:
    """Run one installer command, appending what it prints to the log; returns (succeeded, its output)."""
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("a", encoding="utf-8") as log:
        log.write("$ " + " ".join(map(str, command)) + "\n")
        log.flush()
        done = subprocess.run(
            command, cwd=cwd, env=clean_environment(), text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        log.write(done.stdout)
    return done.returncode == 0, done.stdout


def require(command: list[str | Path], doing: str) -> str:
    """Run one installer command and return its output, or raise SetupError with what to do."""
    succeeded, output = attempt(command)
    if not succeeded:
        raise SetupError(explain(output, doing))
    return output
