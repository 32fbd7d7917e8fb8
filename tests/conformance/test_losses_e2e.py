"""Section 7: each loss and the optimizer, computed again from their definitions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tests.conformance import reference
from tests.conformance.reference import Config, LossFunction
from tests.data import logprobs_of, some_tokens, supervised

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
ADAM = tinker.AdamParams(learning_rate=1e-2, eps=1e-3)
"""With this epsilon a step follows the gradient's size; with a tiny one it would follow the sign of its noise."""

LENGTHS = (9, 14)


def model_of_its_own(service: tinker.ServiceClient, **options: Any) -> tinker.TrainingClient:
    """Always the same model, one step away from its beginning, so that A and B both matter."""
    trainer = service.create_lora_training_client(MODEL, rank=4, seed=5, **options).result()
    trainer.forward_backward([supervised(some_tokens(8))], "cross_entropy").result()
    trainer.optim_step(ADAM).result()
    return trainer


def inputs_of(index: int, length: int, extra: str) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(index)
    values = {
        "logprobs": -6 + rng.normal(size=length),
        "advantages": np.where(np.arange(length) < 3, 0.0, rng.normal(size=length)),
    }
    if extra == "bounds":
        values["clip_low_threshold"] = rng.uniform(0.2, 0.9, length)
        values["clip_high_threshold"] = rng.uniform(1.0, 3.0, length)
    if extra == "mask":
        values["sequence_ratio_mask"] = (np.arange(length) % 2).astype(float)
    if extra == "weights":
        values = {"weights": rng.normal(size=length)}
    return {name: torch.tensor(array, dtype=torch.float32) for name, array in values.items()}


def datum_of(tokens: list[int], inputs: Mapping[str, torch.Tensor]) -> tinker.Datum:
    everything: dict[str, Any] = {"target_tokens": torch.tensor(tokens[1:]), **inputs}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=everything)


def case(name: str, function: LossFunction, row: str, extra: str = "", config: Config | None = None) -> Any:
    marks = pytest.mark.row(row, "loss-gradients", "sums", call=f'forward_backward("{name}")')
    label = "-".join([name, *([extra] if extra else []), *(config or {})])
    return pytest.param(name, function, extra, config or {}, id=label, marks=marks)


BOUNDS = {"clip_low_threshold": 0.5, "clip_high_threshold": 1.6}


@pytest.mark.parametrize(
    ("name", "function", "extra", "config"),
    [
        case("cross_entropy", reference.cross_entropy, "cross-entropy", "weights"),
        case("importance_sampling", reference.importance_sampling, "importance-sampling"),
        case("ppo", reference.ppo, "ppo"),
        case("ppo", reference.ppo, "ppo", config=BOUNDS),
        case("ppo", reference.ppo, "ppo", "bounds"),
        case("cispo", reference.cispo, "cispo"),
        case("cispo", reference.cispo, "cispo", config=BOUNDS),
        case("cispo", reference.cispo, "cispo", "bounds"),
        case("dro", reference.dro, "dro"),
        case("dro", reference.dro, "dro", config={"beta": 0.3}),
        case("gspo", reference.gspo, "gspo"),
        case("gspo", reference.gspo, "gspo", "mask", BOUNDS),
    ],
)
def test_a_loss_is_its_definition_s_and_so_is_its_gradient(
    service: tinker.ServiceClient,
    name: Any,
    function: LossFunction,
    extra: str,
    config: dict[str, float],
) -> None:
    inputs = [inputs_of(index, length, extra) for index, length in enumerate(LENGTHS)]
    tokens = [some_tokens(index, length + 1) for index, length in enumerate(LENGTHS)]
    trainer = model_of_its_own(service)
    data = [datum_of(t, i) for t, i in zip(tokens, inputs, strict=True)]
    output = trainer.forward_backward(data, name, config or None).result()
    # Whatever it says the log-probabilities are, the loss and its gradient follow from them.
    lps = [torch.tensor(lp, dtype=torch.float64, requires_grad=True) for lp in logprobs_of(output)]
    expected = sum(
        function(lp, {key: value.double() for key, value in given.items()}, config)
        for lp, given in zip(lps, inputs, strict=True)
    )
    assert isinstance(expected, torch.Tensor)
    # Sums of some twenty float32 terms of size 10, against float64.
    assert output.metrics["loss:sum"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-4)
    expected.backward()
    # A linear loss with the same gradient by autograd moves an equal model in the same way.
    twin = model_of_its_own(service)
    gradients = [lp.grad if lp.grad is not None else torch.zeros_like(lp) for lp in lps]
    linear = [datum_of(t, {"weights": -g.float()}) for t, g in zip(tokens, gradients, strict=True)]
    twin.forward_backward(linear, "cross_entropy").result()
    norms = [m.optim_step(ADAM).result().metrics or {} for m in (trainer, twin)]
    assert norms[0]["grad_norm"] == pytest.approx(norms[1]["grad_norm"], rel=1e-4)
    assert norms[0]["grad_norm"] > 1e-2
    probe = [supervised(some_tokens(3))]
    moved, moved_alike = (logprobs_of(m.forward(probe, "cross_entropy").result())[0] for m in (trainer, twin))
    np.testing.assert_allclose(moved, moved_alike, atol=1e-4)


@pytest.mark.row("cross-entropy", call='forward_backward("cross_entropy") without weights')
def test_weights_that_are_left_out_are_ones(trainer: tinker.TrainingClient) -> None:
    tokens = some_tokens(1, 8)
    output = trainer.forward([datum_of(tokens, {})], "cross_entropy").result()
    assert output.metrics["loss:sum"] == pytest.approx(-logprobs_of(output)[0].sum(), rel=1e-5)


