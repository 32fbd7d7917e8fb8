"""What recipes must come to, from transformers and the offline data alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tinker
import torch
from numpy.typing import NDArray
from tinker_cookbook import renderers
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised.data import conversation_to_datum
from tinker_cookbook.tokenizer_utils import get_tokenizer
from transformers import AutoModelForCausalLM

from tests.cookbook.offline import MODEL_FOLDER
from tests.cookbook.recipes import RENDERER, Recipe

BATCH = 8


def batch(folder: Path, recipe: Recipe, index: int) -> list[tinker.Datum]:
    """The recipe's batch of that index in its first epoch."""
    file = "conversations.jsonl" if "JSONL" in recipe.data else f"{recipe.data}/train.jsonl"
    rows = datasets.Dataset.from_json(str(folder / file), cache_dir=str(folder / "hf")).shuffle(seed=0)
    if recipe.name != "sl_loop":
        # Once by the builder of the dataset, then by the epoch, whose number is the seed.
        rows = rows.shuffle(seed=0)
    renderer = renderers.get_renderer(RENDERER, get_tokenizer(str(MODEL_FOLDER)))
    return [
        conversation_to_datum(messages, renderer, None, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
        for messages in rows["messages"][index * BATCH : (index + 1) * BATCH]
    ]


def mean_nll(data: Sequence[tinker.Datum], logprobs: Sequence[NDArray[np.float32]]) -> float:
    """Negative log-likelihood per weight."""
    weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in data]
    total = sum(float(np.dot(w, lp)) for w, lp in zip(weights, logprobs, strict=True))
    return -total / sum(float(w.sum()) for w in weights)


def base_logprobs(data: Sequence[tinker.Datum]) -> list[NDArray[np.float32]]:
    """Log-probabilities of the targets by the base model, which adapters begin as."""
    model = load(MODEL_FOLDER)
    values: list[NDArray[np.float32]] = []
    for datum in data:
        targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].to_numpy())
        with torch.no_grad():
            logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0]
        values.append(torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0].numpy())
    return values


def save_untied(folder: Path) -> None:
    """Write the base model with an output head of its own.

    The tiny model shares it with the embeddings. There the cookbook's merge adds the head's adapter to both.
    """
    model = load(MODEL_FOLDER)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((MODEL_FOLDER / file).read_bytes())


def load(folder: Path) -> Any:
    """A folder's model in fp32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def prompt_logprobs(model_folder: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Log-probabilities of all tokens but the first, by a folder's model in fp32."""
    model = load(model_folder)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([list(tokens)])).logits[0, :-1], -1)
    return logprobs.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
