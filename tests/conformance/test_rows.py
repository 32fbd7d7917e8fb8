"""The table is complete: every row has a test, and everything that the SDK asks for has a row."""

import ast
import re
from collections import Counter
from pathlib import Path

import tinker

from tests.conformance.plugin import load_rows

ROOT = Path(__file__).parents[2]


def claimed() -> Counter[str]:
    """How often each row is named by a mark, read from the sources: nothing has to start."""
    names = Counter[str]()
    files = [file for part in ("tests", "libs", "services") for file in (ROOT / part).rglob("test_*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and _marks_rows(node.func):
                names.update(str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))
    return names


def _marks_rows(function: ast.expr) -> bool:
    match function:
        case ast.Attribute(attr="row"):
            return True
        case ast.Name(id=name):
            return (
                name == "case"
            )  # where the marks of a parametrized test are made by a function of that name
        case _:
            return False


def test_every_row_has_a_test() -> None:
    tests = claimed()
    assert len(tests) > 50, "the marks were not found"
    missing = [row for row in load_rows() if not tests[row]]
    assert not missing, "rows without a test: " + ", ".join(missing)


def test_every_path_of_the_sdk_has_a_row() -> None:
    package = Path(tinker.__file__).parent
    files = [file for file in package.rglob("*.py") if "test" not in file.name]
    sources = "".join(file.read_text() for file in files)
    asked = {normal(path) for path in re.findall(r'"/api/v1/([^"?]+)', sources)}
    promised = {
        normal(path)
        for _, text in load_rows().values()
        for path in re.findall(r"`(?:GET|POST|PUT|DELETE) ([^` ]+)`", text)
    }
    assert "create_model" in asked
    assert asked - promised == set()


def normal(path: str) -> str:
    """A path with nameless parameters."""
    return re.sub(r"\{.*?\}", "{}", path)
