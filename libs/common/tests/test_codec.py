"""The protobuf codec, against the converters inside the SDK."""

from typing import Any

import numpy as np
import pytest
import tinker
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tinker.proto import tinker_public_pb2 as sdk_pb
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import (
    WireImage,
    WireSpan,
    decode_forward_backward,
    encode_forward_backward_output,
    parse_forward_backward,
)


def sdk_body(*datums: tinker.Datum, config: dict[str, float | str] | None = None) -> bytes:
    request = ForwardBackwardRequest(
        forward_backward_input=ForwardBackwardInput(
            data=list(datums), loss_fn="cross_entropy", loss_fn_config=config
        ),
        model_id="s:train:0",
        seq_id=3,
    )
    return forward_backward_request_to_proto(request).SerializeToString()


def datum(targets: torch.Tensor, weights: torch.Tensor) -> tinker.Datum:
    # Raw tensors: the SDK makes sparse ones of them where that is smaller.
    inputs: Any = {"target_tokens": targets, "weights": weights}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs=inputs)


@pytest.mark.row("descriptors", call="the SDK's own protobuf module")
def test_our_messages_have_the_sdk_s_fields_and_numbers() -> None:
    ours, theirs = pb.DESCRIPTOR.message_types_by_name, sdk_pb.DESCRIPTOR.message_types_by_name
    assert set(ours) == set(theirs)
    for name, message in ours.items():
        fields = [(f.name, f.number, f.type, f.is_repeated) for f in message.fields]
        assert fields == [(f.name, f.number, f.type, f.is_repeated) for f in theirs[name].fields], name


def test_a_dense_request_arrives_as_it_was_sent() -> None:
    address = parse_forward_backward(
        sdk_body(
            datum(torch.tensor([6, 7, 8]), torch.tensor([0.0, 0.5, -2.0])), config={"beta": 0.5, "name": "x"}
        )
    )
    request = decode_forward_backward(address.message)
    assert (request.model_id, request.seq_id, request.loss_fn) == ("s:train:0", 3, "cross_entropy")
    assert request.loss_fn_config == {"beta": 0.5, "name": "x"}
    assert request.datums[0].tokens.tolist() == [5, 6, 7]
    assert request.datums[0].loss_fn_inputs["target_tokens"].tolist() == [6, 7, 8]
    assert request.datums[0].loss_fn_inputs["weights"].tolist() == [0.0, 0.5, -2.0]


def test_sparse_tensors_are_densified_each_by_its_own_pattern() -> None:
    targets, weights = torch.zeros(3, 40, dtype=torch.int64), torch.zeros(3, 40)
    targets[0, 1], targets[2, 3] = 9, 4
    weights[0, 1], weights[1, 0] = 0.5, -1.5
    body = sdk_body(datum(targets, weights))
    message = parse_forward_backward(body).message
    assert message.data[0].loss_fn_inputs["target_tokens"].WhichOneof("encoding") == "sparse_csr"
    inputs = decode_forward_backward(message).datums[0].loss_fn_inputs
    np.testing.assert_array_equal(inputs["target_tokens"], targets.numpy())
    np.testing.assert_array_equal(inputs["weights"], weights.numpy())


def test_an_empty_sparse_tensor_is_all_zeros() -> None:
    body = sdk_body(datum(torch.zeros(3, 40, dtype=torch.int64), torch.zeros(3, 40)))
    inputs = decode_forward_backward(parse_forward_backward(body).message).datums[0].loss_fn_inputs
    assert inputs["target_tokens"].shape == (3, 40)
    assert not inputs["weights"].any()


def test_the_sdk_reads_our_output_in_datum_order() -> None:
    logprobs = [np.arange(3, dtype=np.float32), np.ones((2, 4), np.float32), np.zeros(5, np.float32)]
    output = deserialize_forward_backward_output(encode_forward_backward_output(logprobs, {"loss:sum": 2.0}))
    assert output.metrics == {"loss:sum": 2.0}
    for expected, got in zip(logprobs, output.loss_fn_outputs, strict=True):
        np.testing.assert_array_equal(got["logprobs"].to_numpy(), expected)


def test_a_body_that_is_no_message_says_so() -> None:
    with pytest.raises(InvalidInput, match="ForwardBackwardRequest"):
        parse_forward_backward(b"\xff\xff not protobuf")


def broken(**changes: Any) -> pb.ForwardBackwardRequest:
    """A request whose only tensor is `weights`, with the given fields."""
    fields: dict[str, Any] = {"dense": b"\0" * 12, "dtype": pb.DTYPE_FLOAT32, "shape": [3], **changes}
    tensor = pb.Tensor(**fields)
    chunk = pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=b"\0" * 12))
    item = pb.Datum(model_input=[chunk], loss_fn_inputs={"weights": tensor})
    return pb.ForwardBackwardRequest(model_id="m", seq_id=1, data=[item])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": pb.DTYPE_BFLOAT16}, "dtype must be float32 or int64"),
        ({"dtype": 77}, "dtype must be float32 or int64"),
        ({"shape": [4]}, "do not fill the shape"),
        ({"shape": [-3]}, "shape must be"),
        ({"shape": [3, 1, 1]}, "shape must be"),
        ({"shape": [1, 1, 3]}, "shape must be"),
        ({"shape": []}, "do not fill"),
        ({"dense": b"\0" * 11}, "no whole number"),
    ],
)
def test_a_malformed_tensor_names_datum_and_field(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidInput, match=f"datum 0: weights.*{problem}"):
        decode_forward_backward(broken(**changes))


