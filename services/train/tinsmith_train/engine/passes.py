"""Passes under way: what a forward_backward has given so far, and how to take it back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinsmith_common.errors import InvalidInput, TinsmithError
from tinsmith_train.engine.adapters import Adapter
from tinsmith_train.engine.losses import Measured
from tinsmith_train.engine.packing import ItemPart, MicroBatch
from tinsmith_train.engine.transfer import Download
from tinsmith_train.engine.types import ForwardBackwardResult
from tinsmith_train.engine.validation import CheckedItem


class BadItem(Exception):
    """One submission cannot run, which shows only when it does: its loss is refused or not finite."""

    def __init__(self, item: int, error: TinsmithError) -> None:
        super().__init__(item)
        self.item = item
        self.error = error


@dataclass(frozen=True)
class Snapshot:
    """An adapter's accumulated gradient at some time. `grad` is None where there was none."""

    adapter: Adapter
    grad: Tensor | None

    @classmethod
    def of(cls, adapter: Adapter) -> "Snapshot":
        """The gradient as it is now."""
        return cls(adapter, adapter.grad.clone() if adapter.has_grad else None)

    def restore(self) -> None:
        """Put it back."""
        if self.grad is None:
            self.adapter.clear_grad()
        else:
            self.adapter.grad.copy_(self.grad)
            self.adapter.has_grad = True


@dataclass
class Outputs:
    """What some datums of a submission gave, in their order."""

    logprobs: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    terms: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict[str, float])

    def extend(self, more: "Outputs") -> None:
        """Add what the next datums gave."""
        self.logprobs += more.logprobs
        self.terms += more.terms
        self.loss += more.loss
        add_metrics(self.metrics, more.metrics)


@dataclass
class RunningPass:
    """A submission of which datums `[0, done)` have run.

    before: the adapter's gradient when it began, or None for a pass that adds to none or runs in one go.
    """

    item: CheckedItem
    before: Snapshot | None
    done: int = 0
    outputs: Outputs = field(default_factory=Outputs)

    def result(self) -> ForwardBackwardResult:
        """The answer, once all has run."""
        datums = self.item.datums
        return ForwardBackwardResult(
            logprobs=tuple(self.outputs.logprobs),
            elementwise_loss=tuple(self.outputs.terms),
            metrics={
                "loss:sum": self.outputs.loss,
                "num_datums:sum": float(len(datums)),
                "num_tokens:sum": float(sum(len(datum.tokens) for datum in datums)),
                **self.item.loss.notices,
                **_reduced(self.outputs.metrics, len(datums)),
            },
        )


@dataclass(frozen=True)
class _RowOutput:
    """What a row sends back: logprobs `[M]` and their gradient, the parts' summed losses, and their terms."""

    row: MicroBatch
    logprobs: Download
    grad: Download | None
    sums: Download
    terms: tuple[Download | None, ...]
    metrics: tuple[Mapping[str, float], ...]


class Collector:
    """Puts the rows' outputs back into the shape of the submissions."""

    def __init__(self, items: Mapping[int, CheckedItem]) -> None:
        self._items = items
        self._rows: list[_RowOutput] = []

    def add(self, row: MicroBatch, leaf: Tensor, losses: Sequence[Measured]) -> None:
        """Take a row's logprobs (`leaf`, with its gradient if there is one) and losses, as they will be."""
        terms = [
            Download(measured.terms)
            if self._items[part.item].elementwise and measured.terms is not None
            else None
            for part, measured in zip(row.parts, losses, strict=True)
        ]
        self._rows.append(
            _RowOutput(
                row,
                Download(leaf),
                None if leaf.grad is None else Download(leaf.grad),
                Download(torch.stack([measured.loss.detach() for measured in losses])),
                tuple(terms),
                tuple(measured.metrics for measured in losses),
            )
        )

    def outputs(self) -> dict[int, Outputs]:
        """By submission number, once the device has made them. Raises `BadItem`."""
        gathered = {number: Outputs() for number in self._items}
        for row in self._rows:
            self._sort(row, gathered)
        return gathered

    def _sort(self, output: _RowOutput, gathered: Mapping[int, Outputs]) -> None:
        """Give each submission its share of a row."""
        values, sums = output.logprobs.numpy(), output.sums.numpy()
        finite = np.isfinite(values if output.grad is None else values * 0 + output.grad.numpy())
        for place, part in enumerate(output.row.parts):
            if not (np.isfinite(sums[place]) and finite[part.start : part.stop].all()):
                raise BadItem(part.item, _not_finite())
            mine, terms = gathered[part.item], output.terms[place]
            mine.loss += float(sums[place])
            add_metrics(mine.metrics, output.metrics[place])
            mine.logprobs += self._by_datum(part, values[part.start : part.stop])
            if terms is not None:
                mine.terms += self._by_datum(part, terms.numpy())

    def _by_datum(self, part: ItemPart, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """A part's values, each datum's in the shape of its targets."""
        shapes = [datum.targets.shape for datum in self._items[part.item].datums[part.first : part.last]]
        edges = np.cumsum([int(np.prod(shape)) for shape in shapes])
        return [
            piece.reshape(shape) for piece, shape in zip(np.split(values, edges[:-1]), shapes, strict=True)
        ]


def add_metrics(sums: dict[str, float], more: Mapping[str, float]) -> None:
    """Add metrics, which are sums over datums, name by name."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def _reduced(sums: Mapping[str, float], datums: int) -> dict[str, float]:
    return {name: value / datums if name.endswith(":mean") else value for name, value in sums.items()}


def _not_finite() -> InvalidInput:
    return InvalidInput(
        "the loss or its gradient is not finite: lower the learning rate, or check that logprobs, advantages and "
        "weights are of a sensible size"
    )
