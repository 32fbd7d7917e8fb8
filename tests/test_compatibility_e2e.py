"""The oldest and the newest SDK that are supported; `make compatibility` tries those between them too."""

import pytest

from tinsmith_local import Stack
from tools.compatibility.page import PAGE, capability_table
from tools.compatibility.run import VersionResult, try_version
from tools.compatibility.sdks import QUICK, VERSIONS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def results(stack: Stack) -> list[VersionResult]:
    return [try_version(stack, version) for version in QUICK]


@pytest.mark.row("older-sdks", call="SDK 0.16.1")
@pytest.mark.parametrize("index", range(len(QUICK)), ids=QUICK)
def test_everything_that_the_version_has_works(results: list[VersionResult], index: int) -> None:
    assert results[index].failures == ()
    assert set(results[index].verdicts) == set(results[-1].verdicts)


def test_the_oldest_version_uses_the_older_surface(results: list[VersionResult]) -> None:
    archive = "GET training_runs/{run_id}/checkpoints/{checkpoint_id:path}/archive"
    older = results[0].endpoints - results[-1].endpoints
    assert {"POST forward", "POST unload_model", archive} <= older


def test_the_page_says_of_these_versions_what_was_found(results: list[VersionResult]) -> None:
    columns = [0, 1, *(2 + VERSIONS.index(version) for version in QUICK)]
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [line.strip("|").split(" | ") for line in lines[: 2 + len(results[-1].verdicts)]]
    written = [[row[column].strip() for column in columns] for row in cells]
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in capability_table(results)]
    assert written == found
