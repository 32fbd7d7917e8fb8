"""One server and one prepared folder for all recipes; what came of them goes to out/cookbook/results.json."""

import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import tinker

from tests.conftest import MODEL
from tests.cookbook import offline, report
from tests.cookbook.recipes import HUB_MODEL, Recipe
from tests.cookbook.runs import Run, Runner, Server
from tinsmith_local import Stack, StackConfig
from tools.packages import UV, pip_sources, require

EXTRAS = Path(__file__).with_name("extras.txt")
_RUNNER = pytest.StashKey[Runner]()
_FAILED = pytest.StashKey[set[str]]()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The stack of the other end-to-end tests for the quick recipes; for all of them one with a hub's model name."""
    if not any(item.get_closest_marker("cookbook") for item in request.session.items):
        yield Server(request.getfixturevalue("stack"), MODEL)
        return
    models = json.dumps([{"name": HUB_MODEL, "path": str(offline.MODEL_FOLDER)}])
    config = StackConfig(port=0, data_dir=tmp_path_factory.mktemp("stack"), supported_models=models)
    with Stack(config) as stack:
        yield Server(stack, HUB_MODEL)


@pytest.fixture(scope="session")
def runner(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    """Runs each recipe once."""
    folder = offline.prepare(tmp_path_factory.mktemp("cookbook"), [server.model])
    extras = tmp_path_factory.mktemp("extras")
    runner = Runner(server, folder, str(extras))
    if any(item.get_closest_marker("cookbook") for item in request.session.items):
        _install_extras(extras)
    request.config.stash[_RUNNER] = runner
    return runner


@pytest.fixture
def run(request: pytest.FixtureRequest, runner: Runner) -> Run:
    """The run of the recipe that the test is parametrized with."""
    recipe: Recipe = request.param
    return runner(recipe)


@pytest.fixture
def client(server: Server) -> Iterator[tinker.ServiceClient]:
    """A session of the test's own on the same server."""
    with tinker.ServiceClient(base_url=server.stack.base_url, api_key=server.stack.api_key) as client:
        yield client


def _install_extras(folder: Path) -> None:
    """The cookbook's extra `math-rl` as far as the recipes import it, beside the environment."""
    target = ["--python", sys.executable, "--target", str(folder)]
    command = [UV, "pip", "install", "--no-deps", "--require-hashes", *target, "-r", EXTRAS]
    require([*command, *pip_sources().flags()], "installing the extras of the cookbook's recipes")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which recipes a test failed for."""
    outcome = yield
    callspec = getattr(item, "callspec", None)
    if outcome.failed and callspec is not None and isinstance(callspec.params.get("run"), Recipe):
        item.config.stash.setdefault(_FAILED, set()).add(callspec.params["run"].name)
    return outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the figures of a full run for `python -m tests.cookbook.report`."""
    runner = session.config.stash.get(_RUNNER, None)
    if runner is not None and runner.server.model == HUB_MODEL:
        report.save(runner.done.values(), session.config.stash.get(_FAILED, set()))
