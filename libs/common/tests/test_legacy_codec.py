"""JSON bodies of the older surface against the protobuf that today's SDK sends and reads."""

import json
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from pydantic import ValidationError
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput as SdkInput
from tinker.types.forward_backward_request import ForwardBackwardRequest as SdkRequest

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import (
    decode_forward_backward,
    encode_forward_backward_output,
    pack_float32,
    pack_int32,
    parse_forward_backward,
)
from tinsmith_common.wire.legacy import ForwardBackwardInput
from tinsmith_common.wire.legacy_codec import forward_backward_json, forward_backward_message, sample_json


def as_json(datum: tinker.Datum, loss_fn: str, config: Any) -> ForwardBackwardInput:
    """The body that SDK 0.24 sends for a datum: values flattened, fields that are None left out."""
    inputs: dict[str, Any] = {}
    for name, tensor in datum.loss_fn_inputs.items():
        inputs[name] = {"data": tensor.data, "dtype": tensor.dtype, "shape": tensor.shape}
        if tensor.sparse_crow_indices is not None:
            inputs[name]["sparse_crow_indices"] = tensor.sparse_crow_indices
            inputs[name]["sparse_col_indices"] = tensor.sparse_col_indices
    chunks = [{"type": "encoded_text", "tokens": datum.model_input.to_ints()}]
    body = {
        "data": [{"model_input": {"chunks": chunks}, "loss_fn_inputs": inputs}],
        "loss_fn": loss_fn,
        "loss_fn_config": config,
        "a field of the future": 1,
    }
    return ForwardBackwardInput.model_validate_json(json.dumps(body))


def tensor_input(**inputs: Any) -> ForwardBackwardInput:
    datum = {"model_input": {"chunks": [{"tokens": [1, 2]}]}, "loss_fn_inputs": inputs}
    return ForwardBackwardInput.model_validate({"data": [datum], "loss_fn": "cross_entropy"})


@pytest.mark.parametrize("columns", [None, 40], ids=["dense", "sparse"])
def test_a_json_request_says_what_the_protobuf_one_says(columns: int | None) -> None:
    targets = torch.tensor([6, 7, 8]) if columns is None else torch.zeros(3, columns, dtype=torch.int64)
    weights = torch.tensor([0.1, 0.5, -2.0]) if columns is None else torch.zeros(3, columns)
    if columns is not None:
        targets[0, 1], weights[0, 1], weights[1, 0] = 9, 0.5, -1.5
    tensors: Any = {"target_tokens": targets, "weights": weights}
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([5, 6, 7]), loss_fn_inputs=tensors)
    assert (datum.loss_fn_inputs["weights"].sparse_crow_indices is None) == (columns is None)
    config = {"beta": 0.5}
    sdk = SdkRequest(SdkInput([datum], "cross_entropy", config), "s:train:0", 3)
    sent = parse_forward_backward(forward_backward_request_to_proto(sdk).SerializeToString())

    ours = decode_forward_backward(
        forward_backward_message(as_json(datum, "cross_entropy", config), forward_only=False)
    )
    theirs = decode_forward_backward(sent.message)

    assert (ours.loss_fn, ours.loss_fn_config) == (theirs.loss_fn, theirs.loss_fn_config)
    np.testing.assert_array_equal(ours.datums[0].tokens, theirs.datums[0].tokens)
    for name, expected in theirs.datums[0].loss_fn_inputs.items():
        found = ours.datums[0].loss_fn_inputs[name]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_text_chunk_may_leave_out_its_type_and_a_tensor_its_shape() -> None:
    message = forward_backward_message(
        tensor_input(target_tokens={"data": [2, 3], "dtype": "int64"}), forward_only=True
    )
    datum = decode_forward_backward(message).datums[0]
    assert (datum.tokens.tolist(), datum.loss_fn_inputs["target_tokens"].tolist()) == ([1, 2], [2, 3])
    assert message.forward_only


@pytest.mark.parametrize("value", [1.5, 2**63, -(2**63) - 1])
def test_a_value_that_is_no_int64_is_refused_by_name(value: float) -> None:
    content = tensor_input(target_tokens={"data": [1, value], "dtype": "int64"})
    with pytest.raises(InvalidInput, match="datum 0: target_tokens"):
        forward_backward_message(content, forward_only=False)


