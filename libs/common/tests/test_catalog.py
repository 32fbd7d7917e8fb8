"""The catalog."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tinsmith_common.catalog import CheckpointRecord, RunRecord, SessionRecord
from tinsmith_common.errors import InvalidInput
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SESSION = SessionRecord("s", "ann", NOW, NOW, tags=("a", "b"), user_metadata={"k": [1]})
RUN = RunRecord("r", "s", "ann", "base", 8, 32.0, True, True, False, NOW, NOW, {"k": "v"})
CHECKPOINT = CheckpointRecord(
    "tinker://r/weights/a",
    "r",
    "ann",
    "weights",
    "a",
    "r/weights/a",
    7,
    NOW,
    "base",
    8,
    32.0,
    True,
    True,
    False,
)


async def test_records_come_back_as_they_went_in(stores: Stores) -> None:
    await stores.catalog.sessions.create(SESSION)
    await stores.catalog.runs.create(RUN)
    await stores.catalog.checkpoints.create(CHECKPOINT)
    assert await stores.catalog.sessions.get("s") == SESSION
    assert await stores.catalog.runs.get("r") == RUN
    assert await stores.catalog.checkpoints.find("tinker://r/weights/a") == CHECKPOINT


async def test_creating_twice_keeps_the_first(stores: Stores) -> None:
    assert await stores.catalog.runs.create(RUN)
    assert not await stores.catalog.runs.create(replace(RUN, rank=16))
    assert await stores.catalog.runs.get("r") == RUN


async def test_pages_are_of_one_owner_with_the_exact_total(stores: Stores) -> None:
    for index in range(5):
        at = NOW + timedelta(minutes=index)
        await stores.catalog.runs.create(replace(RUN, id=f"r{index}", created_at=at))
    await stores.catalog.runs.create(replace(RUN, id="other", owner="bob"))
    page = await stores.catalog.runs.visible_to("ann", 1, 2)
    assert [run.id for run in page.items] == ["r3", "r2"]
    assert page.total == 5


async def test_an_expired_checkpoint_is_in_no_listing_and_is_found_for_removal(stores: Stores) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await stores.catalog.checkpoints.create(replace(CHECKPOINT, expires_at=past))
    assert await stores.catalog.checkpoints.find(CHECKPOINT.path) is None
    assert await stores.catalog.checkpoints.of_run("r") == ()
    assert (await stores.catalog.checkpoints.of_owner("ann", 0, 10)).total == 0
    assert [record.path for record in await stores.catalog.checkpoints.expired()] == [CHECKPOINT.path]


async def test_only_open_sessions_can_fall_silent(stores: Stores) -> None:
    await stores.catalog.sessions.create(SESSION)
    await stores.catalog.sessions.create(replace(SESSION, id="closed", closed_at=NOW))
    await stores.catalog.sessions.create(replace(SESSION, id="lively", last_seen_at=NOW + timedelta(hours=2)))
    silent = await stores.catalog.sessions.open_and_silent_since(NOW + timedelta(hours=1))
    assert [session.id for session in silent] == ["s"]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
async def test_text_that_a_store_cannot_hold_is_the_caller_s_and_the_store_works_on(
    stores: Stores, settings: CommonSettings, text: str
) -> None:
    refused = "sqlite" not in settings.store_url or "\0" not in text
    held = replace(SESSION, id=text, tags=(text,))
    with pytest.raises(InvalidInput, match=r"Unicode|U\+0000") if refused else nullcontext():
        await stores.catalog.sessions.create(held)
    with pytest.raises(InvalidInput) if refused else nullcontext():
        assert await stores.catalog.sessions.get(text) == held
    await stores.catalog.sessions.create(SESSION)
    assert await stores.catalog.sessions.get("s") == SESSION
