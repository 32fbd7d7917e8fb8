"""Losses through the gateway with the SDK."""

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
PROMPT, SAMPLED = 4, 6


def rollout(seed: int, *, spans: bool = True) -> tinker.Datum:
    """What a reinforcement loop sends: no logprobs and advantages where the prompt is predicted."""
    tokens = some_tokens(seed, PROMPT + SAMPLED)
    blank = [0.0] * (PROMPT - 1)
    rng = np.random.default_rng(seed)
    inputs: dict[str, Any] = {
        "target_tokens": tokens[1:],
        "logprobs": blank + (-6 + rng.normal(size=SAMPLED)).tolist(),
        "advantages": blank + rng.normal(size=SAMPLED).tolist(),
    }
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
    if not spans:
        return datum
    return datum.with_provenance(
        [
            tinker.PromptProvenanceSpan(sequence_id="s", length=PROMPT),
            tinker.SampledProvenanceSpan(sequence_id="s", length=SAMPLED - 1),
        ],
        [
            tinker.PromptProvenanceSpan(sequence_id="s", offset=1, length=PROMPT - 1),
            tinker.SampledProvenanceSpan(sequence_id="s", length=SAMPLED),
        ],
    )


@pytest.mark.row("stable-reinforce", call='forward_backward("stable_reinforce")')
def test_stable_reinforce_trains_the_documented_substitute_and_says_so(
    trainer: tinker.TrainingClient,
) -> None:
    data = [rollout(1), rollout(2)]
    output = trainer.forward_backward(data, "stable_reinforce", {"kl_coeff": 0.1}).result()
    expected = 0.0
    for datum, logprobs in zip(data, logprobs_of(output), strict=True):
        lp = logprobs[PROMPT - 1 :].astype(np.float64)
        q, advantage = (
            datum.loss_fn_inputs[name].to_numpy()[PROMPT - 1 :] for name in ("logprobs", "advantages")
        )
        ratio = np.exp(lp - q)
        gain = np.minimum(ratio, 2) * lp * advantage
        expected -= (gain - 0.1 * (ratio - 1 - np.log(ratio))).sum()
    # The sum of a dozen float32 terms of size 10.
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert output.metrics["stable_reinforce_substitute:unique"] == 1
    assert trainer.optim_step(tinker.AdamParams()).result().metrics


@pytest.mark.row("stable-reinforce-spans", call='forward_backward("stable_reinforce")')
def test_stable_reinforce_without_spans_is_the_user_s_mistake(trainer: tinker.TrainingClient) -> None:
    data = [rollout(1), rollout(2, spans=False)]
    with pytest.raises(tinker.RequestFailedError, match=r"datum 1: .*with_provenance") as caught:
        trainer.forward_backward(data, "stable_reinforce").result()
    assert caught.value.category == "user"


def test_other_losses_accept_spans_and_ignore_them(trainer: tinker.TrainingClient) -> None:
    with_spans, without = (
        trainer.forward([rollout(1, spans=spans)], "importance_sampling").result() for spans in (True, False)
    )
    assert with_spans.metrics == without.metrics


def policy(logprobs: Any, sampled: Any, advantages: Any, beta: Any) -> Any:
    ratio = torch.exp(logprobs - sampled)
    penalty = beta * ((logprobs - sampled) ** 2).sum()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum() + penalty
    return loss, {"custom/ratio:mean": ratio.mean(), "custom/penalty:sum": penalty}


RANKS: Any = {"logprobs": 1, "sampled": 1, "advantages": 1, "beta": 0}


def for_policy(seed: int, length: int) -> tinker.Datum:
    tokens, rng = some_tokens(seed, length + 1), np.random.default_rng(seed)
    inputs: dict[str, Any] = {
        "target_tokens": tokens[1:],
        "sampled": torch.tensor(-6 + rng.normal(size=length), dtype=torch.float32),
        "advantages": rng.normal(size=length).tolist(),
        "beta": torch.tensor(0.1),
    }
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


