"""forward_backward and optim_step of the embedded engine against plain torch + peft, interleaved in one process.

Both train the same adapter shape on the same random model with the same tokens; the ratio is of tokens per CPU-second
and per second of wall clock, ours over theirs, from the medians of all rounds. The last line is `ratio R: what`.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from tinsmith_train.engine.model import prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, LoraSpec

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Shape:
    """What is trained: `sequences` of `length` tokens, LoRA of `rank` on all linear layers but the head."""

    sequences: int = 8
    length: int = 256
    rank: int = 8
    layers: int = 4
    hidden: int = 256
    vocab: int = 8192

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.sequences * self.length

    def model(self) -> Qwen3ForCausalLM:
        """A random Qwen3 of this shape, fp32."""
        torch.manual_seed(0)
        config = Qwen3Config(
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            vocab_size=self.vocab,
            tie_word_embeddings=True,
        )
        return Qwen3ForCausalLM(config)


@dataclass
class Timing:
    """Seconds of each round."""

    wall: list[float]
    cpu: list[float]

    def take(self, step: Callable[[], None]) -> None:
        """Time one step."""
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def our_step(shape: Shape, model: nn.Module, tokens: NDArray[np.int64]) -> Callable[[], None]:
    """One step of the engine."""
    trainer = LoraTrainer(prepare_base_model("benchmark", model))
    trainer.create_adapter("a", LoraSpec(shape.rank, seed=0, train_unembed=False))
    weights = {"weights": np.ones(shape.length, np.float32)}
    datums = tuple(Datum(row[:-1], row[1:], weights) for row in tokens)
    batch = [ForwardBackward("a", datums, "cross_entropy")]

    def step() -> None:
        trainer.forward_backward(batch)
        trainer.optim_step("a", AdamParams(LEARNING_RATE))

    return step


def peft_step(shape: Shape, model: nn.Module, tokens: NDArray[np.int64]) -> Callable[[], None]:
    """The same step as a user writes it with peft."""
    lora = LoraConfig(r=shape.rank, lora_alpha=32, target_modules=LINEAR_LAYERS)
    adapted = get_peft_model(model, lora)  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=LEARNING_RATE)
    batch = torch.from_numpy(tokens)

    def step() -> None:
        logits = adapted(input_ids=batch[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=8, help="steps of each, after one to warm up [%(default)s]"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads [%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = Shape()
    model = shape.model()
    tokens = np.random.default_rng(0).integers(0, shape.vocab, (shape.sequences, shape.length + 1))
    steps = {
        "ours": our_step(shape, copy.deepcopy(model), tokens),
        "peft": peft_step(shape, copy.deepcopy(model), tokens),
    }
    timings = {name: Timing([], []) for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            timings[name].take(step)
    rates: dict[str, tuple[float, float]] = {}
    for name, timing in timings.items():
        rates[name] = (
            shape.tokens / statistics.median(timing.cpu),
            shape.tokens / statistics.median(timing.wall),
        )
        print(f"{name}: {rates[name][0]:,.0f} tokens per CPU-second, {rates[name][1]:,.0f} tokens/s")
    print(f"ratio {rates['ours'][1] / rates['peft'][1]:.2f}: tokens/s, ours over torch + peft")
    print(f"ratio {rates['ours'][0] / rates['peft'][0]:.2f}: tokens per CPU-second, ours over torch + peft")


if __name__ == "__main__":
    main()
