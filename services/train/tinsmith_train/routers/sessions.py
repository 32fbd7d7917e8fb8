"""Sessions."""

from fastapi import APIRouter

from tinsmith_common.wire.search import AssignProjectRequest, SearchSessionsRequest, SearchSessionsResponse
from tinsmith_common.wire.sessions import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishSessionRequest,
    GetSessionResponse,
    ListSessionsResponse,
    SessionHeartbeatRequest,
    SessionHeartbeatResponse,
)
from tinsmith_train.routers.dependencies import Caller, Limit, Offset, ServicesDep

router = APIRouter(tags=["sessions"])


@router.post("/create_session", summary="Open a session")
async def create_session(
    body: CreateSessionRequest, caller: Caller, services: ServicesDep
) -> CreateSessionResponse:
    """Sessions own models and samplers."""
    return CreateSessionResponse(session_id=await services.sessions.create(caller.owner, body))


@router.post("/session_heartbeat", summary="The client lives")
async def session_heartbeat(
    body: SessionHeartbeatRequest, caller: Caller, services: ServicesDep
) -> SessionHeartbeatResponse:
    """Every 10 s from every holder."""
    await services.sessions.heartbeat(caller.owner, body.session_id)
    return SessionHeartbeatResponse()


@router.post("/sessions/{session_id}/finish", status_code=204, summary="End a session")
async def finish_session(
    session_id: str, body: FinishSessionRequest, caller: Caller, services: ServicesDep
) -> None:
    """Frees the session's models."""
    await services.sessions.finish(caller.owner, session_id, body)


@router.get("/sessions", summary="List sessions")
async def list_sessions(
    caller: Caller, services: ServicesDep, limit: Limit = 20, offset: Offset = 0
) -> ListSessionsResponse:
    """Ids, newest first."""
    page = await services.sessions.list_ids(caller.owner, offset, limit)
    return ListSessionsResponse(sessions=[session.id for session in page.items])


@router.get("/sessions/{session_id}", summary="One session")
async def get_session(session_id: str, caller: Caller, services: ServicesDep) -> GetSessionResponse:
    """Its runs and samplers."""
    return await services.sessions.describe(caller.owner, session_id)


@router.put("/sessions/{session_id}/project", status_code=204, summary="Move to a project")
async def assign_project(
    session_id: str, body: AssignProjectRequest, caller: Caller, services: ServicesDep
) -> None:
    """With all that was made in it."""
    await services.sessions.assign_project(caller.owner, session_id, body.project_id)


@router.post("/sessions/search", response_model_exclude_none=True, summary="Search sessions")
async def search_sessions(
    body: SearchSessionsRequest, caller: Caller, services: ServicesDep
) -> SearchSessionsResponse:
    """A page, newest first."""
    return await services.search.search(caller.owner, body)
