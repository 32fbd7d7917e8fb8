"""What the OpenAPI descriptions say beyond what FastAPI finds out by itself."""

from typing import Any

from pydantic import BaseModel

from tinsmith_common.wire.base import WireModel


class Problem(WireModel):
    """Why a request was refused, and what to change."""

    detail: str


PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Problem, "description": "Refused"}}
"""For the `responses` of an app: FastAPI's own description of a 422 is not what we answer."""

POLL_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result, its size, its error, or `try_again`",
        "content": {"application/json": {"schema": {"type": "object"}}, "application/x-protobuf": {}},
    }
}

PROTOBUF_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """For the `openapi_extra` of a route that reads its body itself: the body's schema, without references."""
    schema = model.model_json_schema()
    schema = _inline(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    match node:
        case {"$ref": str(name)}:
            return _inline(definitions[name.rsplit("/", 1)[-1]], definitions)
        case dict():
            # A discriminator repeats what the variants' own `const` says, by references that are gone here.
            return {key: _inline(value, definitions) for key, value in node.items() if key != "discriminator"}
        case list():
            return [_inline(item, definitions) for item in node]
        case _:
            return node
