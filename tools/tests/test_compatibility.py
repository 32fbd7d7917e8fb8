"""The page of supported SDK versions, and its locks."""

import re

from tools.compatibility.page import PAGE, render
from tools.compatibility.run import NO_SUCH_CALL, YES, Verdict, VersionResult
from tools.compatibility.sdks import QUICK, VERSIONS, sdk_lock


def result(version: str, verdict: str, *endpoints: str) -> VersionResult:
    return VersionResult(version, {"save_it": Verdict("It is saved.", verdict)}, frozenset(endpoints))


def test_the_page_tells_what_works_what_is_not_there_and_what_failed() -> None:
    results = [result("1", "Error: a|b", "POST old"), result("2", NO_SUCH_CALL), result("3", YES, "POST new")]
    page = render(results)
    assert "| save it | It is saved. | **failed**: Error: a\\|b | – | yes |" in page
    assert "| 1 | 1 failed |  | `POST old` |" in page
    assert "| 3 | everything it has works |  | none |" in page
    assert [item.failures for item in results] == [("1: save_it: Error: a|b",), (), ()]


def test_the_page_has_every_version_and_no_failure() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^\| (\d\S+) \|", page, re.MULTILINE) == list(VERSIONS)
    assert "**" not in page


def test_every_version_is_locked_and_the_quick_run_takes_the_oldest_and_the_newest() -> None:
    for version in VERSIONS:
        assert f"tinker=={version} " in sdk_lock(version).read_text()
    assert (VERSIONS[0], VERSIONS[-1]) == QUICK
