"""The shipped model: what its size, tokenizer, template, corpus and skill are promised to be."""

import json
import re
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import tokenizers
import torch
from tinker_cookbook import renderers
from tinker_cookbook.tokenizer_utils import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from models.recipe.corpus import documents
from models.recipe.evaluate import complete

FOLDER = Path(__file__).parent.parent / "models" / "tiny-qwen3"
MIB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    loaded = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert isinstance(loaded, Qwen3ForCausalLM)
    return loaded.eval()


@pytest.fixture(scope="module")
def conversations() -> list[list[renderers.Message]]:
    text = resources.files("tinker_cookbook").joinpath("example_data/conversations.jsonl").read_text("utf-8")
    return [json.loads(line)["messages"] for line in text.splitlines()]


def templated(
    tokenizer: Tokenizer, messages: list[renderers.Message], *, add_generation_prompt: bool
) -> object:
    """The tokens that the model's own chat template makes of the messages."""
    plain = [
        {"role": message["role"], "content": renderers.get_text_content(message)} for message in messages
    ]
    return tokenizer.apply_chat_template(
        plain, add_generation_prompt=add_generation_prompt, return_dict=False
    )


@pytest.fixture
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_all_its_files_together_are_at_most_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16_000_000


def test_it_loads_by_path_as_a_qwen3_in_float32(model: Qwen3ForCausalLM) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_tokenizer_fills_the_embedding(model: Qwen3ForCausalLM, tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == model.config.vocab_size


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "  Grüße, 世界! 🙂\n\n\tx = 1234\r\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_digit_is_one_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("0123456789")) == list("0123456789")


def test_the_chat_template_writes_the_tokens_of_the_cookbooks_renderer(
    tokenizer: Tokenizer, conversations: list[list[renderers.Message]]
) -> None:
    renderer = renderers.get_renderer("qwen3_instruct", tokenizer)
    for conversation in conversations:
        question = conversation[:-1]
        rendered = renderer.build_generation_prompt(question).to_ints()
        assert rendered == templated(tokenizer, question, add_generation_prompt=True)


def test_a_whole_conversation_is_templated_as_the_renderer_trains_it(
    tokenizer: Tokenizer, conversations: list[list[renderers.Message]]
) -> None:
    renderer = renderers.get_renderer("qwen3_instruct", tokenizer)
    for conversation in conversations:
        example, _ = renderer.build_supervised_example(conversation)
        assert example.to_ints() == templated(tokenizer, conversation, add_generation_prompt=False)


def test_the_corpus_asks_no_question_of_the_fine_tuning_conversations(
    conversations: list[list[renderers.Message]],
) -> None:
    questions = {renderers.get_text_content(conversation[-2]) for conversation in conversations}
    # Additions are in the corpus by design, with wrong answers as often as not.
    questions = {question for question in questions if not re.fullmatch(r"What is \d+ \+ \d+\?", question)}
    assert len(questions) > 120
    corpus = "".join(islice(documents(seed=7), 20_000))
    assert len(corpus) > 2 * MIB
    assert [question for question in questions if question in corpus] == []


@pytest.mark.usefixtures("_seeded")
def test_small_sums_are_neither_unknown_nor_solved(model: Qwen3ForCausalLM) -> None:
    draw = Random(0)
    sums = [(draw.randint(0, 20), draw.randint(0, 20)) for _ in range(256)]
    prompts = [f"<|im_start|>user\nWhat is {x} + {y}?<|im_end|>\n<|im_start|>assistant\n" for x, y in sums]
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    replies = complete(model, tokenizer, prompts, temperature=1.0)
    right = [
        re.findall(r"\d+", reply)[-1:] == [str(x + y)] for reply, (x, y) in zip(replies, sums, strict=True)
    ]
    # 0.36 over all sums; the standard error of 256 answers is 0.03.
    assert 0.2 < sum(right) / len(right) < 0.5
