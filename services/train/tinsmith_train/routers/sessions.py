"""Sessions."""

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from tinsmith_common.wire.runs import AccessScope
from tinsmith_common.wire.search import AssignProjectRequest, SearchSessionsRequest, SearchSessionsResponse
from tinsmith_common.wire.sessions import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishSessionRequest,
    GetSessionResponse,
    ListSessionsResponse,
    SessionHeartbeatRequest,
    SessionHeartbeatResponse,
    TraceExportResponse,
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
    caller: Caller,
    services: ServicesDep,
    limit: Limit = 20,
    offset: Offset = 0,
    access_scope: AccessScope = "owned",
) -> ListSessionsResponse:
    """Ids, newest first. Sessions are never shared, so both scopes are the same."""
    page = await services.sessions.list_ids(caller.owner, offset, limit)
    return ListSessionsResponse(sessions=[session.id for session in page.items])


@router.get("/sessions/{session_id}", summary="One session")
async def get_session(
    session_id: str, caller: Caller, services: ServicesDep, access_scope: AccessScope = "owned"
) -> GetSessionResponse:
    """Its runs and samplers. Sessions are never shared, so both scopes are the same."""
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


@router.get(
    "/sessions/{session_id}/trace_export", response_model_exclude_none=True, summary="Export the timeline"
)
async def trace_export(
    session_id: str, request: Request, caller: Caller, services: ServicesDep
) -> TraceExportResponse:
    """Asked again until it is `ready`; the URL needs no credential and expires."""
    session = await services.sessions.require(caller.owner, session_id)
    return await services.traces.export(session, str(request.base_url))


@router.get("/trace_exports/{session_id}", summary="A session's timeline")
async def trace_file(session_id: str, expires: int, signature: str, services: ServicesDep) -> FileResponse:
    """In the Trace Event Format. The signature in the URL is the credential."""
    path = await services.traces.file(session_id, expires, signature)
    return FileResponse(path, media_type="application/json", filename=f"{session_id}.pftrace")
