"""The training engine against Hugging Face + PEFT on the same sequences, in turn, on this machine's device.

`--shape` is a random model of that shape; a GPU's default is both Qwen3 shapes, a CPU's the tiny one. Each case runs in
a process of its own. Rows go to benchmarks/results/; the last lines are `ratio R: what`, ours over theirs in this run.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

RANK = 32
PADDED_TOKENS = 6144
"""Of a batch of Hugging Face + PEFT: 8192 fit an H200 beside the 8B model only where few of them are padding."""
RESULTS = Path(__file__).parent / "results"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One measurement. `lengths` is `mixed` (128 to 1,800 tokens, evenly spread) or one length for all."""

    shape: str
    backend: str
    tokens: int
    lengths: str
    tenants: int = 1
    mixed_ranks: bool = False

    def sequences(self) -> list[NDArray[np.int64]]:
        """The work, the same for every backend: `[length + 1]` each."""
        rng = np.random.default_rng(0)
        sizes: list[int] = []
        while sum(sizes) < self.tokens:
            size = int(rng.integers(128, 1801)) if self.lengths == "mixed" else int(self.lengths)
            sizes.append(min(size, self.tokens - sum(sizes)))
        vocab = SHAPES[self.shape]["vocab_size"]
        return [rng.integers(0, vocab, size + 1) for size in sizes if size > 1]


def model_of(case: Case, attention: str | None = None) -> Any:
    """A random model: bf16 on a GPU, fp32 on a CPU."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if cuda else torch.float32)
    with torch.device("cuda" if cuda else "cpu"):
        config = Qwen3Config(**SHAPES[case.shape], max_position_embeddings=40960)
        kwargs = {} if attention is None else {"attn_implementation": attention}
        model = AutoModelForCausalLM.from_config(config, **kwargs)
    torch.set_default_dtype(torch.float32)
    return model


def flops(case: Case, sequences: list[NDArray[np.int64]]) -> float:
    """Of one step, without recomputation: 4 a frozen matmul parameter and token, 3 times the attention's forward."""
    s = SHAPES[case.shape]
    attention = s["num_attention_heads"] * s["head_dim"]
    kv = s["num_key_value_heads"] * s["head_dim"]
    layer = s["hidden_size"] * (2 * attention + 2 * kv + 3 * s["intermediate_size"])
    matmul = s["num_hidden_layers"] * layer + s["vocab_size"] * s["hidden_size"]
    sizes = [len(sequence) - 1 for sequence in sequences]
    causal = 2 * s["num_hidden_layers"] * attention * sum(size * size for size in sizes)
    return 4.0 * matmul * sum(sizes) + 3.0 * causal


def our_step(case: Case, sequences: list[NDArray[np.int64]], row: int | None) -> Any:
    """forward_backward of all tenants and an optimizer step of each."""
    from tinsmith_train.engine.model import prepare_base_model
    from tinsmith_train.engine.trainer import LoraTrainer
    from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, LoraSpec, TrainerLimits

    trainer = LoraTrainer(prepare_base_model("benchmark", model_of(case)), TrainerLimits(tokens_per_pass=row))
    ranks = [8, 16, 32, 64] if case.mixed_ranks else [RANK]
    names = [f"tenant-{number}" for number in range(case.tenants)]
    batch: list[ForwardBackward] = []
    for number, name in enumerate(names):
        trainer.create_adapter(name, LoraSpec(ranks[number % len(ranks)], seed=number, train_unembed=False))
        datums = tuple(
            Datum(sequence[:-1], sequence[1:], {"weights": np.ones(len(sequence) - 1, np.float32)})
            for sequence in sequences[number :: case.tenants]
        )
        batch.append(ForwardBackward(name, datums, "cross_entropy"))
    params = AdamParams(1e-4)

    def step() -> float:
        results = trainer.forward_backward(batch)
        for name in names:
            trainer.optim_step(name, params)
        return float(sum(result.metrics["loss:sum"] for result in results))  # pyright: ignore

    return step


def peft_step(case: Case, sequences: list[NDArray[np.int64]]) -> Any:
    """As a user writes it: batches of similar lengths, padded; AdamW."""
    from peft import LoraConfig, get_peft_model

    model = model_of(case, "sdpa")
    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=32, target_modules=PROJECTIONS))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    device = next(model.parameters()).device
    batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    pending: list[NDArray[np.int64]] = []
    for sequence in [*sorted(sequences, key=len), None]:
        if pending and (sequence is None or (len(pending) + 1) * (len(sequence) - 1) > PADDED_TOKENS):
            longest = max(map(len, pending)) - 1
            inputs = torch.zeros(len(pending), longest, dtype=torch.long)
            labels = torch.full((len(pending), longest), -100)
            mask = torch.zeros(len(pending), longest, dtype=torch.long)
            for place, item in enumerate(pending):
                size = len(item) - 1
                inputs[place, :size] = torch.from_numpy(item[:-1])
                labels[place, :size] = torch.from_numpy(item[1:])
                mask[place, :size] = 1
            batches.append((inputs.to(device), labels.to(device), mask.to(device)))
            pending = []
        if sequence is not None:
            pending.append(sequence)

    def step() -> float:
        total = 0.0
        for inputs, labels, mask in batches:
            whole = None if bool(mask.all()) else mask
            logits = model(input_ids=inputs, attention_mask=whole, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), reduction="sum", ignore_index=-100
            )
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


