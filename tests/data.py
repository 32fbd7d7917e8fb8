"""Small inputs for the end-to-end tests."""

from collections.abc import Sequence

import numpy as np
import tinker
from numpy.typing import NDArray


def supervised(tokens: Sequence[int], weight: float = 1.0) -> tinker.Datum:
    """Predict every token from those before it, each with the same weight."""
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(tokens[:-1])),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], np.int64)),
            "weights": tinker.TensorData.from_numpy(np.full(len(tokens) - 1, weight, np.float32)),
        },
    )


def some_tokens(seed: int, length: int = 24) -> list[int]:
    """Reproducible ids, all of them ordinary tokens."""
    return np.random.default_rng(seed).integers(100, 900, length).tolist()


def logprobs_of(output: tinker.ForwardBackwardOutput) -> list[NDArray[np.float32]]:
    """The log-probabilities of each datum."""
    return [item["logprobs"].to_numpy() for item in output.loss_fn_outputs]
