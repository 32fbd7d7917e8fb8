"""One real stack (Ray, Envoy, two stand-in services) for all tests that only look at it."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tinsmith_local import Stack, StackConfig

STANDIN = Path(__file__).with_name("standin.py")
MANIFESTS = Path(__file__).parents[2] / "kgateway"

RUN_STANDIN = """
import runpy, sys
sys.argv = [{standin!r}, {name!r}, {variable!r}]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_service(folder: Path, package: str, text: str) -> None:
    (folder / package).mkdir(exist_ok=True)
    # Without it the folder would be a namespace package, and an installed service of that name would win.
    (folder / package / "__init__.py").touch()
    (folder / package / "__main__.py").write_text(text)


@pytest.fixture
def services(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH in which both services' packages are the stand-ins; a test may rewrite one."""
    return make_services(tmp_path / "services")


def make_services(folder: Path) -> Path:
    folder.mkdir()
    for name, variable in (("train", "TRAINING"), ("sample", "SAMPLING")):
        text = RUN_STANDIN.format(standin=str(STANDIN), name=name, variable=variable)
        write_service(folder, f"tinsmith_{name}", text)
    return folder


def python_path(services: Path) -> str:
    return os.pathsep.join(filter(None, (str(services), os.environ.get("PYTHONPATH"))))


def make_config(services: Path, data_dir: Path, **options: Any) -> StackConfig:
    env = {"PYTHONPATH": python_path(services), **options.pop("env", {})}
    given: dict[str, Any] = {"port": 0, "data_dir": data_dir, "sample_python": sys.executable, "env": env}
    return StackConfig(**{**given, **options})


@pytest.fixture
def new_config(services: Path, tmp_path: Path) -> Callable[..., StackConfig]:
    """Makes configurations of stacks with a data directory of this test's and the services of the folder."""

    def make(**options: Any) -> StackConfig:
        return make_config(services, options.pop("data_dir", tmp_path / "data"), **options)

    return make


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with Stack(make_config(make_services(folder / "services"), folder / "data", tls_port=0)) as running:
        yield running


@pytest.fixture
def manifests() -> Path:
    return MANIFESTS
