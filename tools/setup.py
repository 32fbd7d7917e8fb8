"""Makes the two environments that Tinsmith runs in, exactly as locked, and does nothing when they are current.

`.venv` holds the trainer, the local stack, the SDK and the development tools; `.venv-sample` holds SGLang, which
must not share a process with the trainer because importing it patches transformers. Only a Python 3.11 is needed:
uv, with which everything is installed, comes from the registry into `.venv-tools`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tools.packages import (
    LOG,
    ROOT,
    TOOLS_ENV,
    UV,
    SetupError,
    Sources,
    attempt,
    explain,
    pip_sources,
    require,
)

NEEDED_GIB = 6
# Raise this when the way in which environments are made changes, so that existing ones are made anew.
SCHEME = 1


@dataclass(frozen=True)
class Environment:
    """One virtual environment: its folder, its lock and the workspace packages installed editable into it."""

    name: str
    folder: Path
    lock: Path
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Holds the marks of what the environment was made from."""
        return self.folder / ".tinsmith-stamp"


ENVIRONMENTS = {
    "train": Environment(
        "train",
        ROOT / ".venv",
        ROOT / "locks" / "train.txt",
        ("libs/common", "services/train", "deploy/local"),
    ),
    "sample": Environment(
        "sample", ROOT / ".venv-sample", ROOT / "locks" / "sample.txt", ("libs/common", "services/sample")
    ),
}


def torch_version() -> str:
    """Return the one pin of torch, from the root pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["tool"]["tinsmith"]["torch"]


def chosen_device() -> str:
    """Return "cpu" or "gpu": what TINSMITH_DEVICE says, else whether an NVIDIA driver answers."""
    wish = os.environ.get("TINSMITH_DEVICE", "auto")
    if wish in {"cpu", "gpu"}:
        return wish
    if wish != "auto":
        raise SetupError(f"TINSMITH_DEVICE={wish} is not known: set it to cpu or gpu, or leave it unset.")
    nvidia_smi = shutil.which("nvidia-smi")
    answers = (
        nvidia_smi and subprocess.run([nvidia_smi, "-L"], capture_output=True, check=False).returncode == 0
    )
    return "gpu" if answers else "cpu"


def interpreter_mark() -> str:
    """Name what an environment cannot outlive: the interpreter, the repository's place, the way it is made."""
    return f"{SCHEME} {ROOT} {os.path.realpath(sys.executable)} {platform.python_version()}"


def content_mark(environment: Environment, device: str) -> str:
    """Hash what decides which packages the environment holds."""
    digest = hashlib.sha256(f"{device} {torch_version()}".encode())
    digest.update(environment.lock.read_bytes())
    for package in environment.packages:
        digest.update((ROOT / package / "pyproject.toml").read_bytes())
    return digest.hexdigest()


def read_stamp(environment: Environment) -> tuple[str, str]:
    """Return the marks of the interpreter and of the contents that the environment was made from."""
    if not (environment.stamp.is_file() and environment.python.exists()):
        return "", ""
    interpreter, _, content = environment.stamp.read_text().partition("\n")
    return interpreter, content


def write_stamp(environment: Environment, content: str) -> None:
    """Record how far the environment is; "unfinished" for its contents means that packages are missing."""
    environment.stamp.write_text(f"{interpreter_mark()}\n{content}")


def is_current(environment: Environment, device: str) -> bool:
    """Tell whether the environment was completed from today's locks."""
    return read_stamp(environment) == (interpreter_mark(), content_mark(environment, device))


def check_disk(folder: Path, needed_gib: int) -> None:
    """Fail before a download that cannot fit."""
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < needed_gib:
        raise SetupError(
            f"Only {free_gib:.1f} GB are free under {folder}: the set-up needs about {needed_gib} GB, free some and "
            "run `make setup` again."
        )


def ensure_uv() -> None:
    """Install the locked uv into `.venv-tools`, with the interpreter's own pip."""
    lock = ROOT / "locks" / "tools.txt"
    stamp = TOOLS_ENV / ".tinsmith-stamp"
    wanted = hashlib.sha256(lock.read_bytes() + f"{ROOT} {sys.version}".encode()).hexdigest()
    if UV.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return
    require([sys.executable, "-m", "venv", "--clear", TOOLS_ENV], "making .venv-tools")
    require(
        [TOOLS_ENV / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
         "--only-binary", ":all:", "-r", lock],
        "installing uv",
    )  # fmt: skip
    stamp.write_text(wanted)


