"""Waking those who wait in other processes. On Postgres by its notifications, on SQLite by looking."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tinsmith_common.futures import Outcome, PromiseKind, Topic
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

on_postgres = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)


@pytest_asyncio.fixture
async def other(settings: CommonSettings, stores: Stores) -> AsyncIterator[Stores]:
    """A second process, of the other service, on the store of `stores`."""
    other = Stores.build(settings, "sample", holder="other")
    await other.open()
    if other.database.is_postgres:
        await live(stores, other)
    yield other
    await other.close()


async def live(*processes: Stores) -> None:
    async with asyncio.timeout(10):
        while not all(process.futures.notices.live for process in processes):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def seconds_to_wake(ending: Stores, waiting: Stores, request_id: str) -> float:
    """From the call that ends a promise in one process until a poll in the other has its result."""
    await ending.futures.submit(request_id, PromiseKind.SAMPLE, "ann", b"ask")
    poll = asyncio.create_task(waiting.futures.wait(request_id, "ann", 30))
    await asyncio.sleep(0.05)
    start = time.perf_counter()
    await ending.futures.resolve(request_id, b"done", queue="s/0")
    assert await poll == Outcome(b"done")
    return time.perf_counter() - start


@on_postgres
async def test_a_poll_of_another_process_wakes_at_once_either_way(stores: Stores, other: Stores) -> None:
    seconds = [await seconds_to_wake(stores, other, f"s:{number}") for number in range(10)]
    seconds += [await seconds_to_wake(other, stores, f"t:{number}") for number in range(10)]
    # Looking every half second would take 0.25 s in the middle.
    assert sorted(seconds)[len(seconds) // 2] < 0.1, seconds


@on_postgres
async def test_a_batch_poll_of_another_process_wakes_at_once(stores: Stores, other: Stores) -> None:
    seconds: list[float] = []
    cursor = 0
    for number in range(10):
        poll = asyncio.create_task(other.futures.completions.wait("s/0", "ann", cursor, 30))
        await stores.futures.submit(f"s:{number}", PromiseKind.SAMPLE, "ann", b"ask")
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        await stores.futures.resolve(f"s:{number}", b"done", queue="s/0")
        cursor = (await poll).cursor
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[len(seconds) // 2] < 0.1, seconds


async def test_without_notices_a_poll_looks_within_half_a_second(stores: Stores, other: Stores) -> None:
    await stores.futures.notices.close()
    await other.futures.notices.close()
    assert await seconds_to_wake(stores, other, "s:1") < 2


@on_postgres
async def test_a_broken_connection_is_replaced_and_nobody_sleeps_through_it(
    stores: Stores, other: Stores
) -> None:
    await stores.futures.submit("s:1", PromiseKind.SAMPLE, "ann", b"ask")
    poll = asyncio.create_task(other.futures.wait("s:1", "ann", 30))
    await asyncio.sleep(0.05)
    async with stores.database.postgres_connection() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%pg_notify%' AND pid <> pg_backend_pid()"
        )
    async with asyncio.timeout(10):
        while stores.futures.notices.live or other.futures.notices.live:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await stores.futures.resolve("s:1", b"done")  # nobody hears of it
    async with asyncio.timeout(2):
        assert await poll == Outcome(b"done")
    await live(stores, other)
    assert await seconds_to_wake(stores, other, "s:2") < 2


@on_postgres
async def test_thousands_of_names_arrive_each_once_whatever_they_are(stores: Stores, other: Stores) -> None:
    heard: list[str] = []
    other.futures.notices.on(Topic.HOLDER, heard.append)
    names = [f'{"n" * (number % 700)} ü\n"{number}' for number in range(3000)]
    for name in [*names, "too long" * 2000]:
        stores.futures.notices.send(Topic.HOLDER, name)
    async with asyncio.timeout(20):
        while len(heard) < len(names):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert heard == names


@on_postgres
async def test_the_last_words_of_a_process_are_sent_and_it_ends_quietly(
    stores: Stores, other: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    other.futures.notices.on(Topic.HOLDER, heard.append)
    stores.futures.notices.send(Topic.HOLDER, "gone")
    await stores.futures.notices.close()
    async with asyncio.timeout(10):
        while heard != ["gone"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_process_that_ends_answers_its_polls(stores: Stores) -> None:
    await stores.futures.submit("s:1", PromiseKind.SAMPLE, "ann", b"ask")
    poll = asyncio.create_task(stores.futures.wait("s:1", "ann", 30))
    batch_poll = asyncio.create_task(stores.futures.completions.wait("s/0", "ann", 0, 30))
    await asyncio.sleep(0.05)
    stores.futures.stop_waiting()
    async with asyncio.timeout(5):
        assert await poll is None
        assert (await batch_poll).completions == ()
