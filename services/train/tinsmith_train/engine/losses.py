"""The losses a client may name, each a plain sum over positions.

`LOSSES` maps a name to its function, the inputs it reads and the defaults of its options. With `lp` the
log-probability of the target under the model being trained, `q` the one of the policy that sampled it, `A`
the advantage and `r = exp(lp - q)`, the functions below are the formulas of the API's documentation. Nothing
is averaged, normalised or masked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

IMPORTANCE_CAP = 2.0
"""Upper bound of the importance weight of `stable_reinforce`, the value truncated importance sampling is used with."""

CLIP_INPUTS = ("clip_low_threshold", "clip_high_threshold")
"""Bounds of the ratio: options of a loss, or inputs with one value per position that override the option."""

_SUM_BLOCK = 16_384


@dataclass(frozen=True)
class Positions:
    """The positions of one or more datums of one submission, flattened to length M.

    logprobs:   float32 `[M]`, differentiable.
    inputs:     every input the loss reads, float32 `[M]`, bounds included.
    datum_ids:  int64 `[M]`, the datum of each position, counted from 0.
    num_datums: how many datums there are.
    first:      the place of the first of them in the submission.
    config:     the loss's options, defaults filled in.
    """

    logprobs: Tensor
    inputs: Mapping[str, Tensor]
    datum_ids: Tensor
    num_datums: int
    config: Mapping[str, float]
    first: int = 0


@dataclass(frozen=True)
class Measured:
    """A summed loss, a scalar, with metrics of its own, summed over datums and named `name:sum` or `name:mean`.

    `terms`, `[M]`, are what each position adds to it, for a loss that has such terms.
    """

    loss: Tensor
    metrics: Mapping[str, float]
    terms: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """One entry of the registry.

    function:  from positions, what each adds to the loss, `[M]`, or the summed loss as `Measured`; may raise
        `InvalidInput`.
    required:  inputs that must be given; `optional` ones are filled in by `validation`.
    defaults:  options and their values when not given.
    soft_targets: whether targets may be `[N, K]`.
    notices:   metrics that tell the user something about the loss itself, in every result.
    """

    function: Callable[[Positions], Tensor | Measured]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    soft_targets: bool = False
    notices: Mapping[str, float] = field(default_factory=dict[str, float])


def steady_sum(terms: Tensor) -> Tensor:
    """The sum of `[M]`, in an order that does not depend on the number of CPU threads.

    torch shares sums of 32,768 terms and more among its threads.
    """
    return (
        terms.sum()
        if len(terms) <= _SUM_BLOCK
        else torch.stack([b.sum() for b in terms.split(_SUM_BLOCK)]).sum()
    )


def cross_entropy(p: Positions) -> Tensor:
    """`-sum w lp`. Weights are arbitrary reals; with `[N, K]` targets the sum also runs over K."""
    return -(p.inputs["weights"] * p.logprobs)


def importance_sampling(p: Positions) -> Tensor:
    """`-sum r A`."""
    return -(_ratio(p) * p.inputs["advantages"])


def ppo(p: Positions) -> Tensor:
    """`-sum min(r A, clamp(r) A)`."""
    return _pessimistic(_ratio(p), p)


def cispo(p: Positions) -> Tensor:
    """`-sum sg(clamp(r)) lp A`: the ratio is clipped, the gradient never is."""
    return -(_clamp(_ratio(p).detach(), p) * p.logprobs * p.inputs["advantages"])


def dro(p: Positions) -> Tensor:
    """`-sum (lp A - beta / 2 (lp - q)^2)`."""
    drift = p.logprobs - p.inputs["logprobs"]
    return -(p.logprobs * p.inputs["advantages"] - 0.5 * p.config["beta"] * drift.square())


def gspo(p: Positions) -> Tensor:
    """PPO with one ratio per sequence: the geometric mean of `r` over the masked positions (1 if none).

    The ratio's value is the sequence's, its gradient each token's own.
    """
    mask = (p.inputs["sequence_ratio_mask"] != 0).to(p.logprobs.dtype)
    drift = (p.logprobs.detach() - p.inputs["logprobs"]) * mask
    sums = torch.zeros(p.num_datums, dtype=drift.dtype, device=drift.device)
    means = sums.index_add(0, p.datum_ids, drift) / sums.index_add(0, p.datum_ids, mask).clamp(min=1.0)
    ratio = means.exp()[p.datum_ids] * (p.logprobs - p.logprobs.detach()).exp()
    return _pessimistic(ratio, p)


def stable_reinforce(p: Positions) -> Tensor:
    """A substitute: `-sum over sampled positions of sg(min(r, 2)) lp A - kl_coeff (r - 1 - log r)`.

    The hosted service does not publish its objective. This is the policy gradient with a truncated, detached
    importance weight, and a penalty on k3, an estimate of KL(sampling policy || model) that is never negative
    and whose gradient, `r - 1`, is unbiased. What the model did not sample takes no part in it.
    """
    # Selected first, not multiplied by 0: the client has no logprob of what was not sampled.
    sampled = p.inputs["sampled_mask"] != 0
    lp = p.logprobs[sampled]
    drift = lp - p.inputs["logprobs"][sampled]
    weight = drift.detach().exp().clamp(max=IMPORTANCE_CAP)
    divergence = torch.expm1(drift) - drift
    terms = -(weight * lp * p.inputs["advantages"][sampled] - p.config["kl_coeff"] * divergence)
    return torch.zeros_like(p.logprobs).masked_scatter(sampled, terms)


def _ratio(p: Positions) -> Tensor:
    return (p.logprobs - p.inputs["logprobs"]).exp()


def _clamp(ratio: Tensor, p: Positions) -> Tensor:
    return ratio.clamp(p.inputs["clip_low_threshold"], p.inputs["clip_high_threshold"])


def _pessimistic(ratio: Tensor, p: Positions) -> Tensor:
    advantages = p.inputs["advantages"]
    return -torch.minimum(ratio * advantages, _clamp(ratio, p) * advantages)


def _clip(low: float, high: float) -> Mapping[str, float]:
    return dict(zip(CLIP_INPUTS, (low, high), strict=True))


_POLICY = ("logprobs", "advantages")

LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "cross_entropy": Loss(cross_entropy, optional=("weights",), soft_targets=True),
        "importance_sampling": Loss(importance_sampling, _POLICY),
        "ppo": Loss(ppo, _POLICY, CLIP_INPUTS, _clip(0.8, 1.2)),
        "cispo": Loss(cispo, _POLICY, CLIP_INPUTS, _clip(0.0, 4.0)),
        "dro": Loss(dro, _POLICY, defaults={"beta": 0.05}),
        "gspo": Loss(gspo, _POLICY, (*CLIP_INPUTS, "sequence_ratio_mask"), _clip(0.8, 1.2)),
        "stable_reinforce": Loss(
            stable_reinforce,
            (*_POLICY, "sampled_mask"),
            defaults={"kl_coeff": 0.0},
            notices={"stable_reinforce_substitute:unique": 1.0},
        ),
    }
)