def install_torch(environment: Environment, device: str, sources: Sources) -> None:
    """Install torch beside the lock: the CPU build unless there is a GPU to use it.

    On Linux the ordinary registry's torch brings several GB of CUDA packages, so the CPU build is asked for by its
    local version, first where this machine's pip looks, then in the index that uv knows.
    """
    install: list[str | Path] = [UV, "pip", "install", "--python", environment.python]
    version = torch_version()
    if device == "gpu":
        require([*install, "--torch-backend=auto", f"torch=={version}"], "installing torch for the GPU")
        return
    if platform.system() != "Linux":
        require([*install, "--no-deps", *sources.flags(), f"torch=={version}"], "installing torch")
        return
    spec = f"torch=={version}+cpu"
    found, _ = attempt([*install, "--no-deps", *sources.flags(extra_indexes=True), spec])
    if found:
        return
    found, output = attempt([*install, "--no-deps", "--torch-backend=cpu", spec])
    if not found:
        raise SetupError(explain(output, "installing the CPU build of torch"))


def install_sglang_kernels(environment: Environment) -> None:
    """Add what sglang's GPU path needs on top of the lock, which holds its CPU path only."""
    pin = next(line for line in environment.lock.read_text().splitlines() if line.startswith("sglang=="))
    require(
        [UV, "pip", "install", "--python", environment.python, "--torch-backend=auto", pin.split()[0]],
        "installing SGLang's GPU kernels",
    )


def refuse_cuda(environment: Environment) -> None:
    """Fail if a CUDA package came along although no GPU is used."""
    landed = sorted(
        path.name for path in environment.folder.glob("lib/python*/site-packages/nvidia_*.dist-info")
    )
    if landed:
        raise SetupError(
            f"CUDA packages landed in {environment.folder.name} without a GPU ({landed[0]}): remove that folder, "
            "and the requirement that brought them from the locks."
        )


def drop_extraneous(environment: Environment) -> None:
    """Remove packages that the lock no longer names."""
    listed = require([UV, "pip", "freeze", "--python", environment.python], "listing packages")
    present = set(re.findall(r"^([\w.-]+)==", listed, re.MULTILINE))
    locked = set(re.findall(r"^([\w.-]+)==", environment.lock.read_text(), re.MULTILINE))
    if extraneous := sorted(present - locked - {"torch"}):
        require([UV, "pip", "uninstall", "--python", environment.python, *extraneous], "removing packages")


def build(environment: Environment, device: str, sources: Sources) -> None:
    """Bring one environment to its lock: locked packages, torch, then Tinsmith's own; an interrupted one goes on."""
    check_disk(ROOT, NEEDED_GIB)
    name = environment.folder.name
    if read_stamp(environment)[0] != interpreter_mark():
        require(
            [UV, "venv", "--quiet", "--clear", "--force", "--python", sys.executable, environment.folder],
            f"making {name}",
        )
    write_stamp(environment, "unfinished")
    install: list[str | Path] = [UV, "pip", "install", "--python", environment.python, "--no-deps"]
    require(
        [*install, "--require-hashes", *sources.flags(), "-r", environment.lock],
        f"installing the packages of {name}",
    )
    install_torch(environment, device, sources)
    if device == "gpu" and environment.name == "sample":
        install_sglang_kernels(environment)
    editable = [flag for package in environment.packages for flag in ("--editable", ROOT / package)]
    require([*install, "--no-build-isolation", *editable], f"installing Tinsmith into {name}")
    if device == "cpu":
        drop_extraneous(environment)
        refuse_cuda(environment)
    write_stamp(environment, content_mark(environment, device))


def set_up(names: list[str]) -> None:
    """Bring the named environments up to date."""
    device = chosen_device()
    stale = [ENVIRONMENTS[name] for name in names if not is_current(ENVIRONMENTS[name], device)]
    if not stale:
        return
    LOG.parent.mkdir(exist_ok=True)
    with (LOG.parent / ".setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ensure_uv()
        sources = pip_sources()
        for environment in stale:
            if is_current(environment, device):
                continue
            started = time.monotonic()
            print(
                f"setting up {environment.folder.name} ({device}; log: {LOG.relative_to(ROOT)}) …", flush=True
            )
            build(environment, device, sources)
            print(f"{environment.folder.name} is ready after {time.monotonic() - started:.0f} s", flush=True)


def main() -> int:
    """Run the set-up; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.setup", description=__doc__)
    parser.add_argument(
        "environments", nargs="*", metavar="ENVIRONMENT", help=f"{' or '.join(ENVIRONMENTS)} (default: both)"
    )
    names = parser.parse_args().environments or list(ENVIRONMENTS)
    if unknown := [name for name in names if name not in ENVIRONMENTS]:
        parser.error(f"no such environment: {unknown[0]}")
    try:
        if sys.version_info[:2] != (3, 11):
            raise SetupError(
                "The set-up runs on Python 3.11 only: start it with `make setup`, which looks for one."
            )
        set_up(names)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"The set-up could not write its files ({error}): check the disk and the folder's rights.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("Set-up interrupted: run the same command again and it goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
