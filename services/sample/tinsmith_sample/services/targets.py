"""`target_prompt_logprobs`: from the wire's matrix to the engine's list of targets, and back into the same cells."""

import numpy as np
from numpy.typing import NDArray

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import pack_float32, pack_int64
from tinsmith_common.wire.sampling import TokenTensor
from tinsmith_sample.engines.base import FloatArray, PromptTargets

_NAME = "target_prompt_logprobs"
_NO_TOKEN = -1


def read_targets(tensor: TokenTensor, prompt_length: int) -> PromptTargets:
    """The cells that name a token, row by row. Raises `InvalidInput` saying what is wrong with the matrix."""
    if tensor.shape[0] != prompt_length - 1:
        raise InvalidInput(
            f"{_NAME} has {tensor.shape[0]} rows; a prompt of {prompt_length} tokens needs {prompt_length - 1}, "
            "one for each token after the first"
        )
    rows, ids = _rows(tensor), np.asarray(tensor.data, np.int64)
    named = ids != _NO_TOKEN
    if not named.any():
        raise InvalidInput(f"{_NAME} names no token: give at least one id that is not -1, or leave it out")
    return PromptTargets(positions=tuple((rows[named] + 1).tolist()), ids=tuple(ids[named].tolist()))


def write_scores(tensor: TokenTensor, scores: FloatArray) -> pb.Tensor:
    """The scores in the cells they were asked for in; 0 where no token was named."""
    values = np.zeros(len(tensor.data), np.float32)
    values[np.asarray(tensor.data, np.int64) != _NO_TOKEN] = scores
    answer = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=tensor.shape)
    if tensor.sparse_crow_indices is None or tensor.sparse_col_indices is None:
        answer.dense = pack_float32(values)
        return answer
    answer.sparse_csr.values = pack_float32(values)
    answer.sparse_csr.crow_indices = pack_int64(tensor.sparse_crow_indices)
    answer.sparse_csr.col_indices = pack_int64(tensor.sparse_col_indices)
    return answer


def _rows(tensor: TokenTensor) -> NDArray[np.int64]:
    """The row of each element of `data`."""
    rows, columns = tensor.shape
    crow, col = tensor.sparse_crow_indices, tensor.sparse_col_indices
    if crow is None and col is None:
        if len(tensor.data) != rows * columns:
            raise InvalidInput(
                f"{_NAME}: {len(tensor.data)} values do not fill the shape [{rows}, {columns}]"
            )
        return np.repeat(np.arange(rows), columns)
    if crow is None or col is None:
        raise InvalidInput(f"{_NAME}: sparse_crow_indices and sparse_col_indices come together")
    lengths = np.diff(np.asarray(crow, np.int64))
    fits = len(lengths) == rows and crow[0] == 0 and crow[-1] == len(tensor.data) == len(col)
    if not fits or bool((lengths < 0).any()):
        raise InvalidInput(f"{_NAME}: crow_indices, col_indices and data do not fit each other")
    if col and max(col) >= columns:
        raise InvalidInput(f"{_NAME}: col_indices must lie in [0, {columns})")
    return np.repeat(np.arange(rows), lengths)
