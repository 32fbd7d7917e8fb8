"""The audit log: who changed or took away what."""

import uuid
from datetime import UTC, date, datetime, time, timedelta

from tinsmith_common.catalog import AuditRecord, Catalog
from tinsmith_common.wire.accounts import AuditEntry, AuditEventType, AuditResponse

_PREFIXES = {
    "all": "",
    "checkpoints": "checkpoint_",
    "projects": "project_",
    "teams": "team_",
    "organizations": "organization_",
}


class AuditLog:
    """Written by the services that change things, read by the day."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def note(self, owner: str, event: str, **details: str | int | None) -> None:
        """Add an entry; `event` is `<resource>_<action>`."""
        record = AuditRecord(uuid.uuid4().hex, owner, datetime.now(UTC), event, details)
        await self._catalog.audit.create(record)

    async def of_day(self, owner: str, event_type: AuditEventType, day: date | None) -> AuditResponse:
        """The owner's entries of a UTC day, by default today."""
        start = datetime.combine(day or datetime.now(UTC).date(), time(), UTC)
        entries = await self._catalog.audit.of_owner(owner, start, start + timedelta(days=1))
        return AuditResponse(
            entries=[_to_wire(entry) for entry in entries if entry.event.startswith(_PREFIXES[event_type])]
        )


def _to_wire(record: AuditRecord) -> AuditEntry:
    return AuditEntry(
        timestamp=record.created_at,
        event=record.event,
        event_details={"owner": record.owner, **record.details},
        tinker_path=record.details.get("tinker_path"),
    )
