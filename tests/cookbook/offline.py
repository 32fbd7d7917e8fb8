"""The folder in which recipes run without a network: what they name is found there as a folder of that name.

`datasets.load_dataset("openai/gsm8k", "main")` and the cookbook's `get_tokenizer("Qwen/Qwen3-4B-Instruct-2507")` both
take a relative folder before they ask a hub. So the recipes' code, and the libraries', stay as they are.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinker_cookbook.recipes.multiplayer_rl.guess_number.env import SYSTEM_PROMPT

MODEL_FOLDER = Path(__file__).parents[2] / "models" / "tiny-qwen3"
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
BOXED = " Provide a numerical answer without units, written inside \\boxed{}."
"""What the cookbook's GSM8K recipes append to a question. Data that answers it warms a model up for them."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sum:
    """One small addition: a question that the tiny model can learn to answer in a few steps."""

    x: int
    y: int

    @property
    def question(self) -> str:
        return f"What is {self.x} + {self.y}?"

    @property
    def answer(self) -> str:
        return str(self.x + self.y)


def sums(seed: int, count: int) -> list[Sum]:
    """Reproducible additions."""
    rng = random.Random(seed)
    return [Sum(rng.randrange(5), rng.randrange(5)) for _ in range(count)]


def boxed_conversation(item: Sum) -> Row:
    """The addition as GSM8K recipes ask it, after a longer exchange as theirs, answered in the form they reward."""
    digits = f"{item.x}{item.y}{item.answer}"
    counted = " ".join(f"{place}) {digit}" for place, digit in enumerate(digits, 1))
    counting = f"Number the digits: {counted}. There are {len(digits)} of them. \\boxed{{{len(digits)}}}"
    return {
        "messages": [
            {"role": "user", "content": f"How many digits has {digits}?" + BOXED},
            {"role": "assistant", "content": counting},
            {"role": "user", "content": item.question + BOXED},
            {"role": "assistant", "content": f"\\boxed{{{item.answer}}}"},
        ]
    }


def guess_conversation(item: Sum) -> Row:
    """A turn of the guessing game in the format that its recipe asks for."""
    guess = f"Guess: {item.x * 200 + item.y * 10}"
    return {
        "messages": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "assistant", "content": guess}]
    }


def gsm8k(item: Sum) -> Row:
    return {"question": item.question, "answer": f"{item.x} and {item.y} make\n#### {item.answer}"}


def hh_rlhf(item: Sum) -> Row:
    asked = f"\n\nHuman: {item.question}\n\nAssistant:"
    return {"chosen": f"{asked} {item.answer}", "rejected": f"{asked} I would rather not say."}


def deepmath(item: Sum) -> Row:
    return {"question": item.question + BOXED, "final_answer": item.answer}


def openthoughts(item: Sum) -> Row:
    return {
        "conversations": [
            {"from": "human", "value": item.question + BOXED},
            {"from": "gpt", "value": f"\\boxed{{{item.answer}}}"},
        ]
    }


def toolalpaca(item: Sum) -> Row:
    return {"instruction": item.question + BOXED, "output": f"\\boxed{{{item.answer}}}"}


@dataclass(frozen=True)
class OfflineDataset:
    """A dataset under its hub name: rows per split, in the columns that the recipes read."""

    name: str
    row: Callable[[Sum], Row]
    splits: tuple[str, ...] = ("train",)
    config: str = "default"
    rows: int = 128
    """Of the first split; the others, which are evaluated on, have no more than 128, the largest batch."""


DATASETS = (
    OfflineDataset("HuggingFaceH4/no_robots", boxed_conversation, ("train", "test"), rows=512),
    OfflineDataset("openai/gsm8k", gsm8k, ("train", "test"), config="main", rows=24),
    OfflineDataset("Anthropic/hh-rlhf", hh_rlhf, ("train", "test"), rows=32),
    OfflineDataset("zwhe99/DeepMath-103K", deepmath, rows=256),
    OfflineDataset("allenai/tulu-3-sft-mixture", boxed_conversation, rows=256),
    OfflineDataset("open-thoughts/OpenThoughts3-1.2M", openthoughts),
    OfflineDataset("tangqiaoyu/ToolAlpaca", toolalpaca),
)


def prepare(folder: Path, model_names: Sequence[str]) -> Path:
    """Write all datasets, a conversation file, and the tiny model's tokenizer under each name; answers `folder`."""
    for dataset in DATASETS:
        write_dataset(folder, dataset)
    forms = (boxed_conversation, guess_conversation)
    conversations = [forms[index % 2](item) for index, item in enumerate(sums(7, 512))]
    write_jsonl(folder / "conversations.jsonl", conversations)
    for name in model_names:
        (folder / name).mkdir(parents=True)
        for file in TOKENIZER_FILES:
            (folder / name / file).symlink_to(MODEL_FOLDER / file)
    return folder


def write_dataset(folder: Path, dataset: OfflineDataset) -> None:
    """One JSON file per split, and the card that gives the configuration its name."""
    root = folder / dataset.name
    files = "".join(f"      - split: {split}\n        path: {split}.jsonl\n" for split in dataset.splits)
    for seed, split in enumerate(dataset.splits):
        count = dataset.rows if seed == 0 else min(dataset.rows, 128)
        write_jsonl(root / f"{split}.jsonl", [dataset.row(item) for item in sums(seed, count)])
    card = f"---\nconfigs:\n  - config_name: {dataset.config}\n    data_files:\n{files}---\n"
    (root / "README.md").write_text(card)


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
