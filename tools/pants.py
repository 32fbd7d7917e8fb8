"""Runs Pants on machines that reach nothing but the package registry: `python -m tools.pants [GOAL …]`.

Pants 2.17.1 is the newest that is published there. It runs on CPython 3.9, and its one download, the Pex command
line, is built from the same registry. What the resolves hold is packed from the environments of `make setup`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tools.packages import ROOT, UV, SetupError, clean_environment, pip_sources, require
from tools.setup import ENVIRONMENTS, check_disk
from tools.wheels import Installed, installed, pack, pack_closure, pex_lock

PANTS_ENV = ROOT / ".venv-pants"
LOCK = ROOT / "locks" / "pants.txt"
PEX_CLI = PANTS_ENV / "pex-cli"
RESOLVES = ROOT / "out" / "pants"
NEEDED_GIB = 6
PARTS = ("libs::", "services/train::", "services/sample::")


@dataclass(frozen=True)
class Resolve:
    """What one part's tests may import: its packages' requirements and some more, from one environment."""

    name: str
    environment: str
    packages: tuple[str, ...]
    more: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


ALL_RESOLVES = (
    Resolve("common", "train", ("libs/common",), more=("tinker", "torch")),
    Resolve("train", "train", ("libs/common", "services/train"), more=("peft", "tinker")),
    Resolve("sample", "sample", ("libs/common", "services/sample"), left_out=("sglang", "torch")),
)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file."""
    with path.open("rb") as file:
        return tomllib.load(file)


def roots(resolve: Resolve) -> list[str]:
    """List the requirements that a resolve starts from."""
    test_group: list[str] = read_toml(ROOT / "pyproject.toml")["dependency-groups"]["test"]
    wanted = [*test_group, *resolve.more]
    for package in resolve.packages:
        wanted += read_toml(ROOT / package / "pyproject.toml")["project"]["dependencies"]
    return wanted


def site_packages(environment: Path) -> Path:
    """Return the folder in which an environment keeps its packages."""
    return next(environment.glob("lib/python3*/site-packages"))


def available(resolve: Resolve) -> Installed:
    """Index what the resolve's environment holds, less what the resolve leaves out and our own packages."""
    return {
        name: distribution
        for name, distribution in installed(site_packages(ENVIRONMENTS[resolve.environment].folder)).items()
        if name not in resolve.left_out and not name.startswith("tinsmith")
    }


def write_resolves() -> None:
    """Write every resolve's lock, and a BUILD file with one target for each of its packages."""
    build_lines: list[str] = []
    for resolve in ALL_RESOLVES:
        wheels = pack_closure(roots(resolve), available(resolve), RESOLVES / "wheels")
        (RESOLVES / f"{resolve.name}.json").write_text(pex_lock(wheels, locked_version("pex")))
        (RESOLVES / f"{resolve.name}.txt").write_text("".join(f"{wheel.pin}\n" for wheel in wheels))
        build_lines.append(
            f'python_requirements(name="{resolve.name}", source="{resolve.name}.txt", resolve="{resolve.name}")\n'
        )
    (RESOLVES / "BUILD").write_text("".join(build_lines))


def locked_version(name: str) -> str:
    """Return a pin of locks/pants.txt."""
    start = f"{name}=="
    line = next(line for line in LOCK.read_text().splitlines() if line.startswith(start))
    return line.removeprefix(start).split()[0]


def find_python39() -> Path:
    """Return a CPython 3.9 that runs: PYTHON39, one on the PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = os.environ.get("PYTHON39")
    candidates = [named] if named else ["python3.9", *map(str, sorted(pyenv.glob("3.9*/bin/python3.9")))]
    check = "import sys; sys.exit(sys.version_info[:2] != (3, 9) or sys.implementation.name != 'cpython')"
    for candidate in candidates:
        path = shutil.which(candidate)
        if path and subprocess.run([path, "-c", check], capture_output=True, check=False).returncode == 0:
            return Path(path)
    raise SetupError(
        "CPython 3.9 was not found, and Pants 2.17.1 runs on nothing newer: install it (with pyenv, for example) or "
        "give its path, as in `make test-pants PYTHON39=/path/to/python3.9`."
    )


def ensure_pants() -> None:
    """Install the locked Pants into `.venv-pants` and build the Pex command line there."""
    python39 = find_python39()
    stamp = PANTS_ENV / ".tinsmith-stamp"
    wanted = hashlib.sha256(LOCK.read_bytes() + f"{ROOT} {python39}".encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    check_disk(ROOT, NEEDED_GIB)
    stamp.unlink(missing_ok=True)
    require(
        [UV, "venv", "--quiet", "--clear", "--force", "--python", python39, PANTS_ENV], "making .venv-pants"
    )
    python = PANTS_ENV / "bin" / "python"
    require(
        [
            UV,
            "pip",
            "install",
            "--python",
            python,
            "--no-deps",
            "--require-hashes",
            *pip_sources().flags(),
            "-r",
            LOCK,
        ],
        "installing Pants",
    )
    # Packed from what was just installed, so nothing is fetched. Pants hands its settings to this program through
    # the environment, which a Pex file drops unless told not to.
    pex = pack(installed(site_packages(PANTS_ENV))[canonicalize_name("pex")], PANTS_ENV)
    require(
        [python, "-m", "pex", pex, "-c", "pex", "--no-pypi", "--no-strip-pex-env", "-o", PEX_CLI],
        "building the Pex command line",
    )
    stamp.write_text(wanted)


def pants_environment() -> dict[str, str]:
    """Return the environment in which Pants finds its overlay, its caches, our Pex and this Python 3.11."""
    pex = PEX_CLI.read_bytes()
    known = [
        f"v{locked_version('pex')}|{platform}|{hashlib.sha256(pex).hexdigest()}|{len(pex)}"
        for platform in ("linux_x86_64", "linux_arm64", "macos_x86_64", "macos_arm64")
    ]
    python311 = Path(os.path.realpath(sys.executable)).parent
    return clean_environment() | {
        "PANTS_CONFIG_FILES": str(["pants.toml", "pants.ci.toml"]),
        "PANTS_LOCAL_STORE_DIR": str(PANTS_ENV / "cache" / "store"),
        "PANTS_NAMED_CACHES_DIR": str(PANTS_ENV / "cache" / "named"),
        "PANTS_PEX_CLI_URL_TEMPLATE": PEX_CLI.as_uri(),
        "PANTS_PEX_CLI_KNOWN_VERSIONS": str(known),
        "PANTS_PYTHON_BOOTSTRAP_SEARCH_PATH": str([str(python311)]),
    }


def main() -> int:
    """Prepare, then run the given Pants command (default: the tests of every part); returns its exit status."""
    command = sys.argv[1:] or ["test", *PARTS]
    try:
        write_resolves()
        if command == ["resolves"]:
            return 0
        ensure_pants()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return subprocess.run(
        [PANTS_ENV / "bin" / "pants", *command], cwd=ROOT, env=pants_environment(), check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
