"""Exported adapters: the layout that the cookbook's converters read, and age encryption.

Everything here blocks: call it through `asyncio.to_thread`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyrage
from safetensors.numpy import load_file, save_file

from tinsmith_common.errors import InvalidInput

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
AGE_SUFFIX = ".age"

# What Hugging Face calls the output head, and what exports of the protocol call it.
_HEAD = "lm_head"
_EXPORTED_HEAD = "model.unembed_tokens"

# The extension module has no type information.
_pyrage: Any = pyrage


def parse_recipients(texts: Sequence[str]) -> tuple[Any, ...]:
    """Age recipients from `age1…` (X25519) or SSH public keys. Raises `InvalidInput` that names the bad one."""
    return tuple(_parse_recipient(text) for text in texts)


def finish_export(folder: Path, recipients: Sequence[Any]) -> None:
    """Turn a PEFT folder into an export: the head gets its exported name; then, if anyone is to receive it,
    each file is replaced by its encrypted form, whose name ends in `.age`."""
    _rename_head(folder)
    for file in sorted(folder.iterdir()) if recipients else ():
        _pyrage.encrypt_file(str(file), f"{file}{AGE_SUFFIX}", list(recipients))
        file.unlink()


def _parse_recipient(text: str) -> Any:
    family = _pyrage.x25519 if text.startswith("age1") else _pyrage.ssh
    try:
        return family.Recipient.from_str(text)
    except _pyrage.RecipientError as error:
        raise InvalidInput(
            f"age_encryption_recipients: {text[:80]!r} is neither an age1… nor an SSH public key ({error})"
        ) from error


def _rename_head(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    prefix = f"base_model.model.{_HEAD}."
    if not any(name.startswith(prefix) for name in tensors):
        return
    renamed = {
        name.replace(prefix, f"base_model.model.{_EXPORTED_HEAD}.", 1): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    exported = _EXPORTED_HEAD.rpartition(".")[2]
    config["target_modules"] = sorted(exported if m == _HEAD else m for m in config["target_modules"])
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
