"""ForwardBackwardRequests that are nearly right: valid ones with a few fields changed, and bytes that are not."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinsmith_common.wire import tinsmith_wire_pb2 as pb

Draw = Callable[[st.SearchStrategy[Any]], Any]

_EDGES = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 5, 64, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
_NAMES = ("target_tokens", "weights", "logprobs", "advantages", "clip_low_threshold", "sequence_ratio_mask")
_LOSSES = (
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
    "custom",
)
_KEYS = ("clip_low_threshold", "clip_high_threshold", "beta", "kl_coeff", "loss_id")


def dense(values: NDArray[Any]) -> pb.Tensor:
    """A tensor as the SDK sends it."""
    dtype = pb.DTYPE_INT64 if values.dtype == np.int64 else pb.DTYPE_FLOAT32
    return pb.Tensor(dense=values.tobytes(), dtype=dtype, shape=values.shape)


def sparse(values: NDArray[Any]) -> pb.Tensor:
    """The same as CSR."""
    rows, columns = np.nonzero(values)
    crow = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(values)))]).astype(np.int64)
    csr = pb.SparseCsr(
        values=values[rows, columns].tobytes(),
        crow_indices=crow.tobytes(),
        col_indices=columns.astype(np.int64).tobytes(),
    )
    dtype = pb.DTYPE_INT64 if values.dtype == np.int64 else pb.DTYPE_FLOAT32
    return pb.Tensor(sparse_csr=csr, dtype=dtype, shape=values.shape)


def good(model_id: str, seq_id: int, loss: str = "cross_entropy") -> pb.ForwardBackwardRequest:
    """A valid request of two datums."""
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, loss_fn=loss)
    for first in (5, 300):
        tokens = np.array([first, 6, 7], np.int32)
        inputs = {"target_tokens": dense(np.array([6, 7, 8]))}
        if loss == "cross_entropy":
            inputs["weights"] = dense(np.ones(3, np.float32))
        else:
            inputs |= {name: dense(np.full(3, -1, np.float32)) for name in ("logprobs", "advantages")}
        datum = message.data.add(loss_fn_inputs=inputs)
        datum.model_input.add().encoded_text.tokens = tokens.tobytes()
    return message


def soft(model_id: str, seq_id: int) -> pb.ForwardBackwardRequest:
    """A valid request with two targets per position, sparse."""
    message = good(model_id, seq_id)
    for datum in message.data:
        datum.loss_fn_inputs["target_tokens"].CopyFrom(sparse(np.array([[6, 0], [7, 9], [0, 8]])))
        weights = np.array([[1, 0], [0.5, 0.5], [0, -1]], np.float32)
        datum.loss_fn_inputs["weights"].CopyFrom(sparse(weights))
    return message


def with_spans(model_id: str, seq_id: int) -> pb.ForwardBackwardRequest:
    """A valid request whose loss needs to know which tokens were sampled."""
    message = good(model_id, seq_id, "stable_reinforce")
    message.loss_fn_config_v2["kl_coeff"].number = 0.1
    for datum in message.data:
        for spans in (datum.model_input_spans, datum.loss_fn_input_spans):
            spans.add().prompt_tokens.length = 1
            spans.add().sampled_tokens.length = 2
    return message


@st.composite
def bodies(draw: Draw, model_id: str, seq_id: int) -> bytes:
    """A body for /forward_backward; most of them parse, and keep their address."""
    kinds: list[Callable[[], pb.ForwardBackwardRequest]] = [
        *(lambda loss=loss: good(model_id, seq_id, loss) for loss in _LOSSES[:-2]),
        lambda: soft(model_id, seq_id),
        lambda: with_spans(model_id, seq_id),
    ]
    message = draw(st.sampled_from(kinds))()
    for _ in range(draw(st.integers(1, 4))):
        _change(draw, message)
    if draw(st.integers(0, 3)):
        message.model_id, message.seq_id = model_id, seq_id
    body = message.SerializeToString()
    return _damaged(draw, body) if draw(st.integers(0, 4)) == 0 else body


def _damaged(draw: Draw, body: bytes) -> bytes:
    """The bytes with a piece replaced by others, possibly all of them."""
    start, length = draw(st.integers(0, len(body))), draw(st.sampled_from((0, 1, 2, 8, len(body))))
    return body[:start] + draw(st.binary(max_size=16)) + body[start + length :]


def _change(draw: Draw, root: Message) -> None:
    """Change one field somewhere in the message, or all of one tensor."""
    node = draw(st.sampled_from(list(_nodes(root))))
    if isinstance(node, pb.Tensor) and draw(st.booleans()):
        node.CopyFrom(draw(_tensors()))
        return
    field: Any = draw(st.sampled_from(list(node.DESCRIPTOR.fields)))
    held = getattr(node, field.name)
    if _is_map(field):
        _change_map(draw, field, held)
    elif field.is_repeated:
        _change_list(draw, field, held)
    elif field.message_type is not None:
        if draw(st.booleans()):
            node.ClearField(field.name)
        else:
            held.SetInParent()
    else:
        setattr(node, field.name, draw(_scalar(field)))


def _change_map(draw: Draw, field: Any, held: Any) -> None:
    names = st.sampled_from((*_NAMES, *_KEYS)) | st.text(max_size=4)
    value = field.message_type.fields_by_name["value"]
    keys = sorted(held)
    if keys and draw(st.booleans()):
        del held[draw(st.sampled_from(keys))]
    elif value.message_type is None:
        held[draw(names)] = draw(_scalar(value))
    else:
        held[draw(names)].SetInParent()


def _change_list(draw: Draw, field: Any, held: Any) -> None:
    if len(held) and draw(st.booleans()):
        del held[draw(st.integers(0, len(held) - 1))]
    elif field.message_type is None:
        held.append(draw(_scalar(field)))
    elif len(held) and draw(st.booleans()):
        held.add().CopyFrom(held[0])
    else:
        held.add()


def _nodes(message: Message) -> Iterator[Message]:
    """The message and all that it contains."""
    yield message
    for field, held in message.ListFields():
        if field.message_type is None:
            continue
        parts: Sequence[Any] = [held]
        if _is_map(field):
            # Values without a descriptor of their own are scalars.
            parts = [held[key] for key in sorted(held) if hasattr(held[key], "DESCRIPTOR")]
        elif field.is_repeated:
            parts = held
        for part in parts:
            yield from _nodes(part)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _scalar(field: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type: ordinary ones, and those at the edges."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_INT32:
            return st.sampled_from([edge for edge in _EDGES if -(2**31) <= edge < 2**31])
        case FieldDescriptor.CPPTYPE_UINT32:
            return st.sampled_from([edge for edge in _EDGES if 0 <= edge < 2**32])
        case FieldDescriptor.CPPTYPE_INT64:
            return st.sampled_from(_EDGES)
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.integers(0, 9)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.sampled_from((0.0, 1.0, -1.0, 1e300, float("nan"), float("inf"))) | st.floats()
        case _ if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=9) | _packed()
        case _:
            return st.sampled_from((*_LOSSES, "")) | st.text(max_size=4)


@st.composite
def _tensors(draw: Draw) -> pb.Tensor:
    """Tensors whose parts need not fit each other."""
    arrays = st.just(b"") | _packed()
    # Products of these wrap around at 2^64, which an empty array would fill.
    sizes = st.sampled_from((0, 1, 2, 3, 3, 4, 2**31, 2**33, 2**62, 2**63 - 1, -1))
    tensor = pb.Tensor(
        dtype=draw(st.sampled_from((1, 1, 2, 2, 0, 4))), shape=draw(st.lists(sizes, min_size=1, max_size=3))
    )
    if draw(st.booleans()):
        tensor.dense = draw(arrays)
    else:
        for name in ("values", "crow_indices", "col_indices"):
            setattr(tensor.sparse_csr, name, draw(arrays))
    return tensor


def _packed() -> st.SearchStrategy[bytes]:
    """Arrays as the wire has them, of the right length more often than not."""

    def pack(values: list[int], code: str) -> bytes:
        kept = [v for v in values if np.iinfo(np.int32).min <= v <= np.iinfo(np.int32).max or code == "<i8"]
        return np.array(kept, code).tobytes()

    ids = st.lists(st.sampled_from((0, 3, 5, 8, *_EDGES)), min_size=2, max_size=4)
    floats = st.lists(st.floats(width=32), min_size=3, max_size=3)
    return st.builds(pack, ids, st.sampled_from(("<i4", "<i8"))) | floats.map(
        lambda values: np.array(values, "<f4").tobytes()
    )
