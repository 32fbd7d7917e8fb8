"""Which rows of `rows.toml` the tests claim, and how those tests ended: a table on the terminal and in a file."""

import tomllib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROWS = Path(__file__).with_name("rows.toml")
REPORT = Path(__file__).parents[2] / "out" / "conformance.md"


def load_rows() -> dict[str, tuple[str, str]]:
    """Section and promise of each row, by its id."""
    sections: dict[str, dict[str, str]] = tomllib.loads(ROWS.read_text())
    return {key: (section, text) for section, rows in sections.items() for key, text in rows.items()}


@dataclass
class Claims:
    """The tests of one row: the calls that they make, and how they ended so far."""

    calls: set[str] = field(default_factory=set[str])
    tests: set[str] = field(default_factory=set[str])
    passed: set[str] = field(default_factory=set[str])
    failed: set[str] = field(default_factory=set[str])

    @property
    def verdict(self) -> str:
        """In a word; a row holds only when every test that claims it has passed."""
        if self.failed:
            return "FAILS"
        return "holds" if self.tests and self.passed == self.tests else "not run"


class ConformanceTable:
    """The plugin. When strict, a row that does not hold fails the run; one that was not run, unless `may_skip`."""

    def __init__(self, *, strict: bool, may_skip: bool) -> None:
        self._strict = strict
        self._may_skip = may_skip
        self._rows = load_rows()
        self._claims: dict[str, Claims] = defaultdict(Claims)
        self._rows_of: dict[str, set[str]] = defaultdict(set)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("row"):
                self._claim(item.nodeid, mark)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for row in self._rows_of.get(report.nodeid, ()):
            if report.failed:
                self._claims[row].failed.add(report.nodeid)
            elif report.when == "call" and report.passed:
                self._claims[row].passed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self._claims or session.config.option.collectonly:
            return
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text("# Conformance\n\n" + "\n".join(self._lines(self._rows)) + "\n")
        if self._strict and self._faults() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if not self._claims or config.option.collectonly:
            return
        terminalreporter.section("conformance")
        shown = self._rows if self._strict else [row for row, claims in self._claims.items() if claims.tests]
        terminalreporter.write_line("\n".join(self._lines(shown)))
        held = [row for row in self._rows if self._claims[row].verdict == "holds"]
        terminalreporter.write_line(f"{len(held)} of {len(self._rows)} rows hold")
        if self._strict and (faults := self._faults()):
            terminalreporter.write_line("Rows that do not hold: " + ", ".join(faults), red=True)

    def _claim(self, nodeid: str, mark: pytest.Mark) -> None:
        if not mark.args or set(mark.kwargs) != {"call"}:
            raise pytest.UsageError(f'{nodeid}: write @pytest.mark.row("<id>", …, call="<SDK call>")')
        for row in mark.args:
            if row not in self._rows:
                raise pytest.UsageError(f"{nodeid}: {ROWS.name} has no row {row!r}")
            self._claims[row].calls.add(mark.kwargs["call"])
            self._claims[row].tests.add(nodeid)
            self._rows_of[nodeid].add(row)

    def _faults(self) -> list[str]:
        fine = {"holds", "not run"} if self._may_skip else {"holds"}
        return [row for row in self._rows if self._claims[row].verdict not in fine]

    def _lines(self, shown: Collection[str]) -> list[str]:
        lines = ["| Section | Promise | Verdict | Call |", "|---|---|---|---|"]
        for row, (section, text) in self._rows.items():
            if row in shown:
                claims = self._claims[row]
                calls = "; ".join(sorted(claims.calls))
                lines.append(f"| {section.split(' ')[0]} | {text} | {claims.verdict} | {calls} |")
        return lines
