"""A pass that runs in parts, with others' work between them, is the pass that runs in one go."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tinsmith_common.errors import EngineFailure, InvalidInput
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import (
    AdamParams,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    PassPart,
    TrainerLimits,
)

from .conftest import MakeDatum, MakeTrainer, assert_same_gradient

SPEC = LoraSpec(4)
ROWS_OF_9 = TrainerLimits(tokens_per_pass=9, tokens_per_piece=9)


def submit(
    adapter_id: str, *datums: Datum, loss: str = "importance_sampling", **options: bool
) -> ForwardBackward:
    return ForwardBackward(adapter_id, datums, loss, **options)  # type: ignore[arg-type]


def part(pass_id: str, item: ForwardBackward, first: int, last: int) -> PassPart:
    tokens = sum(len(datum.tokens) for datum in item.datums[first:last])
    return PassPart(pass_id, first, last, tokens, item if first == 0 else None)


def grad(trainer: LoraTrainer, adapter_id: str) -> Tensor:
    return trainer.adapter(adapter_id).grad.clone()


def assert_equal_results(one: object, other: object) -> None:
    assert isinstance(one, ForwardBackwardResult)
    assert isinstance(other, ForwardBackwardResult)
    assert one.metrics == other.metrics
    for name in ("logprobs", "elementwise_loss"):
        for mine, theirs in zip(getattr(one, name), getattr(other, name), strict=True):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("loss", ["importance_sampling", "gspo"])
def test_parts_that_fill_a_row_give_bitwise_what_the_whole_pass_gives(
    make_trainer: MakeTrainer, make_datum: MakeDatum, loss: str
) -> None:
    """Sharing calls, but not rows: the row is as long as each part, so another's never fits beside it."""
    hog = submit("a", *(make_datum(seed, 9) for seed in range(3)), loss=loss, elementwise=True)
    small = submit("b", make_datum(7, 5))
    trainer, alone = (make_trainer(limits=ROWS_OF_9, a=SPEC, b=SPEC) for _ in range(2))
    (expected,), (expected_small,) = alone.forward_backward([hog]), alone.forward_backward([small])
    assert trainer.run_parts([part("h", hog, 0, 1)]) == [None]
    (none, result) = trainer.run_parts([part("h", hog, 1, 2), PassPart.whole("s", small)])
    assert none is None
    assert_equal_results(result, expected_small)
    (result,) = trainer.run_parts([part("h", hog, 2, 3)])
    assert_equal_results(result, expected)
    for adapter in ("a", "b"):
        assert torch.equal(grad(trainer, adapter), grad(alone, adapter))
    steps = [one.optim_step("a", AdamParams(1e-2)) for one in (trainer, alone)]
    assert steps[0] == steps[1]
    assert torch.equal(trainer.adapter("a").weights, alone.adapter("a").weights)


def test_a_pass_is_checked_whole_before_any_of_it_runs(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer = make_trainer(limits=ROWS_OF_9, a=SPEC)
    bad = make_datum(1, 9)
    bad.inputs["advantages"][3] = np.nan
    (answer,) = trainer.run_parts([part("h", submit("a", make_datum(0, 9), bad), 0, 1)])
    assert isinstance(answer, InvalidInput)
    assert "datum 1" in answer.message
    assert not grad(trainer, "a").any()


@pytest.mark.parametrize("company", [True, False])
def test_a_pass_that_fails_in_a_later_part_takes_back_the_earlier_ones(
    make_trainer: MakeTrainer, make_datum: MakeDatum, company: bool
) -> None:
    trainer, alone = (make_trainer(limits=ROWS_OF_9, a=SPEC, b=SPEC) for _ in range(2))
    for one in (trainer, alone):
        one.forward_backward([submit("a", make_datum(5, 6))])
    wild = make_datum(1, 9)
    wild.inputs["logprobs"][4] = -200.0  # a ratio of e^197
    hog, small = submit("a", make_datum(0, 9), wild), submit("b", make_datum(7, 5))
    assert trainer.run_parts([part("h", hog, 0, 1)]) == [None]
    assert not torch.equal(grad(trainer, "a"), grad(alone, "a"))
    beside = [PassPart.whole("s", small)] if company else []
    failed, *others = trainer.run_parts([part("h", hog, 1, 2), *beside])
    assert isinstance(failed, InvalidInput)
    assert "not finite" in failed.message
    if company:
        assert isinstance(others[0], ForwardBackwardResult)
        alone.forward_backward([small])
    for adapter in ("a", "b"):
        assert torch.equal(grad(trainer, adapter), grad(alone, adapter))


@pytest.mark.parametrize("use", ["step", "pass", "create"])
def test_a_pass_is_given_up_by_another_use_of_its_adapter(
    make_trainer: MakeTrainer, make_datum: MakeDatum, use: str
) -> None:
    """What an operation that failed outside of the engine, or was lost on its way, leaves behind."""
    trainer, alone = (make_trainer(limits=ROWS_OF_9, a=SPEC) for _ in range(2))
    earlier, hog = submit("a", make_datum(5, 6)), submit("a", make_datum(0, 9), make_datum(1, 9))
    for one in (trainer, alone):
        one.forward_backward([earlier])
    trainer.run_parts([part("h", hog, 0, 1)])
    assert not torch.equal(grad(trainer, "a"), grad(alone, "a"))
    for one in (trainer, alone):
        if use == "step":
            one.optim_step("a", AdamParams(1e-2))
        elif use == "pass":
            one.forward_backward([submit("a", make_datum(8, 4))])
        else:
            one.create_adapter("a", LoraSpec(4, seed=1))
    assert torch.equal(grad(trainer, "a"), grad(alone, "a"))
    assert torch.equal(trainer.adapter("a").weights, alone.adapter("a").weights)
    (answer,) = trainer.run_parts([part("h", hog, 1, 2)])
    assert isinstance(answer, EngineFailure)
    assert "given up" in answer.message


def test_forward_only_parts_leave_the_gradient_alone(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer = make_trainer(limits=ROWS_OF_9, a=SPEC)
    trainer.forward_backward([submit("a", make_datum(5, 6))])
    before = grad(trainer, "a")
    look = submit("a", make_datum(0, 9), make_datum(1, 9), forward_only=True)
    trainer.run_parts([part("h", look, 0, 1)])
    (result,) = trainer.run_parts([part("h", look, 1, 2)])
    (expected,) = trainer.forward_backward([look])
    assert_equal_results(result, expected)
    assert torch.equal(grad(trainer, "a"), before)


def test_parts_of_many_adapters_in_shared_rows_give_each_what_it_gets_alone(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    """Rounding differs where rows are shared: matmuls of other sizes."""
    limits = TrainerLimits(tokens_per_pass=64)
    trainer, alone = (make_trainer(limits=limits, a=SPEC, b=LoraSpec(8)) for _ in range(2))
    items = {name: submit(name, *(make_datum(seed, 6) for seed in range(4))) for name in ("a", "b")}
    answers: list[object] = []
    for first in range(4):
        answers[:] = trainer.run_parts([part(name, item, first, first + 1) for name, item in items.items()])
    for answer, (name, item) in zip(answers, items.items(), strict=True):
        (expected,) = alone.forward_backward([item])
        assert isinstance(answer, ForwardBackwardResult)
        assert isinstance(expected, ForwardBackwardResult)
        for mine, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        assert_same_gradient(grad(trainer, name), grad(alone, name))
