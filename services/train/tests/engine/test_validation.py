"""Every kind of bad submission is refused with a sentence that names the place and the remedy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, LoraSpec, ModelInfo
from tinsmith_train.engine.validation import check_adam, check_item, check_lora

MODEL = ModelInfo(architecture="Test", vocab_size=10, max_context_length=4, num_parameters=0)
NAN, INF = float("nan"), float("inf")


def item(
    loss: str = "ppo", config: dict[str, float | str] | None = None, tokens: Any = (1, 2, 3), **changes: Any
) -> ForwardBackward:
    """A good submission of two datums, with changes to the second one; `None` removes an input."""
    inputs = {"logprobs": [-1.0, -1.0, -1.0], "advantages": [1.0, 0.0, -1.0], "weights": [1.0, 1.0, 1.0]}
    good = Datum(
        np.array([1, 2, 3]), np.array([2, 3, 4]), {k: np.array(v, np.float32) for k, v in inputs.items()}
    )
    targets = changes.pop("targets", [2, 3, 4])
    merged: dict[str, Any] = {**inputs, **changes}
    second = Datum(
        np.array(tokens, dtype=np.int64),
        np.array(targets, dtype=np.int64),
        {k: np.array(v, np.float32) for k, v in merged.items() if v is not None},
    )
    return ForwardBackward("a", (good, second), loss, config or {})


CASES: list[tuple[ForwardBackward, str]] = [
    (item("reinforce"), r"unknown loss 'reinforce': use one of cross_entropy,.*gspo"),
    (replace(item(), datums=()), r"batch is empty"),
    (item(tokens=[]), r"datum 1: model_input must hold at least one token"),
    (item(tokens=[1, 2, 3, 4, 5]), r"datum 1: model_input has 5 tokens .* context is 4"),
    (item(tokens=[1, 2, 10]), r"datum 1: model_input holds the token id 10: .* 0 to 9"),
    (item(tokens=[1, -1, 2]), r"datum 1: model_input holds the token id -1"),
    (item(targets=[1, 2, 11]), r"datum 1: target_tokens holds the token id 11"),
    (item(targets=[1, 2]), r"datum 1: target_tokens has shape \[2\], and ppo needs \[3\]"),
    (item(targets=[[1], [2], [3]]), r"target_tokens has shape \[3, 1\], and ppo needs \[3\]"),
    (item("cross_entropy", targets=[[], [], []]), r"shape \[3, 0\].* needs \[3\] or \[3, K\]"),
    (item("cross_entropy", targets=[[1, 1]] * 3), r"weights has shape \[3\].* \[3, 2\]"),
    (item(logprobs=None), r"datum 1: ppo needs the input 'logprobs'"),
    (item(advantages=None), r"datum 1: ppo needs the input 'advantages'"),
    (item(advantages=[1.0]), r"datum 1: advantages has shape \[1\].*\[3\]"),
    (item(advantages=[1.0, NAN, 1.0]), r"datum 1: advantages is not finite at position \[1\]"),
    (item(logprobs=[1.0, 1.0, -INF]), r"datum 1: logprobs is not finite at position \[2\]"),
    (item("cross_entropy", weights=[INF, 1.0, 1.0]), r"datum 1: weights is not finite"),
    (item(clip_low_threshold=[2.0] * 3), r"datum 1: clip_low_threshold is over clip_high_threshold"),
    (item(config={"clip_low": 0.1}), r"unknown key 'clip_low': ppo takes clip_low_threshold"),
    (item("cross_entropy", {"beta": 0.1}), r"unknown key 'beta': cross_entropy takes none"),
    (item(config={"clip_low_threshold": "low"}), r"\['clip_low_threshold'\] is 'low'"),
    (item(config={"clip_high_threshold": NAN}), r"is nan: it must be a finite number"),
    (item(config={"clip_low_threshold": 1.5}), r"clip_low_threshold must not be over"),
    (item("dro", {"beta": -1.0}), r"\['beta'\] is -1.0"),
    (item("stable_reinforce", {"kl_coeff": -1.0}), r"\['kl_coeff'\] is -1.0"),
]


@pytest.mark.parametrize(("bad", "message"), CASES, ids=[message[:48] for _, message in CASES])
def test_a_bad_submission_is_refused(bad: ForwardBackward, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_item(bad, MODEL)


def test_missing_weights_are_ones() -> None:
    checked = check_item(item("cross_entropy", weights=None), MODEL)
    assert checked.datums[1].inputs["weights"].tolist() == [1.0, 1.0, 1.0]


def test_bounds_come_from_the_option_and_each_positions_own_override_it() -> None:
    checked = check_item(item("ppo", {"clip_high_threshold": 1.5}, clip_low_threshold=[0.1, 0.2, 0.3]), MODEL)
    first, second = (datum.inputs for datum in checked.datums)
    assert first["clip_low_threshold"].tolist() == pytest.approx([0.8] * 3)
    assert second["clip_low_threshold"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert second["clip_high_threshold"].tolist() == [1.5] * 3


def test_a_missing_sequence_mask_is_where_the_advantage_is_not_zero() -> None:
    checked = check_item(item("gspo"), MODEL)
    assert checked.datums[1].inputs["sequence_ratio_mask"].tolist() == [1.0, 0.0, 1.0]


def test_inputs_that_the_loss_does_not_read_are_ignored() -> None:
    checked = check_item(item("cross_entropy", mystery=[NAN] * 7), MODEL)
    assert set(checked.datums[1].inputs) == {"weights"}


@pytest.mark.parametrize(
    "bad",
    [
        AdamParams(learning_rate=-1.0),
        AdamParams(learning_rate=NAN),
        AdamParams(beta1=1.0),
        AdamParams(beta2=-0.1),
        AdamParams(eps=0.0),
        AdamParams(weight_decay=INF),
        AdamParams(grad_clip_norm=-1.0),
    ],
)
def test_bad_adam_parameters_are_refused(bad: AdamParams) -> None:
    with pytest.raises(InvalidInput, match="must be"):
        check_adam(bad)


@pytest.mark.parametrize(
    "bad",
    [
        LoraSpec(-1),
        LoraSpec(8, alpha=0.0),
        LoraSpec(8, train_attn=False, train_mlp=False, train_unembed=False),
    ],
)
def test_an_adapter_shape_that_trains_nothing_is_refused(bad: LoraSpec) -> None:
    with pytest.raises(InvalidInput):
        check_lora(bad)
