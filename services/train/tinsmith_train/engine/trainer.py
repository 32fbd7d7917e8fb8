"""The engine: one frozen base model, many adapters, and the operations of the training API on them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinsmith_common.errors import EngineFailure, InvalidInput, NotFound, TinsmithError
from tinsmith_train.engine import checkpoint, peft_export
from tinsmith_train.engine.adapters import Adapter
from tinsmith_train.engine.decoder import Owner, spans_of
from tinsmith_train.engine.logprobs import LogitMemory, target_logprobs
from tinsmith_train.engine.losses import Measured, Positions, steady_sum
from tinsmith_train.engine.model import BaseModel
from tinsmith_train.engine.packing import AdapterSpan, ItemPart, MicroBatch, Pieces, pack
from tinsmith_train.engine.types import (
    AdamParams,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
    TrainerLimits,
)
from tinsmith_train.engine.validation import CheckedItem, check_adam, check_item, check_lora

MIB = 2**20
WIDTH_STEP = 16
"""Of layers; at others, such as 67 or 72, three threads and more shared a matmul so that it showed in the last bits."""


class _BadItem(Exception):
    """One submission cannot run, which shows only when it does: its loss is refused or not finite."""

    def __init__(self, item: int, error: TinsmithError) -> None:
        super().__init__(item)
        self.item = item
        self.error = error


class LoraTrainer:
    """Not thread-safe: one call at a time."""

    def __init__(self, base: BaseModel, limits: TrainerLimits | None = None) -> None:
        self._base = base
        self._limits = limits or TrainerLimits()
        # Elsewhere the rows are as full as can be, and who shares them moves the last bits.
        self._pieces = Pieces(self._limits.tokens_per_piece) if base.device.type == "cpu" else None
        self._adapters: dict[str, Adapter] = {}

    @property
    def info(self) -> ModelInfo:
        """Facts of the base model."""
        return self._base.info

    @property
    def steady_threads(self) -> bool:
        """Whether results do not depend on the number of CPU threads: all widths come in steps."""
        widths = (
            width for target in self._base.targets for width in (target.in_features, target.out_features)
        )
        return all(width % WIDTH_STEP == 0 for width in widths)

    def create_adapter(self, adapter_id: str, spec: LoraSpec) -> None:
        """Give `adapter_id` fresh weights and an empty optimizer, replacing what it had."""
        check_lora(spec)
        self._adapters[adapter_id] = Adapter(spec, self._base.targets, self._base.device)

    def delete_adapter(self, adapter_id: str) -> None:
        """Free the adapter's memory. Unknown ids are ignored."""
        self._adapters.pop(adapter_id, None)

    def forward_backward(
        self, batch: Sequence[ForwardBackward]
    ) -> list[ForwardBackwardResult | TinsmithError]:
        """Run all submissions, packed together; gradients add to each adapter's accumulator.

        One answer per submission, in order. A bad one gets its error and leaves all gradients as if it had not
        been sent. When the run itself fails, `EngineFailure` is raised and no gradient has changed.
        """
        answers: dict[int, ForwardBackwardResult | TinsmithError] = {}
        items: dict[int, CheckedItem] = {}
        for number, item in enumerate(batch):
            try:
                self.adapter(item.adapter_id)
                items[number] = check_item(item, self._base.info)
            except TinsmithError as error:
                answers[number] = error
        while items:
            try:
                answers.update(self._run_all(items))
                break
            except _BadItem as bad:
                del items[bad.item]
                answers[bad.item] = bad.error
        return [answers[number] for number in range(len(batch))]

    def optim_step(self, adapter_id: str, params: AdamParams) -> dict[str, float]:
        """One AdamW step with the accumulated gradient (zero if none), which is cleared. Returns metrics."""
        check_adam(params)
        return self.adapter(adapter_id).optim_step(params)

    def save_state(self, adapter_id: str, directory: Path) -> None:
        """Write all that training needs to go on into an existing empty directory."""
        checkpoint.save_state(self.adapter(adapter_id), self._base.name, directory)

    def load_state(self, adapter_id: str, directory: Path, *, with_optimizer: bool) -> LoraSpec:
        """Replace (or create) the adapter by what `save_state` wrote; without its optimizer if so asked.

        Raises `InvalidInput` when the folder does not fit this base model.
        """
        adapter = checkpoint.load_state(
            directory, self._base.targets, self._base.device, with_optimizer=with_optimizer
        )
        self._adapters[adapter_id] = adapter
        return adapter.spec

    def export_adapter(self, adapter_id: str, directory: Path) -> None:
        """Write the weights as a PEFT folder into an existing empty directory."""
        peft_export.write_peft_folder(self.adapter(adapter_id), self._base.name, directory)

    def adapter(self, adapter_id: str) -> Adapter:
        """The live adapter. Raises `NotFound`."""
        adapter = self._adapters.get(adapter_id)
        if adapter is None:
            raise NotFound(f"no adapter '{adapter_id}' here: create the model or load it from a checkpoint")
        return adapter

    def _run_all(self, items: Mapping[int, CheckedItem]) -> dict[int, ForwardBackwardResult]:
        """All micro-batches, or none: gradients are put back when any fails."""
        training = {item.adapter_id for item in items.values() if not item.forward_only}
        adapters = [self._adapters[adapter_id] for adapter_id in training]
        before = [adapter.grad.clone() if adapter.has_grad else None for adapter in adapters]
        collector = _Collector(items)
        try:
            for row in pack(items, self._row_tokens(), self._pieces):
                self._run_row(row, items, collector)
        except Exception as error:
            for adapter, grad in zip(adapters, before, strict=True):
                adapter.grad.zero_() if grad is None else adapter.grad.copy_(grad)
            if isinstance(error, _BadItem):
                raise
            raise EngineFailure(_describe_failure(error)) from error
        for adapter in adapters:
            adapter.has_grad = True
        return collector.results()

    def _run_row(self, row: MicroBatch, items: Mapping[int, CheckedItem], collector: "_Collector") -> None:
        """Forward, losses, and backward unless the row only looks."""
        with torch.set_grad_enabled(not row.forward_only):
            logprobs = self._logprobs(row)
            leaf = logprobs.detach().requires_grad_()
            losses = self._losses(row, items, leaf)
            if not row.forward_only:
                torch.autograd.backward([measured.loss for measured in losses])
            collector.add(row, leaf, losses)
            if not row.forward_only:
                logprobs.backward(leaf.grad)

    def _logprobs(self, row: MicroBatch) -> Tensor:
        """fp32 `[M]`."""
        device = self._base.device
        tokens, positions, target_rows, targets = (
            torch.from_numpy(array).to(device)
            for array in (row.tokens, row.positions, row.target_rows, row.targets)
        )
        owners = [Owner(span.start, span.stop, self._adapters[span.adapter_id]) for span in row.spans]
        hidden = self._base.decoder.hidden(tokens, positions, row.lengths, owners)
        pieces: list[Tensor] = []
        for start, stop, first, last, single in self._heads(row.spans):
            here = [
                replace(o, start=o.start - start, stop=o.stop - start)
                for o in owners
                if start <= o.start < stop
            ]
            pieces.append(
                target_logprobs(
                    hidden[start:stop],
                    self._base.head,
                    spans_of(self._base.head_path, here),
                    target_rows[first:last] - start,
                    targets[first:last],
                    self._memory(),
                    single=single,
                )
            )
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _heads(self, spans: Sequence[AdapterSpan]) -> list[tuple[int, int, int, int, bool]]:
        """Runs of spans, as (start, stop, first, last, single), whose logprobs are computed together.

        On a CPU those in the same way, or else a span's rounding depended on its neighbours.
        """
        path = self._base.head_path

        def way(span: AdapterSpan) -> tuple[bool, bool] | None:
            trained = path in self._adapters[span.adapter_id].pairs
            return None if self._pieces is None else (span.single, trained)

        runs = [list(run) for _, run in groupby(spans, key=way)]
        return [
            (run[0].start, run[-1].stop, run[0].first, run[-1].last, all(span.single for span in run))
            for run in runs
        ]

    def _row_tokens(self) -> int:
        """Few long rows keep a GPU busy: each costs the host some thousand launches."""
        per_token = self._base.decoder.bytes_per_token
        if self._limits.tokens_per_pass is not None:
            return self._limits.tokens_per_pass
        fit = 0 if per_token is None else 32 * 2**30 // per_token // 1024 * 1024
        return min(max(fit, 8192), 32768)

    def _memory(self) -> LogitMemory:
        limits = self._limits
        chunk_mib = limits.logits_chunk_mib or (2048 if self._base.device.type == "cuda" else 64)
        return LogitMemory(chunk_mib * MIB, limits.logits_keep_mib * MIB)

    def _losses(self, row: MicroBatch, items: Mapping[int, CheckedItem], logprobs: Tensor) -> list[Measured]:
        """One scalar for each part of the row, with its metrics."""
        losses: list[Measured] = []
        for part in row.parts:
            item = items[part.item]
            positions = Positions(
                logprobs=logprobs[part.start : part.stop],
                inputs={name: torch.from_numpy(x).to(logprobs.device) for name, x in part.inputs.items()},
                datum_ids=torch.from_numpy(part.datum_ids).to(logprobs.device),
                num_datums=part.last - part.first,
                config=item.config,
                first=part.first,
            )
            try:
                loss = item.loss.function(positions)
            except TinsmithError as error:
                raise _BadItem(part.item, error) from error
            losses.append(
                loss if isinstance(loss, Measured) else Measured(steady_sum(loss), {}, loss.detach())
            )
        return losses


