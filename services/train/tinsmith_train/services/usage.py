"""What an account used by hour, what it stores now, and what that costs where prices are set."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from tinsmith_common.catalog import Catalog, SessionRecord, StoredCheckpoint, UsageHour, UsageKind
from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire.accounts import (
    CheckpointsUsed,
    EventInfo,
    PrefillUsed,
    SampledUsed,
    StorageItem,
    StorageResponse,
    StorageUsed,
    TrainingUsed,
    UsageEvent,
    UsageResponse,
    UsageSession,
)
from tinsmith_train.config import ANY_MODEL, TokenPrices
from tinsmith_train.services.session_search import NO_PROJECT

_HOUR = timedelta(hours=1)
_LONGEST = timedelta(days=14)
_GIGABYTE = 1e9
_HOURS_PER_MONTH = 720.0
"""Of a price per GB-month, by the protocol."""


@dataclass(frozen=True)
class Prices:
    """USD: tokens by base model (or `*`) per million, storage per GB-month."""

    tokens: Mapping[str, TokenPrices] = field(default_factory=dict[str, TokenPrices])
    storage: float | None = None

    def of_tokens(self, base_model: str, kind: UsageKind) -> float | None:
        """The rate for a million tokens; None where there is none, and for what is not tokens."""
        prices = self.tokens.get(base_model) or self.tokens.get(ANY_MODEL) or TokenPrices()
        return {
            UsageKind.TRAINING: prices.training,
            UsageKind.PREFILL: prices.prefill,
            UsageKind.PREFILL_CACHED: prices.prefill_cached,
            UsageKind.SAMPLED: prices.sampled,
        }.get(kind)


class UsageService:
    """Reads figures of one owner."""

    def __init__(self, catalog: Catalog, prices: Prices) -> None:
        self._catalog = catalog
        self._prices = prices

    async def events(self, owner: str, start: datetime, end: datetime) -> UsageResponse:
        """Usage by session and UTC hour in a window of whole hours. Raises `InvalidInput`."""
        if not (_is_whole_hour(start) and _is_whole_hour(end) and timedelta() < end - start <= _LONGEST):
            raise InvalidInput("starting_on and ending_before must be whole UTC hours, at most 14 days apart")
        start, end = start.astimezone(UTC), end.astimezone(UTC)
        hours = await self._catalog.usage.hours(owner, start, end)
        stored = await self._catalog.usage.stored(owner, start, end)
        ids = {item.session_id for item in (*hours, *stored)}
        sessions = await self._catalog.sessions.by_id(sorted(ids))
        # A busy account has some 100,000 rows in two weeks: not on the loop.
        return await asyncio.to_thread(self._bill, owner, (start, end), hours, stored, sessions)

    async def storage(self, owner: str, project_id: str | None) -> StorageResponse:
        """What live checkpoints take up now, by project; of one project if one is named."""
        by_project = await self._catalog.checkpoints.storage_by_project(owner)
        rate = self._prices.storage
        return StorageResponse(
            data=[
                StorageItem(
                    project_id=project,
                    org_user_urn=owner,
                    checkpoint_count=storage.count,
                    size_bytes=storage.size_bytes,
                    size_gigabytes=storage.size_bytes / _GIGABYTE,
                    estimated_monthly_cost_usd=None
                    if rate is None
                    else rate * storage.size_bytes / _GIGABYTE,
                )
                for project, storage in by_project.items()
                if project_id is None or (project or NO_PROJECT) == project_id
            ],
            effective_rate_usd_per_gigabyte_month=rate,
        )

    def _bill(
        self,
        owner: str,
        window: tuple[datetime, datetime],
        hours: Sequence[UsageHour],
        stored: Sequence[StoredCheckpoint],
        sessions: Mapping[str, SessionRecord],
    ) -> UsageResponse:
        events = [self._of_hour(item, sessions) for item in hours]
        for session_id, base_model, hour, amount in _storage_hours(stored, *window, datetime.now(UTC)):
            events.append(self._of_storage(owner, session_id, base_model, hour, amount, sessions))
        events.sort(key=lambda event: (event.bucket_start, -_token_count(event.event_info)))
        used = sorted({event.session_id for event in events})
        return UsageResponse(
            data=events,
            sessions={session_id: _attributes(sessions.get(session_id)) for session_id in used},
        )

    def _of_hour(self, item: UsageHour, sessions: Mapping[str, SessionRecord]) -> UsageEvent:
        rate = self._prices.of_tokens(item.base_model, item.kind)
        return UsageEvent(
            bucket_start=item.hour,
            bucket_end=item.hour + _HOUR,
            base_model=item.base_model,
            user_id=item.owner,
            session_id=item.session_id,
            project_id=_project(sessions, item.session_id),
            estimated_cost_usd=None if rate is None else rate * item.quantity / 1e6,
            effective_rate_usd_per_million_tokens=rate,
            event_info=_info(item.kind, item.quantity),
        )

    def _of_storage(
        self,
        owner: str,
        session_id: str,
        base_model: str,
        hour: datetime,
        gigabyte_hours: float,
        sessions: Mapping[str, SessionRecord],
    ) -> UsageEvent:
        rate = self._prices.storage
        return UsageEvent(
            bucket_start=hour,
            bucket_end=hour + _HOUR,
            base_model=base_model,
            user_id=owner,
            session_id=session_id,
            project_id=_project(sessions, session_id),
            estimated_cost_usd=None if rate is None else rate * gigabyte_hours / _HOURS_PER_MONTH,
            effective_rate_usd_per_gigabyte_month=rate,
            event_info=StorageUsed(gigabyte_hours=gigabyte_hours),
        )


def _storage_hours(
    stored: Sequence[StoredCheckpoint], start: datetime, end: datetime, now: datetime
) -> Iterator[tuple[str, str, datetime, float]]:
    """Session, base model, hour and GB-hours, of every hour in which something was stored."""
    groups: defaultdict[tuple[str, str], list[StoredCheckpoint]] = defaultdict(list)
    for item in stored:
        groups[item.session_id, item.base_model].append(item)
    bounds = np.arange((end - start) // _HOUR + 1, dtype=np.float64)
    for (session_id, base_model), items in sorted(groups.items()):
        for index, amount in enumerate(_gigabyte_hours(items, start, now, bounds)):
            if amount > 0:
                yield session_id, base_model, start + index * _HOUR, float(amount)


def _gigabyte_hours(
    items: Sequence[StoredCheckpoint], start: datetime, now: datetime, bounds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """GB-hours between each two of the bounds, which are hours after `start`; `[len(bounds) - 1]`."""
    begun = np.array([(item.started_at - start) / _HOUR for item in items])
    ended = np.array([((item.ended_at or now) - start) / _HOUR for item in items])
    gigabytes = np.array([item.size_bytes for item in items]) / _GIGABYTE
    held = np.clip(bounds[None, :], begun[:, None], np.maximum(begun, ended)[:, None])
    return gigabytes @ np.diff(held, axis=1)


def _info(kind: UsageKind, quantity: int) -> EventInfo:
    match kind:
        case UsageKind.TRAINING:
            return TrainingUsed(token_count=quantity)
        case UsageKind.SAMPLED:
            return SampledUsed(token_count=quantity)
        case UsageKind.CHECKPOINT:
            return CheckpointsUsed(count=quantity)
        case UsageKind.PREFILL | UsageKind.PREFILL_CACHED:
            return PrefillUsed(cached=kind is UsageKind.PREFILL_CACHED, token_count=quantity)


def _token_count(info: EventInfo) -> int:
    return 0 if isinstance(info, CheckpointsUsed | StorageUsed) else info.token_count


def _project(sessions: Mapping[str, SessionRecord], session_id: str) -> str | None:
    session = sessions.get(session_id)
    return None if session is None else session.project_id


def _attributes(session: SessionRecord | None) -> UsageSession:
    if session is None or session.user_metadata is None:
        return UsageSession()
    return UsageSession(user_metadata={key: str(value) for key, value in session.user_metadata.items()})


def _is_whole_hour(at: datetime) -> bool:
    return at.tzinfo is not None and at.timestamp() % 3600 == 0
