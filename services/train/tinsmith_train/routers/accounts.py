"""Audit log and usage."""

from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter
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


@router.get("/billing/usage/events", summary="Usage by hour")
async def usage_events(
    starting_on: UtcDatetime, ending_before: UtcDatetime, caller: Caller, services: ServicesDep
) -> UsageResponse:
    """Checkpoints saved."""
    return await services.usage.events(caller.owner, starting_on, ending_before)


@router.get("/billing/usage/checkpoints/current", summary="Storage now")
async def checkpoint_storage(
    caller: Caller, services: ServicesDep, project_id: str | None = None
) -> StorageResponse:
    """By project."""
    return await services.usage.storage(caller.owner, project_id)
