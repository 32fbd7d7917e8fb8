"""docs/cookbook.md says what the harness does, and leaves no recipe out."""

from importlib import resources
from importlib.resources.abc import Traversable

from tests.cookbook import report
from tests.cookbook.recipes import NOT_RUN, RECIPES

PREFIX = "tinker_cookbook.recipes."


def test_the_page_lists_the_recipes_that_are_run() -> None:
    rows = report.part(report.PAGE.read_text(), "results").splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(row[0], row[1]) for row in cells] == [(recipe.name, str(recipe.steps)) for recipe in RECIPES]


def test_the_page_has_the_commands_and_the_reasons_of_the_harness() -> None:
    page = report.PAGE.read_text()
    assert report.part(page, "commands") == report.commands()
    assert report.part(page, "not run") == report.not_run()


def test_no_recipe_of_the_page_failed() -> None:
    rows = report.part(report.PAGE.read_text(), "results").splitlines()[2:]
    assert [row for row in rows if "**" in row] == []


def test_every_recipe_of_the_cookbook_is_run_or_has_a_reason() -> None:
    listed = {recipe.module.removeprefix(PREFIX) for recipe in RECIPES}
    listed |= {module for item in NOT_RUN for module in item.modules}
    assert listed == set(startable(resources.files("tinker_cookbook") / "recipes"))


def startable(folder: Traversable, package: str = "") -> list[str]:
    """Modules that do something when they are started."""
    found: list[str] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += startable(entry, f"{package}{entry.name}.")
        elif entry.name.endswith(".py") and 'if __name__ == "__main__"' in entry.read_text("utf-8"):
            found.append(package + entry.name.removesuffix(".py"))
    return found
