"""Forward, gradients and steps against Hugging Face + `peft` + `torch.optim.AdamW` on the same weights.

All in fp32; the bound of 1e-5 is on values of order 1 that are sums of some hundred products.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from tinsmith_train.engine.trainer import LoraTrainer
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, ForwardBackwardResult, LoraSpec

from .conftest import MakeDatum, MakeModel, MakeTrainer

SPECS = {
    "all": LoraSpec(4),
    "attention": LoraSpec(8, train_mlp=False, train_unembed=False),
    "mlp": LoraSpec(2, train_attn=False, train_unembed=False),
    "head": LoraSpec(4, train_attn=False, train_mlp=False),
}
LENGTHS = (9, 4, 4, 1, 30)


def run(
    trainer: LoraTrainer, datums: tuple[Datum, ...], loss: str = "cross_entropy"
) -> ForwardBackwardResult:
    (result,) = trainer.forward_backward([ForwardBackward("a", datums, loss)])
    assert isinstance(result, ForwardBackwardResult), result
    return result


def peft_model(trainer: LoraTrainer, base: Any, folder: Path) -> Any:
    trainer.export_adapter("a", folder)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True)


def peft_logprobs(model: Any, datum: Datum) -> Tensor:
    """Unpadded, one sequence at a time, through the whole Hugging Face forward."""
    logits = model(input_ids=torch.from_numpy(datum.tokens)[None], use_cache=False).logits[0]
    targets = torch.from_numpy(datum.targets)
    wide = targets[:, None] if targets.ndim == 1 else targets
    return F.log_softmax(logits, dim=-1).gather(1, wide).view(targets.shape)


def peft_loss(model: Any, datums: tuple[Datum, ...]) -> Tensor:
    terms = [peft_logprobs(model, d) * torch.from_numpy(d.inputs["weights"]) for d in datums]
    return -torch.cat([term.flatten() for term in terms]).sum()


def peft_tensors(model: Any) -> dict[str, Tensor]:
    """Trainable parameters by our path and side."""
    named: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path, side = name.removeprefix("base_model.model.").split(".lora_")
            named[f"{path}.{side[0]}"] = parameter
    return named


def our_tensors(trainer: LoraTrainer) -> dict[str, Tensor]:
    pairs = trainer.adapter("a").pairs.items()
    return {f"{path}.{side}": t for path, pair in pairs for side, t in (("A", pair.a), ("B", pair.b))}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("name", SPECS)
def test_logprobs_loss_and_gradients_equal_peft(
    name: str,
    tied: bool,
    make_model: MakeModel,
    make_trainer: MakeTrainer,
    make_datum: MakeDatum,
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tied, a=SPECS[name])
    datums = (*(make_datum(n, n) for n in LENGTHS), make_datum(50, 6, k=3))
    model = peft_model(trainer, make_model(tied), tmp_path)
    loss = peft_loss(model, datums)
    loss.backward()

    result = run(trainer, datums)

    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    for datum, logprobs in zip(datums, result.logprobs, strict=True):
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(logprobs, peft_logprobs(model, datum).detach(), atol=1e-5)
    reference = peft_tensors(model)
    assert our_tensors(trainer).keys() == reference.keys()
    for key, tensor in our_tensors(trainer).items():
        torch.testing.assert_close(tensor.grad, reference[key].grad, rtol=1e-5, atol=1e-5)


def test_steps_with_changing_parameters_equal_torch_adamw(
    make_model: MakeModel, make_trainer: MakeTrainer, make_datum: MakeDatum, tmp_path: Path
) -> None:
    trainer = make_trainer(a=LoraSpec(4))
    model = peft_model(trainer, make_model(), tmp_path)
    parameters = list(peft_tensors(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1.0)
    steps = (
        AdamParams(1e-3, eps=1e-8),
        AdamParams(5e-3, eps=1e-8, weight_decay=0.1),
        AdamParams(2e-3, eps=1e-8, grad_clip_norm=1.0),
        AdamParams(1e-3, beta1=0.8, beta2=0.99, eps=1e-8),
    )
    for number, params in enumerate(steps):
        datums = (make_datum(number, 12), make_datum(100 + number, 7))
        optimizer.zero_grad()
        peft_loss(model, datums).backward()
        torch.nn.utils.clip_grad_norm_(parameters, params.grad_clip_norm or 1e30)
        optimizer.param_groups[0].update(
            lr=params.learning_rate,
            betas=(params.beta1, params.beta2),
            eps=params.eps,
            weight_decay=params.weight_decay,
        )
        optimizer.step()
        run(trainer, datums)
        trainer.optim_step("a", params)

    reference = peft_tensors(model)
    for key, tensor in our_tensors(trainer).items():
        torch.testing.assert_close(tensor.detach(), reference[key].detach(), rtol=1e-5, atol=1e-5)


def test_an_export_after_training_loads_in_peft_and_gives_our_logprobs(
    make_model: MakeModel, make_trainer: MakeTrainer, make_datum: MakeDatum, tmp_path: Path
) -> None:
    trainer = make_trainer(a=LoraSpec(4))
    datum = make_datum(0, 20)
    run(trainer, (datum,))
    trainer.optim_step("a", AdamParams(1e-2))
    model = peft_model(trainer, make_model(), tmp_path)
    expected: NDArray[np.float32] = peft_logprobs(model, datum).detach().numpy()
    np.testing.assert_allclose(run(trainer, (datum,)).logprobs[0], expected, atol=1e-5)
    with model.disable_adapter():
        assert np.abs(peft_logprobs(model, datum).detach().numpy() - expected).max() > 1e-2


def test_a_fresh_adapter_leaves_the_base_model_as_it_is(
    make_model: MakeModel, make_trainer: MakeTrainer, make_datum: MakeDatum
) -> None:
    trainer = make_trainer()
    trainer.create_adapter("a", LoraSpec(4, seed=1))
    datum = make_datum(0, 20)
    expected = peft_logprobs(make_model(), datum).detach()
    np.testing.assert_allclose(run(trainer, (datum,)).logprobs[0], expected, atol=1e-5)
