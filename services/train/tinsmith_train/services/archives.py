"""Checkpoints as one `tar.gz`, which clients before 0.36 download.

An archive is made while it is sent and never exists as a whole, in memory or on disk: it holds the adapter in
PEFT's layout, with the names of exports, and `checkpoint_complete`. Optimizer state stays here.
"""

import asyncio
import json
import tarfile
import zlib
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.checkpoints import CheckpointKind
from tinsmith_common.wire.legacy import CheckpointArchiveUrlResponse
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.downloads import URL_LIFETIME, UrlSigner, check_url
from tinsmith_train.services.exports import CONFIG_FILE, WEIGHTS_FILE, exported_config, exported_name

COMPLETE_FILE = "checkpoint_complete"
WHOLE_MODEL_FILES = ("config.json", "model.safetensors")

_CHUNK_BYTES = 1 << 20
# Weights hardly compress at any level; this one costs the least time.
_GZIP_LEVEL = 1
_GZIP_WINDOW = 31


class ArchiveService:
    """Hands out URLs of archives and makes the archive behind one."""

    def __init__(self, checkpoints: CheckpointService, signer: UrlSigner, public_url: str | None) -> None:
        self._checkpoints = checkpoints
        self._signer = signer
        self._public_url = public_url

    async def url(
        self, owner: str, run_id: str, checkpoint_id: str, asked_at: str
    ) -> CheckpointArchiveUrlResponse:
        """Where to get a checkpoint. `asked_at` is the address the client used for this server."""
        record = await self._checkpoints.readable(owner, f"tinker://{run_id}/{checkpoint_id}")
        expires = datetime.now(UTC).replace(microsecond=0) + URL_LIFETIME
        until = int(expires.timestamp())
        signature = await asyncio.to_thread(self._signer.sign, *_signed_parts(record, until))
        base = (self._public_url or asked_at).rstrip("/")
        place = quote(f"{record.run_id}/{record.kind}/{record.name}")
        query = urlencode({"expires": until, "signature": signature})
        url = f"{base}/api/v1/checkpoint_archives/{place}?{query}"
        return CheckpointArchiveUrlResponse(url=url, expires=expires)

    async def open(
        self, run_id: str, checkpoint_id: str, expires: int, signature: str
    ) -> Generator[bytes, None, None]:
        """The archive that a URL names. Raises `Forbidden` unless its signature is right and its time not over."""
        record = await self._checkpoints.live(f"tinker://{run_id}/{checkpoint_id}")
        parts = _signed_parts(record, expires)
        await asyncio.to_thread(check_url, self._signer, signature, expires, parts)
        folder = await self._checkpoints.folder(record)
        return archive(folder, every_file=record.kind == CheckpointKind.EXTERNAL)


def archive(folder: Path, *, every_file: bool) -> Generator[bytes, None, None]:
    """The pieces of a checkpoint's archive; reads and compresses a MiB at a time. Blocks.

    `every_file`: an export is archived as it is. Of other checkpoints, only the adapter, or the whole model.
    """
    gzip = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    for piece in _tar(folder, every_file=every_file):
        if compressed := gzip.compress(piece):
            yield compressed
    yield gzip.flush()


def _tar(folder: Path, *, every_file: bool) -> Iterator[bytes]:
    if every_file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            yield from _member(path.relative_to(folder).as_posix(), path)
    elif not (folder / CONFIG_FILE).exists():
        for name in WHOLE_MODEL_FILES:
            yield from _member(name, folder / name)
    else:
        config = exported_config(json.loads((folder / CONFIG_FILE).read_text()))
        yield from _small_member(CONFIG_FILE, json.dumps(config, indent=2).encode())
        yield from _member(WEIGHTS_FILE, folder / WEIGHTS_FILE, *_renamed_header(folder / WEIGHTS_FILE))
    yield from _small_member(COMPLETE_FILE, b"")
    # The end of an archive is two empty blocks.
    yield bytes(2 * tarfile.BLOCKSIZE)


def _small_member(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content))
    yield content + _padding(len(content))


def _member(name: str, path: Path, prefix: bytes = b"", skip: int = 0) -> Iterator[bytes]:
    """A file of the archive: `prefix`, then what the file holds after its first `skip` bytes."""
    with path.open("rb") as file:
        size = len(prefix) + path.stat().st_size - skip
        yield _header(name, size) + prefix
        file.seek(skip)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
    yield _padding(size)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _renamed_header(path: Path) -> tuple[bytes, int]:
    """The header of a safetensors file with its tensors named as exports name them, and the old one's size.

    Tensors are placed relative to the end of the header, so what follows it stays as it is.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(size))
    header = json.dumps({exported_name(name): entry for name, entry in entries.items()}).encode()
    # The format wants the tensors aligned to 8 bytes and allows spaces for it.
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header, 8 + size


def _signed_parts(record: CheckpointRecord, expires: int) -> tuple[str, ...]:
    # With the time of its creation, so that a URL does not outlive its checkpoint into a later one of that name.
    return "archive", record.path, record.created_at.isoformat(), str(expires)
