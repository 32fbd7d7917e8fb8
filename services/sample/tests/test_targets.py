"""The matrix of targets, dense and sparse, to the engine's list and back."""

from typing import Any

import numpy as np
import pytest

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire.sampling import TokenTensor
from tinsmith_sample.services.targets import read_targets, write_scores

CSR = {
    "data": [7, 8, -1, 9],
    "shape": [3, 5],
    "sparse_crow_indices": [0, 2, 2, 4],
    "sparse_col_indices": [4, 1, 0, 2],
}


def _tensor(**fields: Any) -> TokenTensor:
    return TokenTensor.model_validate({"dtype": "int64"} | fields)


def test_dense_cells_are_targets_of_the_token_after_their_row() -> None:
    targets = read_targets(_tensor(data=[5, -1, -1, -1, 0, 6], shape=[3, 2]), prompt_length=4)
    assert (targets.positions, targets.ids) == ((1, 3, 3), (5, 0, 6))


def test_dense_scores_return_to_their_cells_and_the_others_are_zero() -> None:
    tensor = _tensor(data=[5, -1, -1, -1, 0, 6], shape=[3, 2])
    answer = write_scores(tensor, np.asarray([-1.0, -2.0, -3.0], np.float32))
    assert np.frombuffer(answer.dense, "<f4").tolist() == [-1.0, 0.0, 0.0, 0.0, -2.0, -3.0]
    assert list(answer.shape) == [3, 2]


def test_listed_cells_of_a_sparse_matrix_are_targets_of_their_row() -> None:
    targets = read_targets(_tensor(**CSR), prompt_length=4)
    assert (targets.positions, targets.ids) == ((1, 1, 3), (7, 8, 9))


def test_sparse_scores_come_back_in_the_same_layout() -> None:
    answer = write_scores(_tensor(**CSR), np.asarray([-1.0, -2.0, -3.0], np.float32))
    assert answer.WhichOneof("encoding") == "sparse_csr"
    assert np.frombuffer(answer.sparse_csr.values, "<f4").tolist() == [-1.0, -2.0, 0.0, -3.0]
    assert np.frombuffer(answer.sparse_csr.crow_indices, "<i8").tolist() == CSR["sparse_crow_indices"]
    assert np.frombuffer(answer.sparse_csr.col_indices, "<i8").tolist() == CSR["sparse_col_indices"]
    assert list(answer.shape) == [3, 5]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data": [1], "shape": [1, 1]}, "has 1 rows; a prompt of 4 tokens needs 3"),
        ({"data": [1, 2], "shape": [3, 1]}, "2 values do not fill"),
        ({"data": [-1, -1, -1], "shape": [3, 1]}, "names no token"),
        (CSR | {"data": [], "sparse_crow_indices": [0] * 4, "sparse_col_indices": []}, "names no token"),
        (CSR | {"sparse_col_indices": None}, "come together"),
        (CSR | {"sparse_crow_indices": [0, 2, 4]}, "do not fit"),
        (CSR | {"sparse_crow_indices": []}, "do not fit"),
        (CSR | {"sparse_crow_indices": [0, 3, 2, 4]}, "do not fit"),
        (CSR | {"sparse_crow_indices": [1, 2, 2, 4]}, "do not fit"),
        (CSR | {"sparse_col_indices": [0, 1, 2]}, "do not fit"),
        (CSR | {"sparse_col_indices": [0, 1, 2, 5]}, r"\[0, 5\)"),
        ({"data": [], "shape": [3, 2**60]}, "do not fill"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused_with_the_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_targets(_tensor(**fields), prompt_length=4)


def test_a_sparse_matrix_costs_what_it_lists_however_wide_it_says_it_is() -> None:
    targets = read_targets(_tensor(**CSR | {"shape": [3, 2**60]}), prompt_length=4)
    assert targets.ids == (7, 8, 9)
