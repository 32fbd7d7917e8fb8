"""Each loss against its formula written out position by position in float64."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from tinsmith_train.engine.losses import LOSSES, Positions

LENGTHS = (5, 1, 7)
SIZE = sum(LENGTHS)
BOUNDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}

Inputs = Mapping[str, list[float]]
Reference = Callable[[Tensor, Inputs], Tensor]


def make_inputs() -> dict[str, list[float]]:
    rng = np.random.default_rng(3)
    mask = rng.integers(0, 2, SIZE).astype(float)
    mask[:5] = 0.0  # the first datum has no masked position
    return {
        "weights": rng.normal(size=SIZE).tolist(),
        "logprobs": (-2 + 0.5 * rng.normal(size=SIZE)).tolist(),
        "advantages": rng.normal(size=SIZE).tolist(),
        "sequence_ratio_mask": mask.tolist(),
        "sampled_mask": ([0.0, 0.0, 1.0] * SIZE)[:SIZE],
        "clip_low_threshold": rng.uniform(0.3, 0.9, SIZE).tolist(),
        "clip_high_threshold": rng.uniform(1.0, 1.8, SIZE).tolist(),
    }


def make_logprobs() -> list[float]:
    return (-2 + 0.5 * np.random.default_rng(4).normal(size=SIZE)).tolist()


def bounded(ratio: Tensor, x: Inputs, t: int) -> Tensor:
    low, high = x["clip_low_threshold"][t], x["clip_high_threshold"][t]
    if ratio.item() < low:
        return torch.tensor(low, dtype=torch.float64)
    if ratio.item() > high:
        return torch.tensor(high, dtype=torch.float64)
    return ratio


def smaller(a: Tensor, b: Tensor) -> Tensor:
    return a if a.item() <= b.item() else b


def ratio_at(lp: Tensor, x: Inputs, t: int) -> Tensor:
    return torch.exp(lp[t] - x["logprobs"][t])


def over_positions(term: Callable[[Tensor, Inputs, int], Tensor]) -> Reference:
    return lambda lp, x: -torch.stack([term(lp, x, t) for t in range(SIZE)]).sum()


def ppo_term(lp: Tensor, x: Inputs, t: int) -> Tensor:
    ratio, advantage = ratio_at(lp, x, t), x["advantages"][t]
    return smaller(ratio * advantage, bounded(ratio, x, t) * advantage)


def dro_term(lp: Tensor, x: Inputs, t: int) -> Tensor:
    return lp[t] * x["advantages"][t] - 0.5 * 0.3 * (lp[t] - x["logprobs"][t]) ** 2


def gspo_reference(lp: Tensor, x: Inputs) -> Tensor:
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in LENGTHS:
        span = range(start, start + length)
        chosen = [t for t in span if x["sequence_ratio_mask"][t] != 0]
        drifts = [lp[t].item() - x["logprobs"][t] for t in chosen]
        s = float(np.exp(np.mean(drifts))) if chosen else 1.0
        for t in span:
            ratio, advantage = s * torch.exp(lp[t] - lp[t].item()), x["advantages"][t]
            total = total - smaller(ratio * advantage, bounded(ratio, x, t) * advantage)
        start += length
    return total


def stable_reinforce_term(lp: Tensor, x: Inputs, t: int) -> Tensor:
    if not x["sampled_mask"][t]:
        return torch.zeros((), dtype=torch.float64)
    ratio = ratio_at(lp, x, t)
    kl = ratio - 1 - torch.log(ratio)
    return min(ratio.item(), 2.0) * lp[t] * x["advantages"][t] - 0.2 * kl


REFERENCES: dict[str, Reference] = {
    "cross_entropy": over_positions(lambda lp, x, t: x["weights"][t] * lp[t]),
    "importance_sampling": over_positions(lambda lp, x, t: ratio_at(lp, x, t) * x["advantages"][t]),
    "ppo": over_positions(ppo_term),
    "cispo": over_positions(
        lambda lp, x, t: bounded(ratio_at(lp, x, t), x, t).item() * lp[t] * x["advantages"][t]
    ),
    "dro": over_positions(dro_term),
    "gspo": gspo_reference,
    "stable_reinforce": over_positions(stable_reinforce_term),
}


def evaluate(name: str, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Our loss and its gradient."""
    lp = torch.tensor(make_logprobs(), dtype=torch.float64, requires_grad=True)
    positions = Positions(
        logprobs=lp,
        inputs={key: torch.tensor(values, dtype=torch.float64) for key, values in inputs.items()},
        datum_ids=torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)),
        num_datums=len(LENGTHS),
        config={"beta": 0.3, "kl_coeff": 0.2},
    )
    terms = LOSSES[name].function(positions)
    assert isinstance(terms, Tensor)
    assert terms.shape == lp.shape
    loss = terms.sum()
    return loss.detach(), torch.autograd.grad(loss, lp)[0]


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCES) == set(LOSSES)


@pytest.mark.parametrize("name", REFERENCES)
def test_loss_and_gradient_equal_the_formula(name: str) -> None:
    # Both sides are float64 and differ only in the order of a sum of 13 terms.
    inputs = make_inputs()
    lp = torch.tensor(make_logprobs(), dtype=torch.float64, requires_grad=True)
    expected = REFERENCES[name](lp, inputs)
    expected_gradient = torch.autograd.grad(expected, lp)[0]

    loss, gradient = evaluate(name, inputs)

    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


def test_ppo_gradient_is_zero_exactly_where_clipping_wins() -> None:
    inputs = make_inputs()
    lp, q, advantage = (np.array(v) for v in (make_logprobs(), inputs["logprobs"], inputs["advantages"]))
    ratio = np.exp(lp - q)
    clipped = ((advantage > 0) & (ratio > inputs["clip_high_threshold"])) | (
        (advantage < 0) & (ratio < inputs["clip_low_threshold"])
    )
    _, gradient = evaluate("ppo", inputs)

    assert 0 < clipped.sum() < SIZE
    np.testing.assert_allclose(gradient, np.where(clipped, 0.0, -ratio * advantage), rtol=1e-12)


def test_cispo_gradient_is_never_zeroed() -> None:
    _, gradient = evaluate("cispo", make_inputs())
    assert (gradient != 0).all()


def test_gspo_uses_a_ratio_of_one_for_a_datum_without_masked_positions() -> None:
    inputs = make_inputs()
    _, gradient = evaluate("gspo", inputs)
    np.testing.assert_allclose(gradient[:5], -np.array(inputs["advantages"][:5]), rtol=1e-12)


def test_stable_reinforce_caps_the_weight_and_not_the_gradient_of_the_logprob() -> None:
    inputs = make_inputs() | {"sampled_mask": [1.0] * SIZE, "logprobs": [-9.0] * SIZE}
    _, gradient = evaluate("stable_reinforce", inputs)
    ratio = np.exp(np.array(make_logprobs()) + 9.0)
    expected = -2.0 * np.array(inputs["advantages"]) + 0.2 * (ratio - 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_stable_reinforce_never_reads_what_was_not_sampled() -> None:
    inputs = make_inputs()
    loss, _ = evaluate("stable_reinforce", inputs)
    for t in range(SIZE):
        if not inputs["sampled_mask"][t]:
            inputs["logprobs"][t] = -1e4
    changed, gradient = evaluate("stable_reinforce", inputs)
    assert changed == loss
    assert torch.isfinite(gradient).all()
