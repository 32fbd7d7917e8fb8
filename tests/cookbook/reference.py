"""What a recipe's first loss must be, from transformers and the offline data alone."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
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


def first_batch_nll(folder: Path, recipe: Recipe) -> float:
    """Mean negative log-likelihood per weight of the first batch, by the base model: adapters begin at zero."""
    file = "conversations.jsonl" if "JSONL" in recipe.data else f"{recipe.data}/train.jsonl"
    rows = datasets.Dataset.from_json(str(folder / file), cache_dir=str(folder / "hf")).shuffle(seed=0)
    if recipe.name != "sl_loop":
        rows = rows.shuffle(
            seed=0
        )  # by the builder of the dataset, then by the epoch, whose number is the seed
    renderer = renderers.get_renderer(RENDERER, get_tokenizer(str(MODEL_FOLDER)))
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    total, weight = 0.0, 0.0
    for messages in rows["messages"][:BATCH]:
        datum = conversation_to_datum(messages, renderer, None, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
        weights = datum.loss_fn_inputs["weights"].to_torch()
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        with torch.no_grad():
            logits = model(torch.tensor([datum.model_input.to_ints()])).logits[0]
        logprobs = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
        total -= float((logprobs * weights).sum())
        weight += float(weights.sum())
    return total / weight


def prompt_logprobs(model_folder: Path, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Log-probabilities of all tokens but the first, by a folder's model in fp32."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([list(tokens)])).logits[0, :-1], -1)
    return logprobs.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
