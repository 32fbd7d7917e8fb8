"""forward_backward and optim_step: from wire to lane."""

import asyncio
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tinsmith_common.errors import InvalidInput, TinsmithError
from tinsmith_common.futures import PromiseKind
from tinsmith_common.http.errors import describe_validation
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import (
    WireDatum,
    WireForwardBackward,
    decode_forward_backward,
    encode_forward_backward_output,
    parse_forward_backward,
)
from tinsmith_common.wire.legacy import ForwardBackwardRequest, ForwardRequest
from tinsmith_common.wire.legacy_codec import forward_backward_message
from tinsmith_common.wire.training import OperationAddress, OptimStepRequest, OptimStepResult
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.engine.custom_loss.graph import LossGraph
from tinsmith_train.engine.types import AdamParams, Datum, ForwardBackward, ForwardBackwardResult, Image
from tinsmith_train.scheduler.operations import Pass, Task
from tinsmith_train.services.custom_losses import CustomLossService
from tinsmith_train.services.history import HistoryService
from tinsmith_train.services.provenance import sampled_positions
from tinsmith_train.services.submission import Submissions

_LARGE_BYTES = 256 * 1024
"""Larger bodies are read in a thread: it takes milliseconds, which all other requests would wait."""


class TrainingService:
    """Submits training operations. A body that cannot even be addressed raises; all else is a promise."""

    def __init__(
        self, submissions: Submissions, custom_losses: CustomLossService, history: HistoryService
    ) -> None:
        self._submissions = submissions
        self._custom_losses = custom_losses
        self._history = history

    async def forward_backward(self, owner: str, body: bytes) -> str:
        """Submit a protobuf `ForwardBackwardRequest`. Answers the request id."""
        parse = parse_forward_backward
        address = await asyncio.to_thread(parse, body) if len(body) > _LARGE_BYTES else parse(body)
        return await self._submit_pass(owner, address.model_id, address.seq_id, address.message)

    async def forward_backward_json(
        self, owner: str, address: OperationAddress, body: bytes, *, forward_only: bool
    ) -> str:
        """Submit a pass of the older surface. Its result also tells what each position adds to the loss."""
        message: pb.ForwardBackwardRequest | TinsmithError
        try:
            message = await asyncio.to_thread(_message_of, body, forward_only)
        except TinsmithError as error:
            message = error
        return await self._submit_pass(owner, address.model_id, address.seq_id, message, elementwise=True)

    async def _submit_pass(
        self,
        owner: str,
        model_id: str,
        seq_id: int,
        message: pb.ForwardBackwardRequest | TinsmithError,
        *,
        elementwise: bool = False,
    ) -> str:
        """Submit what a message says; if it is an error, the operation fails with it in its turn."""
        graph = (
            message if isinstance(message, TinsmithError) else await self._graph_of(owner, model_id, message)
        )

        def decode() -> Pass | Exception:
            try:
                if isinstance(message, TinsmithError):
                    return message
                if isinstance(graph, TinsmithError):
                    return graph
                item = to_item(decode_forward_backward(message), graph)
                item = replace(item, adapter_id=model_id, elementwise=elementwise)
                return Pass(item, partial(self._encode_pass, seq_id, item))
            except Exception as error:
                return error

        large = not isinstance(message, TinsmithError) and message.ByteSize() > _LARGE_BYTES
        decoded = await asyncio.to_thread(decode) if large else decode()

        def build() -> Pass:
            if isinstance(decoded, Exception):
                raise decoded
            return decoded

        return await self._submissions.submit(owner, model_id, seq_id, PromiseKind.FORWARD_BACKWARD, build)

    def _encode_pass(self, seq_id: int, item: ForwardBackward, result: ForwardBackwardResult) -> bytes:
        self._history.note_pass(seq_id, item, result)
        return encode_forward_backward_output(result.logprobs, result.metrics, result.elementwise_loss)

    async def _graph_of(
        self, owner: str, model_id: str, message: pb.ForwardBackwardRequest
    ) -> LossGraph | TinsmithError | None:
        """The graph of a custom loss, or why there is none, which fails the operation in its turn."""
        if message.loss_fn != "custom":
            return None
        session_id = model_id.split(":", 1)[0]
        try:
            loss_id = message.loss_fn_config_v2["loss_id"].text
            return await self._custom_losses.find(owner, session_id, loss_id)
        except TinsmithError as error:
            return error

    async def optim_step(self, owner: str, address: OperationAddress, body: bytes) -> str:
        """Submit an optimizer step. Answers the request id."""

        def build() -> Task:
            params = _adam_params(body)

            async def run(backend: TrainBackend) -> bytes:
                metrics = await backend.optim_step(address.model_id, params)
                self._history.note_step(address.model_id, address.seq_id, metrics)
                return OptimStepResult(metrics=metrics).model_dump_json().encode()

            return Task(run)

        return await self._submissions.submit(
            owner, address.model_id, address.seq_id, PromiseKind.OPTIM_STEP, build
        )


def to_item(request: WireForwardBackward, graph: LossGraph | None = None) -> ForwardBackward:
    """What the engine is to do. `graph` is the loss that `loss_id` names. Raises `InvalidInput`."""
    config = dict(request.loss_fn_config)
    if graph is not None:
        del config["loss_id"]
    return ForwardBackward(
        adapter_id=request.model_id,
        datums=tuple(_to_datum(index, datum, request.loss_fn) for index, datum in enumerate(request.datums)),
        loss=request.loss_fn,
        loss_config=config,
        forward_only=request.forward_only,
        graph=graph,
    )


def _to_datum(index: int, datum: WireDatum, loss: str) -> Datum:
    inputs = dict(datum.loss_fn_inputs)
    targets = inputs.pop("target_tokens", None)
    if targets is None:
        raise InvalidInput(f"datum {index}: target_tokens are missing from loss_fn_inputs")
    if targets.dtype != np.int64:
        raise InvalidInput(f"datum {index}: target_tokens must be int64, not {targets.dtype}")
    typed: dict[str, NDArray[np.float32] | NDArray[np.int64]] = dict(inputs)
    if loss == "stable_reinforce":
        typed["sampled_mask"] = sampled_positions(f"datum {index}", datum, len(targets))
    images = tuple(Image(image.start, image.tokens, image.data, image.format) for image in datum.images)
    return Datum(datum.tokens, targets.astype(np.int64), typed, images)


def _message_of(body: bytes, forward_only: bool) -> pb.ForwardBackwardRequest:
    try:
        if forward_only:
            content = ForwardRequest.model_validate_json(body).forward_input
        else:
            content = ForwardBackwardRequest.model_validate_json(body).forward_backward_input
    except ValidationError as error:
        raise InvalidInput(describe_validation(error)) from error
    return forward_backward_message(content, forward_only=forward_only)


def _adam_params(body: bytes) -> AdamParams:
    try:
        request = OptimStepRequest.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInput(describe_validation(error)) from error
    if request.adam_params is None:
        given = (request.optimizer_params or {}).get("type")
        raise InvalidInput(
            f"optim_step has parameters of {given!r}: this model's optimizer is adamw, which takes adam_params"
        )
    return AdamParams(**request.adam_params.model_dump())
