"""How far the engine's numbers are from fp32, beside how far Hugging Face + PEFT are in the engine's own dtype.

The same random weights, adapter and sequences three times: this engine, Hugging Face + PEFT in the engine's dtype, and
Hugging Face + PEFT in fp32, which is the reference. On a GPU the engine's dtype is bf16, on a CPU fp32. The row goes to
benchmarks/results/DATE-HOST-parity.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.train import RANK, RESULTS, SHAPES, Case, model_of
from tinsmith_train.engine.decoder import Owner
from tinsmith_train.engine.model import BaseModel, prepare_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import Datum, ForwardBackward, ForwardBackwardResult, LoraSpec

Numbers = tuple[Tensor, Tensor, dict[str, Tensor]]
"""fp32 log-softmax `[T, vocab]`, logprobs of the targets `[T]`, gradients by PEFT's names."""


def ours(base: BaseModel, trainer: LoraTrainer, datums: tuple[Datum, ...]) -> Numbers:
    """From one packed row."""
    adapter = trainer.adapter("a")
    device = base.device
    lengths = tuple(len(datum.tokens) for datum in datums)
    tokens = torch.from_numpy(np.concatenate([datum.tokens for datum in datums])).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    with torch.no_grad():
        hidden = base.decoder.hidden(tokens, positions, lengths, [Owner(0, len(tokens), adapter)])
        log_softmax = F.linear(hidden, base.head.weight).float().log_softmax(1)
    (result,) = trainer.forward_backward([ForwardBackward("a", datums, "cross_entropy")])
    assert isinstance(result, ForwardBackwardResult), result
    logprobs = torch.from_numpy(np.concatenate(result.logprobs)).to(device)
    grads = {
        f"{path}.{side}": tensor
        for path, pair in adapter.views(adapter.grad).items()
        for side, tensor in zip("AB", pair, strict=True)
    }
    return log_softmax, logprobs, grads


def theirs(case: Case, folder: str, datums: tuple[Datum, ...], *, fp32: bool) -> Numbers:
    """One unpadded sequence at a time."""
    from peft import PeftModel

    base = model_of(case, "sdpa")
    model: Any = PeftModel.from_pretrained(base.float() if fp32 else base, folder, is_trainable=True)
    device = next(model.parameters()).device
    outputs: list[Tensor] = []
    chosen: list[Tensor] = []
    for datum in datums:
        tokens, targets = (torch.from_numpy(x).to(device) for x in (datum.tokens, datum.targets))
        log_softmax = model(input_ids=tokens[None], use_cache=False).logits[0].float().log_softmax(1)
        picked = log_softmax.gather(1, targets[:, None])[:, 0]
        (-picked.sum()).backward()
        outputs.append(log_softmax.detach())
        chosen.append(picked.detach())
    grads = {
        name.removeprefix("base_model.model.").replace(".lora_", ".").replace(".default.weight", ""): p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return torch.cat(outputs), torch.cat(chosen), grads


def distance(numbers: Numbers, reference: Numbers, name: str) -> dict[str, float]:
    """Absolute differences of logprobs, mean KL of the reference from these, relative error of all gradients."""
    log_softmax, logprobs, grads = numbers
    exact, expected, exact_grads = reference
    difference = (logprobs - expected).abs()
    pieces = zip(exact.split(256), log_softmax.split(256), strict=True)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in pieces) / len(exact)
    return {
        f"{name}_logprob_mean_abs": float(difference.mean()),
        f"{name}_logprob_max_abs": float(difference.max()),
        f"{name}_kl": kl,
        f"{name}_gradient_relative": _relative(grads, exact_grads),
    }


def _relative(grads: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    assert grads.keys() == exact.keys()
    error = sum(float((grads[name].float() - exact[name].float()).square().sum()) for name in exact)
    return (error / sum(float(grad.float().square().sum()) for grad in exact.values())) ** 0.5


def measure(shape: str, tokens: int) -> dict[str, Any]:
    """One shape's row."""
    case = Case(shape, "tinsmith", tokens, "mixed")
    datums = tuple(
        Datum(s[:-1], s[1:], {"weights": np.ones(len(s) - 1, np.float32)}) for s in case.sequences()
    )
    base = prepare_base_model("benchmark", model_of(case))
    trainer = LoraTrainer(base)
    trainer.create_adapter("a", LoraSpec(RANK, seed=0, train_unembed=False))
    for pair in trainer.adapter("a").pairs.values():
        # A fresh adapter's B is zero, which would leave its A without a gradient.
        pair.b.detach().normal_(std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        trainer.export_adapter("a", Path(folder))
        mine = ours(base, trainer, datums)
        reference = theirs(case, folder, datums, fp32=True)
        row = distance(mine, reference, "tinsmith")
        del mine
        row |= distance(theirs(case, folder, datums, fp32=False), reference, "peft")
    spread = float(reference[1].std())
    dtype = str(base.head.weight.dtype).removeprefix("torch.")
    return {"bench": "parity", "shape": shape, "dtype": dtype, "tokens": tokens, "logprob_std": spread} | row


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["qwen3-0.6b"] if cuda else ["tiny"])
    parser.add_argument("--tokens", type=int, default=4096 if cuda else 512, help="[%(default)s]")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    stamp = {"date": str(date.today()), "device": device}
    rows = [measure(shape, options.tokens) | stamp for shape in options.shape]
    for row in rows:
        row["command"] = "python -m benchmarks.parity " + " ".join(sys.argv[1:])
        print(json.dumps(row, indent=1))
    path = RESULTS / f"{date.today()}-{device.lower().replace(' ', '-')}-parity.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
