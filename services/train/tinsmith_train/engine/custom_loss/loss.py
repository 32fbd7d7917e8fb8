"""An uploaded graph as an entry of the loss registry."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.custom_loss.execution import MAX_ELEMENTS, GraphRunner
from tinsmith_train.engine.custom_loss.graph import LossGraph, LossInput
from tinsmith_train.engine.losses import Loss, Measured, Positions, steady_sum
from tinsmith_train.engine.types import Datum

InputArray = NDArray[np.float32] | NDArray[np.int64]


@dataclass(frozen=True)
class _DatumInputs:
    shape: tuple[int, ...]
    arrays: tuple[InputArray, ...]


def custom_loss(graph: LossGraph, datums: Sequence[Datum]) -> Loss:
    """The loss of one submission: the graph's, once per datum, summed. Raises `InvalidInput` on bad inputs."""
    checked = [_check_inputs(f"datum {index}", graph, datum) for index, datum in enumerate(datums)]
    return Loss(_CustomLoss(graph, checked), soft_targets=True)


class _CustomLoss:
    """Runs on the CPU: there an index out of range is an error, on a GPU the end of the process."""

    def __init__(self, graph: LossGraph, datums: Sequence[_DatumInputs]) -> None:
        self._graph = graph
        self._datums = datums
        self._run = GraphRunner(graph)

    def __call__(self, p: Positions) -> Measured:
        """The loss's value and gradient with respect to the logprobs, and its metrics."""
        total = torch.zeros((), dtype=torch.float64)
        sums = torch.zeros(len(self._graph.metrics), dtype=torch.float64)
        logprobs = p.logprobs.detach().cpu()
        gradients: list[Tensor] = []
        start = 0
        for datum in self._datums[p.first : p.first + p.num_datums]:
            stop = start + int(np.prod(datum.shape))
            loss, metrics, gradient = self._run_datum(logprobs[start:stop].reshape(datum.shape), datum)
            total += loss.detach()
            if metrics:
                sums += torch.stack(metrics)
            gradients.append(gradient.reshape(-1))
            start = stop
        # The value of the loss, and the gradient that was just found: each datum's graph is gone by now.
        gradient = torch.cat(gradients).to(p.logprobs.device)
        tangent = steady_sum((p.logprobs - p.logprobs.detach()) * gradient)
        keys = [key for key, _ in self._graph.metrics]
        return Measured(total.to(tangent) + tangent, dict(zip(keys, sums.tolist(), strict=True)))

    def _run_datum(self, logprobs: Tensor, datum: _DatumInputs) -> tuple[Tensor, list[Tensor], Tensor]:
        leaf = logprobs.clone().requires_grad_(torch.is_grad_enabled())
        loss, metrics = self._run([leaf, *(torch.tensor(array) for array in datum.arrays)])
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        return loss, metrics, torch.zeros_like(leaf) if gradient is None else gradient


def _check_inputs(where: str, graph: LossGraph, datum: Datum) -> _DatumInputs:
    _check_rank(f"{where}: target_tokens", graph.inputs[0], datum.targets)
    arrays: list[InputArray] = []
    for wanted in graph.inputs[1:]:
        array = datum.targets if wanted.name == "target_tokens" else datum.inputs.get(wanted.name)
        if array is None:
            raise InvalidInput(f"{where}: the custom loss needs the input '{wanted.name}' in loss_fn_inputs")
        _check_rank(f"{where}: {wanted.name}", wanted, array)
        arrays.append(array)
    return _DatumInputs(datum.targets.shape, tuple(arrays))


def _check_rank(where: str, wanted: LossInput, array: InputArray) -> None:
    if array.ndim != wanted.rank:
        raise InvalidInput(
            f"{where} has rank {array.ndim}, and the custom loss declared {wanted.name} with rank {wanted.rank}"
        )
    if array.size > MAX_ELEMENTS:
        raise InvalidInput(f"{where} has {array.size} elements: a custom loss takes at most {MAX_ELEMENTS}")