class _Collector:
    """Puts the rows' outputs back into the shape of the submissions."""

    def __init__(self, items: Mapping[int, CheckedItem]) -> None:
        self._items = items
        self._logprobs: dict[int, list[NDArray[np.float32]]] = {number: [] for number in items}
        self._terms: dict[int, list[NDArray[np.float32]]] = {number: [] for number in items}
        self._losses: dict[int, float] = dict.fromkeys(items, 0.0)
        self._metrics: dict[int, dict[str, float]] = {number: {} for number in items}

    def add(self, row: MicroBatch, leaf: Tensor, losses: Sequence[Measured]) -> None:
        """Take a row's logprobs (`leaf`, with its gradient) and losses. Raises `_BadItem`."""
        values = leaf.detach().cpu().numpy()
        sums = torch.stack([measured.loss for measured in losses]).tolist()
        finite = np.isfinite(values if leaf.grad is None else values * 0 + leaf.grad.cpu().numpy())
        for part, loss, measured in zip(row.parts, sums, losses, strict=True):
            if not (np.isfinite(loss) and finite[part.start : part.stop].all()):
                raise _BadItem(part.item, _not_finite())
            self._losses[part.item] += loss
            sums_of_item = self._metrics[part.item]
            for name, value in measured.metrics.items():
                sums_of_item[name] = sums_of_item.get(name, 0.0) + value
            self._logprobs[part.item] += self._by_datum(part, values[part.start : part.stop])
            if self._items[part.item].elementwise and measured.terms is not None:
                self._terms[part.item] += self._by_datum(part, measured.terms.cpu().numpy())

    def _by_datum(self, part: ItemPart, values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """A part's values, each datum's in the shape of its targets."""
        shapes = [datum.targets.shape for datum in self._items[part.item].datums[part.first : part.last]]
        edges = np.cumsum([int(np.prod(shape)) for shape in shapes])
        return [
            piece.reshape(shape) for piece, shape in zip(np.split(values, edges[:-1]), shapes, strict=True)
        ]

    def results(self) -> dict[int, ForwardBackwardResult]:
        """Answers by submission number."""
        return {
            number: ForwardBackwardResult(
                logprobs=tuple(self._logprobs[number]),
                elementwise_loss=tuple(self._terms[number]),
                metrics={
                    "loss:sum": self._losses[number],
                    "num_datums:sum": float(len(item.datums)),
                    "num_tokens:sum": float(sum(len(datum.tokens) for datum in item.datums)),
                    **item.loss.notices,
                    **_reduced(self._metrics[number], len(item.datums)),
                },
            )
            for number, item in self._items.items()
        }


def _reduced(sums: Mapping[str, float], datums: int) -> dict[str, float]:
    return {name: value / datums if name.endswith(":mean") else value for name, value in sums.items()}


def _not_finite() -> InvalidInput:
    return InvalidInput(
        "the loss or its gradient is not finite: lower the learning rate, or check that logprobs, advantages and "
        "weights are of a sensible size"
    )


def _describe_failure(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of memory in forward_backward: send shorter sequences, or lower the server's tokens per pass"
        )
    reason = str(error).strip().splitlines()
    return f"forward_backward failed in the engine ({type(error).__name__}: {reason[0] if reason else 'no detail'})"
