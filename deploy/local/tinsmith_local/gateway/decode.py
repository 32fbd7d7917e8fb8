"""Decoding of manifest mappings into frozen dataclasses that refuses what it does not know.

A field that Kubernetes would act on and the local gateway would not must never pass unnoticed: the local stack is
only worth testing if it routes as the cluster does. So every key needs a dataclass field, and every value its type.
"""

import dataclasses
import re
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NewType, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tinsmith_local.errors import StackError

Seconds = NewType("Seconds", float)
"""A length of time, written in manifests as a Gateway API duration such as ``1m30s``."""

T = TypeVar("T")

_DURATION = re.compile(r"(\d{1,5})(ms|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class ManifestError(StackError):
    """A manifest says something that the local gateway does not understand or cannot honour."""


def decode(kind: type[T], value: object, where: str) -> T:
    """Turn a parsed YAML mapping into `kind`, a frozen dataclass.

    Keys are the camelCase form of the field names (a trailing underscore is dropped). `where` names the place for
    messages. Raises ManifestError for an unknown or missing key and for a value of another type.
    """
    given = _mapping(value, where)
    fields = {_key(field.name): field for field in dataclasses.fields(cast(Any, kind))}
    for key in given:
        if key not in fields:
            raise ManifestError(f"{where}.{key}: the local gateway does not understand this field")
    hints = _hints(kind)
    arguments: dict[str, object] = {}
    for key, field in fields.items():
        if key in given:
            arguments[field.name] = _value(hints[field.name], given[key], f"{where}.{key}")
        elif field.default is dataclasses.MISSING:
            raise ManifestError(f"{where}.{key}: this field is required")
    return kind(**arguments)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _key(field_name: str) -> str:
    first, *rest = field_name.rstrip("_").split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


def _value(hint: Any, value: object, where: str) -> object:
    if hint is Seconds:
        return _seconds(value, where)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return _value(options[0], value, where)
    if origin is Literal:
        if value not in get_args(hint):
            allowed = ", ".join(str(option) for option in get_args(hint))
            raise ManifestError(f"{where}: {value!r} is not understood; the local gateway knows: {allowed}")
        return value
    if origin is tuple:
        return tuple(
            _value(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(_list(value, where))
        )
    if origin is Mapping:
        return {key: _scalar(str, item, f"{where}.{key}") for key, item in _mapping(value, where).items()}
    if dataclasses.is_dataclass(hint):
        return decode(cast(type[object], hint), value, where)
    return _scalar(cast(type, hint), value, where)


def _scalar(kind: type, value: object, where: str) -> object:
    if type(value) is not kind:
        raise ManifestError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _seconds(value: object, where: str) -> Seconds:
    if not isinstance(value, str) or not re.fullmatch(f"({_DURATION.pattern}){{1,4}}", value):
        raise ManifestError(f"{where}: expected a duration such as 60s or 1m30s, got {value!r}")
    return Seconds(sum(int(count) * _UNIT_S[unit] for count, unit in _DURATION.findall(value)))


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all(
        isinstance(key, str) for key in cast(dict[object, object], value)
    ):
        raise ManifestError(f"{where}: expected a mapping, got {value!r}")
    return cast(dict[str, object], value)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise ManifestError(f"{where}: expected a list, got {value!r}")
    return cast(list[object], value)
