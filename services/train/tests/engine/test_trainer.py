"""Batches of many tenants, accumulation, and what a bad or broken submission leaves behind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tinsmith_common.errors import EngineFailure, InvalidInput, NotFound
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import (
    AdamParams,
    Datum,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    TrainerLimits,
)

from .conftest import MakeDatum, MakeTrainer, assert_same_gradient

SMALL, LARGE = LoraSpec(2), LoraSpec(8, alpha=16.0, train_mlp=False)


def submit(
    adapter_id: str, *datums: Datum, loss: str = "cross_entropy", look: bool = False
) -> ForwardBackward:
    return ForwardBackward(adapter_id, datums, loss, forward_only=look)


def run(trainer: LoraTrainer, *batch: ForwardBackward) -> list[ForwardBackwardResult]:
    results = trainer.forward_backward(batch)
    good = [result for result in results if isinstance(result, ForwardBackwardResult)]
    assert len(good) == len(batch), results
    return good


def grad(trainer: LoraTrainer, adapter_id: str) -> Tensor:
    return trainer.adapter(adapter_id).grad.clone()


def test_two_tenants_in_one_batch_equal_two_separate_ones(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    """Different rank, alpha, targets and loss. fp32: matmuls over another number of rows may round differently."""
    batch = (
        submit("a", make_datum(0, 9), make_datum(1, 5), loss="ppo"),
        submit("b", make_datum(2, 30)),
        submit("a", make_datum(3, 3, k=2)),
    )
    together, apart = make_trainer(a=SMALL, b=LARGE), make_trainer(a=SMALL, b=LARGE)
    merged = run(together, *batch)
    separate = [run(apart, item)[0] for item in batch]

    for one, other in zip(merged, separate, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-5)
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
    for adapter_id in "ab":
        assert_same_gradient(grad(together, adapter_id), grad(apart, adapter_id))


def test_two_accumulated_calls_equal_one(make_trainer: MakeTrainer, make_datum: MakeDatum) -> None:
    one, two = make_trainer(a=SMALL), make_trainer(a=SMALL)
    run(one, submit("a", make_datum(0, 9), make_datum(1, 5)))
    run(two, submit("a", make_datum(0, 9)))
    run(two, submit("a", make_datum(1, 5)))
    assert_same_gradient(grad(one, "a"), grad(two, "a"))


@pytest.mark.parametrize("loss", ["cross_entropy", "gspo"])
def test_small_rows_and_recomputed_logits_change_no_result(
    loss: str, make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    limits = TrainerLimits(tokens_per_pass=8, tokens_per_piece=8, logits_chunk_mib=0, logits_keep_mib=0)
    roomy, tight = make_trainer(a=SMALL), make_trainer(limits=limits, a=SMALL)
    item = submit("a", *(make_datum(n, n) for n in (7, 3, 12, 4)), loss=loss)
    (expected,), (actual,) = run(roomy, item), run(tight, item)
    assert actual.metrics == pytest.approx(expected.metrics, rel=1e-5)
    for mine, theirs in zip(actual.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert_same_gradient(grad(tight, "a"), grad(roomy, "a"))


def test_forward_only_gives_the_same_answer_and_leaves_gradients_alone(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer = make_trainer(a=SMALL)
    (trained,) = run(trainer, submit("a", make_datum(0, 9), loss="ppo"))
    before = grad(trainer, "a")
    (looked,) = run(trainer, submit("a", make_datum(0, 9), loss="ppo", look=True))
    assert looked.metrics == trained.metrics
    assert np.array_equal(looked.logprobs[0], trained.logprobs[0])
    assert torch.equal(grad(trainer, "a"), before)


def test_soft_targets_equal_the_sum_of_their_columns(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer, columns = make_trainer(a=SMALL), make_trainer(a=SMALL)
    soft = make_datum(0, 9, k=3)
    (result,) = run(trainer, submit("a", soft))
    parts = [
        Datum(soft.tokens, soft.targets[:, k], {"weights": soft.inputs["weights"][:, k]}) for k in range(3)
    ]
    (expected,) = run(columns, submit("a", *parts))
    assert result.logprobs[0].shape == (9, 3)
    np.testing.assert_allclose(result.logprobs[0], np.stack(expected.logprobs, axis=1), atol=1e-5)
    assert_same_gradient(grad(trainer, "a"), grad(columns, "a"))


def test_negated_weights_negate_loss_and_gradient(make_trainer: MakeTrainer, make_datum: MakeDatum) -> None:
    trainer = make_trainer(a=SMALL)
    datum = make_datum(0, 9)
    (plus,) = run(trainer, submit("a", datum))
    positive = grad(trainer, "a")
    (minus,) = run(
        trainer, submit("a", Datum(datum.tokens, datum.targets, {"weights": -datum.inputs["weights"]}))
    )
    assert minus.metrics["loss:sum"] == pytest.approx(-plus.metrics["loss:sum"])
    torch.testing.assert_close(grad(trainer, "a"), torch.zeros_like(positive), rtol=0, atol=1e-5)


def test_the_same_call_on_the_same_state_is_bitwise_the_same(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    one, two = make_trainer(a=SMALL, b=LARGE), make_trainer(a=SMALL, b=LARGE)
    for trainer in (one, two):
        run(trainer, submit("a", make_datum(0, 9)), submit("b", make_datum(1, 20), loss="gspo"))
        trainer.optim_step("a", AdamParams(1e-2))
    assert torch.equal(one.adapter("a").weights, two.adapter("a").weights)
    assert torch.equal(grad(one, "b"), grad(two, "b"))


def test_metric_names_have_one_colon(make_trainer: MakeTrainer, make_datum: MakeDatum) -> None:
    (result,) = run(make_trainer(a=SMALL), submit("a", make_datum(0, 9)))
    assert all(name.count(":") == 1 for name in result.metrics)
    assert result.metrics["num_tokens:sum"] == 9.0


def test_a_bad_item_gets_its_error_and_the_others_run(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer, alone = make_trainer(a=SMALL), make_trainer(a=SMALL)
    good, bad = submit("a", make_datum(0, 9)), submit("a", make_datum(1, 9), loss="nonsense")
    unknown = submit("nobody", make_datum(1, 9))
    first, second, third = trainer.forward_backward([bad, good, unknown])
    (expected,) = run(alone, good)
    assert isinstance(first, InvalidInput)
    assert isinstance(third, NotFound)
    assert isinstance(second, ForwardBackwardResult)
    assert second.metrics == expected.metrics
    assert torch.equal(grad(trainer, "a"), grad(alone, "a"))


def test_a_loss_that_is_not_finite_is_that_items_error_and_leaves_no_gradient(
    make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    """The sampler's logprob of -200 makes a ratio of e^197. Rows of 9 tokens: the good part of it runs first."""
    trainer = make_trainer(limits=TrainerLimits(tokens_per_pass=9, tokens_per_piece=9), a=SMALL)
    run(trainer, submit("a", make_datum(5, 6)))
    before = grad(trainer, "a")
    wild = make_datum(1, 9)
    wild.inputs["logprobs"][4] = -200.0
    answers = trainer.forward_backward(
        [submit("a", make_datum(0, 9), wild, loss="importance_sampling"), submit("a", make_datum(2, 9))]
    )
    assert isinstance(answers[0], InvalidInput)
    assert "not finite" in answers[0].message
    assert isinstance(answers[1], ForwardBackwardResult)
    reference = make_trainer(a=SMALL)
    run(reference, submit("a", make_datum(2, 9)))
    assert_same_gradient(grad(trainer, "a"), before + grad(reference, "a"))


