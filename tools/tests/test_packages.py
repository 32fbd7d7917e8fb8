"""The set-up's words: what it reads from pip, and the one sentence that a failure becomes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.packages import ROOT, Sources, clean_environment, explain, parse_pip_config


def test_pips_find_links_and_indexes_become_uvs() -> None:
    sources = parse_pip_config("global.find-links='/a /b'\nglobal.index-url='file:///mirror'\n")
    assert sources.flags() == [
        "--find-links",
        "/a",
        "--find-links",
        "/b",
        "--default-index",
        "file:///mirror",
    ]


def test_the_environment_outranks_pips_files() -> None:
    listing = ":env:.find-links='/from-environment'\nglobal.find-links='/from-file'\n"
    assert parse_pip_config(listing).find_links == ("/from-environment",)


def test_other_settings_of_pip_are_ignored() -> None:
    assert parse_pip_config("global.timeout='5'\nwheel.find-links='/x'\n") == Sources()


@pytest.mark.parametrize(
    ("output", "start"),
    [
        ("error: Failed to fetch: `x`\n  Caused by: dns error", "The package registry cannot be reached"),
        ("ERROR: No matching distribution found for uv==0.13.9", "The package registry cannot be reached"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("error: Hash mismatch for `numpy==2`", "A download does not match its locked hash"),
        ("something new", "The set-up failed"),
    ],
)
def test_a_failure_is_one_sentence_that_says_what_to_do(output: str, start: str) -> None:
    sentence = explain(output, "installing numpy")
    assert sentence.startswith(start)
    assert "\n" not in sentence
    assert "make setup" in sentence


def test_installers_do_not_see_the_callers_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    assert clean_environment().keys().isdisjoint({"PYTHONPATH", "VIRTUAL_ENV"})


def find_python(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run tools/find-python on a machine whose home is empty."""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]} | settings
    return subprocess.run(
        [ROOT / "tools" / "find-python"], env=environment, capture_output=True, text=True, check=False
    )


def test_a_named_interpreter_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    found = find_python(tmp_path, PYTHON="/bin/false")
    assert found.returncode == 1
    assert found.stderr.startswith("PYTHON=/bin/false is not a Python 3.11")
    assert found.stderr.count("\n") == 1


def test_the_interpreter_found_is_a_python_3_11(tmp_path: Path) -> None:
    found = find_python(tmp_path, PYTHON=os.path.realpath(sys.executable))
    version = subprocess.run([found.stdout.strip(), "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("Python 3.11.")
