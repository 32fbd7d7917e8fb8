"""Small inputs for the end-to-end tests."""

from collections.abc import Sequence

import numpy as np
import tinker


def supervised(tokens: Sequence[int], weight: float = 1.0) -> tinker.Datum:
    """Predict every token from those before it, each with the same weight."""
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(tokens[:-1])),
        loss_fn_inputs={
            "target_tokens": list(tokens[1:]),
            "weights": [weight] * (len(tokens) - 1),
        },
    )


def some_tokens(seed: int, length: int = 24) -> list[int]:
    """Reproducible ids, all of them ordinary tokens."""
    return np.random.default_rng(seed).integers(100, 900, length).tolist()


def logprobs_of(output: tinker.ForwardBackwardOutput) -> list[np.ndarray]:
    """The log-probabilities of each datum."""
    return [item["logprobs"].to_numpy() for item in output.loss_fn_outputs]
