"""Sections 1, 3.1, 3.2, 3.6 and 9: what is answered besides training and sampling."""

import dataclasses
import re
import uuid
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import tinker
from tinker import types as sdk

from tests.conformance.plugin import load_rows
from tests.data import some_tokens, supervised
from tests.raw import MODEL, RawClient
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def raw(stack: Stack) -> RawClient:
    return RawClient(stack)


@pytest.fixture
def rest(stack: Stack) -> tinker.RestClient:
    return tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)


@pytest.mark.row("client-config", call="ServiceClient(), raw HTTP")
def test_every_switch_has_the_type_that_the_sdk_wants_and_is_one_it_knows(raw: RawClient) -> None:
    answered = raw.post("/client/config", sdk_version="0.38.0")
    model: Any = sdk.ClientConfigResponse
    known = model.model_validate(answered, strict=True)
    # Every SDK is answered alike: these are told to older ones, and this one passes over them.
    older = {"proto_write_fwdbwd", "fwd_via_fwdbwd", "create_model_via_load_weights"}
    assert older <= answered.keys()
    assert {name: getattr(known, name) for name in answered.keys() - older} == {
        name: value for name, value in answered.items() if name not in older
    }
    assert answered["fwdbwd_max_chunk_bytes_count"] <= answered["fwdbwd_dispatch_bytes_semaphore_size"]


@pytest.mark.row("dynamic-config", call="ServiceClient(), raw HTTP")
def test_switches_that_may_change_say_when_to_ask_again(raw: RawClient) -> None:
    answered = raw.post("/client/dynamic_config", sdk_version="0.38.0")
    assert answered["refresh_interval_sec"] >= 10
    assert answered["sample_cancel_enabled"] is True


@pytest.mark.row("healthz", call="raw HTTP")
def test_health_is_told(raw: RawClient) -> None:
    assert raw.http.get("/healthz").json() == {"status": "ok"}


