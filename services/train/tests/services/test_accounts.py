"""Session search, audit log and usage on real stores."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tinsmith_common.catalog import CheckpointRecord, SessionRecord
from tinsmith_common.errors import InvalidInput
from tinsmith_common.stores import Stores
from tinsmith_common.wire.search import SearchSessionsRequest
from tinsmith_train.config import TrainingConfig
from tinsmith_train.scheduler.metrics import SchedulerMetrics
from tinsmith_train.services.audit import AuditLog
from tinsmith_train.services.checkpoints import CheckpointService
from tinsmith_train.services.container import Services
from tinsmith_train.services.session_search import SessionSearch
from tinsmith_train.services.usage import Prices, UsageService

AT = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = SessionRecord("plain", "ann", AT, AT)


async def find(stores: Stores, caller: str = "ann", **body: Any) -> list[str]:
    answer = await SessionSearch(stores.catalog).search(caller, SearchSessionsRequest.model_validate(body))
    return [session.session_id for session in answer.sessions]


async def add(stores: Stores, *sessions: SessionRecord) -> None:
    for session in sessions:
        await stores.catalog.sessions.create(session)


async def test_pages_follow_each_other_also_where_times_are_equal(stores: Stores) -> None:
    await add(
        stores, *(replace(PLAIN, id=f"s{i}", created_at=AT + timedelta(hours=i // 2)) for i in range(5))
    )
    seen: list[str] = []
    cursor = None
    while True:
        body = SearchSessionsRequest(limit=2, cursor=cursor)
        answer = await SessionSearch(stores.catalog).search("ann", body)
        seen += [session.session_id for session in answer.sessions]
        cursor = answer.next_cursor
        if cursor is None:
            break
    assert seen == ["s4", "s3", "s2", "s1", "s0"]


async def test_statuses_are_told_apart(stores: Stores) -> None:
    finished = replace(PLAIN, closed_at=AT, finish_reason="success")
    await add(
        stores, PLAIN, replace(finished, id="good"), replace(finished, id="bad", finish_reason="errored")
    )
    await add(stores, replace(PLAIN, id="silent", closed_at=AT))
    assert await find(stores, statuses=[{"type": "active"}]) == ["plain"]
    assert await find(stores, statuses=[{"type": "client_finished"}]) == ["good", "bad"]
    errored = {"type": "client_finished", "reasons": ["errored"]}
    assert await find(stores, statuses=[errored]) == ["bad"]
    assert await find(stores, statuses=[errored, {"type": "active"}]) == ["plain", "bad"]
    assert await find(stores, statuses=[{"type": "failed"}, {"type": "cancelled"}]) == []
    assert "silent" in await find(stores)


async def test_names_projects_and_metadata_narrow_the_search(stores: Stores) -> None:
    await add(stores, PLAIN)
    await add(
        stores,
        replace(
            PLAIN,
            id="named",
            display_name="My 100% Run",
            project_id="p",
            user_metadata={"a.b": "1", "c": "2"},
        ),
    )
    assert await find(stores, display_name="run my") == ["named"]
    assert await find(stores, display_name="100%") == ["named"]
    assert await find(stores, display_name="1_0") == []
    assert await find(stores, display_name="run", session_id="plain") == ["plain", "named"]
    assert await find(stores, project_ids=["p"]) == ["named"]
    assert await find(stores, project_ids=["default"]) == ["plain"]
    assert await find(stores, user_metadata={"a.b": "1", "c": "2"}) == ["named"]
    assert await find(stores, user_metadata={"a.b": "1", "c": "3"}) == []
    assert await find(stores, user_metadata={'"': "1"}) == []


async def test_nobody_finds_the_sessions_of_others(stores: Stores) -> None:
    await add(stores, PLAIN)
    assert await find(stores, "bob") == []
    assert await find(stores, "bob", owner={"type": "accessible"}) == []
    assert await find(stores, "bob", owner={"type": "user", "owner_urns": ["ann"]}) == []
    assert await find(stores, "ann", owner={"type": "user", "owner_urns": ["ann"]}) == ["plain"]


async def test_storage_counts_live_checkpoints_by_session_and_project(
    stores: Stores, saved: CheckpointRecord, checkpoints: CheckpointService
) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    await stores.catalog.checkpoints.create(replace(saved, path=saved.path + "2", name="a2", expires_at=past))
    answer = await SessionSearch(stores.catalog).search("ann", SearchSessionsRequest())
    (session,) = answer.sessions
    assert (session.checkpoints_count, session.checkpoint_storage_bytes) == (1, 3)
    usage = UsageService(stores.catalog, Prices())
    (item,) = (await usage.storage("ann", None)).data
    assert (item.project_id, item.checkpoint_count, item.size_bytes) == ("apples", 1, 3)
    assert (await usage.storage("ann", "pears")).data == []
    assert (await usage.storage("bob", None)).data == []
    await checkpoints.delete(saved)
    assert (await usage.storage("ann", None)).data == []


async def test_the_audit_log_tells_what_happened_to_a_checkpoint(
    stores: Stores, saved: CheckpointRecord, checkpoints: CheckpointService
) -> None:
    await checkpoints.set_public(saved, True)
    await checkpoints.set_ttl(saved, 3600)
    await checkpoints.delete(saved)
    log = AuditLog(stores.catalog)
    entries = (await log.of_day("ann", "checkpoints", None)).entries
    assert [entry.event for entry in entries] == [
        "checkpoint_publish",
        "checkpoint_ttl_set",
        "checkpoint_delete",
    ]
    assert {entry.tinker_path for entry in entries} == {saved.path}
    assert (await log.of_day("ann", "projects", None)).entries == []
    assert (await log.of_day("bob", "all", None)).entries == []


async def test_moving_a_session_is_noted_with_where_it_was(tmp_path: Path, stores: Stores) -> None:
    services = Services.build(
        TrainingConfig(metadata_dir=tmp_path), stores, SchedulerMetrics(CollectorRegistry())
    )
    await add(stores, replace(PLAIN, project_id="apples"))
    await services.sessions.assign_project("ann", "plain", "pears")
    (entry,) = (await services.audit.of_day("ann", "projects", None)).entries
    assert entry.event == "project_session_assign"
    assert entry.event_details == {
        "owner": "ann",
        "session_id": "plain",
        "project_id": "pears",
        "previous_project_id": "apples",
    }
    assert await find(stores, project_ids=["pears"]) == ["plain"]


async def test_a_usage_window_is_of_whole_hours_and_at_most_two_weeks(stores: Stores) -> None:
    usage = UsageService(stores.catalog, Prices())
    for start, end in ((AT, AT), (AT, AT + timedelta(days=15)), (AT, AT + timedelta(minutes=90))):
        with pytest.raises(InvalidInput, match="whole UTC hours"):
            await usage.events("ann", start, end)
