"""An uploaded graph as data: read and checked without torch, so that the service can refuse it at once."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.custom_loss.names import ATTRIBUTES, CALLABLE_METHODS, DTYPES, FUNCTIONS

MAX_INPUTS = 16
MAX_NODES = 512
MAX_METRICS = 32
MAX_ARGUMENTS = 64
"""Values in one node's arguments, nested ones counted."""
MAX_DEPTH = 6
MAX_TEXT = 64

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_INPUT = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


@dataclass(frozen=True)
class Ref:
    """The result of an earlier node."""

    name: str


@dataclass(frozen=True)
class Slice:
    """`start:stop:step`, each an argument."""

    parts: tuple[Any, Any, Any]


@dataclass(frozen=True)
class Dtype:
    """A dtype of the allow-list."""

    name: str


@dataclass(frozen=True)
class Placement:
    """A device, layout or memory format. The server decides all three, so only its place is kept."""


@dataclass(frozen=True)
class Call:
    """One node that computes: `target` is on the allow-list of its kind."""

    name: str
    kind: Literal["function", "method"]
    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class LossInput:
    """`logprobs` or a key of `loss_fn_inputs`; `rank` is 0, 1 or 2."""

    name: str
    rank: int


@dataclass(frozen=True)
class LossGraph:
    """A loss of one datum: inputs in order, calls in order, the node of the loss and those of the metrics."""

    inputs: tuple[LossInput, ...]
    placeholders: tuple[str, ...]
    calls: tuple[Call, ...]
    loss: str
    metrics: tuple[tuple[str, str], ...]


def read_graph(inputs: Sequence[tuple[str, int]], nodes: Sequence[Mapping[str, Any]]) -> LossGraph:
    """Read nodes with `op`, `name`, `target`, `args` and `kwargs`. Raises `InvalidInput` that names the node."""
    declared = _read_inputs(inputs)
    if not 2 <= len(nodes) <= MAX_NODES:
        raise InvalidInput(f"the graph has {len(nodes)} nodes: it must have 2 to {MAX_NODES}")
    known: set[str] = set()
    placeholders: list[str] = []
    calls: list[Call] = []
    for node in nodes[:-1]:
        name, op, target = (str(node[key]) for key in ("name", "op", "target"))
        if not _NAME.fullmatch(name) or name in known:
            raise InvalidInput(
                f"node {name[:MAX_TEXT]!r}: names must be identifiers and differ from each other"
            )
        if op == "placeholder":
            placeholders.append(_read_placeholder(name, target, declared, len(placeholders), bool(calls)))
        else:
            calls.append(_read_call(name, op, target, node, known))
        known.add(name)
    if len(placeholders) != len(declared):
        raise InvalidInput(f"the graph has {len(placeholders)} placeholders for {len(declared)} inputs")
    loss, metrics = _read_output(nodes[-1], known)
    return LossGraph(declared, tuple(placeholders), tuple(calls), loss, metrics)


def _read_inputs(inputs: Sequence[tuple[str, int]]) -> tuple[LossInput, ...]:
    names = [name for name, _ in inputs]
    if not 1 <= len(inputs) <= MAX_INPUTS or names[0] != "logprobs" or len(set(names)) != len(names):
        raise InvalidInput(f"a custom loss takes logprobs first and at most {MAX_INPUTS} different inputs")
    for name, rank in inputs:
        if not _INPUT.fullmatch(name) or rank not in (0, 1, 2):
            raise InvalidInput(
                f"input {name[:MAX_TEXT]!r} of rank {rank}: use a lower-case name and a rank of 0 to 2"
            )
    if inputs[0][1] == 0:
        raise InvalidInput("logprobs has rank 1 ([N]) or 2 ([N, K])")
    return tuple(LossInput(name, rank) for name, rank in inputs)


def _read_placeholder(name: str, target: str, declared: tuple[LossInput, ...], index: int, late: bool) -> str:
    if late or index >= len(declared) or target != declared[index].name:
        raise InvalidInput(f"node {name!r}: placeholders come first, named as the inputs and in their order")
    return name


