"""The allow-list as callables. Every callable is reached from our own names, none from a graph's."""

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinsmith_train.engine.custom_loss import names

Operation = Callable[..., Any]


class NotAllowed(Exception):
    """An operation got arguments that it is not allowed with."""


_ATTRIBUTES: Mapping[str, Callable[[Any], Any]] = {
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "device": lambda x: x.device,
    "dtype": lambda x: x.dtype,
    "ndim": lambda x: x.ndim,
    "shape": lambda x: x.shape,
}


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, Tensor) and name in _ATTRIBUTES:
        return _ATTRIBUTES[name](value)
    if isinstance(value, tuple) and len(value) == 2 and name in ("values", "indices"):  # pyright: ignore[reportUnknownArgumentType]
        return value[("values", "indices").index(name)]  # pyright: ignore[reportUnknownVariableType]
    raise NotAllowed(f"there is no attribute '{name}' here")


def _item(value: Any, index: Any) -> Any:
    if not isinstance(value, (Tensor, tuple)):
        raise NotAllowed("only tensors and tuples can be indexed")
    return operator.getitem(value, index)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _arithmetic(function: Operation) -> Operation:
    def run(*args: Any) -> Any:
        if not all(isinstance(x, (Tensor, bool, int, float)) for x in args):
            raise NotAllowed("the operators take tensors and numbers")
        return function(*args)

    return run


def _power(base: Any, exponent: Any) -> Any:
    # Integers of Python have no size limit, and a tower of powers no end.
    if isinstance(base, int) and isinstance(exponent, int):
        base = float(base)
    return operator.pow(base, exponent)


def _plain_matmul(function: Operation) -> Operation:
    def run(*args: Any, **kwargs: Any) -> Any:
        # Broadcasting batches copies an operand, which neither operands nor result would show.
        if any(isinstance(x, Tensor) and x.ndim > 2 for x in (*args, *kwargs.values())):
            raise NotAllowed("matrix products take tensors of rank 1 or 2")
        return function(*args, **kwargs)

    return run


def _to(x: Tensor, other: Any = None, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    target = dtype if other is None else other.dtype if isinstance(other, Tensor) else other
    return x.to(target) if isinstance(target, torch.dtype) else x


def _cast(dtype: torch.dtype) -> Operation:
    def run(x: Tensor) -> Tensor:
        return x.to(dtype)

    return run


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype)


def _contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def _rank(x: Tensor) -> int:
    return x.ndim


def _size(x: Tensor, dim: int | None = None) -> int | torch.Size:
    return x.size() if dim is None else x.size(dim)


def _where(x: Tensor, condition: Tensor, other: Any) -> Tensor:
    return torch.where(condition, x, other)


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    return torch.relu(x)


def _gather_functions() -> dict[str, Operation]:
    table: dict[str, Operation] = {f"torch.{name}": getattr(torch, name) for name in names.TORCH}
    table |= {f"torch.nn.functional.{name}": getattr(F, name) for name in names.FUNCTIONAL}
    table |= {f"operator.{name}": _arithmetic(getattr(operator, name)) for name in names.OPERATOR}
    table |= {f"math.{name}": _arithmetic(getattr(math, name)) for name in names.MATH}
    for name in ("torch.matmul", "operator.matmul"):
        table[name] = _plain_matmul(table[name])
    table |= {"operator.pow": _arithmetic(_power), "operator.getitem": _item, "getattr": _attribute}
    return table | {"torch.nn.functional.relu": _relu}


def _gather_methods() -> dict[str, Operation]:
    table: dict[str, Operation] = {name: getattr(Tensor, name) for name in names.METHODS}
    table["matmul"] = _plain_matmul(table["matmul"])
    return table | {
        "bool": _cast(torch.bool),
        "contiguous": _contiguous,
        "dim": _rank,
        "double": _cast(torch.float64),
        "float": _cast(torch.float32),
        "int": _cast(torch.int32),
        "long": _cast(torch.int64),
        "ndimension": _rank,
        "numel": Tensor.numel,
        "size": _size,
        "to": _to,
        "type_as": _type_as,
        "where": _where,
    }


FUNCTIONS: Mapping[str, Operation] = MappingProxyType(_gather_functions())
METHODS: Mapping[str, Operation] = MappingProxyType(_gather_methods())
DTYPES: Mapping[str, torch.dtype] = MappingProxyType({name: getattr(torch, name) for name in names.DTYPES})