def measure(case: Case, row: int | None, steps: int) -> dict[str, Any]:
    """Median of some steps after two to warm up."""
    sequences = case.sequences()
    cuda = torch.cuda.is_available()
    step = our_step(case, sequences, row) if case.backend == "tinsmith" else peft_step(case, sequences)
    begin = time.perf_counter()
    losses = [step() for _ in range(2)]
    warm_s = time.perf_counter() - begin
    seconds: list[float] = []
    for _ in range(steps):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        losses.append(step())
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = float(np.median(seconds))
    tokens = sum(len(sequence) - 1 for sequence in sequences)
    return {
        "bench": "train",
        "shape": case.shape,
        "backend": case.backend,
        "tenants": case.tenants,
        "lengths": case.lengths,
        "tokens": tokens,
        "tokens_per_s": round(tokens / median, 1),
        "tflops": round(flops(case, sequences) / median / 1e12, 3),
        "spread": round(float((max(seconds) - min(seconds)) / median), 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
        "warm_s": round(warm_s, 1),
        "losses": [round(loss / tokens, 4) for loss in losses],
    }


def ceiling() -> float:
    """TFLOP/s of a large bf16 (GPU) or fp32 (CPU) matrix product with random data."""
    cuda = torch.cuda.is_available()
    size, device = (8192, "cuda") if cuda else (1024, "cpu")
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else None) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        torch.mm(a, b)
    if cuda:
        torch.cuda.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - begin) / 1e12


def cases(shape: str, options: argparse.Namespace) -> list[Case]:
    """What is run for a shape: theirs and ours in turn, then ours with more tenants and other lengths."""
    tokens = options.tokens or (65536 if torch.cuda.is_available() else 2048)
    backends = ("tinsmith",) if options.without_peft else ("peft", "tinsmith")
    one = [Case(shape, backend, tokens, "mixed") for backend in backends]
    many = [Case(shape, "tinsmith", tokens, "mixed", n, mixed_ranks=True) for n in options.tenants if n > 1]
    lengths = [Case(shape, "tinsmith", max(tokens, int(size)), size) for size in options.lengths]
    return one + many + lengths


def child(case: Case, options: argparse.Namespace) -> dict[str, Any] | None:
    """Run one case in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.train",
        "--steps",
        str(options.steps),
    ]
    command += ["--row", str(options.row)] if options.row else []
    command += ["--case", json.dumps(case.__dict__)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        print(f"{case}: failed", file=sys.stderr)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument(
        "--shape", nargs="*", choices=SHAPES, default=["qwen3-0.6b", "qwen3-8b"] if cuda else ["tiny"]
    )
    parser.add_argument("--tokens", type=int, help="of one step [65536 on a GPU, 2048 on a CPU]")
    parser.add_argument("--row", type=int, help="tokens of our packed rows [what the engine chooses]")
    parser.add_argument("--steps", type=int, default=4, help="measured steps, after two [%(default)s]")
    parser.add_argument(
        "--tenants", type=int, nargs="*", default=[16, 64] if cuda else [4], help="[%(default)s]"
    )
    parser.add_argument(
        "--lengths", nargs="*", default=[], help="equal lengths to run too, such as 1024 32768"
    )
    parser.add_argument("--without-peft", action="store_true", help="ours alone, with no ratio")
    parser.add_argument("--out", type=Path, help="file of the rows [benchmarks/results/DATE-HOST-train.json]")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)), options.row, options.steps)))
        return
    report(options)


def report(options: argparse.Namespace) -> None:
    """All cases of all shapes, with the ratios between them."""
    top = ceiling()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}-cpu"
    print(f"{device}: matmul ceiling {top:,.2f} TFLOP/s", flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    stamp = {"date": str(date.today()), "commit": commit.stdout.strip() or None, "device": device}
    host = device.lower().replace(" ", "-")
    path = options.out or RESULTS / f"{date.today()}-{host}-train.json"
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for shape in options.shape:
        base: dict[str, float] = {}
        for case in cases(shape, options):
            row = child(case, options)
            if row is None:
                continue
            rate = row["tokens_per_s"]
            if case.tenants == 1 and case.lengths == "mixed":
                base[case.backend] = rate
            row["share_of_ceiling"] = round(row["tflops"] / top, 3)
            row["ratio"] = (
                round(rate / base["peft"], 3) if "peft" in base and case.lengths == "mixed" else None
            )
            row["tenants_ratio"] = round(rate / base["tinsmith"], 3) if case.tenants > 1 else None
            rows.append(row | stamp | {"command": "python -m benchmarks.train " + " ".join(sys.argv[1:])})
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(json.dumps(row), flush=True)
            if case.backend == "tinsmith" and row["ratio"] and case.tenants == 1:
                lines.append(f"ratio {row['ratio']:.2f}: {shape}, tokens/s, ours over Hugging Face + PEFT")
            if row["tenants_ratio"]:
                lines.append(
                    f"ratio {row['tenants_ratio']:.3f}: {shape}, tokens/s of {case.tenants} tenants over one"
                )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
