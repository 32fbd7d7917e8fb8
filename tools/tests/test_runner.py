"""How the runner of `make test` counts."""

from pathlib import Path

from tools.test import GROUPS, LONG, UNIT, Count, count_reports, judge, steps

REPORT = '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1"/></testsuites>'


def test_errors_count_as_failures_and_skips_apart(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert count_reports([report, report]) == Count(passed=4, failed=4, skipped=2)


def test_a_step_that_fails_without_a_failing_test_counts_one() -> None:
    assert judge(Count(passed=3), status=2) == Count(passed=3, failed=1)


def test_a_step_that_ran_nothing_counts_as_failed() -> None:
    assert judge(Count(skipped=3), status=0).failed == 1


def test_a_clean_step_is_left_as_it_is() -> None:
    assert judge(Count(passed=3), status=0) == Count(passed=3)


def test_the_closing_line_is_the_plain_one() -> None:
    assert str(Count(12, 0, 1)) == "12 passed, 0 failed, 1 skipped"


def test_every_mark_is_run_by_some_step() -> None:
    assert UNIT == "not (integration or slow or engine or e2e or cookbook)"
    assert LONG == "(integration or slow or engine) and not (e2e or cookbook)"
    commands = [" ".join(step.command) for group in GROUPS for step in steps(group)]
    assert sum("services/sample" in command for command in commands) == 2
    assert sum("-m e2e" in command for command in commands) == 1
