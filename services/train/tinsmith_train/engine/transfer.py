"""Arrays to the model's device and results back, without ever stopping the device to wait for the host."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array on the device, in order with what runs there; on a CPU it shares the array's memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class Download:
    """A tensor's values on their way to the host.

    The copy takes its turn behind what the device was given so far, and what is given to it later need not wait.
    """

    def __init__(self, tensor: Tensor) -> None:
        source = tensor.detach()
        self._ready = torch.cuda.Event() if source.is_cuda else None
        if self._ready is None:
            self._values = source
            return
        self._values = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._values.copy_(source, non_blocking=True)
        self._ready.record()

    def numpy(self) -> NDArray[Any]:
        """Wait for the values."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.numpy()