@pytest.mark.row(
    "sparse-targets", "cross-entropy", "mixed-widths", call="TrainingClient.forward, [N, K] as CSR"
)
def test_targets_of_several_widths_dense_and_sparse_are_scored_as_the_base_model_does(
    service: tinker.ServiceClient,
) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    tokens, model, rng = some_tokens(1, 7), reference.base_model(), np.random.default_rng(0)
    with torch.no_grad():
        scores = reference.next_logprobs(model, tokens)
    data: list[tinker.Datum] = []
    expected: list[torch.Tensor] = []
    loss = 0.0
    for width in (1, 24, 3):
        targets, weights = torch.zeros(7, width, dtype=torch.int64), torch.zeros(7, width)
        # Mostly empty, so that the SDK sends CSR; token id 0 has a weight in a cell that CSR leaves out.
        targets[:, 0] = torch.tensor(rng.integers(100, 900, 7))
        weights[:, -1] = torch.tensor(rng.normal(size=7))
        data.append(datum_of([*tokens, 0], {"target_tokens": targets, "weights": weights}))
        expected.append(scores.gather(1, targets))
        loss -= float((expected[-1] * weights).sum())
    sparse = [tensor.sparse_crow_indices is not None for tensor in data[1].loss_fn_inputs.values()]
    assert all(sparse), "the SDK sent no CSR, so this would show nothing"
    output = trainer.forward_backward(data, "cross_entropy").result()
    for ours, theirs in zip(logprobs_of(output), expected, strict=True):
        # Two float32 implementations of four layers, at log-probabilities of order 10.
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)
    assert output.metrics["loss:sum"] == pytest.approx(loss, abs=2e-3)


@pytest.mark.row("sparse-custom", "custom-client", call="forward_backward_custom over [N, K]")
def test_a_custom_loss_over_several_targets_trains_as_torch_autograd_says(
    service: tinker.ServiceClient,
) -> None:
    tokens, targets = some_tokens(2, 8), torch.zeros(8, 20, dtype=torch.int64)
    targets[:, :2] = torch.tensor(np.random.default_rng(1).integers(100, 900, (8, 2)))
    # With weights, because the SDK makes none for sparse targets.
    datum = datum_of([*tokens, 0], {"target_tokens": targets, "weights": torch.zeros(8, 20)})
    assert datum.loss_fn_inputs["target_tokens"].sparse_crow_indices is not None

    def squares(_data: list[tinker.Datum], logprobs: list[torch.Tensor]) -> Any:
        assert logprobs[0].shape == (8, 20)
        return (logprobs[0][:, :3] ** 2).sum() / 10, {}

    trainer, twin = model_of_its_own(service), model_of_its_own(service)
    result = trainer.forward_backward_custom([datum], squares).result()
    lp = torch.tensor(
        logprobs_of(twin.forward([datum], "cross_entropy").result())[0],
        dtype=torch.float64,
        requires_grad=True,
    )
    loss = squares([], [lp])[0]
    loss.backward()
    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    assert lp.grad is not None
    linear = datum_of([*tokens, 0], {"target_tokens": targets, "weights": -lp.grad.float()})
    twin.forward_backward([linear], "cross_entropy").result()
    norms = [(m.optim_step(ADAM).result().metrics or {})["grad_norm"] for m in (trainer, twin)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.row(
    "accumulation", "pipelined-steps", call="forward_backward twice, optim_step, before any result"
)
def test_gradients_add_up_over_passes_that_are_all_submitted_before_a_result(
    service: tinker.ServiceClient,
) -> None:
    halves = [supervised(some_tokens(1)), supervised(some_tokens(2))]
    apart, together = model_of_its_own(service), model_of_its_own(service)
    submitted = [apart.forward_backward([half], "cross_entropy") for half in halves]
    steps = [apart.optim_step(ADAM)]
    # The next step's pass is on its way too: its gradient must not slip into the first step.
    submitted.append(apart.forward_backward(halves, "cross_entropy"))
    steps.append(apart.optim_step(ADAM))
    for _ in range(2):
        together.forward_backward(halves, "cross_entropy").result()
        steps.append(together.optim_step(ADAM))
    norms = [(step.result().metrics or {})["grad_norm"] for step in steps]
    assert norms[:2] == pytest.approx(norms[2:], rel=1e-4)
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


@pytest.mark.row("unknown-loss", call='forward_backward("no_such_loss")')
def test_an_unknown_loss_fails_through_its_future(trainer: tinker.TrainingClient) -> None:
    data: Any = [supervised(some_tokens(1))]
    with pytest.raises(tinker.RequestFailedError, match="no_such_loss") as caught:
        trainer.forward_backward(data, "no_such_loss").result()  # pyright: ignore[reportArgumentType]
    assert caught.value.category == "user"


@pytest.mark.row("spans-ignored", call="Datum.with_provenance, every loss")
def test_every_loss_accepts_provenance_and_ignores_it(trainer: tinker.TrainingClient) -> None:
    inputs = inputs_of(0, 9, "")
    plain = datum_of(some_tokens(1, 10), inputs)
    spans = [
        tinker.PromptProvenanceSpan(sequence_id="s", length=4),
        tinker.SampledProvenanceSpan(sequence_id="s", length=5),
    ]
    for loss in ("cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo"):
        with_spans, without = (
            trainer.forward([datum], loss).result().metrics
            for datum in (plain.with_provenance(spans, spans), plain)
        )
        assert with_spans == without, loss
