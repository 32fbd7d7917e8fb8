"""Writes locks/*.txt from the pyproject files: `make lock`.

Existing pins stay unless a requirement rules them out; `--upgrade` moves everything to the newest that fits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.compatibility.sdks import write_locks
from tools.packages import ROOT, SetupError
from tools.resolving import compile_lock
from tools.setup import ENVIRONMENTS, Environment, ensure_uv


def environment_arguments(environment: Environment) -> list[str | Path]:
    """Name what an environment is resolved from: its packages, its dependency group, and what is left out."""
    return [
        *(ROOT / package / "pyproject.toml" for package in environment.packages),
        "--group", f"pyproject.toml:{environment.name}-env",
        "--excludes", environment.lock.with_name(f"{environment.name}-excludes.txt"),
    ]  # fmt: skip


def main() -> int:
    """Write all locks; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.lock", description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    upgrade = parser.parse_args().upgrade
    try:
        ensure_uv()
        compile_lock(ROOT / "locks" / "tools.txt", ["--group", "pyproject.toml:bootstrap"], upgrade=upgrade)
        compile_lock(
            ROOT / "locks" / "pants.txt", ["--group", "pyproject.toml:pants"], upgrade=upgrade, python="3.9"
        )
        for environment in ENVIRONMENTS.values():
            compile_lock(environment.lock, environment_arguments(environment), upgrade=upgrade)
        write_locks(upgrade=upgrade)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
