"""Adapters beyond the limit wait in host memory, and nothing shows it but the time."""

from typing import Any

import pytest
import torch

from tinsmith_common.errors import EngineFailure, InvalidInput, NotFound
from tinsmith_train.engine.residency import ResidentAdapters
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import (
    AdamParams,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    PassPart,
    Residency,
    TrainerLimits,
)

from . import exactness
from .conftest import MakeDatum, MakeTrainer

SPECS = {"a": LoraSpec(4), "b": LoraSpec(6, train_unembed=False), "c": LoraSpec(2, train_mlp=False)}
EXACT = exactness.DEVICE == "cpu"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_run_with_few_places_is_the_run_with_many(limit: int) -> None:
    """Five tenants; with fewer places each cycle runs in several groups, in another order."""
    free = exactness.run(exactness.TENANTS)
    tight = exactness.run(exactness.TENANTS, limits=TrainerLimits(resident_adapters=limit))
    for name, outcome in tight.items():
        assert outcome.equals(free[name]) if EXACT else max(outcome.difference(free[name]).values()) < 10


def test_a_spilled_adapter_comes_back_with_all_it_had(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer = make_trainer(limits=TrainerLimits(resident_adapters=1), a=SPECS["a"], b=SPECS["b"])
    (first,) = trainer.forward_backward([ForwardBackward("a", (make_datum(0, 9),), "cross_entropy")])
    assert isinstance(first, ForwardBackwardResult)
    trainer.optim_step("a", AdamParams(1e-2))
    trainer.forward_backward([ForwardBackward("a", (make_datum(1, 7),), "cross_entropy")])
    before = trainer.adapter("a")
    buffers = [t.detach().clone() for t in (before.weights, before.grad, before.exp_avg, before.exp_avg_sq)]
    assert all(buffer.any() for buffer in buffers)
    assert trainer.adapter("b").step == 0
    assert trainer.residency.resident == 1
    after = trainer.adapter("a")
    assert after is not before
    assert (after.step, after.has_grad) == (1, True)
    back = (after.weights, after.grad, after.exp_avg, after.exp_avg_sq)
    assert all(torch.equal(mine, old) for mine, old in zip(back, buffers, strict=True))
    assert all(pair.a.grad is not None for pair in after.pairs.values())


def test_the_least_recently_used_adapter_leaves_first(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(limits=TrainerLimits(resident_adapters=2), a=SPECS["a"], b=SPECS["b"])
    kept = trainer.adapter("a")
    trainer.create_adapter("c", SPECS["c"])
    assert trainer.residency == Residency(resident=2, spilled=1, spills=1)
    assert trainer.adapter("a") is kept
    trainer.delete_adapter("b")
    assert trainer.residency == Residency(resident=2, spilled=0, spills=1)
    with pytest.raises(NotFound):
        trainer.adapter("b")


def test_a_group_that_breaks_down_is_answered_and_the_others_run(
    make_trainer: MakeTrainer, make_datum: MakeDatum, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(limits=TrainerLimits(resident_adapters=1), a=SPECS["a"], b=SPECS["b"])
    wild = make_datum(1, 9)
    wild.inputs["logprobs"][4] = -200.0  # a ratio of e^197
    work = [
        ForwardBackward("a", (wild,), "importance_sampling"),
        *(ForwardBackward(name, (make_datum(0, 9),), "cross_entropy") for name in ("a", "b")),
    ]
    whole = LoraTrainer._run_all  # pyright: ignore[reportPrivateUsage]

    def breaks_for_a(self: LoraTrainer, items: dict[int, ForwardBackward], *rest: Any) -> object:
        if [item.adapter_id for item in items.values()] == ["a"]:
            raise EngineFailure("out of memory")
        return whole(self, items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LoraTrainer, "_run_all", breaks_for_a)
    refused, first, second = trainer.forward_backward(work)
    assert isinstance(refused, InvalidInput)
    assert isinstance(first, EngineFailure)
    assert isinstance(second, ForwardBackwardResult)
    assert not trainer.adapter("a").grad.any()
    assert trainer.adapter("b").grad.any()


def test_groups_keep_the_order_and_never_exceed_the_limit() -> None:
    adapters = ResidentAdapters((), torch.device("cpu"), 2)
    assert adapters.groups("cabcad") == [["c", "a"], ["b", "d"]]
    assert ResidentAdapters((), torch.device("cpu"), None).groups("cab") == [["c", "a", "b"]]


@pytest.mark.parametrize("end", ["last part", "given up", "not finite"])
def test_a_pass_in_parts_goes_on_after_its_adapter_has_left_and_come_back(
    make_trainer: MakeTrainer, make_datum: MakeDatum, end: str
) -> None:
    """Two long passes take turns on a device with one place; what ends early takes back its own gradient only."""
    tight, free = (
        make_trainer(limits=TrainerLimits(resident_adapters=limit), a=SPECS["a"], b=SPECS["b"])
        for limit in (1, None)
    )
    last = make_datum(3, 7)
    if end == "not finite":
        last.inputs["logprobs"][4] = -200.0  # a ratio of e^197
    answers: list[list[object]] = []
    for trainer in (tight, free):
        passes = {
            name: ForwardBackward(name, (make_datum(1, 9), make_datum(2, 12), last), "importance_sampling")
            for name in "ab"
        }
        for name in passes:
            trainer.forward_backward([ForwardBackward(name, (make_datum(5, 6),), "cross_entropy")])
        for place in range(2 if end == "given up" else 3):
            for name, item in passes.items():
                tokens = len(item.datums[place].tokens)
                part = PassPart(name, place, place + 1, tokens, None if place else item)
                answers.append(list(trainer.run_parts([part])))
        if end == "given up":
            for name in passes:
                trainer.forward_backward([ForwardBackward(name, (make_datum(8, 4),), "cross_entropy")])
    assert tight.residency.spills >= 6
    half = len(answers) // 2
    kind = {"last part": ForwardBackwardResult, "given up": type(None), "not finite": InvalidInput}[end]
    for mine, theirs in zip(answers[:half], answers[half:], strict=True):
        assert type(mine[0]) is type(theirs[0])
        if isinstance(mine[0], ForwardBackwardResult) and isinstance(theirs[0], ForwardBackwardResult):
            assert mine[0].metrics == theirs[0].metrics
    assert isinstance(answers[half - 1][0], kind)
    for name in "ab":
        assert tight.adapter(name).grad.any()
        assert torch.equal(tight.adapter(name).grad, free.adapter(name).grad)


def test_a_full_model_takes_no_place_and_stays(make_trainer: MakeTrainer, make_datum: MakeDatum) -> None:
    trainer = make_trainer(
        limits=TrainerLimits(resident_adapters=1, full_models=1),
        a=SPECS["a"],
        b=SPECS["b"],
        whole=LoraSpec(0),
    )
    whole = trainer.adapter("whole")
    assert trainer.residency == Residency(resident=1, spilled=1, spills=1)
    work = [ForwardBackward(name, (make_datum(0, 9),), "cross_entropy") for name in ("a", "whole", "b")]
    answers = trainer.forward_backward(work)
    assert all(isinstance(answer, ForwardBackwardResult) for answer in answers)
    assert trainer.adapter("whole") is whole
    assert whole.grad.any()
    trainer.delete_adapter("whole")
    with pytest.raises(NotFound):
        trainer.adapter("whole")
