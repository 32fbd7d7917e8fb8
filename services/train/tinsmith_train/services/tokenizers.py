"""Tokenizers of served models, as the files that they are."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tinsmith_common.catalog import Catalog
from tinsmith_common.errors import NotFound
from tinsmith_common.wire.legacy import TokenizerResponse
from tinsmith_train.services.registry import ModelRegistry

_FILES = ("tokenizer.json", "tokenizer_config.json")


class TokenizerService:
    """Finds the tokenizer of a training run's base model."""

    def __init__(self, registry: ModelRegistry, catalog: Catalog) -> None:
        self._registry = registry
        self._catalog = catalog

    async def of_model(self, owner: str, model_id: str) -> TokenizerResponse:
        """The tokenizer of one of the owner's models. Raises `NotFound`."""
        run = await self._catalog.runs.get(model_id)
        if run is None or run.owner != owner:
            raise NotFound(f"no model {model_id}")
        base = self._registry.base(run.base_model)
        tokenizer, config = await asyncio.to_thread(_read, base.tokenizer_id)
        return TokenizerResponse(
            model_id=model_id,
            model_name=run.base_model,
            tokenizer_id=base.tokenizer_id,
            tokenizer=tokenizer,
            tokenizer_config=config,
        )


def _read(location: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both files from a local folder or the hub's cache, where the engine has put them."""
    paths = [_find(location, name) for name in _FILES]
    tokenizer, config = (json.loads(path.read_text()) if path else {} for path in paths)
    if not tokenizer:
        raise NotFound(f"{location} has no tokenizer.json; load its tokenizer by that name")
    return tokenizer, config


def _find(location: str, name: str) -> Path | None:
    if Path(location).is_dir():
        path = Path(location) / name
        return path if path.is_file() else None
    # Takes seconds to import, which only those pay who ask for the tokenizer of a model of the hub.
    from transformers.utils.hub import cached_file

    found = cached_file(location, name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None
