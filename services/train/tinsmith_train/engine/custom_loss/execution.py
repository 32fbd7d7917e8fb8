"""Running a graph: on shapes alone first, so that what would not fit never exists, then on the values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.custom_loss.graph import Call, Dtype, LossGraph, Placement, Ref, Slice
from tinsmith_train.engine.custom_loss.operations import DTYPES, FUNCTIONS, METHODS, NotAllowed

MAX_ELEMENTS = 2**22
"""Elements of one tensor: 16 MiB of float32."""
MAX_TOTAL = 2**26
"""Elements of all tensors of one datum, which the backward pass may keep: 256 MiB of float32."""
MAX_SECONDS = 20.0
"""Of one submission. One operation on tensors this size takes a fraction of a second, so it is checked between."""

Shape = tuple[tuple[int, ...], ...]


@dataclass
class TimeBudget:
    """Seconds that a submission has left for its loss."""

    left: float = MAX_SECONDS

    def spend(self, since: float) -> float:
        """Take off what has passed since `since`, and answer the time. Raises `InvalidInput` when it is over."""
        now = time.monotonic()
        self.left -= now - since
        if self.left < 0:
            raise InvalidInput(f"the custom loss took over {MAX_SECONDS:.0f} s for one submission")
        return now


@dataclass
class GraphRunner:
    """Evaluates one graph for many datums. Shapes that passed are remembered."""

    graph: LossGraph
    budget: TimeBudget = field(default_factory=TimeBudget)
    _passed: set[Shape] = field(default_factory=set[Shape])

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, a float scalar, and the metrics, one-element tensors. Raises `InvalidInput`."""
        shapes = tuple(tuple(x.shape) for x in inputs)
        if shapes not in self._passed:
            with torch.no_grad(), torch.device("meta"):
                self._run([torch.empty_like(x, device="meta") for x in inputs])
            self._passed.add(shapes)
        with torch.device(inputs[0].device):
            return self._run(inputs)

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        values: dict[str, Any] = dict(zip(self.graph.placeholders, inputs, strict=True))
        total, clock = 0, time.monotonic()
        for call in self.graph.calls:
            result = self._call(call, values, inputs[0].device)
            values[call.name] = result
            total += measure(call.name, result)
            if total > MAX_TOTAL:
                raise InvalidInput(f"the custom loss makes over {MAX_TOTAL} elements for one datum")
            clock = self.budget.spend(clock)
        loss = values[self.graph.loss]
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point()):
            raise InvalidInput(f"the loss must be a scalar tensor, and is {_describe(loss)}")
        return loss, [_as_metric(key, values[name]) for key, name in self.graph.metrics]

    def _call(self, call: Call, values: dict[str, Any], device: torch.device) -> Any:
        args = [_value(x, values, device) for x in call.args]
        kwargs = {key: _value(x, values, device) for key, x in call.kwargs if not isinstance(x, Placement)}
        if call.kind == "method" and not (args and isinstance(args[0], Tensor)):
            raise InvalidInput(f"node {call.name!r}: {call.target} is a method of tensors")
        _check_broadcast(call.name, (*args, *kwargs.values()))
        operation = METHODS[call.target] if call.kind == "method" else FUNCTIONS[call.target]
        try:
            return operation(*args, **kwargs)
        except NotAllowed as error:
            raise InvalidInput(f"node {call.name!r}: {error}") from None
        except Exception as error:
            # Whatever torch objects to is the graph's fault: its operands were checked, and it runs alone.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise InvalidInput(f"node {call.name!r} ({call.target}) failed: {reason}") from error


def _value(argument: Any, values: dict[str, Any], device: torch.device) -> Any:
    match argument:
        case Ref(name):
            return values[name]
        case Slice(parts):
            return slice(*(_value(part, values, device) for part in parts))
        case Dtype(name):
            return DTYPES[name]
        case Placement():
            return device
        case tuple():
            return tuple(_value(x, values, device) for x in cast(tuple[Any, ...], argument))
        case list():
            return [_value(x, values, device) for x in cast(list[Any], argument)]
        case _:
            return argument


def _check_broadcast(node: str, args: Sequence[Any]) -> None:
    """Some functions broadcast their operands and then reduce: the result does not show how large it was."""
    shapes = [x.shape for x in args if isinstance(x, Tensor)]
    if len(shapes) < 2:
        return
    try:
        size = torch.broadcast_shapes(*shapes).numel()
    except RuntimeError:
        return
    if size > MAX_ELEMENTS:
        raise InvalidInput(f"node {node!r}: its operands broadcast to {size} elements, over {MAX_ELEMENTS}")


def measure(node: str, result: Any) -> int:
    """Elements of a result of a node. Raises `InvalidInput` on what is too large or of no use."""
    match result:
        case Tensor():
            if result.numel() > MAX_ELEMENTS or result.is_complex():
                raise InvalidInput(
                    f"node {node!r} makes {_describe(result)}: over {MAX_ELEMENTS} elements, or complex"
                )
            return result.numel()
        case None | bool() | float() | torch.dtype() | torch.device():
            return 0
        case int() if abs(result) < 2**63:
            return 0
        case tuple() if len(cast(tuple[Any, ...], result)) <= 64:
            return sum(measure(node, x) for x in cast(tuple[Any, ...], result))
        case _:
            raise InvalidInput(f"node {node!r} makes {_describe(result)}, which a loss cannot use")


def _as_metric(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(()).to(torch.float64)
    if isinstance(value, (int, float)):
        return torch.tensor(float(value), dtype=torch.float64)
    raise InvalidInput(f"the metric {key} must have one element, and is {_describe(value)}")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    return f"of type {type(value).__name__}"