def test_a_token_that_is_no_int32_is_refused_by_name() -> None:
    datum = {"model_input": {"chunks": [{"tokens": [2**31]}]}, "loss_fn_inputs": {}}
    content = ForwardBackwardInput.model_validate({"data": [datum], "loss_fn": "cross_entropy"})
    with pytest.raises(InvalidInput, match="datum 0"):
        forward_backward_message(content, forward_only=False)


def test_a_tensor_of_text_is_refused_by_its_place() -> None:
    with pytest.raises(ValidationError, match=r"data.0.loss_fn_inputs.weights"):
        tensor_input(weights={"data": ["x"], "dtype": "float32"})


def test_a_json_result_has_the_values_shapes_and_metrics_of_the_protobuf_one() -> None:
    logprobs = [
        np.array([-1.5, -0.1], np.float32),
        np.array([[-2.0, -3.0]], np.float32),
        np.array([], np.float32),
    ]
    terms = [2 * array for array in logprobs]
    payload = encode_forward_backward_output(logprobs, {"loss:sum": 3.5}, terms)
    result = json.loads(forward_backward_json(payload))
    assert (result["loss_fn_output_type"], result["metrics"]) == ("ArrayRecord", {"loss:sum": 3.5})
    for output, expected, term in zip(result["loss_fn_outputs"], logprobs, terms, strict=True):
        for name, values in (("logprobs", expected), ("elementwise_loss", term)):
            found = output[name]
            assert (found["dtype"], found["shape"]) == ("float32", list(values.shape))
            np.testing.assert_array_equal(np.array(found["data"], np.float32), values.ravel())


def table(ids: list[list[int]], logprobs: list[list[float]]) -> pb.TopkLogprobs:
    return pb.TopkLogprobs(
        token_ids=pack_int32([token for row in ids for token in row]),
        logprobs=pack_float32([value for row in logprobs for value in row]),
        k=len(ids[0]),
        length=len(ids),
    )


def test_a_json_sample_has_none_where_there_is_no_logprob() -> None:
    message = pb.SampleResponse(
        prompt_cache_hit_tokens=1,
        prompt_logprobs=pack_float32([float("nan"), -0.5, -0.25]),
        topk_prompt_logprobs=table(
            [[0, 0], [7, 8], [9, 0]], [[-99999.0, -99999.0], [-0.5, -1.0], [-0.25, -99999.0]]
        ),
    )
    message.sequences.add(
        stop_reason=pb.STOP_REASON_LENGTH, tokens=pack_int32([4, 5]), logprobs=pack_float32([-1.0, -2.0])
    )
    message.sequences.add(stop_reason=pb.STOP_REASON_STOP, topk_sampled_logprobs=table([[3]], [[-0.5]]))
    assert json.loads(sample_json(message.SerializeToString())) == {
        "type": "sample",
        "sequences": [
            {"stop_reason": "length", "tokens": [4, 5], "logprobs": [-1.0, -2.0]},
            {"stop_reason": "stop", "tokens": [], "logprobs": [], "topk_logprobs": [[[3, -0.5]]]},
        ],
        "prompt_logprobs": [None, -0.5, -0.25],
        "topk_prompt_logprobs": [None, [[7, -0.5], [8, -1.0]], [[9, -0.25]]],
        "prompt_cache_hit_tokens": 1,
    }


def test_scores_of_given_tokens_keep_their_shape_also_sparse() -> None:
    dense = pb.Tensor(dense=pack_float32([-1.0, -2.0]), dtype=pb.DTYPE_FLOAT32, shape=[2, 1])
    indices = np.array([0, 1, 1], "<i8"), np.array([3], "<i8")
    sparse = pb.Tensor(
        sparse_csr=pb.SparseCsr(
            values=pack_float32([-1.5]), crow_indices=indices[0].tobytes(), col_indices=indices[1].tobytes()
        ),
        dtype=pb.DTYPE_FLOAT32,
        shape=[2, 4],
    )
    found = [
        json.loads(sample_json(pb.SampleResponse(target_prompt_logprobs=tensor).SerializeToString()))
        for tensor in (dense, sparse)
    ]
    assert found[0]["target_prompt_logprobs"] == {"data": [-1.0, -2.0], "dtype": "float32", "shape": [2, 1]}
    assert found[1]["target_prompt_logprobs"] == {
        "data": [-1.5],
        "dtype": "float32",
        "shape": [2, 4],
        "sparse_crow_indices": [0, 1, 1],
        "sparse_col_indices": [3],
    }
