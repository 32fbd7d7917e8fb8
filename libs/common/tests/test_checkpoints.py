"""Paths and folders of checkpoints."""

from pathlib import Path

import pytest

from tinsmith_common.checkpoints import CheckpointKind, CheckpointStore, TinkerPath, check_name
from tinsmith_common.errors import InvalidInput, NotFound


def test_a_path_parses_into_its_parts_and_back() -> None:
    text = "tinker://0b1c:train:2/sampler_weights/step-000.1"
    path = TinkerPath.parse(text)
    assert path == TinkerPath("0b1c:train:2", CheckpointKind.SAMPLER, "step-000.1")
    assert str(path) == text
    assert path.checkpoint_id == "sampler_weights/step-000.1"
    assert path.kind.checkpoint_type == "sampler"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "final",
        "tinker://run/weights",
        "tinker://run/weights/a/b",
        "tinker://run/other/a",
        "tinker:///weights/a",
        "tinker://../weights/a",
        "tinker://run/weights/..",
        "tinker://run/weights/.hidden",
        "s3://run/weights/a",
    ],
)
def test_anything_else_is_no_path(text: str) -> None:
    with pytest.raises(InvalidInput):
        TinkerPath.parse(text)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 201, "ü"])
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.write("run/weights/a") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(NotFound):
            store.folder("run/weights/a")
    assert (store.folder("run/weights/a") / "file").read_text() == "x"


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with store.write("run/weights/a") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(FileNotFoundError), store.write("run/weights/a") as folder:
        (folder / "no such folder" / "file").write_text("new")
    assert (store.folder("run/weights/a") / "file").read_text() == "old"
    assert [path.name for path in (tmp_path / "run/weights").iterdir()] == ["a"]


def test_replacing_a_folder_leaves_only_the_new_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for text in ("old", "new"):
        with store.write("run/weights/a") as folder:
            (folder / text).write_text(text)
    assert [path.name for path in store.folder("run/weights/a").iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "run/weights").iterdir()] == ["a"]


@pytest.mark.parametrize("key", ["../x", "/etc", "", "a/../../x"])
def test_no_key_leaves_the_store(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidInput):
        CheckpointStore(tmp_path / "root").folder(key)


def test_only_the_named_folders_stay_beside_each_other(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for key in ("run/a/1", "run/a/2", "run/a/3", "run/b/1"):
        with store.write(key) as folder:
            (folder / "file").touch()
    store.begin("run/a/unfinished")
    store.delete_beside("run/a/3", "run/a/2")
    left = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("file"))
    assert left == ["run/a/2", "run/a/3", "run/b/1"]
    assert len(list((tmp_path / "run" / "a").iterdir())) == 2
