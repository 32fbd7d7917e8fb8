"""The log of endings behind batch polls, and the numbers for clones."""

import asyncio
from datetime import timedelta

import pytest

from tinsmith_common.errors import PromiseLost
from tinsmith_common.futures import PROTOBUF, PromiseKind
from tinsmith_common.futures.store import INLINE_LIMIT_BYTES
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

QUEUE = "s/0"


async def finish(stores: Stores, request_id: str, payload: bytes = b"result") -> None:
    await stores.futures.submit(request_id, PromiseKind.SAMPLE, "ann", b"ask")
    await stores.futures.resolve(request_id, payload, PROTOBUF, queue=QUEUE)


async def ended(stores: Stores, cursor: int = 0, *, owner: str = "ann", queue: str = QUEUE) -> list[str]:
    batch = await stores.futures.completions.wait(queue, owner, cursor, 0)
    return [completion.request_id for completion in batch.completions]


async def test_events_come_in_the_order_of_their_endings(stores: Stores) -> None:
    for request_id in ("s:2", "s:0", "s:1"):
        await finish(stores, request_id)
    assert await ended(stores) == ["s:2", "s:0", "s:1"]


async def test_an_older_cursor_answers_the_same_events_again(stores: Stores) -> None:
    await finish(stores, "s:0")
    first = await stores.futures.completions.wait(QUEUE, "ann", 0, 0)
    await finish(stores, "s:1")
    assert await ended(stores, first.cursor) == ["s:1"]
    assert await ended(stores, 0) == ["s:0", "s:1"]


async def test_a_poll_wakes_at_the_first_ending(stores: Stores) -> None:
    poll = asyncio.create_task(stores.futures.completions.wait(QUEUE, "ann", 0, 30))
    await asyncio.sleep(0.05)
    await finish(stores, "s:0")
    assert [item.request_id for item in (await asyncio.wait_for(poll, 5)).completions] == ["s:0"]


async def test_a_promise_that_ends_twice_is_one_event(stores: Stores) -> None:
    await finish(stores, "s:0")
    await stores.futures.fail("s:0", "late", "server", queue=QUEUE)
    assert await ended(stores) == ["s:0"]


async def test_queues_and_owners_do_not_see_each_other_s_events(stores: Stores) -> None:
    await finish(stores, "s:0")
    assert await ended(stores, queue="s/1") == []
    assert await ended(stores, owner="bob") == []


async def test_any_process_answers_a_poll_and_a_restart_forgets_nothing(
    settings: CommonSettings, stores: Stores
) -> None:
    await finish(stores, "s:0")
    other = Stores.build(settings, "sample")
    assert await ended(other) == ["s:0"]
    poll = asyncio.create_task(
        other.futures.completions.wait(QUEUE, "ann", (await last_event(other)), timeout_s=30)
    )
    await asyncio.sleep(0.05)
    await finish(stores, "s:1")
    assert [item.request_id for item in (await asyncio.wait_for(poll, 10)).completions] == ["s:1"]
    await other.close()


async def last_event(stores: Stores) -> int:
    return (await stores.futures.completions.wait(QUEUE, "ann", 0, 0)).cursor


async def test_endings_in_two_processes_at_once_are_all_seen_by_a_reader_who_follows(
    settings: CommonSettings, stores: Stores
) -> None:
    other = Stores.build(settings, "train")
    seen, cursor = list[str](), 0

    async def write(store: Stores, offset: int) -> None:
        for index in range(20):
            await finish(store, f"s:{offset + index}")

    writing = asyncio.gather(write(stores, 0), write(other, 100))
    while len(seen) < 40:
        batch = await stores.futures.completions.wait(QUEUE, "ann", cursor, 10)
        assert batch.completions, "an event was skipped"
        seen += [completion.request_id for completion in batch.completions]
        cursor = batch.cursor
    await writing
    assert len(set(seen)) == 40
    await other.close()


async def test_what_was_acknowledged_is_dropped_with_its_bodies(
    settings: CommonSettings, stores: Stores
) -> None:
    body = b"x" * (INLINE_LIMIT_BYTES + 1)
    for request_id in ("s:0", "s:1"):
        await finish(stores, request_id, body)
    await stores.futures.acknowledge(QUEUE, "ann", ["s:0", "unknown"])
    assert await ended(stores) == ["s:1"]
    assert [path.name for path in settings.blob_dir.rglob("*") if path.is_file()] == ["s%3A1.payload"]
    with pytest.raises(PromiseLost):
        await stores.futures.wait("s:0", "ann", 0)
    assert not (await stores.futures.submit("s:0", PromiseKind.SAMPLE, "ann", b"ask")).created


async def test_unfinished_and_foreign_results_cannot_be_acknowledged(stores: Stores) -> None:
    await finish(stores, "s:0")
    await stores.futures.submit("s:1", PromiseKind.SAMPLE, "ann", b"ask")
    await stores.futures.acknowledge(QUEUE, "bob", ["s:0"])
    await stores.futures.acknowledge("s/1", "ann", ["s:0"])
    await stores.futures.acknowledge(QUEUE, "ann", ["s:1"])
    assert await stores.futures.wait("s:0", "ann", 0) is not None
    assert [promise.request for promise in await stores.futures.pending()] == [b"ask"]


async def test_cursors_stay_valid_when_the_events_before_have_expired(stores: Stores) -> None:
    await finish(stores, "s:0")
    cursor = await last_event(stores)
    await asyncio.sleep(0.01)
    await stores.futures.expire(timedelta(0))
    assert await ended(stores) == []
    await finish(stores, "s:1")
    assert await ended(stores, cursor) == ["s:1"]


async def test_a_cancelled_promise_is_a_failure_of_its_owner_s(stores: Stores) -> None:
    await stores.futures.submit("s:0", PromiseKind.SAMPLE, "ann", b"ask")
    assert not await stores.futures.cancel("s:0", "bob", queue=QUEUE)
    assert await stores.futures.cancel("s:0", "ann", queue=QUEUE)
    outcome = await stores.futures.wait("s:0", "ann", 0)
    assert outcome is not None
    assert (outcome.error, outcome.category) == ("cancelled by the client", "user")
    assert await ended(stores) == ["s:0"]


async def test_what_is_finished_or_unknown_cannot_be_cancelled(stores: Stores) -> None:
    await finish(stores, "s:0")
    assert not await stores.futures.cancel("s:0", "ann")
    assert not await stores.futures.cancel("nothing", "ann")
    outcome = await stores.futures.wait("s:0", "ann", 0)
    assert outcome is not None
    assert outcome.error is None


async def test_the_clones_of_a_session_get_distinct_numbers_from_1(stores: Stores) -> None:
    sessions = stores.catalog.sampling_sessions
    numbers = await asyncio.gather(*(sessions.next_clone("s") for _ in range(10)))
    assert sorted(numbers) == list(range(1, 11))
    assert await sessions.next_clone("other") == 1
