"""Large bodies beside the database: one file each, written whole or not at all."""

import os
import secrets
import zlib
from pathlib import Path
from urllib.parse import quote


class BlobStore:
    """A folder of immutable byte strings by key. Methods block: call them through `asyncio.to_thread`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)

    def get(self, key: str) -> bytes | None:
        """The bytes, or None when the key is unknown."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        """Forget the key; unknown keys are ignored."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        # Two characters of fan-out keep directories small under millions of results.
        name = quote(key, safe="")
        return self._root / _hash_prefix(name) / name


def _hash_prefix(name: str) -> str:
    """Two hexadecimal digits that spread names over 256 folders."""
    return f"{zlib.crc32(name.encode()) & 0xFF:02x}"
