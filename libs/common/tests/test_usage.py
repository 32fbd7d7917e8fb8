"""What is counted, and when: with the result that it belongs to, or not at all."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select

from tinsmith_common.catalog import CheckpointRecord, SessionRecord, Usage, UsageKind
from tinsmith_common.futures import PromiseKind, Work
from tinsmith_common.futures.tables import PromiseRow
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

HOUR = timedelta(hours=1)
USED = Usage("s", "base", {UsageKind.PREFILL: 5, UsageKind.SAMPLED: 7})
CHECKPOINT = CheckpointRecord(
    "tinker://s:train:0/weights/a",
    "s:train:0",
    "ann",
    "weights",
    "a",
    "key",
    10**9,
    datetime(2026, 1, 1, tzinfo=UTC),
    "base",
    8,
    32.0,
    True,
    True,
    False,
)


def worked(usage: Usage = USED) -> Work:
    now = datetime.now(UTC)
    return Work(now, now, usage)


async def counted(stores: Stores, owner: str = "ann") -> dict[UsageKind, int]:
    """Everything the owner ever used."""
    now = datetime.now(UTC)
    sums: dict[UsageKind, int] = {}
    for item in await stores.catalog.usage.hours(owner, now - 1000 * HOUR, now + HOUR):
        sums[item.kind] = sums.get(item.kind, 0) + item.quantity
    return sums


async def submit(stores: Stores, request_id: str, owner: str = "ann") -> str:
    await stores.futures.submit(request_id, PromiseKind.SAMPLE, owner)
    return request_id


async def test_work_is_counted_once_however_often_its_promise_is_ended(stores: Stores) -> None:
    request_id = await submit(stores, "s:sample:0:0")
    for _ in range(3):
        await stores.futures.resolve(request_id, b"", work=worked())
    assert await counted(stores) == {UsageKind.PREFILL: 5, UsageKind.SAMPLED: 7}


async def test_what_failed_or_was_cancelled_is_not_counted(stores: Stores) -> None:
    failed, cancelled = await submit(stores, "s:sample:0:0"), await submit(stores, "s:sample:0:1")
    await stores.futures.fail(failed, "no", "user", work=Work(datetime.now(UTC), datetime.now(UTC)))
    await stores.futures.cancel(cancelled, "ann")
    await stores.futures.resolve(cancelled, b"late", work=worked())
    assert await counted(stores) == {}


async def test_two_processes_that_count_at_once_lose_nothing(
    settings: CommonSettings, stores: Stores
) -> None:
    other = Stores.build(settings, "train")

    async def work(store: Stores, begin: int) -> None:
        for index in range(begin, begin + 25):
            await store.futures.resolve(await submit(store, f"s:sample:0:{index}"), b"", work=worked())

    await asyncio.gather(work(stores, 0), work(other, 100))
    assert await counted(stores) == {UsageKind.PREFILL: 250, UsageKind.SAMPLED: 350}
    await other.close()


async def test_usage_belongs_to_its_owner_session_model_and_hour(stores: Stores) -> None:
    first = datetime(2026, 1, 1, 10, 59, 59, 999_999, tzinfo=UTC)
    async with stores.database.write() as connection:
        for at in (first, first + timedelta(microseconds=1)):
            await stores.catalog.usage.add(connection, "ann", USED, at)
        await stores.catalog.usage.add(connection, "bob", replace(USED, session_id="t"), first)
    ten = datetime(2026, 1, 1, 10, tzinfo=UTC)
    hours = await stores.catalog.usage.hours("ann", ten, ten + HOUR)
    assert {(item.hour, item.session_id, item.base_model) for item in hours} == {(ten, "s", "base")}
    assert sorted(item.quantity for item in hours) == [5, 7]
    assert len(await stores.catalog.usage.hours("ann", ten, ten + 2 * HOUR)) == 4
    assert {item.session_id for item in await stores.catalog.usage.hours("bob", ten, ten + HOUR)} == {"t"}


RESOLVE_FOR_EVER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from tinsmith_common.catalog import Usage, UsageKind
from tinsmith_common.futures import PromiseKind, Work
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

async def main():
    stores = Stores.build(CommonSettings(metadata_dir=Path(sys.argv[1]), database_url=sys.argv[2]), "sample")
    usage = Usage("s", "base", {UsageKind.SAMPLED: 7})
    for index in range(10**6):
        await stores.futures.submit(f"s:sample:0:{index}", PromiseKind.SAMPLE, "ann")
        now = datetime.now(UTC)
        await stores.futures.resolve(f"s:sample:0:{index}", b"x", work=Work(now, now, usage))
        print(index, flush=True)

asyncio.run(main())
"""


def run_and_kill(folder: Path, url: str) -> None:
    """End it without warning once it has stored some results."""
    command = [sys.executable, "-c", RESOLVE_FOR_EVER, str(folder), url]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 50:
                os.kill(child.pid, signal.SIGKILL)
                break


async def test_a_killed_process_has_counted_exactly_the_results_it_stored(
    tmp_path: Path, store_url: str, stores: Stores
) -> None:
    await asyncio.to_thread(run_and_kill, tmp_path, store_url)
    done = select(PromiseRow).where(PromiseRow.__table__.c.state == "done")  # pyright: ignore[reportAttributeAccessIssue]
    async with stores.database.read() as connection:
        results = len((await connection.execute(done)).all())
    assert results > 50
    assert await counted(stores) == {UsageKind.SAMPLED: 7 * results}


