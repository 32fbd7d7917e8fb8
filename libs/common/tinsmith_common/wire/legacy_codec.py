"""Between the older surface's JSON and the protobuf messages, so that services know one form only."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import pack_int32
from tinsmith_common.wire.legacy import (
    ForwardBackwardInput,
    ForwardBackwardOutput,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TensorData,
)
from tinsmith_common.wire.sampling import EncodedTextChunk, ModelInput

_DTYPES = {"int64": pb.DTYPE_INT64, "float32": pb.DTYPE_FLOAT32}
_CODES: dict[int, str] = {pb.DTYPE_INT64: "<i8", pb.DTYPE_INT32: "<i4", pb.DTYPE_FLOAT32: "<f4"}
_UNUSED_CELL = -99999.0
"""Log-probability that the protocol gives to the cells of a top-k table that hold nothing."""


def forward_backward_message(
    content: ForwardBackwardInput, *, forward_only: bool
) -> pb.ForwardBackwardRequest:
    """The message that a body stands for, without its address. Raises `InvalidInput` naming datum and field."""
    message = pb.ForwardBackwardRequest(loss_fn=content.loss_fn, forward_only=forward_only)
    for key, value in (content.loss_fn_config or {}).items():
        if isinstance(value, str):
            message.loss_fn_config_v2[key].text = value
        else:
            message.loss_fn_config_v2[key].number = value
    for index, datum in enumerate(content.data):
        target = message.data.add()
        _write_chunks(target, datum.model_input, f"datum {index}")
        for name, tensor in datum.loss_fn_inputs.items():
            _write_tensor(target.loss_fn_inputs[name], tensor, f"datum {index}: {name}")
    return message


def forward_backward_json(payload: bytes) -> bytes:
    """A serialised `ForwardBackwardOutput` as JSON."""
    message = pb.ForwardBackwardOutput.FromString(payload)
    outputs = [datum for record in message.loss_fn_outputs for datum in _read_record(record)]
    output = ForwardBackwardOutput(
        loss_fn_output_type=message.loss_fn_output_type,
        loss_fn_outputs=outputs,
        metrics=dict(message.metrics),
    )
    return output.model_dump_json(exclude_none=True).encode()


def sample_json(payload: bytes) -> bytes:
    """A serialised `SampleResponse` as JSON."""
    message = pb.SampleResponse.FromString(payload)
    response = SampleResponse(
        sequences=[_read_sequence(sequence) for sequence in message.sequences],
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
    )
    if message.prompt_logprobs:
        values: list[float] = np.frombuffer(message.prompt_logprobs, "<f4").tolist()
        response.prompt_logprobs = [None if value != value else value for value in values]
    if message.HasField("topk_prompt_logprobs"):
        response.topk_prompt_logprobs = _read_table(message.topk_prompt_logprobs)
    if message.HasField("target_prompt_logprobs"):
        response.target_prompt_logprobs = _read_tensor(message.target_prompt_logprobs)
    if message.HasField("prompt_alt_tokens"):
        drawn = message.prompt_alt_tokens
        response.prompt_alt_tokens = PromptAltTokens(
            tokens=_read_tensor(drawn.tokens), logprobs=_read_tensor(drawn.logprobs)
        )
    return response.model_dump_json(exclude_none=True).encode()


def _write_chunks(target: pb.Datum, model_input: ModelInput, where: str) -> None:
    for chunk in model_input.chunks:
        if not isinstance(chunk, EncodedTextChunk):
            raise InvalidInput(f"{where}: model input of type {chunk.type} is only taken as protobuf")
        try:
            target.model_input.add().encoded_text.tokens = pack_int32(chunk.tokens)
        except OverflowError as error:
            raise InvalidInput(f"{where}: a token id is no int32") from error


def _write_tensor(target: pb.Tensor, tensor: TensorData, where: str) -> None:
    target.dtype = _DTYPES[tensor.dtype]
    target.shape.extend([len(tensor.data)] if tensor.shape is None else tensor.shape)
    values = _pack(tensor.data, _CODES[target.dtype], where)
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        target.dense = values
        return
    target.sparse_csr.values = values
    target.sparse_csr.crow_indices = _pack(tensor.sparse_crow_indices, "<i8", f"{where}: crow_indices")
    target.sparse_csr.col_indices = _pack(tensor.sparse_col_indices, "<i8", f"{where}: col_indices")


def _pack(values: Sequence[float], code: str, where: str) -> bytes:
    try:
        array = np.asarray(values)
        if code == "<i8" and array.dtype != np.int64:
            # Fractions, and whole numbers of more than 64 bits, would be cut off without a word.
            numbers = array.astype(np.float64)
            if not ((np.abs(numbers) < 2**63) & (numbers == np.trunc(numbers))).all():
                raise InvalidInput(f"{where}: int64 takes whole numbers of 64 bits only")
        # What is too large for float32 becomes infinite, which the engine refuses by name.
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(code).tobytes()
    except (OverflowError, ValueError, TypeError) as error:
        raise InvalidInput(f"{where}: the values do not fit {np.dtype(code).name}: {error}") from error


def _read_record(record: pb.ArrayRecord) -> Iterator[dict[str, TensorData]]:
    offsets = {name: np.frombuffer(field.offsets, "<i8") for name, field in record.fields.items()}
    for index in range(record.num_datums):
        yield {
            name: _data(
                field.data[offsets[name][index] : offsets[name][index + 1]], field.dtype, field.trailing_shape
            )
            for name, field in record.fields.items()
        }


def _read_sequence(sequence: pb.SampledSequence) -> SampledSequence:
    stopped = sequence.stop_reason == pb.STOP_REASON_STOP
    top = sequence.topk_sampled_logprobs if sequence.HasField("topk_sampled_logprobs") else None
    return SampledSequence(
        stop_reason="stop" if stopped else "length",
        tokens=np.frombuffer(sequence.tokens, "<i4").tolist(),
        logprobs=np.frombuffer(sequence.logprobs, "<f4").tolist(),
        topk_logprobs=None if top is None else _read_table(top),
    )


def _read_table(table: pb.TopkLogprobs) -> list[list[tuple[int, float]] | None]:
    shape = (table.length, table.k)
    ids = np.frombuffer(table.token_ids, "<i4").reshape(shape).tolist()
    logprobs = np.frombuffer(table.logprobs, "<f4").reshape(shape).tolist()
    rows: list[list[tuple[int, float]] | None] = []
    for row_ids, row_logprobs in zip(ids, logprobs, strict=True):
        row = [cell for cell in zip(row_ids, row_logprobs, strict=True) if cell[1] > _UNUSED_CELL]
        rows.append(row or None)
    return rows


def _read_tensor(tensor: pb.Tensor) -> TensorData:
    if tensor.WhichOneof("encoding") != "sparse_csr":
        return _data(tensor.dense, tensor.dtype, tensor.shape[1:])
    csr = tensor.sparse_csr
    sparse = _data(csr.values, tensor.dtype, ())
    sparse.shape = list(tensor.shape)
    sparse.sparse_crow_indices = np.frombuffer(csr.crow_indices, "<i8").tolist()
    sparse.sparse_col_indices = np.frombuffer(csr.col_indices, "<i8").tolist()
    return sparse


def _data(data: bytes, dtype: int, trailing: Sequence[int]) -> TensorData:
    values: NDArray[Any] = np.frombuffer(data, _CODES[dtype])
    shape = values.reshape(-1, *trailing).shape if values.size else (0, *trailing)
    return TensorData(
        data=values.tolist(),
        dtype="float32" if values.dtype.kind == "f" else "int64",
        shape=list(shape),
    )
