"""What the page at `/ui` shows of sampling: every replica writes down how it is, and any of them tells of all."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from tinsmith_common.auth import Principal
from tinsmith_common.observability import get_logger
from tinsmith_common.stores import Stores
from tinsmith_common.watch import ReplicaReport
from tinsmith_common.wire.watch import (
    WatchedAdapter,
    WatchedEngine,
    WatchedFailure,
    WatchedReplica,
    WatchSampling,
)
from tinsmith_sample.engines.base import SamplingEngine

_log = get_logger(__name__)

_REPORT_EVERY_S = 2.0
_SILENT_AFTER = timedelta(seconds=15)
_FORGET_AFTER = timedelta(minutes=10)
MAX_FAILURES = 50


class ReplicaReporter:
    """Writes down, every few seconds, how the replica in this place is. One that comes after another replaces it."""

    def __init__(
        self,
        place: str,
        stores: Stores,
        engines: Mapping[str, SamplingEngine],
        registry: CollectorRegistry,
        ready: Callable[[], bool],
    ) -> None:
        self._stores = stores
        self._engines = engines
        self._registry = registry
        self._ready = ready
        self._id = place
        self._started_at = datetime.now(UTC)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to report."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Take the report back: this replica is no more."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            await self._stores.replicas.remove(self._id)
        except Exception:
            _log.exception("this replica's last report could not be taken back; it will be shown as silent")

    async def report(self) -> None:
        """Write down how this replica is now."""
        now = datetime.now(UTC)
        report = ReplicaReport(self._id, socket.gethostname(), self._started_at, now, self._figures())
        await self._stores.replicas.put(report, now - _FORGET_AFTER)

    async def _run(self) -> None:
        while True:
            try:
                await self.report()
            except Exception:
                _log.exception("this replica could not report; trying again")
            await asyncio.sleep(_REPORT_EVERY_S)

    def _figures(self) -> dict[str, Any]:
        """The changing part of a `WatchedReplica`, with all adapters."""
        return {
            "state": "ready" if self._ready() else "starting",
            "queue": int(
                self._value("tinsmith_sample_queue_length") + self._value("tinsmith_inference_open")
            ),
            "engines": [self._engine(name, engine) for name, engine in self._engines.items()],
            "adapters": [
                _adapter(name, item.key)
                | {"name": item.name, "users": item.users}
                | {"state": "resident" if item.loaded else "loading"}
                for name, engine in self._engines.items()
                for item in engine.residents()
            ],
        }

    def _engine(self, model: str, engine: SamplingEngine) -> dict[str, Any]:
        stats = engine.stats()
        cached = self._value("tinsmith_prompt_tokens_total", model=model, source="cached")
        computed = self._value("tinsmith_prompt_tokens_total", model=model, source="computed")
        sampled = ("tinsmith_sample_tokens_total", "tinsmith_inference_tokens_total")
        return {
            "base_model": model,
            "running_requests": int(stats.get("running_requests", 0)),
            "waiting_requests": int(stats.get("waiting_requests", 0)),
            "resident_adapters": int(stats.get("adapters", 0)),
            "sampled_tokens": int(sum(self._value(name, model=model) for name in sampled)),
            "prompt_tokens": int(cached + computed),
            "cached_tokens": int(cached),
            "first_token_count": int(self._value("tinsmith_first_token_seconds_count", model=model)),
            "first_token_seconds": self._value("tinsmith_first_token_seconds_sum", model=model),
        }

    def _value(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0


class WatchService:
    """Reads the reports of all replicas, and changes nothing."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def sampling(self, caller: Principal) -> WatchSampling:
        """Replicas with their engines, the caller's adapters, the newest failures. Operators see everybody's."""
        owner = None if caller.is_operator else caller.owner
        now = datetime.now(UTC)
        reports = await self._stores.replicas.all()
        runs = {item["run_id"] for report in reports for item in report.report["adapters"]}
        mine = runs if owner is None else await self._owned(owner, runs)
        failures = await self._stores.failures.newest(owner, MAX_FAILURES)
        return WatchSampling(
            owner=caller.owner,
            operator=caller.is_operator,
            at=now,
            replicas=[_replica(report, mine, now) for report in reports],
            failures=[
                WatchedFailure.model_validate(asdict(item) | {"request_type": item.kind}) for item in failures
            ],
        )

    async def _owned(self, owner: str, run_ids: Iterable[str]) -> set[str]:
        runs = [await self._stores.catalog.runs.get(run_id) for run_id in run_ids]
        return {run.id for run in runs if run is not None and run.owner == owner}


def _adapter(model: str, key: str) -> dict[str, str]:
    """What an engine's key says: `<run>/<kind>/<name>@<version>`."""
    weights = key.rpartition("@")[0] or key
    return {"base_model": model, "weights": weights, "run_id": weights.partition("/")[0]}


def _replica(report: ReplicaReport, runs: set[str], now: datetime) -> WatchedReplica:
    figures = report.report
    silent = now - report.reported_at > _SILENT_AFTER
    held = [] if silent else figures["adapters"]  # a replica that is gone holds nothing
    adapters = [WatchedAdapter.model_validate(item) for item in held if item["run_id"] in runs]
    state: Literal["ready", "starting", "silent"] = "silent" if silent else figures["state"]
    return WatchedReplica(
        replica_id=report.id,
        host=report.host,
        started_at=report.started_at,
        reported_at=report.reported_at,
        state=state,
        queue=figures["queue"],
        engines=[WatchedEngine.model_validate(item) for item in figures["engines"]],
        adapters=adapters,
        other_adapters=len(held) - len(adapters),
    )