def _read_call(name: str, op: str, target: str, node: Mapping[str, Any], known: set[str]) -> Call:
    if op == "call_function" and target in FUNCTIONS:
        kind = "function"
    elif op == "call_method" and target in CALLABLE_METHODS:
        kind = "method"
    else:
        raise InvalidInput(
            f"node {name!r}: {op[:MAX_TEXT]} {target[:MAX_TEXT]!r} is not allowed in a loss on this server: see "
            "docs/losses.md, or run the loss in the client by passing a function"
        )
    reader = _Arguments(name, known)
    args = tuple(reader.read(value, 0) for value in cast(list[Any], node["args"]))
    kwargs = tuple(
        (key, reader.read(value, 0)) for key, value in cast(dict[str, Any], node["kwargs"]).items()
    )
    if any(key == "out" or (key == "inplace" and value is not False) for key, value in kwargs):
        raise InvalidInput(f"node {name!r}: nothing may be written in place")
    if target == "getattr" and (len(args) != 2 or kwargs or args[1] not in ATTRIBUTES):
        raise InvalidInput(f"node {name!r}: only the attributes {', '.join(sorted(ATTRIBUTES))} can be read")
    return Call(name, kind, target, args, kwargs)


def _read_output(node: Mapping[str, Any], known: set[str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    problem = InvalidInput(
        "the last node must be the output: a tuple of the loss and of metrics named custom/<name>:sum or :mean, "
        "each a node"
    )
    args = cast(list[Any], node["args"])
    if node["op"] != "output" or len(args) != 1:
        raise problem
    value = _Arguments("output", known, MAX_METRICS * 2).read(args[0], 0, dicts=True)
    if not isinstance(value, (tuple, list)):
        raise problem
    match cast(Sequence[Any], value):
        case [Ref(loss), dict() as named]:
            metrics = cast(dict[str, Any], named)
        case _:
            raise problem
    if not all(_METRIC.fullmatch(key) and isinstance(ref, Ref) for key, ref in metrics.items()):
        raise problem
    return loss, tuple((key, ref.name) for key, ref in metrics.items())


class _Arguments:
    """Reads encoded arguments of one node."""

    def __init__(self, node: str, known: set[str], limit: int = MAX_ARGUMENTS) -> None:
        self._node = node
        self._known = known
        self._left = limit

    def read(self, value: Any, depth: int, *, dicts: bool = False) -> Any:
        """Decode one value."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_ARGUMENTS} arguments, or nested over {MAX_DEPTH} deep")
        match value:
            case None | bool():
                return value
            case int() | float():
                return self._number(value)
            case str():
                if len(value) > MAX_TEXT:
                    raise self._error(f"a text over {MAX_TEXT} characters")
                return value
            case list():
                return [self.read(item, depth + 1, dicts=dicts) for item in cast(list[Any], value)]
            case dict() if len(cast(dict[Any, Any], value)) == 1:
                ((key, content),) = cast(dict[str, Any], value).items()
                return self._tagged(key, content, depth + 1, dicts)
            case _:
                raise self._error("an argument that is no value and no object of one key")

    def _number(self, value: float) -> float:
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self._error("an integer that does not fit 64 bits")
        if not math.isfinite(value):
            raise self._error("a number that is not finite; write it as {'float': ...}")
        return value

    def _tagged(self, key: str, content: Any, depth: int, dicts: bool) -> Any:
        match key, content:
            case "ref", str() if content in self._known:
                return Ref(content)
            case "tuple", list():
                return tuple(self.read(item, depth, dicts=dicts) for item in cast(list[Any], content))
            case "slice", [start, stop, step]:
                return Slice((self.read(start, depth), self.read(stop, depth), self.read(step, depth)))
            case "ellipsis", True:
                return Ellipsis
            case "float", "inf" | "-inf" | "nan":
                return _FLOATS[content]
            case "dtype", str() if content in DTYPES:
                return Dtype(content)
            case (("device" | "layout" | "memory_format"), str()):
                return Placement()
            case "dict", dict() if dicts:
                items = cast(dict[str, Any], content).items()
                return {str(name): self.read(item, depth) for name, item in items}
            case _:
                raise self._error(f"the argument {str({key: content})[:MAX_TEXT]} is unknown or out of place")

    def _error(self, problem: str) -> InvalidInput:
        return InvalidInput(f"node {self._node!r}: {problem}")
