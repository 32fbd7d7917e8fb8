"""Resolves requirements into a lock file."""

from __future__ import annotations

from pathlib import Path

from tools.packages import UV, pip_sources, require

HEADER = "# Written by `make lock` from the pyproject files; do not edit.\n"


def compile_lock(target: Path, arguments: list[str | Path], *, upgrade: bool, python: str = "3.11") -> None:
    """Resolve `arguments` into `target`: every platform, hashes for every file, no address of any registry."""
    flags = [
        "--universal",
        "--python-version",
        python,
        "--no-sources",
        "--generate-hashes",
        *pip_sources().flags(),
    ]
    quiet = ["--quiet", "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    newest = ["--upgrade"] if upgrade else []
    require(
        [UV, "pip", "compile", *flags, *quiet, *newest, *arguments, "--output-file", target],
        f"resolving {target.name}",
    )
    pins = target.read_text()
    target.write_text(HEADER + pins.removeprefix(HEADER))
