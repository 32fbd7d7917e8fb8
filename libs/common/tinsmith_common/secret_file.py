"""A secret of this deployment, which its processes share through a file."""

import os
import secrets
from pathlib import Path

_SECRET_BYTES = 32


class SecretFile:
    """Random bytes, made at their first use and readable by their user only. Blocks on the file system."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """The secret."""
        if not self._path.exists():
            self._create()
        return self._path.read_bytes()

    def _create(self) -> None:
        """Several processes may do so at once: a link appears whole, and only the first one does."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        try:
            os.link(draft, self._path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
