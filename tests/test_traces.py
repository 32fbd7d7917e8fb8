"""Trace exports on real stores: what the file says, and who gets it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import insert

from tests.trace_format import check_trace, inside, slices
from tinsmith_common.catalog import SamplingSessionRecord, SessionRecord
from tinsmith_common.errors import Forbidden
from tinsmith_common.futures import PromiseKind
from tinsmith_common.futures.tables import SpanRow
from tinsmith_common.secret_file import SecretFile
from tinsmith_common.settings import CommonSettings
from tinsmith_common.stores import Stores
from tinsmith_train.services import trace_exports
from tinsmith_train.services.downloads import URL_LIFETIME, UrlSigner
from tinsmith_train.services.trace_exports import TraceExports

START = datetime(2026, 1, 1, tzinfo=UTC)
SESSION = SessionRecord("s", "ann", START, START, display_name='a "name"', project_id="apples")


def span(request_id: str, kind: PromiseKind, *ms: int, quantities: dict[str, int] | None = None) -> SpanRow:
    """One whose moments are so many ms after the session's start: received, started, computed, stored."""
    received, started, computed, stored = (START + timedelta(milliseconds=at) for at in ms)
    return SpanRow(
        request_id=request_id,
        session_id="s",
        owner="ann",
        kind=kind,
        state="done",
        created_at=received,
        started_at=started,
        computed_at=computed,
        finished_at=stored,
        quantities=quantities,
    )


@pytest_asyncio.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    stores = Stores.build(CommonSettings(metadata_dir=tmp_path), "train")
    await stores.open()
    await stores.catalog.sessions.create(SESSION)
    yield stores
    await stores.close()


@pytest.fixture
def exports(stores: Stores, tmp_path: Path) -> TraceExports:
    signer = UrlSigner(SecretFile(tmp_path / "key"))
    return TraceExports(stores.catalog, stores.futures, tmp_path / "traces", signer, "https://here/")


async def add(stores: Stores, *spans: SpanRow) -> None:
    async with stores.database.write() as connection:
        await connection.execute(insert(SpanRow), [item.model_dump() for item in spans])


async def url_of(exports: TraceExports) -> str:
    answer = await exports.export(SESSION, "http://inside/")
    assert (answer.status, answer.error) == ("ready", None)
    assert answer.url is not None
    return answer.url


async def follow(exports: TraceExports, url: str) -> Path:
    parts = urlsplit(url)
    assert parts.path == "/api/v1/trace_exports/s"
    query = parse_qs(parts.query)
    return await exports.file("s", int(query["expires"][0]), query["signature"][0])


async def export(exports: TraceExports) -> list[dict[str, Any]]:
    return check_trace(json.loads((await follow(exports, await url_of(exports))).read_text()))


async def test_a_request_is_a_slice_with_its_phases_and_what_it_used(
    stores: Stores, exports: TraceExports
) -> None:
    used = {"training": 24}
    await add(stores, span("s:train:0:5", PromiseKind.FORWARD_BACKWARD, 10, 12, 40, 41, quantities=used))
    events = await export(exports)
    (request,) = slices(events, "request")
    assert (request["name"], request["ts"], request["dur"]) == ("forward_backward", 10_000, 31_000)
    assert request["args"] == {
        "request_id": "s:train:0:5",
        "seq_id": "5",
        "state": "done",
        "training": 24,
    }
    assert [(item["name"], item["ts"], item["dur"]) for item in inside(request, events)] == [
        ("queued", 10_000, 2_000),
        ("running", 12_000, 28_000),
        ("storing", 40_000, 1_000),
    ]
    assert [(item["ph"], item["ts"]) for item in events if item["ph"] in "sf"] == [
        ("s", 10_000),
        ("f", 40_000),
    ]


async def test_each_model_and_sampler_has_its_track(stores: Stores, exports: TraceExports) -> None:
    await stores.catalog.sampling_sessions.create(
        SamplingSessionRecord("s:sample:0", "s", "ann", "base", START)
    )
    await add(
        stores,
        span("s:train:0:0", PromiseKind.CREATE_MODEL, 0, 1, 2, 3),
        span("s:train:1:0", PromiseKind.LOAD_WEIGHTS, 4, 5, 6, 7),
        span("s:sample:0:9", PromiseKind.SAMPLE, 8, 9, 10, 11),
    )
    events = await export(exports)
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == [
        'session a "name"',
        "model 0 (s:train:0)",
        "model 1 (s:train:1)",
        "sampler 0 (s:sample:0)",
    ]
    assert [event["args"]["labels"] for event in events if event["name"] == "process_labels"] == ["base"]


async def test_requests_that_overlap_stand_in_lanes_and_every_one_is_there(
    stores: Stores, exports: TraceExports
) -> None:
    rng = np.random.default_rng(0)
    spans = [
        span(f"s:sample:0:{index}", PromiseKind.SAMPLE, *sorted(rng.integers(0, 1000, 4).tolist()))
        for index in range(300)
    ]
    await add(stores, *spans)
    events = await export(exports)
    requests = slices(events, "request")
    assert {event["args"]["request_id"] for event in requests} == {item.request_id for item in spans}
    assert len(requests) == 300
    edges = [edge for event in requests for edge in ((event["ts"], 1), (event["ts"] + event["dur"], -1))]
    at_once = max(np.cumsum([step for _, step in sorted(edges)]).tolist())
    assert len({event["tid"] for event in requests}) == at_once


