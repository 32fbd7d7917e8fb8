"""One real stack for the whole session: Envoy, Ray, the train service, the sample service with SGLang."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.conformance.plugin import ConformanceTable
from tests.remote import RemoteStack
from tinsmith_local import Stack, StackConfig
from tinsmith_local.config import default_api_key

MODEL = "tinsmith/tiny-qwen3"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", action="store_true", help="a row of the table that does not hold fails")
    parser.addoption("--against", metavar="URL", help="test a server that runs, not a stack of our own")


def pytest_configure(config: pytest.Config) -> None:
    # Against a server elsewhere, what reaches behind the gateway cannot run.
    table = ConformanceTable(
        strict=bool(config.getoption("--conformance")), may_skip=bool(config.getoption("--against"))
    )
    config.pluginmanager.register(table)


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Stack | RemoteStack]:
    if url := pytestconfig.getoption("--against"):
        yield RemoteStack(url, default_api_key())
        return
    # Expired things go, and figures of the engine are those, of a second ago.
    env = {"MAINTENANCE_INTERVAL_S": "1", "ENGINE_CHECK_INTERVAL_S": "1"}
    with Stack(StackConfig(port=0, tls_port=0, data_dir=tmp_path_factory.mktemp("stack"), env=env)) as stack:
        yield stack


@pytest.fixture
def service(stack: Stack) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as client:
        yield client


@pytest.fixture
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model=MODEL, rank=8, seed=1).result()


@pytest.fixture(autouse=True)
def _mark_as_e2e(request: pytest.FixtureRequest) -> None:
    if "stack" in request.fixturenames:
        assert request.node.get_closest_marker("e2e"), "tests that use the stack are marked e2e"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path
