"""Audit log and usage."""

import asyncio
from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from tinsmith_common.wire.accounts import AuditEventType, AuditResponse, StorageResponse, UsageResponse
from tinsmith_common.wire.base import UtcDatetime
from tinsmith_train.routers.dependencies import Caller, ServicesDep

router = APIRouter(tags=["accounts"])

LAST_DAY = date.max - timedelta(days=1)
"""The audit of a day looks at the beginning of the next one too."""

Day = Annotated[date | None, Field(le=LAST_DAY)]


@router.get("/audit", response_model_exclude_none=True, summary="Audit log")
async def audit(
    caller: Caller, services: ServicesDep, event_type: AuditEventType = "all", day: Day = None
) -> AuditResponse:
    """Of one UTC day, by default today."""
    return await services.audit.of_day(caller.owner, event_type, day)


@router.get("/billing/usage/events", response_model=UsageResponse, summary="Usage by hour")
async def usage_events(
    starting_on: UtcDatetime, ending_before: UtcDatetime, caller: Caller, services: ServicesDep
) -> Response:
    """Tokens, checkpoints and storage, of whole UTC hours."""
    usage = await services.usage.events(caller.owner, starting_on, ending_before)
    text = await asyncio.to_thread(usage.model_dump_json, exclude_none=True)
    return Response(text, media_type="application/json")


@router.get("/billing/usage/checkpoints/current", response_model_exclude_none=True, summary="Storage now")
async def checkpoint_storage(
    caller: Caller, services: ServicesDep, project_id: str | None = None
) -> StorageResponse:
    """By project."""
    return await services.usage.storage(caller.owner, project_id)
