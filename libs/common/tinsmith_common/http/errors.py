"""The one place where exceptions become HTTP answers. Bodies are `{"detail": text}`."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from tinsmith_common.errors import InvalidToken, Leaving, TinsmithError, Unauthorized
from tinsmith_common.observability import get_logger


def install_error_handlers(app: FastAPI) -> None:
    """Register the handlers on `app`."""
    app.add_exception_handler(TinsmithError, _tinsmith_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(Exception, _unexpected)


def describe_validation(error: ValidationError | RequestValidationError) -> str:
    """All problems of a request in one line: where, and what."""
    problems: list[str] = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if part != "body")
        problems.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
    return "; ".join(problems)


async def _tinsmith_error(_request: Request, error: Any) -> JSONResponse:
    return JSONResponse(
        {"detail": error.message}, status_code=error.http_status, headers=error_headers(error)
    )


def error_headers(error: TinsmithError) -> dict[str, str] | None:
    """What an error's answer tells those on its way, besides its body."""
    if isinstance(error, InvalidToken):
        return {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Leaving):
        # Envoy takes the host out at once, without waiting for its next health check.
        return {"Retry-After": "1", "x-envoy-immediate-health-check-fail": "true"}
    return {"Retry-After": "1"} if error.http_status == 429 else None


async def _invalid_request(_request: Request, error: Any) -> JSONResponse:
    return JSONResponse({"detail": describe_validation(error)}, status_code=422)


async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    get_logger(__name__).error("unexpected error", exc_info=error)
    detail = f"internal error ({type(error).__name__}); the server's log has the details"
    return JSONResponse({"detail": detail}, status_code=500)
