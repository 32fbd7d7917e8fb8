"""Images among the tokens of Qwen2.5-VL, on a small random model, against Hugging Face's own forward and autograd."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.model import load_base_model
from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, Image, LoraSpec

from .conftest import MakeDatum
from .test_families import LENGTHS, SIZES, SPECS, Reference, assert_equals, make_batch, run
from .test_families import make_trainer as make_text_trainer

IMAGE_TOKEN = 60
TEXT: dict[str, Any] = {
    **SIZES,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "out_hidden_size": 64,
}
SHAPES = {"wide": (60, 90), "high": (120, 60)}
TOKENS = {"wide": 6, "high": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its image processor, as they are published."""
    path = tmp_path_factory.mktemp("vl")
    config = Qwen2_5_VLConfig(
        text_config=TEXT,
        vision_config=TOWER,
        image_token_id=IMAGE_TOKEN,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(path)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16).save_pretrained(path)
    return path


@pytest.fixture
def trainer(folder: Path) -> LoraTrainer:
    trainer = LoraTrainer(load_base_model("test/vl", str(folder), "cpu", "float32"))
    for number, (name, spec) in enumerate(SPECS.items()):
        trainer.create_adapter(name, spec)
        trainer.adapter(name).weights.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return trainer


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def picture(kind: str, start: int, seed: int = 0, tokens: int | None = None) -> Image:
    noise = np.random.default_rng(seed).integers(0, 255, (*SHAPES[kind], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, format="png")
    return Image(start, TOKENS[kind] if tokens is None else tokens, file.getvalue(), "png")


def shown(datum: Datum, *images: Image) -> Datum:
    """Text never holds the placeholder, which Hugging Face takes for an image."""
    tokens = np.where(datum.tokens == IMAGE_TOKEN, 1, datum.tokens)
    for image in images:
        tokens[image.start : image.start + image.tokens] = 0
    return replace(datum, tokens=tokens, images=images)


def batch(make_datum: MakeDatum) -> list[ForwardBackward]:
    """Two images in a datum, one at its very start, others without, of three adapters."""
    images = {
        ("a", 30): (picture("wide", 3), picture("high", 15, 1)),
        ("b", 17): (picture("high", 0, 2),),
        ("c", 12): (picture("wide", 6, 3),),
    }
    return [
        replace(
            item,
            datums=tuple(
                shown(datum, *images.get((item.adapter_id, len(datum.tokens)), ())) for datum in item.datums
            ),
        )
        for item in make_batch(make_datum)
    ]


def seen_by_hugging_face(folder: Path, datum: Datum) -> dict[str, Tensor]:
    tokens = torch.from_numpy(datum.tokens)[None].clone()
    kinds = torch.zeros_like(tokens)
    for image in datum.images:
        tokens[0, image.start : image.start + image.tokens] = IMAGE_TOKEN
        kinds[0, image.start : image.start + image.tokens] = 1
    if not datum.images:
        return {"input_ids": tokens}
    files = [PIL.Image.open(io.BytesIO(image.data)).convert("RGB") for image in datum.images]
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=files, return_tensors="pt")
    return {"input_ids": tokens, "mm_token_type_ids": kinds, **seen}


def test_logprobs_and_gradients_of_a_mixed_batch_with_images_equal_autograd(
    folder: Path, trainer: LoraTrainer, model: Any, make_datum: MakeDatum
) -> None:
    class Shown(Reference):
        def inputs(self, datum: Datum) -> dict[str, Tensor]:
            return seen_by_hugging_face(folder, datum)

    items = batch(make_datum)
    assert sum(len(datum.images) for item in items for datum in item.datums) == 5
    for item, result in zip(items, run(trainer, items), strict=True):
        reference = Shown(model, trainer, item.adapter_id)
        assert_equals(reference, trainer, item, result)


def test_after_a_step_the_export_gives_our_logprobs_in_peft(
    folder: Path, trainer: LoraTrainer, model: Any, make_datum: MakeDatum, tmp_path: Path
) -> None:
    items = batch(make_datum)
    run(trainer, items)
    trainer.optim_step("a", AdamParams(1e-2))
    (result, *_) = run(trainer, [replace(item, forward_only=True) for item in items])
    trainer.export_adapter("a", tmp_path)
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path))
    datum = items[0].datums[LENGTHS["a"].index(30)]
    logits = peft(**seen_by_hugging_face(folder, datum), use_cache=False).logits[0]
    wanted = logits.log_softmax(-1).gather(1, torch.from_numpy(datum.targets)[:, None])[:, 0]
    np.testing.assert_allclose(result.logprobs[LENGTHS["a"].index(30)], wanted.detach(), atol=1e-4)


def test_another_picture_changes_what_follows_it_and_nothing_before(
    trainer: LoraTrainer, make_datum: MakeDatum
) -> None:
    datum = make_datum(0, 30)
    one, other = (shown(datum, picture("wide", 10, seed)) for seed in (1, 2))
    results = run(
        trainer, [ForwardBackward("a", (each,), "cross_entropy", forward_only=True) for each in (one, other)]
    )
    difference = np.abs(results[0].logprobs[0] - results[1].logprobs[0])
    assert difference[:10].max() < 1e-5
    assert difference[15:].max() > 1e-3


@pytest.mark.parametrize(
    ("image", "wrong"),
    [
        (picture("wide", 0, tokens=5), "takes 6 tokens and expected_tokens is 5: set it to 6"),
        (Image(0, 6, b"\x89PNG nonsense", "png"), "not a readable png file"),
        (replace(picture("wide", 0), format="jpeg"), "not a readable jpeg file"),
    ],
)
def test_an_image_that_is_not_as_said_fails_its_submission_alone(
    image: Image, wrong: str, trainer: LoraTrainer, make_datum: MakeDatum
) -> None:
    good = ForwardBackward("b", (make_datum(1, 9),), "cross_entropy")
    bad = ForwardBackward("a", (shown(make_datum(0, 30), image),), "cross_entropy")
    error, result = trainer.forward_backward([bad, good])
    assert isinstance(error, InvalidInput)
    assert wrong in str(error)
    assert not isinstance(result, Exception)


def test_a_text_model_refuses_images_by_name_before_all_else(make_datum: MakeDatum) -> None:
    datum = replace(shown(make_datum(0, 30), picture("wide", 0)), targets=np.zeros(3, np.int64))
    item = ForwardBackward("a", (datum,), "cross_entropy")
    (error,) = make_text_trainer("qwen3").forward_backward([item])
    assert isinstance(error, InvalidInput)
    assert "kind image is not supported by this model" in str(error)


def test_a_vision_language_model_trains_adapters_only(trainer: LoraTrainer) -> None:
    with pytest.raises(InvalidInput, match="adapters only"):
        trainer.create_adapter("full", LoraSpec(0))
