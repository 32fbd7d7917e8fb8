"""A small random Qwen3, and makers of trainers and datums around it. Everything is fp32 on the CPU."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tinsmith_train.engine.model import prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import Datum, LoraSpec, TrainerLimits

VOCAB = 67

MakeModel = Callable[..., Any]
MakeTrainer = Callable[..., LoraTrainer]
MakeDatum = Callable[..., Datum]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only lose from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """`make_model(tied=False)`: the same weights at each call, Hugging Face's own attention."""
    models: dict[bool, Any] = {}

    def make(tied: bool = False) -> Any:
        if tied not in models:
            torch.manual_seed(0)
            config = Qwen3Config(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                vocab_size=VOCAB,
                max_position_embeddings=64,
                tie_word_embeddings=tied,
                initializer_range=0.2,
            )
            models[tied] = Qwen3ForCausalLM(config).eval()
        return copy.deepcopy(models[tied])

    return make


@pytest.fixture
def make_trainer(make_model: MakeModel) -> MakeTrainer:
    """`make_trainer(a=spec, ..., tied=False, limits=None)`: adapters by name, with random A and B."""

    def make(tied: bool = False, limits: TrainerLimits | None = None, **specs: LoraSpec) -> LoraTrainer:
        trainer = LoraTrainer(prepare_base_model("test/base", make_model(tied)), limits)
        for number, (name, spec) in enumerate(specs.items()):
            trainer.create_adapter(name, spec)
            generator = torch.Generator().manual_seed(number)
            trainer.adapter(name).weights.normal_(std=0.05, generator=generator)
        return trainer

    return make


@pytest.fixture
def make_datum() -> MakeDatum:
    """`make_datum(seed, length, k=None)`: random tokens and every input that some loss reads."""

    def make(seed: int, length: int, k: int | None = None) -> Datum:
        rng = np.random.default_rng(seed)
        shape = (length,) if k is None else (length, k)
        inputs = {
            "weights": rng.normal(size=shape),
            "logprobs": -3 + rng.normal(size=shape),
            "advantages": rng.normal(size=shape),
            "sequence_ratio_mask": rng.integers(0, 2, size=shape),
        }
        return Datum(
            tokens=rng.integers(0, VOCAB, length),
            targets=rng.integers(0, VOCAB, shape),
            inputs={name: values.astype(np.float32) for name, values in inputs.items()},
        )

    return make


def assert_same_gradient(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to fp32 rounding: entries are sums with cancellation, so the largest one sets the scale."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * scale)
