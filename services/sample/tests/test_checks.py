"""What is refused before the engine sees it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinsmith_common.errors import InvalidInput
from tinsmith_sample.engines.base import EngineLimits, PromptTargets, SampleSpec, Stops
from tinsmith_sample.engines.checks import check_adapter, check_spec, completion_budget

LIMITS = EngineLimits(vocab_size=100, context_length=16, prompt_scores=7)
SPEC = SampleSpec(prompt=(1, 2, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ()}, "empty"),
        ({"prompt": (1,) * 16}, "leaves room for 15"),
        ({"prompt": (1, 100)}, "token id 100 in prompt"),
        ({"prompt": (-1,)}, "token id -1 in prompt"),
        ({"num_samples": 0}, "num_samples"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"topk_prompt_logprobs": 65}, "topk_prompt_logprobs"),
        ({"targets": PromptTargets((1,), (100,))}, "token id 100 in target_prompt_logprobs"),
        ({"prompt_alternatives": 4}, "8 scores of prompt positions are asked for.*MAX_PROMPT_SCORES"),
        ({"targets": PromptTargets((1, 2), (5, 5)), "prompt_alternatives": 3}, "8 scores"),
        ({"stops": Stops(strings=("",))}, "must not be empty"),
        ({"stops": Stops(strings=("x",) * 33)}, "at most 32"),
        ({"stops": Stops(tokens=(100,))}, "token id 100 in stop"),
    ],
)
def test_a_request_the_engine_would_refuse_is_refused_with_the_reason(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_spec(replace(SPEC, **change), LIMITS)


def test_the_longest_prompt_leaves_one_token() -> None:
    spec = replace(SPEC, prompt=(1,) * 15)
    check_spec(spec, LIMITS)
    assert completion_budget(spec, LIMITS) == 1


def test_scores_up_to_the_limit_are_accepted() -> None:
    check_spec(replace(SPEC, targets=PromptTargets((1,), (5,)), prompt_alternatives=3), LIMITS)


def test_max_tokens_defaults_to_what_the_context_leaves() -> None:
    assert completion_budget(SPEC, LIMITS) == 13


def test_max_tokens_is_cut_to_what_the_context_leaves() -> None:
    assert completion_budget(replace(SPEC, max_tokens=500), LIMITS) == 13


def _adapter(folder: Path, **config: Any) -> Path:
    (folder / "adapter_model.safetensors").touch()
    values = {"r": 8, "lora_alpha": 32, "target_modules": ["o_proj", "lm_head"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def test_an_ordinary_adapter_is_accepted(tmp_path: Path) -> None:
    check_adapter(_adapter(tmp_path), max_rank=8)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 9}, "rank 1 to 8"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"target_modules": []}, "are served"),
        ({"target_modules": ["q_proj", "v_proj"]}, "on all of them"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)
def test_an_adapter_that_would_be_served_wrongly_is_refused(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        check_adapter(_adapter(tmp_path, **config), max_rank=8)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"adapter_config\.json"):
        check_adapter(tmp_path, max_rank=8)
