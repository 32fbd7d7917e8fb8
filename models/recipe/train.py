"""Pretraining: next-token prediction on rows of two lengths, AdamW, cosine schedule."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from models.recipe.data import TokenStream
from models.recipe.tokenizer import MAX_LENGTH, VOCAB_SIZE


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train: the rate falls to zero by `tokens` or `max_minutes`."""

    tokens: int
    tokens_per_step: int
    max_minutes: float
    peak_lr: float
    warmup_steps: int = 200
    short_row: int = 256
    long_row: int = MAX_LENGTH
    long_every: int = 4


@dataclass
class Progress:
    """What one run did: a loss [nats per token] every `log_every` steps."""

    steps: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


def new_model(end_of_turn: int, end_of_text: int) -> Qwen3ForCausalLM:
    """A random Qwen3 of 3.7 million parameters, fp32."""
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_text,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[end_of_turn, end_of_text], pad_token_id=end_of_text, do_sample=True, temperature=1.0
    )
    return model


def token_losses(model: Qwen3ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [rows * length] in nats, fp32, of each next token; bf16 matmuls on a GPU."""
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.device.type == "cuda"):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none")


def pretrain(
    model: Qwen3ForCausalLM, stream: TokenStream, schedule: Schedule, seed: int, log_every: int
) -> Progress:
    """Train `model` in place and print a line every `log_every` steps."""
    device = stream.tokens.device
    optimizer = _optimizer(model, schedule, device)
    progress = Progress()
    started = time.perf_counter()
    recent = torch.zeros((), device=device)
    model.train()
    for step, rows in enumerate(_batches(stream, schedule, seed)):
        elapsed = time.perf_counter() - started
        done = max(step * schedule.tokens_per_step / schedule.tokens, elapsed / (60 * schedule.max_minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, done, schedule)
        loss = token_losses(model, rows).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent += loss.detach()
        progress.steps, progress.seconds = step + 1, time.perf_counter() - started
        if progress.steps % log_every == 0:
            mean = recent.item() / log_every
            recent.zero_()
            progress.curve.append((progress.steps, round(mean, 4)))
            rate = progress.steps * schedule.tokens_per_step / (time.perf_counter() - started)
            print(
                f"step {progress.steps:>6}  {100 * done:5.1f} %  loss {mean:.4f}  {rate:,.0f} tokens/s",
                flush=True,
            )
    model.eval()
    return progress


def write_model(model: Qwen3ForCausalLM, folder: Path) -> None:
    """config.json, generation_config.json and model.safetensors (fp32)."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)


def write_log(
    folder: Path, schedule: Schedule, progress: Progress, scores: dict[str, float], **facts: object
) -> None:
    """pretraining.json: the settings, the loss curve and the evaluation."""
    log = {**facts, "schedule": asdict(schedule), "progress": asdict(progress), "scores": scores}
    (folder / "pretraining.json").write_text(json.dumps(log, indent=1) + "\n")


def _batches(stream: TokenStream, schedule: Schedule, seed: int) -> Iterator[torch.Tensor]:
    """Rows of the short length; every `long_every`-th batch has rows of the long one."""
    generator = torch.Generator(stream.tokens.device).manual_seed(seed)
    step = 0
    while True:
        step += 1
        length = schedule.long_row if step % schedule.long_every == 0 else schedule.short_row
        yield stream.rows(max(1, schedule.tokens_per_step // length), length, generator)


def _optimizer(model: Qwen3ForCausalLM, schedule: Schedule, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, schedule.peak_lr, betas=(0.9, 0.95), fused=device.type == "cuda")


def _rate(step: int, done: float, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine over `done` in 0..1."""
    return (
        schedule.peak_lr * min(1.0, (step + 1) / schedule.warmup_steps) * 0.5 * (1 + math.cos(math.pi * done))
    )
