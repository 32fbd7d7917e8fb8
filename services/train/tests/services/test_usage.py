"""Bills: hours, storage and prices, each against its own definition."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from tinsmith_common.catalog import CheckpointRecord, SessionRecord, Usage, UsageKind
from tinsmith_common.stores import Stores
from tinsmith_common.wire.accounts import StorageUsed, UsageResponse
from tinsmith_train.config import TokenPrices, TrainingConfig
from tinsmith_train.services.usage import Prices, UsageService

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALL_KINDS = {
    UsageKind.TRAINING: 1_000_000,
    UsageKind.PREFILL: 2_000_000,
    UsageKind.PREFILL_CACHED: 3_000_000,
    UsageKind.SAMPLED: 4_000_000,
    UsageKind.CHECKPOINT: 5,
}
PRICES = Prices(
    {"base": TokenPrices(training=1.5, prefill=0.5, sampled=2), "*": TokenPrices(training=100)}, storage=7.2
)


async def use(stores: Stores, usage: Usage, at: datetime) -> None:
    async with stores.database.write() as connection:
        await stores.catalog.usage.add(connection, "ann", usage, at)


async def bill(stores: Stores, prices: Prices = PRICES, hours: int = 24) -> UsageResponse:
    return await UsageService(stores.catalog, prices).events("ann", START, START + hours * HOUR)


def kind_of(info: Any) -> str:
    return f"{info.type}{'_cached' if getattr(info, 'cached', False) else ''}"


async def test_every_kind_is_told_with_its_session_project_and_metadata(stores: Stores) -> None:
    await stores.catalog.sessions.create(
        SessionRecord("s", "ann", START, START, project_id="apples", user_metadata={"run": 1})
    )
    await use(stores, Usage("s", "base", ALL_KINDS), START + HOUR / 2)
    answer = await bill(stores)
    assert {kind_of(event.event_info) for event in answer.data} == {kind.value for kind in ALL_KINDS}
    for event in answer.data:
        assert (event.bucket_start, event.bucket_end) == (START, START + HOUR)
        assert (event.session_id, event.project_id, event.user_id) == ("s", "apples", "ann")
    assert answer.sessions["s"].user_metadata == {"run": "1"}


async def test_hours_come_in_order_and_the_most_tokens_first(stores: Stores) -> None:
    for hour, tokens in ((2, 5), (1, 10), (1, 30)):
        await use(stores, Usage(f"s{tokens}", "base", {UsageKind.TRAINING: tokens}), START + hour * HOUR)
    assert [event.session_id for event in (await bill(stores)).data] == ["s30", "s10", "s5"]


async def test_tokens_cost_what_is_set_for_their_model_and_kind(stores: Stores) -> None:
    await use(stores, Usage("s", "base", ALL_KINDS), START)
    await use(stores, Usage("s", "other", {UsageKind.TRAINING: 500_000}), START)
    costs = {
        (event.base_model, kind_of(event.event_info)): event.estimated_cost_usd
        for event in (await bill(stores)).data
    }
    assert costs == {
        ("base", "training"): 1.5,
        ("base", "sampling_prefill"): 1.0,
        ("base", "sampling_prefill_cached"): None,
        ("base", "sampling_sample"): 8.0,
        ("base", "checkpoint"): None,
        ("other", "training"): 50.0,
    }


async def test_without_prices_no_cost_is_told(stores: Stores, saved: CheckpointRecord) -> None:
    await use(stores, Usage("s", "base", ALL_KINDS), START)
    answer = await bill(stores, Prices())
    assert "usd" not in answer.model_dump_json(exclude_none=True)
    storage = await UsageService(stores.catalog, Prices()).storage("ann", None)
    assert "usd" not in storage.model_dump_json(exclude_none=True)


async def test_stored_gigabytes_are_counted_by_the_minute_they_were_there(
    stores: Stores, saved: CheckpointRecord
) -> None:
    rng = np.random.default_rng(0)
    bytes_by_minute = np.zeros(24 * 60)
    for index in range(40):
        begin, end = sorted(rng.integers(-600, 24 * 60 + 600, 2).tolist())
        size = int(rng.integers(1, 5_000_000_000))
        record = replace(
            saved,
            path=f"{saved.path}{index}",
            size_bytes=size,
            created_at=START + timedelta(minutes=begin),
            expires_at=START + timedelta(minutes=end),
        )
        await stores.catalog.checkpoints.save(record, f"s{index % 3}")
        await stores.catalog.checkpoints.delete(record.path)
        bytes_by_minute[max(0, begin) : max(0, end)] += size
    sums = np.zeros(24)
    for event in (await bill(stores)).data:
        if isinstance(event.event_info, StorageUsed):
            sums[(event.bucket_start - START) // HOUR] += event.event_info.gigabyte_hours
    # Both are sums of some 40 doubles of at most 5e9: equal up to rounding.
    np.testing.assert_allclose(sums, bytes_by_minute.reshape(24, 60).sum(1) / 60 / 1e9, rtol=1e-9)


async def test_what_is_stored_still_is_counted_up_to_now_and_priced(
    stores: Stores, saved: CheckpointRecord
) -> None:
    now = datetime.now(UTC)
    start = now.replace(minute=0, second=0, microsecond=0) - HOUR
    await stores.catalog.checkpoints.save(
        replace(saved, size_bytes=2 * 10**9, created_at=start + HOUR / 2), "s"
    )
    events = (await UsageService(stores.catalog, PRICES).events("ann", start, start + 3 * HOUR)).data
    stored = [event for event in events if isinstance(event.event_info, StorageUsed)]
    assert [event.bucket_start for event in stored] == [start, start + HOUR]
    assert stored[0].event_info == StorageUsed(gigabyte_hours=1.0)
    # 7.20 USD per GB-month of 720 hours is one cent per GB-hour.
    assert stored[0].estimated_cost_usd == pytest.approx(0.01)
    (item,) = (await UsageService(stores.catalog, PRICES).storage("ann", None)).data
    assert (item.size_gigabytes, item.estimated_monthly_cost_usd) == (2.0, pytest.approx(14.4))


async def test_storage_of_sessions_without_a_project_is_found_as_the_default_one(
    stores: Stores, saved: CheckpointRecord
) -> None:
    usage = UsageService(stores.catalog, Prices())
    await stores.catalog.sessions.update("s", project_id=None)
    assert [item.checkpoint_count for item in (await usage.storage("ann", "default")).data] == [1]
    assert (await usage.storage("ann", "apples")).data == []


def test_prices_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_PRICES", '{"*": {"training": 1.5}}')
    assert TrainingConfig().token_prices == {"*": TokenPrices(training=1.5)}
    for bad in ('{"*": {"trainig": 1}}', '{"*": {"training": -1}}', '{"*": {"training": "inf"}}'):
        monkeypatch.setenv("TOKEN_PRICES", bad)
        with pytest.raises(ValueError, match="train"):
            TrainingConfig()