def break_down_on(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """A row with a sequence of this length runs out of memory: there is too little to spend in a test."""
    from tinsmith_train.engine import trainer as module

    original = module.pack
    broken: list[int] = []

    def pack(*args: Any) -> Any:
        rows = original(*args)
        broken[:] = [id(row) for row in rows if length in row.lengths]
        return rows

    run_row = LoraTrainer._run_row  # pyright: ignore[reportPrivateUsage]

    def breaks(self: LoraTrainer, row: Any, *args: Any) -> None:
        if id(row) in broken:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run_row(self, row, *args)

    monkeypatch.setattr(module, "pack", pack)
    monkeypatch.setattr(LoraTrainer, "_run_row", breaks)


def test_a_run_that_breaks_down_puts_its_gradient_back(
    make_trainer: MakeTrainer, make_datum: MakeDatum, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks in the second of two rows, when the first one's gradient has been added already."""
    trainer = make_trainer(limits=TrainerLimits(tokens_per_pass=9, tokens_per_piece=9), a=SMALL)
    run(trainer, submit("a", make_datum(5, 6)))
    before = grad(trainer, "a")
    break_down_on(monkeypatch, 8)
    with pytest.raises(EngineFailure, match="out of memory"):
        trainer.forward_backward([submit("a", make_datum(1, 9), make_datum(2, 8))])
    assert torch.equal(grad(trainer, "a"), before)


def test_what_breaks_down_does_not_reach_what_shares_its_batch(
    make_trainer: MakeTrainer, make_datum: MakeDatum, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, alone = make_trainer(a=SMALL, b=LARGE), make_trainer(a=SMALL, b=LARGE)
    (expected,) = run(alone, submit("a", make_datum(1, 9)))
    break_down_on(monkeypatch, 8)
    broken, fine = trainer.forward_backward([submit("b", make_datum(2, 8)), submit("a", make_datum(1, 9))])
    assert isinstance(broken, EngineFailure)
    assert isinstance(fine, ForwardBackwardResult)
    assert np.array_equal(fine.logprobs[0], expected.logprobs[0])
    assert torch.equal(grad(trainer, "a"), grad(alone, "a"))
    assert not grad(trainer, "b").any()


def test_a_step_without_gradient_succeeds_and_counts(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(a=SMALL)
    before = trainer.adapter("a").weights.clone()
    metrics = trainer.optim_step("a", AdamParams(1e-2))
    assert metrics["grad_norm"] == 0.0
    assert metrics["optimizer_step"] == 1.0
    assert torch.equal(trainer.adapter("a").weights, before)


def test_a_step_clears_the_gradient_also_when_it_is_refused(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(a=SMALL)
    trainer.adapter("a").grad[0] = float("nan")
    with pytest.raises(EngineFailure):
        trainer.optim_step("a", AdamParams(1e-2))
    assert not trainer.adapter("a").grad.any()
    assert trainer.optim_step("a", AdamParams(1e-2))["optimizer_step"] == 1.0


def test_equal_seeds_give_equal_adapters_and_b_is_zero(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    for name, seed in (("one", 7), ("two", 7), ("three", 8), ("free", None), ("free2", None)):
        trainer.create_adapter(name, LoraSpec(4, seed=seed))
    weights = {name: trainer.adapter(name).weights for name in ("one", "two", "three", "free", "free2")}
    assert torch.equal(weights["one"], weights["two"])
    assert not torch.equal(weights["one"], weights["three"])
    assert not torch.equal(weights["free"], weights["free2"])
    assert all(not pair.b.any() for pair in trainer.adapter("one").pairs.values())


def test_a_deleted_adapter_is_gone(make_trainer: MakeTrainer, make_datum: MakeDatum) -> None:
    trainer = make_trainer(a=SMALL)
    trainer.delete_adapter("a")
    trainer.delete_adapter("never was")
    (answer,) = trainer.forward_backward([submit("a", make_datum(0, 9))])
    assert isinstance(answer, NotFound)


@pytest.mark.parametrize("loss", ["cross_entropy", "ppo"])
def test_what_each_position_adds_to_the_loss_is_told_when_asked_for(
    loss: str, make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    data = [make_datum(n, n, k=2) if loss == "cross_entropy" else make_datum(n, n) for n in (7, 3, 12)]
    trainer = make_trainer(limits=TrainerLimits(tokens_per_pass=8, tokens_per_piece=8), a=SMALL)
    asked = replace(submit("a", *data, loss=loss, look=True), elementwise=True)
    (told,), (plain,) = run(trainer, asked), run(trainer, submit("a", *data, loss=loss, look=True))
    assert plain.elementwise_loss == ()
    assert [terms.shape for terms in told.elementwise_loss] == [datum.targets.shape for datum in data]
    # The same fp32 terms, added up in another order.
    assert sum(float(terms.sum()) for terms in told.elementwise_loss) == pytest.approx(
        told.metrics["loss:sum"], rel=1e-5
    )
    if loss == "cross_entropy":
        for datum, lp, terms in zip(data, told.logprobs, told.elementwise_loss, strict=True):
            np.testing.assert_array_equal(terms, -(datum.inputs["weights"] * lp))
