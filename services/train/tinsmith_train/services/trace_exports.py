"""Exports of a session's trace: built in the background, handed out by URLs that expire."""

import asyncio
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO
from urllib.parse import quote, urlencode

from tinsmith_common.catalog import Catalog, SessionRecord
from tinsmith_common.errors import Forbidden
from tinsmith_common.futures import FutureStore
from tinsmith_common.observability import get_logger
from tinsmith_common.wire.sessions import TraceExportResponse
from tinsmith_train.services.downloads import URL_LIFETIME, UrlSigner
from tinsmith_train.services.traces import TraceWriter

_log = get_logger(__name__)

_WAIT_S = 2.0
"""Most traces are written in less: their first poll is answered with them."""


class TraceExports:
    """One file per session, written anew for every export; at most one is being written at a time."""

    def __init__(
        self,
        catalog: Catalog,
        futures: FutureStore,
        folder: Path,
        signer: UrlSigner,
        public_url: str | None,
    ) -> None:
        self._catalog = catalog
        self._futures = futures
        self._folder = folder
        self._signer = signer
        self._public_url = public_url
        self._writing = asyncio.Lock()
        self._exports: dict[str, asyncio.Task[None]] = {}

    async def export(self, session: SessionRecord, asked_at: str) -> TraceExportResponse:
        """Begin an export, or see how the one that was begun is. `asked_at` is the address the client used."""
        task = self._exports.get(session.id)
        if task is None:
            task = self._exports[session.id] = asyncio.create_task(self._write(session))
        await asyncio.wait({task}, timeout=_WAIT_S)
        if not task.done():
            return TraceExportResponse(status="pending")
        self._exports.pop(session.id, None)
        if (error := task.exception()) is not None:
            _log.error("trace export failed", session_id=session.id, exc_info=error)
            reason = (
                f"{type(error).__name__}; the server's log has the details, and a new export may be tried"
            )
            return TraceExportResponse(status="failed", error=reason)
        base = (self._public_url or asked_at).rstrip("/")
        return TraceExportResponse(status="ready", url=await asyncio.to_thread(self._url, session.id, base))

    async def file(self, session_id: str, expires: int, signature: str) -> Path:
        """The file that a URL names. Raises `Forbidden` unless its signature is right and its time not over."""
        parts = _signed_parts(session_id, expires)
        if not await asyncio.to_thread(self._signer.verify, signature, *parts):
            raise Forbidden("this trace URL was not made here, or was altered")
        path = self._path(session_id)
        if datetime.now(UTC).timestamp() >= expires or not await asyncio.to_thread(path.exists):
            raise Forbidden("this trace URL has expired; export the trace again")
        return path

    async def delete_old(self) -> None:
        """Remove the files to which no valid URL leads any more."""
        await asyncio.to_thread(self._delete_old)

    async def stop(self) -> None:
        """Give up what is being written."""
        tasks = list(self._exports.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, session: SessionRecord) -> None:
        path = self._path(session.id)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        async with self._writing:
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
            file = await asyncio.to_thread(draft.open, "w", encoding="utf-8")
            try:
                await self._fill(file, session)
            finally:
                await asyncio.to_thread(file.close)
            await asyncio.to_thread(os.replace, draft, path)

    async def _fill(self, file: TextIO, session: SessionRecord) -> None:
        """Page by page: neither a long session's events nor their text are ever all in memory."""
        writer = TraceWriter(session, datetime.now(UTC), await self._labels(session.id))
        file.write(writer.head())
        async for page in self._futures.spans.pages(session.owner, session.id):
            await asyncio.to_thread(file.writelines, map(writer.render, page))
        file.write(writer.tail())

    async def _labels(self, session_id: str) -> dict[str, str]:
        runs = await self._catalog.runs.of_session(session_id)
        samplers = await self._catalog.sampling_sessions.of_session(session_id)
        labels = {run.id: f"{run.base_model}, rank {run.rank}" for run in runs}
        return labels | {sampler.id: sampler.model_path or sampler.base_model for sampler in samplers}

    def _url(self, session_id: str, base: str) -> str:
        until = int((datetime.now(UTC) + URL_LIFETIME).timestamp())
        query = urlencode(
            {"expires": until, "signature": self._signer.sign(*_signed_parts(session_id, until))}
        )
        return f"{base}/api/v1/trace_exports/{quote(session_id)}?{query}"

    def _path(self, session_id: str) -> Path:
        return self._folder / f"{quote(session_id, safe='')}.json"

    def _delete_old(self) -> None:
        # Signed shortly after it was written: a minute on top covers the time between.
        oldest = datetime.now(UTC).timestamp() - URL_LIFETIME.total_seconds() - 60
        for path in list(self._folder.iterdir()) if self._folder.exists() else ():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                pass  # an export was put in place meanwhile


def _signed_parts(session_id: str, expires: int) -> tuple[str, ...]:
    return "trace_export", session_id, str(expires)
