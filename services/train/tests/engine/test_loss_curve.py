"""Fifty steps of the engine against `peft` and `torch.optim.AdamW`, step by step."""

from pathlib import Path

import numpy as np
import torch

from tinsmith_train.engine.types import AdamParams, ForwardBackward, ForwardBackwardResult, LoraSpec

from .conftest import MakeDatum, MakeModel, MakeTrainer
from .test_against_peft import peft_loss, peft_model, peft_tensors

STEPS = 50
TOLERANCE = 1e-4
"""Relative, on the loss of each step.

Rounding of 1e-7 grows with the steps, as each starts from the last one's weights; 1.1e-7 was measured.
"""


def test_fifty_steps_have_the_loss_curve_of_peft_and_adamw(
    make_model: MakeModel, make_trainer: MakeTrainer, make_datum: MakeDatum, tmp_path: Path
) -> None:
    """With warm-up and decay, two accumulated passes a step, weight decay, and clipping in every other step."""
    trainer = make_trainer(a=LoraSpec(4))
    model = peft_model(trainer, make_model(), tmp_path)
    parameters = list(peft_tensors(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    passes = [tuple(make_datum(10 * p + i, n) for i, n in enumerate((12, 7, 20))) for p in range(2)]
    for datum in (d for one in passes for d in one):
        datum.inputs["weights"][:] = 1.0
    ours: list[float] = []
    theirs: list[float] = []
    for step in range(STEPS):
        rate = 3e-3 * min(1.0, (step + 1) / 10) * (1 - step / STEPS)
        adam = AdamParams(rate, eps=1e-8, weight_decay=0.05, grad_clip_norm=1.0 if step % 2 else 0.0)
        answers = [
            trainer.forward_backward([ForwardBackward("a", one, "cross_entropy")])[0] for one in passes
        ]
        ours.append(sum(a.metrics["loss:sum"] for a in answers if isinstance(a, ForwardBackwardResult)))
        trainer.optim_step("a", adam)

        losses = [peft_loss(model, one) for one in passes]
        for loss in losses:
            loss.backward()
        theirs.append(sum(loss.item() for loss in losses))
        if adam.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, adam.grad_clip_norm)
        optimizer.param_groups[0].update(lr=rate, weight_decay=adam.weight_decay)
        optimizer.step()
        optimizer.zero_grad()
    apart = np.abs(np.array(ours) - np.array(theirs)) / np.abs(np.array(theirs))
    print(f"{STEPS} steps, loss {ours[0]:.1f} -> {ours[-1]:.1f}: at most {apart.max():.1e} from peft + AdamW")
    assert ours[-1] < 0.5 * ours[0], "nothing was learnt, so the curves would agree anyhow"
    assert apart.max() <= TOLERANCE
