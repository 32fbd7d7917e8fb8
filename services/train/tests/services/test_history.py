"""How runs went, from notes that operations leave to the rows that curves are drawn from."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import tinsmith_train.services.history as history_module
from tinsmith_common.catalog import CheckpointRecord
from tinsmith_common.stores import Stores
from tinsmith_common.watch import Step
from tinsmith_train.engine.types import Datum, ForwardBackward, ForwardBackwardResult
from tinsmith_train.services.history import MAX_NAMES, HistoryService

RUN = "s:train:0"


def a_pass(
    loss: str = "cross_entropy", *, forward_only: bool = False, **inputs: Sequence[float]
) -> ForwardBackward:
    """Of one datum of three tokens."""
    ids = np.arange(3)
    datum = Datum(ids, ids, {name: np.array(values, np.float32) for name, values in inputs.items()})
    return ForwardBackward(RUN, (datum,), loss, forward_only=forward_only)


def result(loss: float) -> ForwardBackwardResult:
    return ForwardBackwardResult((), {"loss:sum": loss})


METRICS = {"grad_norm": 2.0, "learning_rate": 0.5, "optimizer_step": 7.0}


@pytest.fixture
def history(stores: Stores) -> HistoryService:
    return HistoryService(stores.history, stores.catalog)


async def test_a_step_has_the_passes_since_the_one_before_it(stores: Stores, history: HistoryService) -> None:
    history.note_pass(1, a_pass(weights=[1, 0, 0.5]), result(3.0))
    history.note_pass(2, a_pass(), result(4.0))
    history.note_step(RUN, 3, METRICS)
    history.note_pass(4, a_pass(weights=[1, 1, 1]), result(5.0))
    history.note_step(RUN, 5, METRICS)
    history.note_step(RUN, 6, METRICS)
    await history.flush()
    first, second, third = await stores.history.steps(RUN)
    # Where no weights are given, each of the three positions counts 1.
    assert (first.loss, first.loss_sum, first.weight_sum, first.datums, first.tokens) == (
        "cross_entropy",
        7.0,
        4.5,
        2,
        6,
    )
    assert (first.seq_id, first.grad_norm, first.learning_rate, first.optimizer_step) == (3, 2.0, 0.5, 7)
    assert (second.loss_sum, second.weight_sum) == (5.0, 3.0)
    assert (third.loss, third.loss_sum, third.datums) == (None, None, 0)


async def test_a_pass_that_is_noted_after_its_step_still_counts_for_it(
    stores: Stores, history: HistoryService
) -> None:
    history.note_step(RUN, 2, METRICS)
    assert history._settled_steps() == []  # pyright: ignore[reportPrivateUsage]
    history.note_pass(1, a_pass(), result(3.0))
    history.note_pass(3, a_pass(), result(9.0))
    await history.flush()
    (step,) = await stores.history.steps(RUN)
    assert step.loss_sum == 3.0


async def test_the_mean_advantage_is_over_what_is_not_0(stores: Stores, history: HistoryService) -> None:
    history.note_pass(1, a_pass("ppo", advantages=[0, 2, -1]), result(1.0))
    history.note_pass(2, a_pass("importance_sampling", advantages=[0, 0, 5]), result(1.0))
    history.note_step(RUN, 3, METRICS)
    await history.flush()
    (step,) = await stores.history.steps(RUN)
    assert (step.loss, step.advantage_mean, step.weight_sum) == ("importance_sampling+ppo", 2.0, None)


async def test_a_forward_alone_is_no_part_of_the_curve(stores: Stores, history: HistoryService) -> None:
    history.note_pass(1, a_pass(forward_only=True), result(3.0))
    history.note_step(RUN, 2, METRICS)
    await history.flush()
    (step,) = await stores.history.steps(RUN)
    assert step.loss_sum is None


async def test_any_number_of_passes_without_a_step_is_added_up(
    stores: Stores, history: HistoryService
) -> None:
    for seq_id in range(1, 1001):
        history.note_pass(seq_id, a_pass(), result(1.0))
    history.note_step(RUN, 1001, METRICS)
    await history.flush()
    (step,) = await stores.history.steps(RUN)
    assert (step.loss_sum, step.datums, step.tokens) == (1000.0, 1000, 3000)


async def test_a_figure_that_is_not_finite_is_left_out(stores: Stores, history: HistoryService) -> None:
    history.note_step(RUN, 1, METRICS | {"grad_norm": float("inf")})
    await history.flush()
    (step,) = await stores.history.steps(RUN)
    assert step.grad_norm is None


def event(**data: Any) -> dict[str, Any]:
    return {"event": "GENERIC_EVENT", "event_name": "tinsmith/metrics", "event_data": data}


async def reported(stores: Stores) -> list[tuple[str, int | None, float]]:
    return [(item.name, item.step, item.value) for item in await stores.history.reports(RUN)]


async def test_a_client_reports_figures_of_its_runs_and_of_no_others(
    stores: Stores, history: HistoryService, saved: CheckpointRecord
) -> None:
    assert saved.run_id == RUN
    history.note_events("ann", [event(model_id=RUN, step=3, reward=0.5, kl=1)])
    history.note_events("ben", [event(model_id=RUN, reward=9.0)])
    history.note_events("ann", [event(model_id="no such run", reward=9.0)])
    await history.flush()
    assert await reported(stores) == [("kl", 3, 1.0), ("reward", 3, 0.5)]


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"event_name": "tinsmith/metrics"},
        {"event_name": "tinsmith/metrics", "event_data": [1]},
        {"event_name": ["tinsmith/metrics"], "event_data": {"model_id": RUN, "reward": 1.0}},
        {"event_name": "other", "event_data": {"model_id": RUN, "reward": 1.0}},
        event(model_id=[RUN], reward=1.0),
        event(reward=1.0),
        event(model_id=RUN, reward=float("nan"), text="1", yes=True, nothing=None, more=[1], huge=10**400),
        event(model_id=RUN, **{"\0": 1.0, "\ud800": 1.0, "": 1.0, "x" * 65: 1.0}),
    ],
)
async def test_what_is_no_figure_is_left_out(
    stores: Stores, history: HistoryService, saved: CheckpointRecord, bad: dict[str, Any]
) -> None:
    history.note_events("ann", [bad, event(model_id=saved.run_id, step=2**80, reward=2.0)])
    await history.flush()
    assert await reported(stores) == [("reward", None, 2.0)]


async def test_a_run_has_a_bounded_number_of_reported_names(
    stores: Stores, history: HistoryService, saved: CheckpointRecord
) -> None:
    for turn in range(3):
        history.note_events(
            "ann", [event(model_id=saved.run_id, **{f"n{turn}.{index}": 1.0}) for index in range(30)]
        )
        await history.flush()
    assert len(await stores.history.report_names(RUN)) == MAX_NAMES


async def test_a_store_that_fails_ends_no_history(
    stores: Stores, history: HistoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_FLUSH_EVERY_S", 0.01)
    add, failed, stored = stores.history.add_steps, asyncio.Event(), asyncio.Event()

    async def add_at_second_try(steps: Sequence[Step]) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("disk full")
        await add(steps)
        stored.set()

    monkeypatch.setattr(stores.history, "add_steps", add_at_second_try)
    running = asyncio.create_task(history.run())
    history.note_step(RUN, 1, METRICS)
    await asyncio.wait_for(failed.wait(), 10)
    history.note_step(RUN, 2, METRICS)
    await asyncio.wait_for(stored.wait(), 10)
    running.cancel()
    assert [step.seq_id for step in await stores.history.steps(RUN)] == [2]
