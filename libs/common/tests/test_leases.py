"""Who carries out what: leases of several processes on one store."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio

from tinsmith_common.futures import Outcome, PendingPromise, PromiseKind
from tinsmith_common.futures.store import INLINE_LIMIT_BYTES
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

Process = Callable[[str], Stores]


@pytest_asyncio.fixture
async def process(settings: CommonSettings, stores: Stores) -> AsyncIterator[Process]:
    """Makes what a process of the given name has of the store that `stores` has opened."""
    made: list[Stores] = []

    def make(name: str) -> Stores:
        made.append(Stores.build(settings, "sample", holder=name))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def submit(process: Stores, *request_ids: str) -> None:
    for request_id in request_ids:
        await process.futures.submit(request_id, PromiseKind.SAMPLE, "ann", request_id.encode())


def ids(promises: Sequence[PendingPromise]) -> list[str]:
    return [promise.request_id for promise in promises]


async def test_the_work_of_a_living_holder_stays_its_own_when_another_joins(process: Process) -> None:
    a, b = process("a"), process("b")
    await a.futures.leases.join("a", "place a", 1.0)
    await submit(a, "s:1")
    assert await b.futures.leases.join("b", "place b", 1.0) == []
    assert await a.futures.leases.held("a") == {"s:1"}


async def test_a_successor_in_the_same_place_takes_its_work_up_at_once(process: Process) -> None:
    a, b = process("a"), process("b")
    await a.futures.leases.join("a", "place", 1.0)
    body = b"x" * (INLINE_LIMIT_BYTES + 1)
    await submit(a, "s:2", "s:1")
    await a.futures.submit("s:0", PromiseKind.SAMPLE, "ann", body)
    taken = await b.futures.leases.join("b", "place", 1.0)
    assert [(item.request_id, item.owner, item.request) for item in taken] == [
        ("s:2", "ann", b"s:2"),
        ("s:1", "ann", b"s:1"),
        ("s:0", "ann", body),
    ]
    assert await b.futures.leases.held("b") == {"s:0", "s:1", "s:2"}


async def test_promises_from_before_there_were_leases_are_taken_up(
    process: Process, settings: CommonSettings
) -> None:
    await submit(Stores.build(settings, "sample"), "s:1")
    assert ids(await process("a").futures.leases.join("a", "place", 1.0)) == ["s:1"]


async def test_promises_of_the_other_service_are_left_alone(process: Process, stores: Stores) -> None:
    await submit(stores, "m:1")
    assert await process("a").futures.leases.join("a", "place", 1.0) == []


async def test_a_holder_that_counts_no_further_is_inherited_by_exactly_one(process: Process) -> None:
    names = [str(number) for number in range(5)]
    heirs = [process(name) for name in names]
    dead = process("dead")
    for name, heir in zip([*names, "dead"], [*heirs, dead], strict=True):
        await heir.futures.leases.join(name, name, 1.0)
    await submit(dead, *(f"s:{number}" for number in range(20)))
    await dead.futures.resolve("s:7", b"done")
    seen = (await heirs[0].futures.leases.beat("0")).pulses["dead"].beats
    taken = await asyncio.gather(
        *(heir.futures.leases.take(name, "dead", seen) for name, heir in zip(names, heirs, strict=True))
    )
    assert sorted(map(len, taken)) == [0, 0, 0, 0, 19]
    assert "dead" not in (await heirs[0].futures.leases.beat("0")).pulses


async def test_a_beat_in_the_last_moment_saves_a_holder(process: Process) -> None:
    a, b = process("a"), process("b")
    await a.futures.leases.join("a", "place a", 1.0)
    await b.futures.leases.join("b", "place b", 1.0)
    await submit(a, "s:1")
    seen = (await b.futures.leases.beat("b")).pulses["a"].beats
    assert (await a.futures.leases.beat("a")).kept
    assert await b.futures.leases.take("b", "a", seen) == []
    assert await a.futures.leases.held("a") == {"s:1"}


async def test_one_that_was_taken_for_dead_learns_it_and_its_result_changes_nothing(process: Process) -> None:
    a, b = process("a"), process("b")
    await a.futures.leases.join("a", "place a", 1.0)
    await b.futures.leases.join("b", "place b", 1.0)
    await submit(a, "s:1", "s:2")
    seen = (await b.futures.leases.beat("b")).pulses["a"].beats
    assert ids(await b.futures.leases.take("b", "a", seen)) == ["s:1", "s:2"]
    await b.futures.resolve("s:1", b"of b")
    assert not (await a.futures.leases.beat("a")).kept
    assert await a.futures.leases.held("a") == frozenset()
    await a.futures.resolve("s:1", b"of a")
    assert await a.futures.wait("s:1", "ann", 0) == Outcome(b"of b")


async def test_what_was_submitted_by_one_taken_for_dead_is_not_lost_with_it(process: Process) -> None:
    a, b = process("a"), process("b")
    await a.futures.leases.join("a", "place a", 1.0)
    await b.futures.leases.join("b", "place b", 1.0)
    await b.futures.leases.take("b", "a", (await b.futures.leases.beat("b")).pulses["a"].beats)
    await submit(a, "s:1")
    assert ids(await b.futures.leases.take_free("b")) == ["s:1"]


async def test_what_is_given_back_or_left_is_free_for_others(process: Process) -> None:
    a, b = process("a"), process("b")
    await a.futures.leases.join("a", "place a", 1.0)
    await b.futures.leases.join("b", "place b", 1.0)
    await submit(a, "s:1", "s:2", "s:3")
    await b.futures.leases.release("b", ["s:3"])  # not b's to give
    await a.futures.leases.release("a", ["s:1"])
    assert ids(await b.futures.leases.take_free("b")) == ["s:1"]
    await a.futures.leases.leave("a")
    assert ids(await b.futures.leases.take_free("b")) == ["s:2", "s:3"]


async def test_joining_again_and_again_at_once_gives_each_promise_to_one(
    process: Process, settings: CommonSettings
) -> None:
    await submit(Stores.build(settings, "sample"), *(f"s:{number}" for number in range(30)))
    names = [str(number) for number in range(4)]
    taken = await asyncio.gather(*(process(name).futures.leases.join(name, name, 1.0) for name in names))
    assert sorted(item for promises in taken for item in ids(promises)) == sorted(f"s:{n}" for n in range(30))


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_a_beat_waits_for_no_connection_that_requests_have_taken(process: Process) -> None:
    a = process("a")
    await a.futures.leases.join("a", "place", 1.0)
    async with asyncio.TaskGroup() as group:
        free = asyncio.Event()

        async def hold() -> None:
            async with a.database.read():
                await free.wait()

        for _ in range(20):
            group.create_task(hold())
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            assert (await a.futures.leases.beat("a")).kept
        free.set()
