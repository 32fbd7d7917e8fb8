"""The promise store."""

import asyncio
from datetime import timedelta

import pytest

from tinsmith_common.errors import NotFound, PromiseLost
from tinsmith_common.futures import PROTOBUF, Outcome, PromiseKind
from tinsmith_common.futures.store import INLINE_LIMIT_BYTES
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores


async def test_a_repeated_submission_is_the_same_promise(stores: Stores) -> None:
    first = await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann")
    second = await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann")
    assert (first.created, second.created) == (True, False)
    assert first.request_id == second.request_id


async def test_two_submissions_at_once_create_one_promise(stores: Stores) -> None:
    made = await asyncio.gather(
        *(stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann") for _ in range(20))
    )
    assert sum(submission.created for submission in made) == 1


async def test_another_owner_can_neither_take_nor_read_a_promise(stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann")
    with pytest.raises(NotFound):
        await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "bob")
    with pytest.raises(PromiseLost):
        await stores.futures.wait("m:1", "bob", 0)


async def test_a_waiter_wakes_when_the_promise_is_resolved(stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.FORWARD_BACKWARD, "ann")
    waiter = asyncio.create_task(stores.futures.wait("m:1", "ann", 30))
    await asyncio.sleep(0.05)
    await stores.futures.resolve("m:1", b"result", PROTOBUF)
    # Far below the re-check time: it was woken, it did not look again by itself.
    assert await asyncio.wait_for(waiter, 2) == Outcome(b"result", PROTOBUF)


async def test_a_result_can_be_read_again(stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann")
    await stores.futures.resolve("m:1", b"{}")
    first, second = [await stores.futures.wait("m:1", "ann", 0) for _ in range(2)]
    assert first == second == Outcome(b"{}")


async def test_the_first_ending_wins(stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann")
    await stores.futures.fail("m:1", "bad", "user")
    await stores.futures.resolve("m:1", b"{}")
    assert await stores.futures.wait("m:1", "ann", 0) == Outcome(error="bad", category="user")


async def test_an_unfinished_promise_answers_none_after_its_time(stores: Stores) -> None:
    await stores.futures.submit("m:1", PromiseKind.OPTIM_STEP, "ann")
    assert await stores.futures.wait("m:1", "ann", 0.05) is None


async def test_an_unknown_promise_is_lost(stores: Stores) -> None:
    with pytest.raises(PromiseLost):
        await stores.futures.wait("nothing", "ann", 0)


@pytest.mark.parametrize("size", [10, INLINE_LIMIT_BYTES + 1])
async def test_bodies_of_any_size_come_back_as_they_were(stores: Stores, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    await stores.futures.submit("s:1", PromiseKind.SAMPLE, "ann", body)
    assert [promise.request for promise in await stores.futures.pending()] == [body]
    await stores.futures.resolve("s:1", body, PROTOBUF)
    assert await stores.futures.wait("s:1", "ann", 0) == Outcome(body, PROTOBUF)


async def test_pending_promises_survive_a_restart(settings: CommonSettings) -> None:
    before = Stores.build(settings, "sample")
    await before.open()
    await before.futures.submit("s:1", PromiseKind.SAMPLE, "ann", b"ask")
    await before.futures.submit("s:2", PromiseKind.SAMPLE, "ann", b"ask")
    await before.futures.resolve("s:2", b"done")
    await before.close()
    after = Stores.build(settings, "sample")
    await after.open()
    assert [(p.request_id, p.request) for p in await after.futures.pending()] == [("s:1", b"ask")]
    await after.close()


async def test_a_poll_that_took_a_wrong_turn_is_answered_by_the_other_service(
    settings: CommonSettings, stores: Stores
) -> None:
    sample = Stores.build(settings, "sample")
    await sample.futures.submit("s:1", PromiseKind.SAMPLE, "ann", b"ask")
    waiter = asyncio.create_task(stores.futures.wait("s:1", "ann", 10))
    await asyncio.sleep(0.05)
    await sample.futures.resolve("s:1", b"done")
    assert await asyncio.wait_for(waiter, 5) == Outcome(b"done")
    assert await stores.futures.pending() == []
    await sample.close()


async def test_expired_promises_are_forgotten_with_their_bodies(
    settings: CommonSettings, stores: Stores
) -> None:
    body = b"x" * (INLINE_LIMIT_BYTES + 1)
    await stores.futures.submit("s:1", PromiseKind.SAMPLE, "ann", body)
    await stores.futures.submit("s:2", PromiseKind.SAMPLE, "ann", body)
    await stores.futures.resolve("s:1", body)
    assert await stores.futures.expire(timedelta(hours=1)) == 0
    assert await stores.futures.expire(timedelta(0)) == 1
    with pytest.raises(PromiseLost):
        await stores.futures.wait("s:1", "ann", 0)
    left = [path.name for path in settings.blob_dir.rglob("*") if path.is_file()]
    assert left == ["s%3A2.request"]


@pytest.mark.parametrize("message", ["no loss 'a\0b'", "no loss 'a\ud800b'"])
async def test_a_promise_fails_whatever_its_message_quotes(stores: Stores, message: str) -> None:
    await stores.futures.submit("r", PromiseKind.FORWARD_BACKWARD, "ann")
    await stores.futures.fail("r", message, "user")
    outcome = await stores.futures.wait("r", "ann", 0)
    assert outcome == Outcome(error="no loss 'a\N{REPLACEMENT CHARACTER}b'", category="user")
