"""What an account uses: checkpoints saved by hour, and storage now."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from tinsmith_common.catalog import Catalog
from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire.accounts import (
    CheckpointsUsed,
    StorageItem,
    StorageResponse,
    UsageEvent,
    UsageResponse,
)
from tinsmith_train.services.audit import CHECKPOINT_SAVED

_HOUR = timedelta(hours=1)
_LONGEST = timedelta(days=14)


class UsageService:
    """Reads figures of one owner."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def events(self, owner: str, start: datetime, end: datetime) -> UsageResponse:
        """Usage by session and UTC hour in a window of whole hours. Raises `InvalidInput`."""
        if not (_is_whole_hour(start) and _is_whole_hour(end) and timedelta() < end - start <= _LONGEST):
            raise InvalidInput("starting_on and ending_before must be whole UTC hours, at most 14 days apart")
        entries = await self._catalog.audit.of_owner(owner, start.astimezone(UTC), end.astimezone(UTC))
        counts = Counter(
            (entry.created_at.replace(minute=0, second=0, microsecond=0), str(entry.details["session_id"]))
            for entry in entries
            if entry.event == CHECKPOINT_SAVED
        )
        return UsageResponse(
            data=[
                UsageEvent(
                    bucket_start=hour,
                    bucket_end=hour + _HOUR,
                    session_id=session_id,
                    event_info=CheckpointsUsed(count=count),
                )
                for (hour, session_id), count in sorted(counts.items())
            ]
        )

    async def storage(self, owner: str, project_id: str | None) -> StorageResponse:
        """What live checkpoints take up now, by project; of one project if one is named."""
        by_project = await self._catalog.checkpoints.storage_by_project(owner)
        return StorageResponse(
            data=[
                StorageItem(
                    project_id=project,
                    org_user_urn=owner,
                    checkpoint_count=storage.count,
                    size_bytes=storage.size_bytes,
                    size_gigabytes=storage.size_bytes / 1e9,
                )
                for project, storage in by_project.items()
                if project_id is None or project == project_id
            ]
        )


def _is_whole_hour(at: datetime) -> bool:
    return at.tzinfo is not None and at.timestamp() % 3600 == 0