async def test_a_checkpoint_is_counted_when_it_is_saved_and_stored_until_it_is_removed(
    stores: Stores,
) -> None:
    begun = CHECKPOINT.created_at
    await stores.catalog.checkpoints.save(CHECKPOINT, "s")
    again = replace(CHECKPOINT, size_bytes=3, created_at=begun + HOUR)
    await stores.catalog.checkpoints.save(again, "s")
    assert await stores.catalog.checkpoints.delete(CHECKPOINT.path)
    first, second = sorted(
        await stores.catalog.usage.stored("ann", begun, datetime.now(UTC)), key=lambda item: item.started_at
    )
    assert (first.size_bytes, first.started_at, first.ended_at) == (10**9, begun, begun + HOUR)
    assert (second.size_bytes, second.started_at) == (3, begun + HOUR)
    assert second.ended_at is not None
    (hour,) = await stores.catalog.usage.hours("ann", begun, begun + HOUR)
    assert (hour.kind, hour.quantity, hour.session_id) == (UsageKind.CHECKPOINT, 1, "s")


async def test_storage_ends_with_the_expiry_however_late_the_clean_up_is(stores: Stores) -> None:
    expiring = replace(CHECKPOINT, expires_at=CHECKPOINT.created_at + HOUR)
    await stores.catalog.checkpoints.save(expiring, "s")
    await stores.catalog.checkpoints.delete(expiring.path)
    (item,) = await stores.catalog.usage.stored("ann", CHECKPOINT.created_at, datetime.now(UTC))
    assert item.ended_at == expiring.expires_at


async def test_a_span_tells_when_a_request_came_ran_and_was_stored(stores: Stores) -> None:
    before = datetime.now(UTC)
    request_id = await submit(stores, "s:sample:0:0")
    started, computed = before + timedelta(milliseconds=1), before + timedelta(milliseconds=2)
    await stores.futures.resolve(request_id, b"", work=Work(started, computed, USED))
    ((span,),) = [page async for page in stores.futures.spans.pages("ann", "s")]
    assert (span.request_id, span.kind, span.state) == (request_id, "Sample", "done")
    assert before <= span.received_at
    assert (span.started_at, span.computed_at) == (started, computed)
    assert span.stored_at is not None
    assert computed <= span.stored_at <= datetime.now(UTC)
    assert span.quantities == {"sampling_prefill": 5, "sampling_sample": 7}


async def test_nobody_adds_to_the_timeline_of_somebody_else_s_session(stores: Stores) -> None:
    await stores.futures.fail(await submit(stores, "s:sample:0:0", "bob"), "not yours", "user")
    assert [page async for page in stores.futures.spans.pages("ann", "s")] == []
    assert await stores.futures.spans.last("ann", "s") is None
    assert not await stores.futures.spans.any_done("ann", "s", "s:sample:0")


async def test_long_timelines_are_read_page_by_page_in_the_order_of_arrival(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinsmith_common.futures.spans._PAGE", 3)
    ids = [await submit(stores, f"s:sample:0:{index}") for index in range(8)]
    for request_id in reversed(ids):
        await stores.futures.fail(request_id, "no", "user")
    pages = [page async for page in stores.futures.spans.pages("ann", "s")]
    assert [len(page) for page in pages] == [3, 3, 2]
    assert [span.request_id for page in pages for span in page] == ids


async def test_a_timeline_outlives_its_results_until_its_own_time_is_over(stores: Stores) -> None:
    await stores.futures.resolve(await submit(stores, "s:sample:0:0"), b"", work=worked())
    await submit(stores, "s:sample:0:1")
    before = [page async for page in stores.futures.spans.pages("ann", "s")]
    assert await stores.futures.expire(timedelta(0)) == 1
    assert [page async for page in stores.futures.spans.pages("ann", "s")] == before
    await stores.futures.spans.expire(datetime.now(UTC))
    ((pending,),) = [page async for page in stores.futures.spans.pages("ann", "s")]
    assert (pending.request_id, pending.state) == ("s:sample:0:1", "pending")


async def test_the_time_around_the_engine_is_measured_by_request_type(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    stores = Stores.build(CommonSettings(metadata_dir=tmp_path), "sample", registry)
    await stores.open()
    request_id = await submit(stores, "s:sample:0:0")
    ((promise,),) = [page async for page in stores.futures.spans.pages("ann", "s")]
    started = promise.received_at + timedelta(seconds=3)
    await stores.futures.resolve(request_id, b"", work=Work(started, started + timedelta(seconds=4)))

    def figure(name: str) -> float | None:
        return registry.get_sample_value(name, {"request_type": "Sample"})

    assert figure("tinsmith_request_to_engine_seconds_sum") == pytest.approx(3)
    assert figure("tinsmith_engine_seconds_sum") == pytest.approx(4)
    # The result is stored before the time at which this test says that the engine was done.
    assert figure("tinsmith_engine_to_result_seconds_sum") == 0
    assert figure("tinsmith_engine_to_result_seconds_count") == 1
    await stores.close()


async def test_only_an_open_session_fails_and_its_first_failure_stays(stores: Stores) -> None:
    at = CHECKPOINT.created_at
    await stores.catalog.sessions.create(SessionRecord("open", "ann", at, at))
    await stores.catalog.sessions.create(SessionRecord("closed", "ann", at, at, closed_at=at))
    for message in ("first", "second"):
        for session_id in ("open", "closed"):
            await stores.catalog.sessions.fail(session_id, {"message": message})
    found = await stores.catalog.sessions.by_id(["open", "closed"])
    assert found["open"].failure == {"message": "first"}
    assert found["closed"].failure is None
