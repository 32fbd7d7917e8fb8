"""Exported adapters: the layout that the cookbook's converters read, and age encryption.

Everything here blocks: call it through `asyncio.to_thread`.
"""

import json
from collections.abc import Mapping, Sequence
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
# Exports leave out where a vision-language model keeps its decoder.
_DECODER_BESIDE_VISION = "base_model.model.model.language_model."

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


def exported_name(name: str) -> str:
    """What an export calls a tensor: as PEFT does, but for the head."""
    if name.startswith(_DECODER_BESIDE_VISION):
        return f"base_model.model.model.{name.removeprefix(_DECODER_BESIDE_VISION)}"
    prefix = f"base_model.model.{_HEAD}."
    return name.replace(prefix, f"base_model.model.{_EXPORTED_HEAD}.", 1) if name.startswith(prefix) else name


def exported_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's configuration with the head named as exports name it."""
    head = _EXPORTED_HEAD.rpartition(".")[2]
    modules = sorted(head if module == _HEAD else module for module in config["target_modules"])
    return {**config, "target_modules": modules}


def _parse_recipient(text: str) -> Any:
    family = _pyrage.x25519 if text.startswith("age1") else _pyrage.ssh
    try:
        return family.Recipient.from_str(text)
    except _pyrage.RecipientError as error:
        raise InvalidInput(
            f"age_encryption_recipients: {text[:80]!r} is neither an age1… nor an SSH public key ({error})"
        ) from error


def _rename_head(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).exists():
        return  # a whole model keeps the names of Hugging Face
    tensors = load_file(folder / WEIGHTS_FILE)
    renamed = {exported_name(name): tensor for name, tensor in tensors.items()}
    if set(renamed) == set(tensors):
        return
    save_file(renamed, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = exported_config(json.loads((folder / CONFIG_FILE).read_text()))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
