"""Checkpoint folders on a local or shared file system."""

import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tinsmith_common.errors import InvalidInput, NotFound


class CheckpointStore:
    """Folders by key (`<run>/<kind>/<name>`). A folder is there whole or not at all.

    Methods block on the file system: call them through `asyncio.to_thread`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def folder(self, key: str) -> Path:
        """The existing folder of `key`. Raises `NotFound`."""
        path = self._path(key)
        if not path.is_dir():
            raise NotFound(f"the files of checkpoint {key} are not here")
        return path

    def begin(self, key: str) -> Path:
        """A new empty folder on the same file system, to be given to `commit` or `abandon`."""
        target = self._path(key)
        staging = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        staging.mkdir(parents=True)
        return staging

    def commit(self, staging: Path, key: str) -> int:
        """Move a finished folder into place, replacing what was there. Returns its size in bytes."""
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        size = folder_bytes(staging)
        target = self._path(key)
        if target.exists():
            old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
            os.replace(target, old)
            os.replace(staging, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(staging, target)
        return size

    def abandon(self, staging: Path) -> None:
        """Remove an unfinished folder."""
        shutil.rmtree(staging, ignore_errors=True)

    @contextmanager
    def write(self, key: str) -> Generator[Path, None, None]:
        """A temporary folder that becomes `key`'s when the block ends without an error."""
        staging = self.begin(key)
        try:
            yield staging
        except BaseException:
            self.abandon(staging)
            raise
        self.commit(staging, key)

    def copy(self, source: str, key: str) -> int:
        """Make `key` a copy of the folder of `source`. Returns its size in bytes.

        Files are never changed once they are in place, so a copy shares them where the file system can.
        """
        staging = self.begin(key)
        try:
            shutil.copytree(self.folder(source), staging, copy_function=_link, dirs_exist_ok=True)
        except BaseException:
            self.abandon(staging)
            raise
        return self.commit(staging, key)

    def delete(self, key: str) -> None:
        """Remove the folder of `key`; unknown keys are ignored."""
        shutil.rmtree(self._path(key), ignore_errors=True)

    def delete_beside(self, key: str, *kept: str) -> None:
        """Remove everything in the folder that holds `key`'s, except that and those of the keys `kept`."""
        path = self._path(key)
        stay = {path, *map(self._path, kept)}
        for sibling in path.parent.iterdir():
            if sibling not in stay:
                shutil.rmtree(sibling, ignore_errors=True)

    def _path(self, key: str) -> Path:
        path = (self._root / key).absolute()
        if ".." in path.parts or not path.is_relative_to(self._root) or path == self._root:
            raise InvalidInput(f"{key!r} is no checkpoint key")
        return path


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
