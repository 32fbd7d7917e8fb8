"""Adapters as PEFT folders: what `peft`, SGLang and others load."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tinsmith_train.engine.adapters import WEIGHTS_FILE, Adapter

CONFIG_FILE = "adapter_config.json"


def write_peft_folder(adapter: Adapter, base_model: str, directory: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` (fp32) into an existing directory."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.spec.rank,
        "lora_alpha": adapter.spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({target.module for target in adapter.targets}),
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file(named_tensors(adapter, adapter.weights), directory / WEIGHTS_FILE, metadata={"format": "pt"})


def named_tensors(adapter: Adapter, flat: Tensor) -> dict[str, Tensor]:
    """Copies on the CPU of one of the adapter's flat buffers, by their names in checkpoints."""
    named = adapter.named(flat.detach().cpu())
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}
