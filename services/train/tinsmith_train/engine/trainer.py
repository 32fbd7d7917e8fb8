"""The engine: one frozen base model, many adapters, and the operations of the training API on them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from tinsmith_common.errors import EngineFailure, InvalidInput, NotFound, TinsmithError
from tinsmith_train.engine import checkpoint, peft_export
from tinsmith_train.engine.adapters import Adapter
from tinsmith_train.engine.decoder import Owner, spans_of
from tinsmith_train.engine.logprobs import LogitMemory, target_logprobs
from tinsmith_train.engine.losses import Measured, Positions, steady_sum
from tinsmith_train.engine.model import BaseModel
from tinsmith_train.engine.packing import AdapterSpan, MicroBatch, Pieces, pack
from tinsmith_train.engine.passes import BadItem, Collector, Outputs, RunningPass, Snapshot
from tinsmith_train.engine.transfer import upload
from tinsmith_train.engine.types import (
    AdamParams,
    ForwardBackward,
    ForwardBackwardResult,
    LoraSpec,
    ModelInfo,
    PassPart,
    TrainerLimits,
)
from tinsmith_train.engine.validation import (
    CheckedItem,
    check_adam,
    check_full,
    check_item,
    check_lora,
)
from tinsmith_train.engine.vision import SeenImage
from tinsmith_train.engine.whole import FullModel

MIB = 2**20
WIDTH_STEP = 16
"""Of layers; at others, such as 67 or 72, three threads and more shared a matmul so that it showed in the last bits."""

_ROW_BYTES = 37 * 2**30
"""Of activations of one row, where the device's memory is not the limit."""


