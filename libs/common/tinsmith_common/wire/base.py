"""What all wire models share."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict


def _to_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must lie in the years 1 to 9999 of UTC") from error


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_to_utc)]
"""A moment that a client names, in UTC from here on."""


_T = TypeVar("_T")
_MAX_DEPTH = 32


def _to_storable(value: _T) -> _T:
    _check_depth(value, _MAX_DEPTH)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError as error:
        raise ValueError("must be JSON of finite numbers and whole characters") from error
    if "\\u0000" in text:
        raise ValueError("must not contain the character U+0000")
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError(f"must not be nested more than {_MAX_DEPTH} deep")
    children: Any = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_depth(child, left - 1)


Metadata = Annotated[dict[str, Any], AfterValidator(_to_storable)]
"""What a client wants kept and given back. What a store could not hold would break every list it appears in."""
TextMetadata = Annotated[dict[str, str], AfterValidator(_to_storable)]


class WireModel(BaseModel):
    """A body on the wire. Unknown fields are ignored; `model_`-names are the protocol's own."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
