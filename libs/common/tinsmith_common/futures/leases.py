"""Who carries out which promises: a holder's lease on all of its promises lives as long as the holder does.

A promise names its holder from the beginning, so that a lease costs no statement of its own. What a holder proves
again and again is that it lives, by counting up one number. Others judge by their own clocks whether that number
still grows: clocks of different machines are never compared.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from tinsmith_common.blobs import BlobStore
from tinsmith_common.database import Database, core
from tinsmith_common.futures.bodies import request_key
from tinsmith_common.futures.notices import Notices, Topic
from tinsmith_common.futures.tables import HolderRow, PromiseRow
from tinsmith_common.futures.types import PendingPromise, PromiseKind, Service

# Columns, as SQLAlchemy types them.
_HOLDERS: Any = HolderRow
_PROMISES: Any = PromiseRow

# Any number that nothing else locks in the same Postgres database.
_CLAIMS_LOCK = 7_465_736_173_7
_RELEASED_AT_ONCE = 500


@dataclass(frozen=True)
class Pulse:
    """How far a holder has counted, and how many seconds it means to take from one number to the next."""

    beats: int
    beat_s: float


@dataclass(frozen=True)
class Others:
    """What a beat finds: the other holders, and whether our own lease was still there."""

    pulses: dict[str, Pulse]
    kept: bool


class Leases:
    """The leases of one service's holders.

    Every claim is a comparison and a change in one transaction, and claims run one after the other: however many
    holders want a promise, one gets it.
    """

    def __init__(self, database: Database, blobs: BlobStore, service: Service, notices: Notices) -> None:
        self._database = database
        self._blobs = blobs
        self._service: Service = service
        self._notices = notices

    async def join(self, holder: str, place: str, beat_s: float) -> list[PendingPromise]:
        """Become a holder, to beat every `beat_s` seconds.

        Returns the unfinished promises that are its own now: those which nobody holds, and those of earlier holders
        in the same `place`, which can be no more.
        """
        row = HolderRow(
            id=holder,
            service=self._service,
            place=place,
            beats=0,
            beat_s=beat_s,
            started_at=datetime.now(UTC),
        )
        async with self._database.write() as connection:
            await self._database.lock(connection, _CLAIMS_LOCK)
            of_place = (_HOLDERS.service == self._service, _HOLDERS.place == place)
            await connection.execute(delete(HolderRow).where(*of_place))
            await connection.execute(insert(core(HolderRow)), row.model_dump())
            rows = await self._claim(connection, holder, _nobody_holds(self._service))
        return await self._with_bodies(rows)

    async def beat(self, holder: str) -> Others:
        """Show that the holder lives, and look at the others."""
        mine = update(HolderRow).where(_HOLDERS.id == holder).values(beats=_HOLDERS.beats + 1)
        others = select(_HOLDERS.id, _HOLDERS.beats, _HOLDERS.beat_s).where(
            _HOLDERS.service == self._service, _HOLDERS.id != holder
        )
        async with self._database.write() as connection:
            kept = (await connection.execute(mine)).rowcount == 1
            rows = (await connection.execute(others)).all()
        return Others({row.id: Pulse(row.beats, row.beat_s) for row in rows}, kept)

    async def take(self, holder: str, dead: str, beats: int) -> list[PendingPromise]:
        """Take over from a holder that has not counted on from `beats`; nothing if it has, or another was first."""
        async with self._database.write() as connection:
            await self._database.lock(connection, _CLAIMS_LOCK)
            as_seen = (_HOLDERS.id == dead, _HOLDERS.beats == beats)
            if (await connection.execute(delete(HolderRow).where(*as_seen))).rowcount != 1:
                return []
            rows = await self._claim(connection, holder, _PROMISES.holder == dead)
        return await self._with_bodies(rows)

    async def take_free(self, holder: str) -> list[PendingPromise]:
        """Take what nobody holds."""
        async with self._database.write() as connection:
            await self._database.lock(connection, _CLAIMS_LOCK)
            rows = await self._claim(connection, holder, _nobody_holds(self._service))
        return await self._with_bodies(rows)

    async def held(self, holder: str) -> frozenset[str]:
        """Request ids of the unfinished promises of a holder."""
        query = select(_PROMISES.request_id).where(*_unfinished(self._service), _PROMISES.holder == holder)
        async with self._database.read() as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def release(self, holder: str, request_ids: Collection[str]) -> None:
        """Give promises back, for others to take at once."""
        ids = list(request_ids)
        for first in range(0, len(ids), _RELEASED_AT_ONCE):
            some = ids[first : first + _RELEASED_AT_ONCE]
            those = (*_unfinished(self._service), _PROMISES.holder == holder)
            given = update(core(PromiseRow)).where(_PROMISES.request_id.in_(some), *those)
            async with self._database.write() as connection:
                await connection.execute(given.values(holder=None))
        if ids:
            self._notices.send(Topic.HOLDER, holder)

    async def leave(self, holder: str) -> None:
        """Hold nothing any more: others may take it at once."""
        async with self._database.write() as connection:
            await connection.execute(delete(HolderRow).where(_HOLDERS.id == holder))
        self._notices.send(Topic.HOLDER, holder)

    async def _claim(self, connection: AsyncConnection, holder: str, condition: Any) -> Sequence[Any]:
        statement = (
            update(core(PromiseRow))
            .where(*_unfinished(self._service), condition)
            .values(holder=holder)
            .returning(*core(PromiseRow).columns)
        )
        rows = (await connection.execute(statement)).all()
        return sorted(rows, key=lambda row: row.created_at)

    async def _with_bodies(self, rows: Sequence[Any]) -> list[PendingPromise]:
        def read() -> list[PendingPromise]:
            return [pending_promise(row, self._blobs) for row in rows]

        return await asyncio.to_thread(read) if rows else []


def pending_promise(row: Any, blobs: BlobStore) -> PendingPromise:
    """What a row of an unfinished promise holds. Reads the blob store, so it blocks."""
    body = blobs.get(request_key(row.request_id)) if row.request_in_blob else row.request
    return PendingPromise(row.request_id, PromiseKind(row.kind), row.owner, body or b"")


def _unfinished(service: Service) -> tuple[Any, Any]:
    return _PROMISES.service == service, _PROMISES.state == "pending"


def _nobody_holds(service: Service) -> Any:
    living = select(_HOLDERS.id).where(_HOLDERS.service == service)
    return _PROMISES.holder.is_(None) | _PROMISES.holder.not_in(living)
