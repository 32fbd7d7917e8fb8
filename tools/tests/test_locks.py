"""What the locks may and may not hold."""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tools.packages import ROOT
from tools.setup import chosen_device, torch_version

LOCKS = sorted(path for path in (ROOT / "locks").rglob("*.txt") if not path.stem.endswith("-excludes"))
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_address(lock: Path) -> None:
    assert re.findall(r"\w+://\S+|^-.*$", lock.read_text(), re.MULTILINE) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_pin_has_a_hash(lock: Path) -> None:
    blocks = re.split(r"^(?=[\w.-]+==)", lock.read_text(), flags=re.MULTILINE)[1:]
    assert blocks
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_no_lock_holds_torch_or_cuda() -> None:
    names = {name for lock in LOCKS for name, _ in PIN.findall(lock.read_text())}
    assert {
        name for name in names if name == "torch" or name.startswith(("nvidia", "cuda", "flashinfer"))
    } == set()


@pytest.mark.skipif(chosen_device() == "gpu", reason="a GPU is used")
def test_no_cuda_package_is_installed_without_a_gpu() -> None:
    assert sorted(each.name for each in distributions() if each.name.startswith("nvidia")) == []


@pytest.mark.skipif(chosen_device() == "gpu" or sys.platform != "linux", reason="only Linux has a CPU build")
def test_the_installed_torch_is_the_pinned_cpu_build() -> None:
    import torch

    assert torch.__version__ == f"{torch_version()}+cpu"


def test_torch_is_pinned_in_one_place() -> None:
    pinned = re.compile(r"torch *[=~<>]=")
    files = [ROOT / "pyproject.toml", *ROOT.glob("*/*/pyproject.toml"), *LOCKS]
    assert [str(file.relative_to(ROOT)) for file in files if pinned.search(file.read_text())] == []