class LoraTrainer:
    """Not thread-safe: one call at a time."""

    def __init__(self, base: BaseModel, limits: TrainerLimits | None = None) -> None:
        self._base = base
        self._limits = limits or TrainerLimits()
        # Elsewhere the rows are as full as can be, and who shares them moves the last bits.
        self._pieces = Pieces(self._limits.tokens_per_piece) if base.device.type == "cpu" else None
        self._adapters: dict[str, Adapter] = {}
        self._running: dict[str, RunningPass] = {}

    @property
    def info(self) -> ModelInfo:
        """Facts of the base model."""
        return replace(self._base.info, row_tokens=self.row_tokens)

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
        adapter = self._make(adapter_id, spec)
        self.delete_adapter(adapter_id)
        self._adapters[adapter_id] = adapter

    def delete_adapter(self, adapter_id: str) -> None:
        """Free the adapter's memory. Unknown ids are ignored."""
        self._running = {
            name: run for name, run in self._running.items() if run.item.adapter_id != adapter_id
        }
        self._adapters.pop(adapter_id, None)

    def forward_backward(
        self, batch: Sequence[ForwardBackward]
    ) -> list[ForwardBackwardResult | TinsmithError]:
        """Run all submissions, packed together; gradients add to each adapter's accumulator.

        One answer per submission, in order. A bad one gets its error and leaves all gradients as if it had not
        been sent. When the run itself fails, `EngineFailure` is raised and no gradient has changed.
        """
        parts = [PassPart.whole(str(number), item) for number, item in enumerate(batch)]
        # None is the answer of a part that is not the last.
        return [answer for answer in self.run_parts(parts) if answer is not None]

    def run_parts(self, parts: Sequence[PassPart]) -> list[ForwardBackwardResult | TinsmithError | None]:
        """Run one part of each pass, all packed together. The parts of a pass come in order, at most one a call.

        Answers, in order: the result of a pass whose last part this was, None for one that goes on, or the error
        of one that ended with it, which leaves its adapter's gradient as it was before the first part. A
        pass is given up, and its gradient taken back, by any other use of its adapter before its last part.
        One of several parts shares no call with another of its adapter. What cannot be run together is run one by
        one; if one alone fails, `EngineFailure` is raised.
        """
        answers: dict[int, ForwardBackwardResult | TinsmithError | None] = {}
        running: dict[int, RunningPass] = {}
        for number, part in enumerate(parts):
            try:
                running[number] = self._begin_or_resume(part)
            except TinsmithError as error:
                answers[number] = error
        while running:
            items = {number: _portion(running[number], parts[number]) for number in running}
            try:
                outputs = self._run_all(items, self._to_put_back(running))
            except BadItem as bad:
                answers[bad.item] = bad.error
                self._give_up(running.pop(bad.item))
            except EngineFailure:
                if len(running) == 1:
                    self._give_up(*running.values())
                    raise
                answers.update(self._run_alone({number: parts[number] for number in running}))
                break
            else:
                answers.update(self._advance(running, parts, outputs))
                break
        return [answers[number] for number in range(len(parts))]

    def optim_step(self, adapter_id: str, params: AdamParams) -> dict[str, float]:
        """One AdamW step with the accumulated gradient (zero if none), which is cleared. Returns metrics."""
        check_adam(params)
        return self._idle(adapter_id).optim_step(params)

    def save_state(self, adapter_id: str, directory: Path) -> None:
        """Write all that training needs to go on into an existing empty directory."""
        checkpoint.save_state(self._idle(adapter_id), self._base.name, directory)

    def load_state(self, adapter_id: str, directory: Path, *, with_optimizer: bool) -> LoraSpec:
        """Replace (or create) the adapter by what `save_state` wrote; without its optimizer if so asked.

        Raises `InvalidInput` when the folder does not fit this base model.
        """
        make = partial(self._make, adapter_id)
        adapter = checkpoint.load_state(directory, make, with_optimizer=with_optimizer)
        self.delete_adapter(adapter_id)
        self._adapters[adapter_id] = adapter
        return adapter.spec

    def export_adapter(self, adapter_id: str, directory: Path) -> None:
        """Write the weights as a PEFT folder, or as a whole model's, into an existing empty directory."""
        adapter = self.adapter(adapter_id)
        if isinstance(adapter, FullModel):
            adapter.write_folder(directory)
        else:
            peft_export.write_peft_folder(adapter, self._base.name, directory)

    def adapter(self, adapter_id: str) -> Adapter:
        """The live adapter. Raises `NotFound`."""
        adapter = self._adapters.get(adapter_id)
        if adapter is None:
            raise NotFound(f"no adapter '{adapter_id}' here: create the model or load it from a checkpoint")
        return adapter

    def _make(self, adapter_id: str, spec: LoraSpec) -> Adapter:
        if spec.rank > 0:
            return Adapter(spec, self._base.targets, self._base.device)
        if self._base.vision is not None:
            raise InvalidInput(
                "a vision-language model trains adapters only: choose a LoRA rank of at least 1"
            )
        others = (one for key, one in self._adapters.items() if key != adapter_id)
        check_full(
            sum(isinstance(one, FullModel) for one in others),
            self._limits.full_models,
            self._base.whole.memory_gib(),
        )
        return FullModel(spec, self._base.whole, self._base.device)

    def _rows(self, items: Mapping[int, CheckedItem]) -> Iterator[MicroBatch]:
        """All adapters together, and each full model on its own."""
        groups: dict[str, dict[int, CheckedItem]] = {}
        for number, item in items.items():
            full = isinstance(self._adapters[item.adapter_id], FullModel)
            groups.setdefault(item.adapter_id if full else "", {})[number] = item
        for adapter_id, group in groups.items():
            yield from pack(group, self.row_tokens, None if adapter_id else self._pieces)

    def _begin_or_resume(self, part: PassPart) -> RunningPass:
        """The pass of a part. Raises `TinsmithError` when it cannot run."""
        if part.item is None:
            running = self._running.get(part.pass_id)
            if running is None or running.done != part.first:
                raise EngineFailure("the pass was given up before it had ended: submit it again")
            return running
        adapter = self._idle(part.item.adapter_id)
        item = check_item(part.item, self._base.info, self._base.vision)
        if part.last >= len(item.datums):
            return RunningPass(item, before=None)
        running = RunningPass(item, None if item.forward_only else Snapshot.of(adapter))
        self._running[part.pass_id] = running
        return running

    def _advance(
        self, running: Mapping[int, RunningPass], parts: Sequence[PassPart], outputs: Mapping[int, Outputs]
    ) -> dict[int, ForwardBackwardResult | None]:
        """Note what has run; answer the passes that are whole now."""
        answers: dict[int, ForwardBackwardResult | None] = dict.fromkeys(running)
        for number, done in running.items():
            done.done = parts[number].last
            done.outputs.extend(outputs[number])
            if done.done >= len(done.item.datums):
                answers[number] = done.result()
                self._running.pop(parts[number].pass_id, None)
        return answers

    def _run_alone(
        self, parts: Mapping[int, PassPart]
    ) -> dict[int, ForwardBackwardResult | TinsmithError | None]:
        """One part after another: what breaks one down must not reach the others."""
        answers: dict[int, ForwardBackwardResult | TinsmithError | None] = {}
        for number, part in parts.items():
            # It was checked, and begun, already.
            begun = replace(part, item=None) if part.pass_id in self._running else part
            try:
                (answers[number],) = self.run_parts([begun])
            except EngineFailure as error:
                answers[number] = error
        return answers

    def _idle(self, adapter_id: str) -> Adapter:
        """The live adapter, without what an unfinished pass has added to it. Raises `NotFound`."""
        self._give_up(*[run for run in self._running.values() if run.item.adapter_id == adapter_id])
        return self.adapter(adapter_id)

    def _give_up(self, *passes: RunningPass) -> None:
        """Take back what unfinished passes have added, and forget them."""
        for run in passes:
            if run.before is not None:
                run.before.restore()
            self._running = {name: other for name, other in self._running.items() if other is not run}

    def _to_put_back(self, running: Mapping[int, RunningPass]) -> list[Snapshot]:
        """The gradients that this call adds to. A pass that is alone, and given up if it fails, has its own copy."""
        if len(running) == 1 and all(run.before is not None for run in running.values()):
            return []
        names = {run.item.adapter_id for run in running.values() if not run.item.forward_only}
        return [Snapshot.of(self._adapters[name]) for name in names]

    def _run_all(self, items: Mapping[int, CheckedItem], before: Sequence[Snapshot]) -> dict[int, Outputs]:
        """All micro-batches, or none: the gradients of `before` are put back when any fails."""
        collector = Collector(items)
        try:
            for row in self._rows(items):
                self._run_row(row, items, collector)
            outputs = collector.outputs()
        except Exception as error:
            for snapshot in before:
                snapshot.restore()
            if isinstance(error, BadItem):
                raise
            raise EngineFailure(_describe_failure(error)) from error
        for item in items.values():
            if not item.forward_only:
                self._adapters[item.adapter_id].has_grad = True
        return outputs

    def _run_row(self, row: MicroBatch, items: Mapping[int, CheckedItem], collector: Collector) -> None:
        """Forward, losses, and backward unless the row only looks.

        Nothing here waits for the device, so that it never waits for the host: whether a loss was finite is seen when
        all rows are on their way, and then their gradients are taken back.
        """
        with torch.set_grad_enabled(not row.forward_only):
            logprobs = self._logprobs(row, _images(row, items))
            leaf = logprobs.detach().requires_grad_()
            losses = self._losses(row, items, leaf)
            if not row.forward_only:
                torch.autograd.backward([measured.loss for measured in losses])
            collector.add(row, leaf, losses)
            if not row.forward_only:
                logprobs.backward(leaf.grad)

    def _logprobs(self, row: MicroBatch, images: Sequence[Sequence[SeenImage]]) -> Tensor:
        """fp32 `[M]`."""
        device = self._base.device
        tokens, positions, target_rows, targets = (
            upload(array, device) for array in (row.tokens, row.positions, row.target_rows, row.targets)
        )
        first = self._adapters[row.spans[0].adapter_id]
        if isinstance(first, FullModel):
            return first.logprobs(tokens, positions, row.lengths, target_rows, targets, self._memory())
        owners = [Owner(span.start, span.stop, self._adapters[span.adapter_id]) for span in row.spans]
        if images and self._base.vision is not None:
            hidden = self._base.vision.hidden(tokens, row.lengths, images, owners)
        else:
            hidden = self._base.decoder.hidden(tokens, positions, row.lengths, owners)
        return self._head(hidden, row.spans, owners, target_rows, targets)

    def _head(
        self,
        hidden: Tensor,
        row: Sequence[AdapterSpan],
        owners: Sequence[Owner],
        target_rows: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """fp32 `[M]` from the hidden states of a row."""
        pieces: list[Tensor] = []
        for start, stop, first, last, single in self._heads(row):
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

    @property
    def row_tokens(self) -> int:
        """Tokens that are run at a time.

        On a CPU no more than it takes to be busy, as others wait for them. Few long rows keep a GPU busy: each costs
        the host some thousand launches.
        """
        per_token = self._base.decoder.bytes_per_token
        if self._limits.tokens_per_pass is not None:
            return self._limits.tokens_per_pass
        if self._base.device.type == "cpu":
            return 1024
        fit = 0 if per_token is None else _ROW_BYTES // per_token // 1024 * 1024
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
                inputs={name: upload(x, logprobs.device) for name, x in part.inputs.items()},
                datum_ids=upload(part.datum_ids, logprobs.device),
                num_datums=part.last - part.first,
                config=item.config,
                first=item.first + part.first,
            )
            try:
                loss = item.loss.function(positions)
            except TinsmithError as error:
                raise BadItem(part.item, error) from error
            losses.append(
                loss if isinstance(loss, Measured) else Measured(steady_sum(loss), {}, loss.detach())
            )
        return losses


def _images(row: MicroBatch, items: Mapping[int, CheckedItem]) -> list[tuple[SeenImage, ...]]:
    """Of each sequence of the row, or nothing where none has any."""
    images = [datum.images for part in row.parts for datum in items[part.item].datums[part.first : part.last]]
    return images if any(images) else []


def _portion(running: RunningPass, part: PassPart) -> CheckedItem:
    return (
        running.item
        if len(running.item.datums) == part.last - part.first
        else running.item.part(part.first, part.last)
    )


def _describe_failure(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "out of memory in forward_backward: send shorter sequences, or lower the server's tokens per pass"
        )
    reason = str(error).strip().splitlines()
    return f"forward_backward failed in the engine ({type(error).__name__}: {reason[0] if reason else 'no detail'})"
