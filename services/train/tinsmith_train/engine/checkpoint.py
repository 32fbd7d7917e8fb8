"""Saving and loading all that training needs to go on as if it had not stopped.

A state folder is the adapter's PEFT folder (or the whole model's folder for Hugging Face, in fp32), plus `state.json`
(shape of the adapter, step count) and the two Adam moments, each a safetensors file with the names of the weights.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.adapters import Adapter
from tinsmith_train.engine.peft_export import named_tensors, write_peft_folder
from tinsmith_train.engine.types import LoraSpec
from tinsmith_train.engine.whole import FullModel

STATE_FILE = "state.json"
EXP_AVG_FILE = "exp_avg.safetensors"
EXP_AVG_SQ_FILE = "exp_avg_sq.safetensors"
FORMAT = 1


def save_state(adapter: Adapter, base_model: str, directory: Path) -> None:
    """Write weights, moments and step count into an existing directory. The gradient is not saved."""
    if isinstance(adapter, FullModel):
        adapter.write_weights(directory)
    else:
        write_peft_folder(adapter, base_model, directory)
    save_file(named_tensors(adapter, adapter.exp_avg), directory / EXP_AVG_FILE)
    save_file(named_tensors(adapter, adapter.exp_avg_sq), directory / EXP_AVG_SQ_FILE)
    state = {"format": FORMAT, "base_model": base_model, "step": adapter.step, "lora": asdict(adapter.spec)}
    (directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")


def load_state(directory: Path, make: Callable[[LoraSpec], Adapter], *, with_optimizer: bool) -> Adapter:
    """A new adapter from a folder that `save_state` wrote. Raises `InvalidInput` if it does not fit."""
    state = _read_state(directory)
    adapter = make(LoraSpec(**state["lora"]))
    _fill(adapter, adapter.weights, directory / adapter.weights_file)
    if with_optimizer:
        _fill(adapter, adapter.exp_avg, directory / EXP_AVG_FILE)
        _fill(adapter, adapter.exp_avg_sq, directory / EXP_AVG_SQ_FILE)
        adapter.step = int(state["step"])
    return adapter


def _read_state(directory: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(
            "the checkpoint holds no training state: load one that save_state wrote"
        ) from error
    if state.get("format") != FORMAT:
        raise InvalidInput(f"the checkpoint has format {state.get('format')}, and this server reads {FORMAT}")
    return state


@torch.no_grad()
def _fill(adapter: Adapter, flat: Tensor, file: Path) -> None:
    """Copy a file's tensors into one of the adapter's flat buffers; names and shapes must be the same."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"the checkpoint's {file.name} is missing or damaged: save it again") from error
    wanted = adapter.named(flat)
    if {k: t.shape for k, t in found.items()} != {k: t.shape for k, t in wanted.items()}:
        raise InvalidInput("the checkpoint was trained on a base model of another shape: use that base model")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])
