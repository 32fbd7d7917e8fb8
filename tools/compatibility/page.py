"""`docs/compatibility.md`, written from the results of a run."""

from __future__ import annotations

from collections.abc import Sequence

from tools.compatibility.run import NO_SUCH_CALL, VersionResult
from tools.packages import ROOT

PAGE = ROOT / "docs" / "compatibility.md"

_HEAD = """\
# SDK versions

Written by `make compatibility`, which gives each version of the `tinker` SDK an environment of its own
(`locks/sdks/`), starts one stack, and runs the same session (`tools/compatibility/session.py`) with every version.
Each line is checked by value. "–": this version has no such call. The endpoints that only older versions use are
described in [older-surface.md](older-surface.md).
"""


def render(results: Sequence[VersionResult]) -> str:
    """The page. The last result is the newest version's, with whose endpoints the others' are compared."""
    return "\n".join([_HEAD, *capability_table(results), "", *wire_table(results), ""])


def capability_table(results: Sequence[VersionResult]) -> list[str]:
    """A row for each capability, a column for each version."""
    rows = [
        ["Capability", "Checked", *(result.version for result in results)],
        ["---"] * (2 + len(results)),
    ]
    for name, verdict in results[-1].verdicts.items():
        cells = [_cell(result, name) for result in results]
        rows.append([name.replace("_", " "), verdict.about, *cells])
    return [_row(cells) for cells in rows]


def wire_table(results: Sequence[VersionResult]) -> list[str]:
    """A row for each version: verdict, how its passes travel, and endpoints that the newest does not use."""
    rows = [["Version", "Verdict", "Note", "Endpoints that the newest version does not use"], ["---"] * 4]
    for result in results:
        notes = "; ".join(verdict.note for verdict in result.verdicts.values() if verdict.note)
        older = sorted(result.endpoints - results[-1].endpoints)
        endpoints = ", ".join(f"`{name}`" for name in older) or "none"
        verdict = f"{len(result.failures)} failed" if result.failures else "everything it has works"
        rows.append([result.version, verdict, notes, endpoints])
    return [_row(cells) for cells in rows]


def _cell(result: VersionResult, name: str) -> str:
    verdict = result.verdicts.get(name)
    if verdict is None:
        return "**not reached**"
    if verdict.verdict == NO_SUCH_CALL:
        return "–"
    return f"**failed**: {verdict.verdict}" if verdict.failed else verdict.verdict


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
