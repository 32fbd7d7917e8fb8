"""How each training run went: a row per optimizer step, and figures that its client reported, thinned out as they grow.

This is for looking at, not a record: it is written a moment after the step, and what a killed process had not
written yet is missing.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from tinsmith_common.database import Database, core
from tinsmith_common.watch.tables import RunReportRow, RunStepRow

MAX_POINTS = 1000
"""About the rows of one run, and of one reported name. When there are more, every second one goes."""

# Columns, as SQLAlchemy types them.
_STEPS: Any = RunStepRow
_REPORTS: Any = RunReportRow
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True)
class Step:
    """One optimizer step, and the passes whose gradient it applied.

    number:         counts the run's steps from 1; 0 before it is stored.
    seq_id:         of the step, in the run's lane.
    loss:           the name of the passes' loss, names joined by `+`; None when there was no pass.
    loss_sum:       the sum of their `loss:sum`.
    weight_sum:     of a cross-entropy, the sum of the weights; None for other losses.
    advantage_mean: over the positions whose advantage is not 0; None where the loss takes no advantages.
    tokens:         of the passes' inputs.
    optimizer_step: the optimizer's own count, which goes on from loaded state.
    """

    run_id: str
    seq_id: int
    at: datetime
    number: int = 0
    loss: str | None = None
    loss_sum: float | None = None
    weight_sum: float | None = None
    advantage_mean: float | None = None
    datums: int = 0
    tokens: int = 0
    grad_norm: float | None = None
    learning_rate: float | None = None
    optimizer_step: int | None = None


@dataclass(frozen=True)
class Report:
    """A figure that the client of a run reported, such as its mean reward. `step` is the client's own count."""

    run_id: str
    name: str
    at: datetime
    value: float
    step: int | None = None
    number: int = 0


class RunHistory:
    """Steps and reports by run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_steps(self, steps: Sequence[Step]) -> None:
        """Append steps, in their order, in one transaction."""
        run = _STEPS.run_id
        async with self._database.write() as connection:
            wanted = run.in_({step.run_id for step in steps})
            query = select(run, func.max(_STEPS.number)).where(wanted).group_by(run)
            last = {row[0]: row[1] for row in (await connection.execute(query)).all()}
            numbers = _numbers((step.run_id for step in steps), last)
            rows = [asdict(step) | {"number": number} for step, number in zip(steps, numbers, strict=True)]
            await _insert_thinned(connection, RunStepRow, ("run_id",), rows)

    async def add_reports(self, reports: Sequence[Report]) -> None:
        """Append reports, in their order, in one transaction."""
        key = (_REPORTS.run_id, _REPORTS.name)
        async with self._database.write() as connection:
            wanted = _REPORTS.run_id.in_({report.run_id for report in reports})
            query = select(*key, func.max(_REPORTS.number)).where(wanted).group_by(*key)
            last = {(run, name): number for run, name, number in (await connection.execute(query)).all()}
            numbers = _numbers(((report.run_id, report.name) for report in reports), last)
            rows = [
                asdict(report) | {"number": number} for report, number in zip(reports, numbers, strict=True)
            ]
            await _insert_thinned(connection, RunReportRow, ("run_id", "name"), rows)

    async def report_names(self, run_id: str) -> tuple[str, ...]:
        """The names that are reported for a run, in their order."""
        query = select(_REPORTS.name).where(_REPORTS.run_id == run_id).distinct().order_by(_REPORTS.name)
        async with self._database.read() as connection:
            return tuple((await connection.execute(query)).scalars())

    async def steps(self, run_id: str, after: int = 0) -> tuple[Step, ...]:
        """What is kept of a run's steps after that number, in order."""
        query = select(core(RunStepRow)).where(_STEPS.run_id == run_id, _STEPS.number > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(_STEPS.number))).all()
        return tuple(_to_step(row) for row in rows)

    async def reports(self, run_id: str, after: datetime | None = None) -> tuple[Report, ...]:
        """What is kept of a run's reports, and came after that time, by name and in order."""
        query = select(core(RunReportRow)).where(_REPORTS.run_id == run_id)
        if after is not None:
            query = query.where(_REPORTS.at > after)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(_REPORTS.name, _REPORTS.number))).all()
        return tuple(
            Report(**{item.name: getattr(row, item.name) for item in fields(Report)}) for row in rows
        )

    async def last_steps(self, run_ids: Sequence[str]) -> dict[str, Step]:
        """The last stored step of each of these runs that has one."""
        newest = (
            select(_STEPS.run_id, func.max(_STEPS.number).label("number"))
            .where(_STEPS.run_id.in_(run_ids))
            .group_by(_STEPS.run_id)
            .subquery()
        )
        same = and_(_STEPS.run_id == newest.c.run_id, _STEPS.number == newest.c.number)
        query = select(core(RunStepRow)).join(newest, same)
        async with self._database.read() as connection:
            return {row.run_id: _to_step(row) for row in (await connection.execute(query)).all()}

    async def expire(self, before: datetime) -> None:
        """Forget what is older."""
        async with self._database.write() as connection:
            await connection.execute(delete(RunStepRow).where(_STEPS.at < before))
            await connection.execute(delete(RunReportRow).where(_REPORTS.at < before))


def stride_of(number: int) -> int:
    """Of a series that has come to this number, every how manieth is kept: the first, and then 1, 2, 4, …"""
    stride = 1
    while number > MAX_POINTS * stride:
        stride *= 2
    return stride


def _numbers(keys: Iterable[_K], last: Mapping[_K, int]) -> list[int]:
    """Count on each key's own series."""
    counts = defaultdict[_K, int](int, last)
    numbers: list[int] = []
    for key in keys:
        counts[key] += 1
        numbers.append(counts[key])
    return numbers


async def _insert_thinned(
    connection: AsyncConnection,
    table: type[RunStepRow | RunReportRow],
    key: tuple[str, ...],
    rows: list[dict[str, Any]],
) -> None:
    """Insert rows and keep of each series what its stride says, and its newest, which carries the count."""
    columns = core(table).c
    newest = {tuple(row[name] for name in key): row["number"] for row in rows}
    await connection.execute(insert(core(table)), rows)
    for values, number in newest.items():
        stride = stride_of(number)
        if stride > 1:
            series = and_(*(columns[name] == value for name, value in zip(key, values, strict=True)))
            skipped = and_((columns["number"] - 1) % stride != 0, columns["number"] != number)
            await connection.execute(delete(core(table)).where(series, skipped))


def _to_step(row: Any) -> Step:
    return Step(**{item.name: getattr(row, item.name) for item in fields(Step)})
