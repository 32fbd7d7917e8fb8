"""Wheels packed again from an environment."""

import json
import sys
import sysconfig
import zipfile
from pathlib import Path

from packaging.utils import canonicalize_name

from tools.wheels import closure, installed, pack, pack_closure, pex_lock, wheel_name

HERE = installed(Path(sysconfig.get_path("purelib")))


def test_a_packed_wheel_holds_the_installed_files_and_their_record(tmp_path: Path) -> None:
    wheel = pack(HERE[canonicalize_name("pluggy")], tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = archive.read(next(name for name in names if name.endswith("/RECORD"))).decode()
    assert "pluggy/__init__.py" in names
    assert {line.split(",")[0] for line in record.splitlines()} == names


def test_a_packed_wheel_has_no_trace_of_its_installer(tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(HERE[canonicalize_name("pluggy")], tmp_path)) as archive:
        assert not [
            name for name in archive.namelist() if name.endswith(("INSTALLER", "uv_cache.json", ".pyc"))
        ]


def test_a_wheels_name_carries_its_tags() -> None:
    assert wheel_name(HERE[canonicalize_name("pluggy")]).endswith("-py3-none-any.whl")
    assert f"-cp3{sys.version_info[1]}-" in wheel_name(HERE[canonicalize_name("numpy")])


def test_the_closure_follows_extras() -> None:
    assert canonicalize_name("greenlet") in closure(["sqlalchemy[asyncio]"], HERE)
    assert canonicalize_name("greenlet") not in closure(["sqlalchemy"], HERE)


def test_a_lock_pins_the_closure_to_local_files(tmp_path: Path) -> None:
    wheels = pack_closure(["pytest"], HERE, tmp_path)
    lock = json.loads(pex_lock(wheels, "2.1.137"))
    entries = lock["locked_resolves"][0]["locked_requirements"]
    assert {"pytest", "pluggy", "iniconfig"} <= {entry["project_name"] for entry in entries}
    assert all(entry["artifacts"][0]["url"].startswith("file://") for entry in entries)
