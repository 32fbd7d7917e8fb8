"""Packs installed distributions back into wheels, and writes the Pex lock that names them.

Pants installs each of its resolves from a lock of addresses and hashes. Ours has the hashes in locks/*.txt and may
hold no address, so the wheels are made again from the environment that was installed from those locks: the same
files, the CPU build of torch included, with nothing to download.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

# Written by the installer, so not part of the wheel.
INSTALLERS_FILES = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}

Installed = dict[NormalizedName, Distribution]


@dataclass(frozen=True)
class Wheel:
    """One packed distribution, as a Pex lock describes it."""

    name: str
    version: str
    extras: tuple[str, ...]
    requires: tuple[str, ...]
    path: Path
    sha256: str

    @property
    def pin(self) -> str:
        """The exact requirement, with the extras that are used; Pex wants them repeated at run time."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        return f"{self.name}{extras}=={self.version}"


def installed(site_packages: Path) -> Installed:
    """Index the distributions of an environment by their normalised names."""
    return {
        canonicalize_name(distribution.name): distribution
        for distribution in (PathDistribution(path) for path in site_packages.glob("*.dist-info"))
    }


def requirements_of(
    distribution: Distribution, extras: Iterable[str], known: Installed
) -> Iterator[Requirement]:
    """Yield what a distribution needs here, with these extras, leaving out what was kept out of the environment."""
    contexts = [{"extra": extra} for extra in ("", *extras)]
    for line in distribution.requires or ():
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate(context) for context in contexts
        )
        if wanted and canonicalize_name(requirement.name) in known:
            yield requirement


def without_marker(requirement: Requirement) -> str:
    """Return the requirement as text, its marker (which holds here) dropped."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def closure(roots: Iterable[str], known: Installed) -> dict[NormalizedName, set[str]]:
    """Return every distribution that the roots need, each with the extras that are asked of it."""
    found: dict[NormalizedName, set[str]] = {}
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in known:
            continue
        extras = found.get(name)
        if extras is not None and requirement.extras <= extras:
            continue
        found[name] = (extras or set()) | requirement.extras
        waiting.extend(requirements_of(known[name], found[name], known))
    return found


def wheel_name(distribution: Distribution) -> str:
    """Return the file name that the distribution's wheel had, up to the order of its tags."""
    lines = (distribution.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag:").strip().split("-") for line in lines if line.startswith("Tag:")]
    compressed = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    return f"{canonicalize_name(distribution.name).replace('-', '_')}-{distribution.version}-{compressed}.whl"


def belongs(recorded: str) -> bool:
    """Tell whether a file of a RECORD came in the wheel, and inside site-packages."""
    if recorded.startswith(("..", "/")) or recorded.endswith(".pyc"):
        return False
    return Path(recorded).name not in INSTALLERS_FILES


def pack(distribution: Distribution, folder: Path) -> Path:
    """Write the distribution's wheel into `folder`, uncompressed, unless it is there.

    Files outside site-packages (scripts, which are made again from the entry points) are left out.
    """
    target = folder / wheel_name(distribution)
    if target.exists():
        return target
    record = list(csv.reader((distribution.read_text("RECORD") or "").splitlines()))
    kept = [row for row in record if belongs(row[0])]
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for name, *_ in kept:
            if name.endswith(".dist-info/RECORD"):
                text = io.StringIO()
                csv.writer(text, lineterminator="\n").writerows(kept)
                archive.writestr(name, text.getvalue())
            else:
                archive.write(str(distribution.locate_file(name)), name)
    return unfinished.rename(target)


def pack_closure(roots: Iterable[str], known: Installed, folder: Path) -> list[Wheel]:
    """Pack everything that the roots need."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels: list[Wheel] = []
    for name, extras in sorted(closure(roots, known).items()):
        distribution = known[name]
        path = pack(distribution, folder)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        requires = tuple(without_marker(each) for each in requirements_of(distribution, extras, known))
        wheels.append(Wheel(name, distribution.version, tuple(sorted(extras)), requires, path, sha256))
    return wheels


def pex_lock(wheels: Iterable[Wheel], pex_version: str) -> str:
    """Return a Pex lock of these wheels, all of them as roots."""
    wheels = list(wheels)
    locked = [
        {
            "artifacts": [{"algorithm": "sha256", "hash": wheel.sha256, "url": wheel.path.as_uri()}],
            "project_name": wheel.name,
            "requires_dists": list(wheel.requires),
            "requires_python": None,
            "version": wheel.version,
        }
        for wheel in wheels
    ]
    lock = {
        "allow_builds": False,
        "allow_prereleases": True,
        "allow_wheels": True,
        "build_isolation": True,
        "constraints": [],
        "locked_resolves": [{"locked_requirements": locked, "platform_tag": None}],
        "path_mappings": {},
        "pex_version": pex_version,
        "pip_version": "20.3.4-patched",
        "prefer_older_binary": False,
        "requirements": [wheel.pin for wheel in wheels],
        "requires_python": ["==3.11.*"],
        "resolver_version": "pip-2020-resolver",
        "style": "universal",
        "target_systems": ["linux", "mac"],
        "transitive": True,
        "use_pep517": None,
    }
    return json.dumps(lock, indent=2) + "\n"
