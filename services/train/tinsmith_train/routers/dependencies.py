"""What handlers ask for in their signatures."""

import asyncio
import json
import re
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Query, Request
from pydantic import ValidationError

from tinsmith_common.errors import InvalidInput
from tinsmith_common.http import Caller
from tinsmith_common.http.errors import describe_validation
from tinsmith_common.wire.training import OperationAddress
from tinsmith_train.config import TrainingConfig
from tinsmith_train.services.compression import decompress
from tinsmith_train.services.container import Services


async def get_services(request: Request) -> Services:
    """The app's services."""
    return cast(Services, request.app.state.services)


async def get_config(request: Request) -> TrainingConfig:
    """The app's settings."""
    return cast(TrainingConfig, request.app.state.settings)


async def get_body(request: Request, content_encoding: Annotated[str, Header()] = "identity") -> bytes:
    """The body as it was before the client compressed it. Raises `InvalidInput` and `PayloadTooLarge`."""
    body = await request.body()
    if content_encoding.lower() == "identity":
        return body
    if content_encoding.lower() != "zstd":
        raise InvalidInput(f"Content-Encoding {content_encoding} is not understood; send zstd, or plain")
    return await asyncio.to_thread(decompress, body, (await get_config(request)).max_body_bytes)


def get_kind(content_type: Annotated[str, Header()] = "") -> str:
    """The media type of the body, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def get_lists_exports(x_stainless_package_version: Annotated[str, Header()] = "") -> bool:
    """Whether the client can read exports in a listing: SDKs before 0.28 refuse the whole answer."""
    numbers = re.match(r"(\d+)\.(\d+)", x_stainless_package_version)
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= (0, 28)


def get_address(body: Annotated[bytes, Depends(get_body)]) -> OperationAddress:
    """Model and `seq_id` of an ordered operation. What else is wrong with the body fails its promise."""
    try:
        values: Any = json.loads(body)
        return OperationAddress.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(describe_validation(error)) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error


ConfigDep = Annotated[TrainingConfig, Depends(get_config)]
ServicesDep = Annotated[Services, Depends(get_services)]
Body = Annotated[bytes, Depends(get_body)]
ListsExports = Annotated[bool, Depends(get_lists_exports)]
BodyKind = Annotated[str, Depends(get_kind)]
Address = Annotated[OperationAddress, Depends(get_address)]
Offset = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=1000)]

__all__ = [
    "Address",
    "Body",
    "BodyKind",
    "Caller",
    "ConfigDep",
    "Limit",
    "ListsExports",
    "Offset",
    "ServicesDep",
]
