"""What every replica of a service last said of itself, so that any of them can tell of all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select

from tinsmith_common.database import Database, core
from tinsmith_common.watch.tables import ReplicaReportRow

_ROWS: Any = ReplicaReportRow


@dataclass(frozen=True)
class ReplicaReport:
    """`report` is JSON; times are UTC."""

    id: str
    host: str
    started_at: datetime
    reported_at: datetime
    report: Mapping[str, Any]


class ReplicaReports:
    """One row a replica, replaced by each report."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, report: ReplicaReport, forget_before: datetime) -> None:
        """Replace this replica's report, and forget those of replicas that have been silent since."""
        old = (_ROWS.id == report.id) | (_ROWS.reported_at < forget_before)
        async with self._database.write() as connection:
            await connection.execute(delete(ReplicaReportRow).where(old))
            await connection.execute(insert(core(ReplicaReportRow)), [asdict(report)])

    async def remove(self, replica_id: str) -> None:
        """A replica has stopped."""
        async with self._database.write() as connection:
            await connection.execute(delete(ReplicaReportRow).where(_ROWS.id == replica_id))

    async def all(self) -> tuple[ReplicaReport, ...]:
        """Of every replica, the one that started first first."""
        query = select(core(ReplicaReportRow)).order_by(_ROWS.started_at, _ROWS.id)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return tuple(
            ReplicaReport(row.id, row.host, row.started_at, row.reported_at, row.report) for row in rows
        )
