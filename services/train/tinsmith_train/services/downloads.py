"""Downloads of exported weights by URLs that expire and need no credential."""

import asyncio
import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.checkpoints import CheckpointKind, TinkerPath
from tinsmith_common.errors import Forbidden, InvalidInput, NotFound
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.wire.weights import ExternalWeightsUrlsResponse
from tinsmith_train.services.checkpoints import CheckpointService

URL_LIFETIME = timedelta(hours=1)
"""Clients sign again five minutes before the end, and before every file if less than that is left."""


class UrlSigner:
    """Signs with a secret of this deployment."""

    def __init__(self, secret: SecretFile) -> None:
        self._secret = secret

    def sign(self, *parts: str) -> str:
        """The signature of these parts. Blocks on the file system."""
        message = "\0".join(parts).encode()
        return hmac.new(self._secret.read(), message, hashlib.sha256).hexdigest()

    def verify(self, signature: str, *parts: str) -> bool:
        """Whether `signature` is that of these parts. Blocks on the file system."""
        return hmac.compare_digest(self.sign(*parts).encode(), signature.encode())


def check_url(signer: UrlSigner, signature: str, expires: int, parts: Sequence[str]) -> None:
    """Raise `Forbidden` unless a URL's signature is that of its parts and its time not over. Blocks."""
    if not signer.verify(signature, *parts):
        raise Forbidden("this download URL was not made here, or was altered")
    if datetime.now(UTC).timestamp() >= expires:
        raise Forbidden("this download URL has expired; ask for a new one")


class DownloadService:
    """Hands out download URLs of exports and finds the file behind one."""

    def __init__(self, checkpoints: CheckpointService, signer: UrlSigner, public_url: str | None) -> None:
        self._checkpoints = checkpoints
        self._signer = signer
        self._public_url = public_url

    async def urls(
        self, owner: str, run_id: str, checkpoint_id: str, asked_at: str
    ) -> ExternalWeightsUrlsResponse:
        """A URL per file of an export. `asked_at` is the address the client used for this server."""
        record = await self._checkpoints.readable(owner, f"tinker://{run_id}/{checkpoint_id}")
        if record.kind != CheckpointKind.EXTERNAL:
            raise InvalidInput(f"{record.path} cannot be downloaded; save it with save_weights_external")
        expires = datetime.now(UTC).replace(microsecond=0) + URL_LIFETIME
        folder = await self._checkpoints.folder(record)
        base = (self._public_url or asked_at).rstrip("/")
        return ExternalWeightsUrlsResponse(
            urls=await asyncio.to_thread(self._sign_all, record, folder, base, expires), expires=expires
        )

    async def file(self, run_id: str, name: str, file: str, expires: int, signature: str) -> Path:
        """The file that a URL names. Raises `Forbidden` unless its signature is right and its time not over."""
        record = await self._checkpoints.live(str(TinkerPath(run_id, CheckpointKind.EXTERNAL, name)))
        signed = _signed_parts(record, file, expires)
        await asyncio.to_thread(check_url, self._signer, signature, expires, signed)
        folder = await self._checkpoints.folder(record)
        # Only names that were listed are ever signed; compared again so that no other file can be reached.
        if file not in await asyncio.to_thread(_file_names, folder):
            raise NotFound(f"{record.path} has no file {file}")
        return folder / file

    def _sign_all(
        self, record: CheckpointRecord, folder: Path, base: str, expires: datetime
    ) -> dict[str, str]:
        until = int(expires.timestamp())
        urls: dict[str, str] = {}
        for file in _file_names(folder):
            signature = self._signer.sign(*_signed_parts(record, file, until))
            place = "/".join(quote(part) for part in (record.run_id, record.name, *file.split("/")))
            query = urlencode({"expires": until, "signature": signature})
            urls[file] = f"{base}/api/v1/external_weights/{place}?{query}"
        return urls


def _signed_parts(record: CheckpointRecord, file: str, expires: int) -> tuple[str, ...]:
    # With the time of its creation, so that a URL does not outlive its export into a later one of that name.
    return record.path, record.created_at.isoformat(), file, str(expires)


def _file_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