@pytest.mark.row("create-custom-loss", "custom-server", call="create_custom_loss, forward_backward_custom")
def test_a_custom_loss_on_the_server_trains_as_the_same_one_in_the_client(
    service: tinker.ServiceClient,
) -> None:
    uploaded = service.create_custom_loss(policy, RANKS).result()
    assert uploaded.loss_id
    here = dataclasses.replace(uploaded, loss_id=None)
    data = [for_policy(seed, length) for seed, length in ((1, 9), (2, 20), (3, 1))]
    results: list[tinker.ForwardBackwardOutput] = []
    after: list[list[Any]] = []
    for handle in (uploaded, here):
        trainer = service.create_lora_training_client(MODEL, rank=8, seed=7).result()
        results.append(trainer.forward_backward_custom(data, handle).result())
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
        after.append(logprobs_of(trainer.forward(data, "cross_entropy").result()))
    for name in ("loss:sum", "custom/ratio:mean", "custom/penalty:sum"):
        assert results[0].metrics[name] == pytest.approx(results[1].metrics[name], rel=1e-5), name
    for ours, theirs in zip(*after, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_uploaded_loss_survives_a_restart_and_belongs_to_its_session(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    handle = service.create_custom_loss(policy, RANKS).result()
    config = {"loss_id": handle.loss_id or ""}
    stack.restart("train")
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    data = [for_policy(1, 5)]
    assert "custom/ratio:mean" in trainer.forward_backward(data, "custom", config).result().metrics
    with tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as other:
        stranger = other.create_lora_training_client(MODEL, rank=4).result()
        with pytest.raises(tinker.RequestFailedError, match="in this session"):
            stranger.forward_backward(data, "custom", config).result()


@pytest.mark.row("custom-refused", call="create_custom_loss")
def test_a_loss_with_an_operation_that_is_not_allowed_is_refused_by_name(
    service: tinker.ServiceClient,
) -> None:
    def noisy(logprobs: Any) -> Any:
        return (logprobs * torch.rand_like(logprobs)).sum(), {}

    with pytest.raises(tinker.RequestFailedError, match=r"torch\.rand_like.*not allowed") as caught:
        service.create_custom_loss(noisy, {"logprobs": 1}).result()
    assert caught.value.category == "user"


def test_a_memory_bomb_fails_and_the_next_operation_works(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    def bomb(logprobs: Any) -> Any:
        return logprobs.repeat(10**9).sum(), {}

    handle = service.create_custom_loss(bomb, {"logprobs": 1}).result()
    data = [supervised(some_tokens(1))]
    with pytest.raises(tinker.RequestFailedError, match="repeat"):
        trainer.forward_backward_custom(data, handle).result()
    assert trainer.forward_backward(data, "cross_entropy").result().metrics["loss:sum"] > 0


@pytest.mark.row("dimuon-refused", call="create_lora_training_client(optimizer=)")
def test_a_model_with_another_optimizer_is_refused(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match=r"'dimuon' is not supported.*adamw") as caught:
        service.create_lora_training_client(MODEL, rank=4, optimizer=tinker.DimuonOptimizerConfig()).result()
    assert caught.value.category == "user"


@pytest.mark.row("dimuon-refused", "rejected-turn", call="optim_step(DimuonParams)")
def test_a_step_with_another_optimizer_s_parameters_is_refused_and_counts_as_a_turn(
    trainer: tinker.TrainingClient,
) -> None:
    with pytest.raises(tinker.RequestFailedError, match=r"'dimuon'.*adamw"):
        trainer.optim_step(tinker.DimuonParams(learning_rate=1e-3)).result()
    assert trainer.optim_step(tinker.AdamParams()).result().metrics


@pytest.mark.row("lora-parts", call="create_lora_training_client(train_attn=, train_mlp=, train_unembed=)")
@pytest.mark.parametrize(
    "parts",
    [parts for parts in product((True, False), repeat=3) if any(parts)],
    ids=lambda parts: "-".join(n for n, on in zip(("attn", "mlp", "unembed"), parts, strict=True) if on),
)
def test_every_choice_of_trained_parts_is_sampled_as_trained(
    service: tinker.ServiceClient, parts: tuple[bool, bool, bool]
) -> None:
    attn, mlp, unembed = parts
    trainer = service.create_lora_training_client(
        MODEL, rank=4, seed=3, train_attn=attn, train_mlp=mlp, train_unembed=unembed
    ).result()
    tokens = some_tokens(5)
    data = [supervised(tokens)]
    before = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    trainer.forward_backward(data, "cross_entropy").result()
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    trained = logprobs_of(trainer.forward(data, "cross_entropy").result())[0]
    assert np.abs(trained - before).max() > 1e-2
    sampler = trainer.save_weights_and_get_sampling_client().result()
    scores = sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens)).result()
    # The bound that the two engines are held to elsewhere.
    np.testing.assert_allclose(np.array(scores[1:], np.float64), trained, atol=1e-4)
