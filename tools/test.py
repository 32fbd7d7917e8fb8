"""Runs the tests in the environment that each belongs to, and sums what they say in one closing line.

The marks of pyproject.toml divide the tests: `unit` takes those that start no other process, `integration` those
that start Ray or take long, `engine` those that start SGLang, `e2e` those that start the whole stack; `pants` runs
each part's tests as Pants builds it. Every step runs even if one before it failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tools.packages import ROOT

RESULTS = ROOT / "out" / "tests"
TRAIN_PYTHON = ".venv/bin/python"
SAMPLE_PYTHON = ".venv-sample/bin/python"
TRAIN_PATHS = ("libs", "services/train", "deploy", "models", "examples", "tools", "tests")
SAMPLE_PATHS = ("services/sample",)
UNIT = "not (integration or slow or engine or e2e or cookbook)"
LONG = "(integration or slow or engine) and not (e2e or cookbook)"


@dataclass(frozen=True)
class Count:
    """How many tests passed, failed (errors included) and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


@dataclass(frozen=True)
class Step:
    """One command and the JUnit reports that it leaves under `reports`."""

    name: str
    command: tuple[str, ...]
    reports: Path


def pytest_step(name: str, python: str, paths: tuple[str, ...], marks: str, *options: str) -> Step:
    """Describe a pytest run over those of `paths` that exist."""
    reports = RESULTS / name.replace(" ", "-")
    present = [path for path in paths if (ROOT / path).is_dir()]
    command = (
        python,
        "-m",
        "pytest",
        "-q",
        "-m",
        marks,
        "--junit-xml",
        str(reports / "report.xml"),
        *options,
        *present,
    )
    return Step(name, command, reports)


def steps(group: str) -> list[Step]:
    """Return the runs that a group of tests consists of."""
    match group:
        case "unit":
            return [
                pytest_step("unit", TRAIN_PYTHON, TRAIN_PATHS, UNIT),
                pytest_step("unit sample", SAMPLE_PYTHON, SAMPLE_PATHS, UNIT),
            ]
        case "integration":
            return [pytest_step("integration", TRAIN_PYTHON, TRAIN_PATHS, LONG)]
        case "engine":
            return [pytest_step("engine", SAMPLE_PYTHON, SAMPLE_PATHS, LONG)]
        case "e2e":
            # With the rows of the conformance table that need no stack, so that its verdict is about all of them.
            return [pytest_step("e2e", TRAIN_PYTHON, TRAIN_PATHS, "e2e or row", "--conformance")]
        case "cookbook":
            return [pytest_step("cookbook", TRAIN_PYTHON, ("tests/cookbook",), "cookbook or e2e")]
        case "pants":
            return [Step("pants", (TRAIN_PYTHON, "-m", "tools.pants"), ROOT / "dist" / "test" / "reports")]
        case _:
            raise ValueError(f"no such group of tests: {group}")


GROUPS = ("unit", "integration", "engine", "e2e", "pants")
APART = ("cookbook",)
"""Groups that run only when they are named."""


def count_reports(reports: Iterable[Path]) -> Count:
    """Sum the suites of JUnit reports."""
    total = Count()
    for report in reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            tests, failures, errors, skipped = (
                int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")
            )
            failed = failures + errors
            total += Count(tests - failed - skipped, failed, skipped)
    return total


def judge(counted: Count, status: int) -> Count:
    """Make sure that a step which failed, or ran nothing, counts at least one failure."""
    if counted.failed == 0 and (status != 0 or counted.passed == 0):
        return counted + Count(failed=1)
    return counted


def run(step: Step) -> Count:
    """Run one step with its output on the terminal."""
    print(f"\n== {step.name}: {' '.join(step.command)}", flush=True)
    for old in step.reports.glob("*.xml"):
        old.unlink()
    status = subprocess.run(step.command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
    return judge(count_reports(sorted(step.reports.glob("*.xml"))), status)


def main() -> int:
    """Run the chosen groups and print the sum; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.test", description=__doc__)
    choices = f"{', '.join(GROUPS)} (default: all of these), {', '.join(APART)}"
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=choices)
    groups = parser.parse_args().groups or list(GROUPS)
    if unknown := [group for group in groups if group not in GROUPS + APART]:
        parser.error(f"no such group: {unknown[0]}")
    total, lines = Count(), list[str]()
    try:
        for step in [step for group in groups for step in steps(group)]:
            started = time.monotonic()
            counted = run(step)
            total += counted
            lines.append(f"  {step.name:<14}{time.monotonic() - started:>6.0f} s   {counted}")
    except KeyboardInterrupt:
        print("Tests interrupted.", file=sys.stderr)
        return 130
    print("\n" + "\n".join(lines) + f"\n\n{total}")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
