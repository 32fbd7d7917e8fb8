"""The demo through the whole stack, at full size."""

import pytest

from examples import demo
from examples.report import Report
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def report(stack: Stack) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_BASE_URL", stack.base_url)
        patch.setenv("TINKER_API_KEY", stack.api_key)
        return demo.run()


def test_the_demo_reaches_all_its_goals(report: Report) -> None:
    assert demo.missed_goals(report) == []


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(report: Report) -> None:
    assert report.resume.max_abs_diff == 0.0
