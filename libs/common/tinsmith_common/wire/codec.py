"""Between protobuf messages and arrays. Arrays on the wire are little-endian and densely packed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Array = FloatArray | IntArray

_MAX_DENSE_ELEMENTS = 2**27
"""A tensor names its shape freely; this bounds what a sparse one is allowed to unfold to (512 MiB of float32)."""

_MAX_IMAGE_TOKENS = 2**17


@dataclass(frozen=True)
class WireSpan:
    """Where a run of positions came from: tokens `offset` to `offset + length` of a request's prompt or of a
    sampled sequence. Not checked, because most losses ignore it; `kind` is None when the message names neither.
    """

    kind: Literal["prompt", "sampled"] | None
    sequence_id: str = ""
    offset: int = 0
    length: int = 0


@dataclass(frozen=True)
class WireImage:
    """An image file of `format` in place of the tokens `[start, start + tokens)`, whose ids are 0."""

    start: int
    tokens: int
    data: bytes
    format: str


@dataclass(frozen=True)
class WireDatum:
    """One decoded datum: token ids int64 `[N]`, the named loss inputs, densified, provenance of both, and images."""

    tokens: IntArray
    loss_fn_inputs: Mapping[str, Array]
    model_input_spans: tuple[WireSpan, ...] = ()
    loss_fn_input_spans: tuple[WireSpan, ...] = ()
    images: tuple[WireImage, ...] = ()


@dataclass(frozen=True)
class WireForwardBackward:
    """A decoded `ForwardBackwardRequest`."""

    model_id: str
    seq_id: int
    datums: tuple[WireDatum, ...]
    loss_fn: str
    loss_fn_config: Mapping[str, float | str]
    forward_only: bool


@dataclass(frozen=True)
class ForwardBackwardAddress:
    """The natural key of a submission, and the message whose content is not looked at yet."""

    model_id: str
    seq_id: int
    message: pb.ForwardBackwardRequest


def parse_forward_backward(body: bytes) -> ForwardBackwardAddress:
    """Parse a body as far as its address. Raises `InvalidInput` when it is no such message."""
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise InvalidInput(
            "the body is not a ForwardBackwardRequest message: send protobuf (application/x-protobuf)"
        ) from error
    if not message.model_id or message.seq_id < 1:
        raise InvalidInput("forward_backward needs a model_id and a seq_id of at least 1")
    return ForwardBackwardAddress(message.model_id, message.seq_id, message)


def decode_forward_backward(message: pb.ForwardBackwardRequest) -> WireForwardBackward:
    """Unpack all arrays. Raises `InvalidInput` naming the datum and the field that is wrong."""
    datums: list[WireDatum] = []
    for index, datum in enumerate(message.data):
        inputs = {
            name: _decode_tensor(tensor, f"datum {index}: {name}")
            for name, tensor in datum.loss_fn_inputs.items()
        }
        tokens, images = _decode_chunks(datum.model_input, f"datum {index}")
        spans = _decode_spans(datum.model_input_spans), _decode_spans(datum.loss_fn_input_spans)
        datums.append(WireDatum(tokens, inputs, *spans, images))
    return WireForwardBackward(
        model_id=message.model_id,
        seq_id=message.seq_id,
        datums=tuple(datums),
        loss_fn=message.loss_fn,
        loss_fn_config=_decode_config(message),
        forward_only=message.forward_only,
    )


def encode_forward_backward_output(
    logprobs: Sequence[FloatArray],
    metrics: Mapping[str, float],
    elementwise_loss: Sequence[FloatArray] = (),
) -> bytes:
    """Serialise a result. Datums of equal trailing shape share a record; order is kept.

    `elementwise_loss` is empty or shaped like `logprobs`.
    """
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=dict(metrics))
    start = 0
    while start < len(logprobs):
        trailing = logprobs[start].shape[1:]
        stop = start
        while stop < len(logprobs) and logprobs[stop].shape[1:] == trailing:
            stop += 1
        fields = {"logprobs": logprobs[start:stop]}
        if elementwise_loss:
            fields["elementwise_loss"] = elementwise_loss[start:stop]
        output.loss_fn_outputs.append(_encode_record(fields, trailing))
        start = stop
    return output.SerializeToString()


def pack_int32(values: Sequence[int] | IntArray) -> bytes:
    """Token ids as the wire has them."""
    return np.asarray(values, dtype="<i4").tobytes()


def pack_int64(values: Sequence[int] | IntArray) -> bytes:
    """Token ids of a `Tensor`, and the indices of a sparse one, as the wire has them."""
    return np.asarray(values, dtype="<i8").tobytes()


def pack_float32(values: Sequence[float] | FloatArray) -> bytes:
    """Log-probabilities as the wire has them."""
    return np.asarray(values, dtype="<f4").tobytes()


def _encode_record(fields: Mapping[str, Sequence[FloatArray]], trailing: tuple[int, ...]) -> pb.ArrayRecord:
    record = pb.ArrayRecord()
    for name, arrays in fields.items():
        parts = [pack_float32(values) for values in arrays]
        offsets = np.cumsum([0, *map(len, parts)]).astype("<i8")
        tensor = pb.BatchedTensor(
            data=b"".join(parts), offsets=offsets.tobytes(), dtype=pb.DTYPE_FLOAT32, trailing_shape=trailing
        )
        record.fields[name].CopyFrom(tensor)
        record.num_datums = len(parts)
    return record


def _decode_config(message: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    # The second map repeats the numbers of the first and alone can hold text.
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        config[key] = value.text if value.WhichOneof("value") == "text" else value.number
    return config


def _decode_chunks(chunks: Sequence[pb.Chunk], where: str) -> tuple[IntArray, tuple[WireImage, ...]]:
    parts: list[IntArray] = []
    images: list[WireImage] = []
    for chunk in chunks:
        match kind := chunk.WhichOneof("chunk"):
            case "encoded_text":
                tokens = _from_bytes(chunk.encoded_text.tokens, "<i4", f"{where}: tokens").astype(np.int64)
            case "image":
                images.append(_decode_image(chunk.image, sum(map(len, parts)), where))
                tokens = np.zeros(images[-1].tokens, np.int64)
            case _:
                raise InvalidInput(
                    f"{where}: model input of kind {kind} is not supported by this model; send tokens"
                )
        parts.append(tokens)
    return (np.concatenate(parts) if parts else np.zeros(0, np.int64)), tuple(images)


def _decode_image(image: pb.ImageChunk, start: int, where: str) -> WireImage:
    if not 0 < image.expected_tokens <= _MAX_IMAGE_TOKENS:
        raise InvalidInput(
            f"{where}: model input of kind image needs its expected_tokens, 1 to {_MAX_IMAGE_TOKENS}: it has "
            f"{image.expected_tokens}"
        )
    if image.format not in ("png", "jpeg"):
        raise InvalidInput(f"{where}: the image's format is {image.format[:20]!r}: send png or jpeg")
    return WireImage(start, image.expected_tokens, image.data, image.format)


def _decode_spans(spans: Sequence[pb.ProvenanceSpan]) -> tuple[WireSpan, ...]:
    decoded: list[WireSpan] = []
    for message in spans:
        match message.WhichOneof("span"):
            case "prompt_tokens":
                span = message.prompt_tokens
                decoded.append(WireSpan("prompt", span.sequence_id, span.offset, span.length))
            case "sampled_tokens":
                span = message.sampled_tokens
                decoded.append(WireSpan("sampled", span.sequence_id, span.offset, span.length))
            case _:
                decoded.append(WireSpan(None))
    return tuple(decoded)


def _decode_tensor(tensor: pb.Tensor, where: str) -> Array:
    if tensor.dtype not in (pb.DTYPE_FLOAT32, pb.DTYPE_INT64):
        raise InvalidInput(f"{where}: dtype must be float32 or int64, not {_dtype_name(tensor.dtype)}")
    code = "<f4" if tensor.dtype == pb.DTYPE_FLOAT32 else "<i8"
    shape = tuple(tensor.shape)
    # Each size by itself too: beside a 0 any other fits, and numpy cannot make it.
    if len(shape) > 2 or not all(0 <= size <= _MAX_DENSE_ELEMENTS for size in shape):
        raise InvalidInput(f"{where}: shape must be [N], [N, K] or [], not {list(shape)}")
    if tensor.WhichOneof("encoding") == "sparse_csr":
        return _decode_csr(tensor.sparse_csr, code, shape, where)
    values = _from_bytes(tensor.dense, code, where)
    if values.size != math.prod(shape):
        raise InvalidInput(f"{where}: {values.size} values do not fill the shape {list(shape)}")
    return values.reshape(shape)


def _decode_csr(csr: pb.SparseCsr, code: str, shape: tuple[int, ...], where: str) -> Array:
    values = _from_bytes(csr.values, code, where)
    crow = _from_bytes(csr.crow_indices, "<i8", f"{where}: crow_indices")
    columns = _from_bytes(csr.col_indices, "<i8", f"{where}: col_indices")
    if len(shape) != 2 or shape[0] * shape[1] > _MAX_DENSE_ELEMENTS:
        raise InvalidInput(
            f"{where}: a sparse tensor needs a shape [N, K] of at most {_MAX_DENSE_ELEMENTS} cells"
        )
    rising = crow.size == shape[0] + 1 and crow[0] == 0 and bool((np.diff(crow) >= 0).all())
    if not rising or crow[-1] != values.size or columns.size != values.size:
        raise InvalidInput(f"{where}: crow_indices, col_indices and values do not fit each other")
    if columns.size and (columns.min() < 0 or columns.max() >= shape[1]):
        raise InvalidInput(f"{where}: col_indices must lie in [0, {shape[1]})")
    dense = np.zeros(shape, dtype=values.dtype)
    dense[np.repeat(np.arange(shape[0]), np.diff(crow)), columns] = values
    return dense


def _from_bytes(data: bytes, code: str, where: str) -> NDArray[Any]:
    dtype = np.dtype(code)
    if len(data) % dtype.itemsize:
        raise InvalidInput(f"{where}: {len(data)} bytes are no whole number of {dtype.name} values")
    return np.frombuffer(data, dtype=dtype)


def _dtype_name(value: int) -> str:
    return pb.DType.Name(value) if value in pb.DType.values() else str(value)