@pytest.mark.row("telemetry", call="raw HTTP")
def test_telemetry_of_every_kind_is_accepted_at_once(raw: RawClient) -> None:
    common = {
        "event_id": "1",
        "event_session_index": 0,
        "severity": "INFO",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    events = [
        {**common, "event": "SESSION_START"},
        {
            **common,
            "event": "UNHANDLED_EXCEPTION",
            "error_type": "E",
            "error_message": "m",
            "traceback": None,
        },
        {**common, "event": "GENERIC_EVENT", "event_name": "n", "event_data": {"nested": [1, {"a": None}]}},
        {**common, "event": "SESSION_END", "duration": "0:00:01"},
    ]
    body = {"platform": "p", "sdk_version": "0.38.0", "session_id": f"sessionless-{uuid.uuid4()}"}
    assert raw.post("/telemetry", events=events * 25, process_uuid="u", **body) == {"status": "accepted"}


@pytest.mark.row("create-session", "get-session", call="ServiceClient(user_metadata=, project_id=)")
def test_a_session_keeps_what_it_was_opened_with(stack: Stack, rest: tinker.RestClient) -> None:
    metadata = {"who": "ann", "run": "7"}
    with tinker.ServiceClient(
        base_url=stack.base_url, api_key=stack.api_key, user_metadata=metadata, project_id="p-1"
    ) as client:
        session_id = (
            client.create_lora_training_client(MODEL, rank=4).result().get_info().model_id.split(":")[0]
        )
    session = rest.get_session(session_id).result()
    assert session.user_metadata == metadata
    assert "/" not in session_id


@pytest.mark.row("heartbeat", "unknown-session", call="background; raw HTTP")
def test_heartbeats_of_known_sessions_are_heard_and_of_others_404(raw: RawClient) -> None:
    session_id = raw.new_session()
    assert raw.post("/session_heartbeat", session_id=session_id) == {"type": "session_heartbeat"}
    assert raw.http.post("/session_heartbeat", json={"session_id": "nobody"}).status_code == 404


@pytest.mark.row(
    "close", "search-sessions", "assign-project", call="close, search_sessions, assign_session_project"
)
def test_a_closed_session_is_found_with_its_reason_its_project_and_its_checkpoints(
    stack: Stack, rest: tinker.RestClient
) -> None:
    mark = uuid.uuid4().hex
    service = tinker.ServiceClient(
        base_url=stack.base_url, api_key=stack.api_key, user_metadata={"mark": mark}
    )
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    trainer.save_state("kept").result()
    session_id = trainer.get_info().model_id.split(":")[0]

    def found(**query: Any) -> list[Any]:
        request = sdk.SessionSearchRequest(user_metadata={"mark": mark}, **query)
        return list(rest.search_sessions(request).result().sessions)

    (before,) = found()
    assert (before.session_id, before.status.type, before.checkpoints_count) == (session_id, "active", 1)
    assert (before.checkpoint_storage_bytes or 0) > 10_000
    rest.assign_session_project(session_id, "moved").result()
    service.close("errored", "of no use").result()
    (after,) = found(project_ids=["moved"])
    assert (after.status.type, after.status.reason.type, after.status.detail) == (
        "client_finished",
        "errored",
        "of no use",
    )
    assert found(project_ids=["other"]) == []
    assert after.created_at.tzinfo is not None


@pytest.mark.row("audit", call="AdminClient.get_audit_log")
def test_the_audit_log_tells_what_was_saved_and_deleted(
    stack: Stack, rest: tinker.RestClient, trainer: tinker.TrainingClient
) -> None:
    path = trainer.save_state("audited").result().path
    rest.delete_checkpoint_from_tinker_path(path).result()
    admin = tinker.AdminClient(base_url=stack.base_url, api_key=stack.api_key)
    entries = [item for item in admin.get_audit_log().result().entries if item.tinker_path == path]
    assert [item.event for item in entries] == ["checkpoint_create", "checkpoint_delete"]
    assert all(abs((datetime.now(UTC) - item.timestamp).total_seconds()) < 3600 for item in entries)
    checkpoints = admin.get_audit_log("checkpoints").result().entries
    assert path in [item.tinker_path for item in checkpoints]
    assert [item for item in admin.get_audit_log("projects").result().entries if item.tinker_path] == []


@pytest.mark.row("usage-storage", call="RestClient.get_current_checkpoint_storage_usage")
def test_storage_is_the_sum_of_what_lists_show(
    rest: tinker.RestClient, trainer: tinker.TrainingClient
) -> None:
    trainer.save_state("stored").result()
    listed = rest.list_user_checkpoints(limit=1000).result().checkpoints
    told = rest.get_current_checkpoint_storage_usage().result().data
    assert sum(item.checkpoint_count for item in told) == len(listed)
    assert sum(item.size_bytes for item in told) == sum(item.size_bytes or 0 for item in listed)


@pytest.mark.row("list-checkpoints", call="RestClient.list_user_checkpoints(limit=, offset=)")
def test_pages_of_checkpoints_add_up_to_the_total(
    rest: tinker.RestClient, trainer: tinker.TrainingClient
) -> None:
    for index in range(3):
        trainer.save_state(f"page-{index}").result()
    pages = list[str]()
    while True:
        page = rest.list_user_checkpoints(limit=2, offset=len(pages)).result()
        pages += [item.tinker_path for item in page.checkpoints]
        assert page.cursor is not None
        if len(pages) >= page.cursor.total_count:
            break
        assert len(page.checkpoints) == 2
    assert len(set(pages)) == len(pages)
    assert {f"tinker://{trainer.get_info().model_id}/weights/page-{i}" for i in range(3)} <= set(pages)


@pytest.mark.row(
    "weights-info",
    "lora-from-checkpoint",
    call="get_weights_info_by_tinker_path, create_training_client_from_state",
)
def test_a_checkpoint_tells_its_adapter_s_shape_and_gives_it_to_who_loads_it(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=3, train_mlp=False).result()
    path = trainer.save_state("shaped").result().path
    info = rest.get_weights_info_by_tinker_path(path).result()
    told = (info.base_model, info.lora_rank, info.train_attn, info.train_mlp, info.train_unembed)
    assert told == (MODEL, 3, True, False, True)
    loaded = service.create_training_client_from_state(path).result()
    assert loaded.get_info().lora_rank == 3
    again = rest.get_weights_info_by_tinker_path(loaded.save_state("again").result().path).result()
    assert (again.lora_rank, again.train_mlp) == (3, False)


@pytest.mark.row("unknown-endpoint", "no-redirects", call="raw HTTP")
def test_what_is_not_there_is_404_and_never_a_redirect(raw: RawClient) -> None:
    for path in ("/training_runs/", "/create_session/", "/nothing/at/all"):
        for method in ("GET", "POST"):
            answer = raw.http.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code in {404, 405}, path
            assert answer.content, "an empty 4xx reads as a fault of a proxy"


@pytest.mark.row("bad-body", call="raw HTTP")
def test_no_refusal_has_an_empty_body(raw: RawClient) -> None:
    for path in ("asample", "optim_step", "save_weights", "create_model", "retrieve_future", "load_weights"):
        for content in (b"", b"{", b"[]", b'{"seq_id": "\\ud800"}'):
            answer = raw.http.post(f"/{path}", content=content, headers={"content-type": "application/json"})
            assert 400 <= answer.status_code < 500, (path, content, answer.text)
            assert answer.json()["detail"]


@pytest.mark.row("images-refused", call="TrainingClient.forward, SamplingClient.sample with an ImageChunk")
def test_images_are_refused_by_name_in_training_and_sampling(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    image = sdk.ImageChunk(data=b"no image", format="png", expected_tokens=2)
    plain = supervised(some_tokens(1, 4))
    pictured = tinker.ModelInput(chunks=[image, *plain.model_input.chunks])
    with pytest.raises(tinker.RequestFailedError, match="image") as caught:
        trainer.forward([dataclasses.replace(plain, model_input=pictured)], "cross_entropy").result()
    assert caught.value.category == "user"
    sampler = service.create_sampling_client(base_model=MODEL).result()
    with pytest.raises(tinker.RequestFailedError, match="image"):
        sampler.sample(pictured, 1, tinker.SamplingParams(max_tokens=1)).result()


def test_every_route_of_both_services_has_a_row(stack: Stack) -> None:
    promised = {
        f"{method} {re.sub('{.*?}', '{}', path)}"
        for _, text in load_rows().values()
        for method, path in re.findall(r"`(GET|POST|PUT|DELETE) ([^` ]+)`", text)
    }
    served = {
        f"{method.upper()} {re.sub('{.*?}', '{}', path.removeprefix('/api/v1/'))}"
        for name in ("train", "sample")
        for path, methods in httpx.get(f"{stack.service_url(name)}/openapi.json").json()["paths"].items()
        for method in methods
        if path.startswith("/api/v1/")
    }
    assert served - promised == set()