@pytest.mark.parametrize(
    ("crow", "columns", "shape"),
    [
        ([0, 1], [0], [3, 2]),
        ([0, 2, 1, 1], [0], [3, 2]),
        ([0, 1, 1, 1], [2], [3, 2]),
        ([0, 1, 1, 1], [-1], [3, 2]),
        ([0, 1, 1, 2], [0], [3, 2]),
        ([0, 0, 0, 1], [0], [2**31, 2**31]),
    ],
)
def test_a_malformed_sparse_tensor_is_refused(crow: list[int], columns: list[int], shape: list[int]) -> None:
    csr = pb.SparseCsr(
        values=np.ones(1, "<f4").tobytes(),
        crow_indices=np.array(crow, "<i8").tobytes(),
        col_indices=np.array(columns, "<i8").tobytes(),
    )
    message = broken(shape=shape)
    message.data[0].loss_fn_inputs["weights"].sparse_csr.CopyFrom(csr)
    with pytest.raises(InvalidInput, match="datum 0: weights"):
        decode_forward_backward(message)


@pytest.mark.parametrize("shape", [[2**62, 4], [0, 2**62], [2**62, 0], [2**33, 2**31]])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_shape_that_no_array_can_have_is_refused(shape: list[int], sparse: bool) -> None:
    # 2^62 * 4 is 0 in 64 bits, which an empty tensor would fill, and so it does beside a true 0.
    tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=shape)
    if sparse:
        tensor.sparse_csr.crow_indices = bytes(8)
    else:
        tensor.dense = b""
    message = pb.ForwardBackwardRequest(data=[pb.Datum(loss_fn_inputs={"weights": tensor})])
    with pytest.raises(InvalidInput, match="shape"):
        decode_forward_backward(message)


@pytest.mark.parametrize(
    ("chunk", "wrong"),
    [
        (pb.Chunk(image=pb.ImageChunk(data=b"", format="png")), "kind image needs its expected_tokens"),
        (pb.Chunk(image=pb.ImageChunk(expected_tokens=2**30, format="png")), "expected_tokens"),
        (pb.Chunk(image=pb.ImageChunk(expected_tokens=2, format="gif")), "png or jpeg"),
        (pb.Chunk(dmel=pb.DmelChunk()), "kind dmel"),
    ],
)
def test_an_input_that_is_no_sound_image_is_refused_by_name(chunk: pb.Chunk, wrong: str) -> None:
    message = broken()
    message.data[0].model_input.append(chunk)
    with pytest.raises(InvalidInput, match=wrong):
        decode_forward_backward(message)


def test_images_lie_between_the_tokens_and_take_as_many_as_expected() -> None:
    image = tinker.types.ImageChunk(data=b"file", format="png", expected_tokens=3)
    text = tinker.EncodedTextChunk(tokens=[5, 6])
    shown = tinker.Datum(
        model_input=tinker.ModelInput(chunks=[text, image, text, image]),
        loss_fn_inputs={"target_tokens": tinker.TensorData.from_torch(torch.arange(10))},
    )
    (found,) = decode_forward_backward(parse_forward_backward(sdk_body(shown)).message).datums
    assert found.tokens.tolist() == [5, 6, 0, 0, 0, 5, 6, 0, 0, 0]
    assert found.images == (WireImage(2, 3, b"file", "png"), WireImage(7, 3, b"file", "png"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_never_raise_anything_but_invalid_input(body: bytes) -> None:
    try:
        decode_forward_backward(parse_forward_backward(body).message)
    except InvalidInput:
        pass


def test_provenance_spans_arrive_as_they_were_attached() -> None:
    prompt = tinker.PromptProvenanceSpan(sequence_id="q", length=2)
    sampled = tinker.SampledProvenanceSpan(sequence_id="q", offset=4, length=1)
    plain = datum(torch.tensor([6, 7, 8]), torch.ones(3))
    body = sdk_body(plain, plain.with_provenance([prompt, sampled], [sampled, prompt]))
    first, second = decode_forward_backward(parse_forward_backward(body).message).datums
    assert first.model_input_spans == first.loss_fn_input_spans == ()
    assert second.model_input_spans == (WireSpan("prompt", "q", 0, 2), WireSpan("sampled", "q", 4, 1))
    assert second.loss_fn_input_spans == second.model_input_spans[::-1]


def test_a_span_of_no_kind_is_decoded_for_the_losses_that_ignore_it() -> None:
    message = pb.ForwardBackwardRequest(data=[pb.Datum(model_input_spans=[pb.ProvenanceSpan()])])
    assert decode_forward_backward(message).datums[0].model_input_spans == (WireSpan(None),)
