"""Turns the figures of a full run into the table of docs/cookbook.md: `python -m tests.cookbook.report`."""

import json
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tests.cookbook.recipes import NOT_RUN, RECIPES, Recipe
from tests.cookbook.runs import Run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "out" / "cookbook" / "results.json"
PAGE = ROOT / "docs" / "cookbook.md"
BEGIN, END = "<!-- {} begin: `make test-cookbook` writes this -->", "<!-- {} end -->"


def save(runs: Iterable[Run], failed: Collection[str]) -> None:
    """Note what each run came to; other recipes' earlier outcomes stay, so that a few can be run again."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows |= {run.recipe.name: _outcome(run, run.recipe.name in failed) for run in runs}
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


def _outcome(run: Run, failed: bool) -> dict[str, Any]:
    values = run.series(run.recipe.figure) or [0.0]  # a run that failed to log it is marked as failed
    return {"failed": failed, "seconds": round(run.seconds), "first": values[0], "last": values[-1]}


def command_of(recipe: Recipe) -> str:
    """The command as a reader types it."""
    places = {"state": "$STATE", "sampler": "$SAMPLER"}
    return "python " + " ".join(recipe.command("$TINKER_BASE_URL", "$MODEL", f"runs/{recipe.name}", places))


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row per recipe that was run."""
    lines = ["| Recipe | Steps | Verdict | What moved | Seconds | Data |", "|---|---|---|---|---|---|"]
    for recipe in RECIPES:
        outcome = results.get(recipe.name)
        if outcome is None:
            lines.append(f"| {recipe.name} | {recipe.steps} | not measured | | | {recipe.data} |")
            continue
        verdict = "**fails**" if outcome["failed"] else "runs"
        moved = f"`{recipe.figure}` {outcome['first']:.3g} → {outcome['last']:.3g}"
        lines.append(
            f"| {recipe.name} | {recipe.steps} | {verdict} | {moved} | {outcome['seconds']} | {recipe.data} |"
        )
    return "\n".join(lines)


def commands() -> str:
    """The commands, one a line."""
    return "\n".join(["```sh", *(command_of(recipe) for recipe in RECIPES), "```"])


def not_run() -> str:
    """One row per recipe that is left out."""
    rows = [f"| {', '.join(f'`{name}`' for name in item.modules)} | {item.needs} |" for item in NOT_RUN]
    return "\n".join(["| Recipe | Needs |", "|---|---|", *rows])


def replace(text: str, name: str, content: str) -> str:
    """The page with one generated part exchanged."""
    before, rest = text.split(BEGIN.format(name))
    _, after = rest.split(END.format(name))
    return f"{before}{BEGIN.format(name)}\n{content}\n{END.format(name)}{after}"


def part(text: str, name: str) -> str:
    """A generated part of the page."""
    return text.split(BEGIN.format(name))[1].split(END.format(name))[0].strip()


def main() -> int:
    """Write the page anew from the last full run."""
    text = replace(PAGE.read_text(), "results", table(json.loads(RESULTS.read_text())))
    text = replace(replace(text, "commands", commands()), "not run", not_run())
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