async def test_failures_and_unfinished_requests_are_told_apart(stores: Stores, exports: TraceExports) -> None:
    await stores.futures.submit("s:train:0:2", PromiseKind.OPTIM_STEP, "ann")
    await stores.futures.fail("s:train:0:2", "NaN", "user")
    await stores.futures.submit("s:train:0:3", PromiseKind.OPTIM_STEP, "ann")
    events = await export(exports)
    failed, pending = slices(events, "request")
    assert (failed["args"]["state"], failed["args"]["error"], failed["args"]["category"]) == (
        "failed",
        "NaN",
        "user",
    )
    assert [item["name"] for item in inside(failed, events)] == ["queued"]
    assert pending["args"]["state"] == "pending"
    assert [item["name"] for item in inside(pending, events)] == ["unfinished"]


async def test_moments_that_coincide_or_run_backwards_still_make_a_good_trace(
    stores: Stores, exports: TraceExports
) -> None:
    await add(
        stores,
        span("s:train:0:1", PromiseKind.OPTIM_STEP, 5, 5, 5, 5),
        span("s:train:0:2", PromiseKind.OPTIM_STEP, 9, 7, 6, 5),
        span("s:train:0:3", PromiseKind.OPTIM_STEP, -9, -7, -6, -5),
    )
    assert len(slices(await export(exports), "request")) == 3


async def test_a_session_without_requests_exports_too(exports: TraceExports) -> None:
    (session,) = slices(await export(exports), "session")
    assert session["dur"] > 0


async def test_a_long_export_is_pending_until_it_is_ready(
    stores: Stores, exports: TraceExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_exports, "_WAIT_S", 0)
    assert (await exports.export(SESSION, "http://here/")).status == "pending"
    monkeypatch.setattr(trace_exports, "_WAIT_S", 10)
    assert (await exports.export(SESSION, "http://here/")).status == "ready"


async def test_an_export_that_fails_says_so_and_can_be_tried_again(
    exports: TraceExports, tmp_path: Path
) -> None:
    (tmp_path / "traces").write_text("in the way")
    answer = await exports.export(SESSION, "http://here/")
    assert (answer.status, answer.url) == ("failed", None)
    assert "FileExistsError" in str(answer.error)
    (tmp_path / "traces").unlink()
    await url_of(exports)


async def test_many_who_ask_at_once_get_the_same_export(exports: TraceExports) -> None:
    answers = await asyncio.gather(*(url_of(exports) for _ in range(5)))
    for url in answers:
        assert (await follow(exports, url)).exists()


async def test_a_url_that_was_altered_or_is_over_opens_nothing(
    exports: TraceExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await url_of(exports)
    with pytest.raises(Forbidden, match="altered"):
        await follow(exports, url.replace("signature=", "signature=0"))
    with pytest.raises(Forbidden, match="altered"):
        await follow(exports, url.replace("expires=", "expires=9"))
    monkeypatch.setattr(trace_exports, "URL_LIFETIME", timedelta(seconds=-1))
    with pytest.raises(Forbidden, match="expired"):
        await follow(exports, await url_of(exports))


async def test_files_are_removed_when_no_url_leads_to_them_any_more(
    exports: TraceExports, tmp_path: Path
) -> None:
    await exports.delete_old()
    path = await follow(exports, await url_of(exports))
    await exports.delete_old()
    assert [item.name for item in (tmp_path / "traces").iterdir()] == [path.name]
    old = path.stat().st_mtime - URL_LIFETIME.total_seconds() - 61
    os.utime(path, (old, old))
    await exports.delete_old()
    assert list((tmp_path / "traces").iterdir()) == []


def break_nesting(events: list[dict[str, Any]]) -> None:
    events[-3]["dur"] += 10**9


def lose_an_end(events: list[dict[str, Any]]) -> None:
    del events[-1]


def add_a_field(events: list[dict[str, Any]]) -> None:
    events[-1]["colour"] = "red"


def lose_a_name(events: list[dict[str, Any]]) -> None:
    events[:] = [event for event in events if event["name"] != "process_name"]


@pytest.mark.parametrize("spoil", [break_nesting, lose_an_end, add_a_field, lose_a_name])
async def test_the_check_of_these_tests_refuses_a_bad_trace(
    stores: Stores, exports: TraceExports, spoil: Callable[[list[dict[str, Any]]], None]
) -> None:
    await add(
        stores,
        span("s:train:0:1", PromiseKind.OPTIM_STEP, 1, 2, 3, 4),
        span("s:train:0:2", PromiseKind.OPTIM_STEP, 5, 6, 7, 8),
    )
    trace = json.loads((await follow(exports, await url_of(exports))).read_text())
    check_trace(trace)
    spoil(trace["traceEvents"])
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        check_trace(trace)
