"""The fused layers against the model's own modules, on the CPU in fp32 through Triton's interpreter."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tinsmith_train.engine.fused import weights
from tinsmith_train.engine.model import BaseModel, prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, ForwardBackwardResult, LoraSpec

VOCAB = 67
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
}
SPECS = {
    "small": LoraSpec(3, seed=1),
    "large": LoraSpec(24, seed=2, train_unembed=False),
    "attention": LoraSpec(8, seed=3, train_mlp=False, train_unembed=False),
}
LENGTHS = {"small": (5, 70), "large": (40,), "attention": (1, 33, 7)}


def base(family: str, *, fused: bool, **options: Any) -> BaseModel:
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    prepared = prepare_base_model("test/base", model)
    if not fused:
        return prepared
    from tinsmith_train.engine.fused.decoder import FusedDecoder

    shape = weights.shape_of(model.model)
    assert shape is not None
    return replace(prepared, decoder=FusedDecoder(model.model, "model", shape, **options))


def trainer(family: str, *, fused: bool = True, **options: Any) -> LoraTrainer:
    made = LoraTrainer(base(family, fused=fused, **options))
    for number, (name, spec) in enumerate(SPECS.items()):
        made.create_adapter(name, spec)
        made.adapter(name).weights.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return made


def batch(*names: str) -> list[ForwardBackward]:
    rng = np.random.default_rng(0)
    items: list[ForwardBackward] = []
    for name in names:
        datums = tuple(
            Datum(
                rng.integers(0, VOCAB, length),
                rng.integers(0, VOCAB, length),
                {"weights": rng.normal(size=length).astype(np.float32)},
            )
            for length in LENGTHS[name]
        )
        items.append(ForwardBackward(name, datums, "cross_entropy"))
    return items


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """New memory holds NaN, so that nothing can rest on what a tensor is before it has been written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_equal_the_model_s_modules(family: str) -> None:
    check(family, "small", "large", "attention")


@pytest.mark.slow
def test_a_row_of_one_adapter_that_leaves_modules_alone_equals_the_model_s_modules() -> None:
    check("qwen3", "attention")


def check(family: str, *names: str) -> None:
    """Logprobs and gradients of these adapters' work in one row."""
    ours, reference = trainer(family, keep_bytes=2**40), trainer(family, fused=False)
    work = batch(*names)
    for mine, theirs in zip(ours.forward_backward(work), reference.forward_backward(work), strict=True):
        assert isinstance(mine, ForwardBackwardResult)
        assert isinstance(theirs, ForwardBackwardResult)
        for a, b in zip(mine.logprobs, theirs.logprobs, strict=True):
            # fp32 sums in another order; logits are some tens, of which 1e-6 is the precision.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    for name in names:
        mine, theirs = ours.adapter(name).grad, reference.adapter(name).grad
        assert theirs.abs().max() > 1
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.slow
def test_layers_that_run_again_in_the_backward_pass_give_the_same_gradients() -> None:
    work = batch("attention", "large")
    kept, again = trainer("qwen3", keep_bytes=2**40), trainer("qwen3", keep_bytes=0)
    kept.forward_backward(work)
    again.forward_backward(work)
    for name in ("attention", "large"):
        assert kept.adapter(name).grad.abs().max() > 1
        assert torch.equal(kept.adapter(name).grad, again.adapter(name).grad)


@pytest.mark.slow
def test_weights_that_changed_are_copied_again() -> None:
    work = batch("attention")
    fused = trainer("qwen3", keep_bytes=2**40)
    (before,) = fused.forward_backward(work)
    fused.optim_step("attention", AdamParams(learning_rate=0.1))
    (after,) = fused.forward_backward(work)
    reference = trainer("qwen3", fused=False)
    reference.adapter("attention").weights.copy_(fused.adapter("attention").weights)
    (expected,) = reference.forward_backward(work)
    assert isinstance(before, ForwardBackwardResult)
    assert isinstance(after, ForwardBackwardResult)
    assert isinstance(expected, ForwardBackwardResult)
    assert np.abs(after.logprobs[1] - before.logprobs[1]).max() > 0.1
    np.testing.assert_allclose(after.logprobs[1], expected.logprobs[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change", [{"hidden_act": "gelu"}, {"intermediate_size": 100}, {"attention_bias": True}], ids=str
)
def test_a_model_that_the_fused_layers_would_compute_wrongly_runs_module_by_module(
    change: dict[str, Any],
) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES | change))
    assert weights.shape_of(model.model) is None
