"""The rooms of the repository: who may import whom."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "tinsmith_common": ROOT / "libs" / "common",
    "tinsmith_train": ROOT / "services" / "train",
    "tinsmith_sample": ROOT / "services" / "sample",
    "tinsmith_local": ROOT / "deploy" / "local",
}
# From the top down; a file may import from its own room and from those below.
ROOMS = {
    "tinsmith_train": ("routers", "services", "scheduler", "backends", "engine"),
    "tinsmith_sample": ("routers", "services", "engines"),
}
# The modules that put a service together stand above all of its rooms.
ASSEMBLY = {"api", "runtime", "__main__"}
# Built for CUDA or installed elsewhere, so not in the environment that runs this test.
NOT_INSTALLED_HERE = {"sglang": "sglang", "msgspec": "msgspec", "flash_attn": "flash-attn-4"}


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands and the dotted name that it takes."""

    file: Path
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def imports(package: str) -> Iterator[Import]:
    """Yield what the files of a package import, at any depth, relative imports made absolute."""
    folder = PACKAGES[package]
    for file in sorted((folder / package).rglob("*.py")):
        parents = file.relative_to(folder).parent.parts
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (Import(file, node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
                module = ".".join(part for part in (base, node.module) if part)
                # `from package import room` names the room only in its second half.
                yield from (Import(file, node.lineno, f"{module}.{alias.name}") for alias in node.names)


def test_the_import_scan_sees_the_packages() -> None:
    assert all(any(imports(package)) for package in PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_no_other_of_ours_but_common(package: str) -> None:
    others = PACKAGES.keys() - {package, "tinsmith_common"}
    assert [str(each) for each in imports(package) if each.name.split(".")[0] in others] == []


@pytest.mark.parametrize("package", ROOMS)
def test_a_file_imports_downward_only(package: str) -> None:
    rooms = ROOMS[package]
    upward: list[str] = []
    for each in imports(package):
        room = each.file.relative_to(PACKAGES[package] / package).parts[0]
        top, _, rest = each.name.partition(".")
        if room not in rooms or top != package:
            continue
        target = rest.split(".")[0]
        if target in ASSEMBLY or (target in rooms and rooms.index(target) < rooms.index(room)):
            upward.append(str(each))
    assert upward == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_folder_of_a_service_is_a_known_room(package: str) -> None:
    folders = {path.parent.name for path in (PACKAGES[package] / package).glob("*/__init__.py")}
    assert folders == set(ROOMS[package])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_declares_what_it_imports(package: str) -> None:
    project = tomllib.loads((PACKAGES[package] / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    declared = {canonicalize_name(Requirement(line).name) for line in needed}
    providers = dict(packages_distributions()) | {name: [dist] for name, dist in NOT_INSTALLED_HERE.items()}
    undeclared: list[str] = []
    for each in imports(package):
        top = each.name.split(".")[0]
        if top in sys.stdlib_module_names or top in PACKAGES:
            continue
        if declared.isdisjoint(canonicalize_name(name) for name in providers.get(top, [])):
            undeclared.append(str(each))
    assert undeclared == []
