"""Bills, traces and session states of real work: through the SDK and its command line."""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import pytest
import tinker
from prometheus_client.parser import text_string_to_metric_families
from tinker.types import SessionSearchRequest

from tests.data import some_tokens, supervised
from tests.test_cli_e2e import cli, cli_json
from tests.trace_format import check_trace, inside, slices
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"


@dataclass(frozen=True)
class Work:
    """What one session did, as its client knows it."""

    session_id: str
    model_id: str
    trained_tokens: int
    prompt_tokens: int
    cached_tokens: int
    sampled_tokens: int
    samples: int
    checkpoint_bytes: int


@pytest.fixture(scope="module")
def work(stack: Stack) -> Work:
    """Two passes and a step, three samples of two prompts, two checkpoints; the client adds it all up itself."""
    service = tinker.ServiceClient(
        base_url=stack.base_url, api_key=stack.api_key, project_id="metered", user_metadata={"who": "tests"}
    )
    trainer = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
    batch = [supervised(some_tokens(seed, length)) for seed, length in ((1, 24), (2, 57))]
    passes = [trainer.forward_backward(batch, "cross_entropy"), trainer.forward(batch[:1], "cross_entropy")]
    stepped = trainer.optim_step(tinker.AdamParams(learning_rate=1e-4))
    for future in (*passes, stepped):
        future.result()
    trained = sum(datum.model_input.length for datum in (*batch, batch[0]))
    sampler = trainer.save_weights_and_get_sampling_client().result()
    prompts = [some_tokens(3, 40), some_tokens(3, 40), some_tokens(4, 11)]
    params = tinker.SamplingParams(max_tokens=5, seed=1)
    answers = [
        sampler.sample(tinker.ModelInput.from_ints(prompt), count, params).result()
        for prompt, count in zip(prompts, (1, 3, 1), strict=True)
    ]
    for name in ("one", "two"):
        trainer.save_state(name).result()
    model_id = trainer.get_info().model_id
    saved = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key).list_checkpoints(model_id)
    service.close("success").result()
    return Work(
        session_id=model_id.split(":")[0],
        model_id=model_id,
        trained_tokens=trained,
        prompt_tokens=sum(map(len, prompts)),
        cached_tokens=sum(answer.prompt_cache_hit_tokens or 0 for answer in answers),
        sampled_tokens=sum(len(sequence.tokens) for answer in answers for sequence in answer.sequences),
        samples=len(answers),
        checkpoint_bytes=sum(item.size_bytes or 0 for item in saved.result().checkpoints),
    )


def window() -> tuple[str, str]:
    """The hours around now."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    start, end = ((hour + timedelta(hours=by)).strftime("%Y-%m-%dT%H:%M:%SZ") for by in (-1, 1))
    return start, end


def sums(rows: list[dict[str, Any]], session_id: str) -> Counter[str]:
    """The usage of a session by kind, over all hours: a test may run across the full hour."""
    total: Counter[str] = Counter()
    for row in rows:
        if row["session_id"] == session_id and row["type"] != "storage":
            kind = f"{row['type']}{'_cached' if str(row.get('cached')) == 'True' else ''}"
            total[kind] += int(row.get("token_count") or row.get("count") or 0)
    return +total


def expected(work: Work) -> Counter[str]:
    return +Counter(
        {
            "training": work.trained_tokens,
            "sampling_prefill": work.prompt_tokens - work.cached_tokens,
            "sampling_prefill_cached": work.cached_tokens,
            "sampling_sample": work.sampled_tokens,
            "checkpoint": 2,
        }
    )


@pytest.mark.row("usage-events", "cli-billing-usage", call="CLI")
def test_the_bill_is_the_tokens_that_were_sent_and_came_back(stack: Stack, work: Work) -> None:
    bill = cli_json(stack, "billing", "usage", *window())
    rows = [{**row, **row["event_info"]} for row in bill["data"]]
    assert sums(rows, work.session_id) == expected(work)
    mine = [row for row in rows if row["session_id"] == work.session_id]
    assert {(row["base_model"], row["project_id"]) for row in mine} == {(MODEL, "metered")}
    assert bill["sessions"][work.session_id] == {"user_metadata": {"who": "tests"}}


def test_the_bill_is_the_same_as_csv_and_there_is_one_as_a_table(stack: Stack, work: Work) -> None:
    text = cli(stack, "billing", "usage", *window(), "--csv", "-")
    assert sums(list(csv.DictReader(io.StringIO(text))), work.session_id) == expected(work)
    assert "hourly usage row" in cli(stack, "billing", "usage", *window())
    sessions = cli(stack, "billing", "usage", *window(), "--sessions-csv", "-")
    assert work.session_id in sessions


@pytest.mark.row("usage-storage", "cli-billing-storage", call="CLI")
def test_storage_is_told_now_and_by_the_hour(stack: Stack, work: Work) -> None:
    storage = cli_json(stack, "billing", "checkpoint-storage", "--project-id", "metered")
    (item,) = storage["data"]
    assert (item["checkpoint_count"], item["size_bytes"]) == (2, work.checkpoint_bytes)
    assert item["size_gigabytes"] == pytest.approx(work.checkpoint_bytes / 1e9)
    rows = cli_json(stack, "billing", "usage", *window())["data"]
    stored = sum(
        row["event_info"]["gigabyte_hours"]
        for row in rows
        if row["session_id"] == work.session_id and row["event_info"]["type"] == "storage"
    )
    # They are there since some moment of this test run, which is less than an hour ago.
    assert 0 < stored < work.checkpoint_bytes / 1e9


@pytest.mark.row("trace-export", "cli-export-trace", call="CLI")
def test_the_exported_trace_shows_every_request_and_its_tokens(
    stack: Stack, work: Work, tmp_path: Path
) -> None:
    file = tmp_path / "trace.pftrace"
    cli(stack, "session", "export-trace", work.session_id, "-o", str(file))
    events = check_trace(json.loads(file.read_text()))
    requests = slices(events, "request")
    assert Counter(event["name"] for event in requests) == {
        "create_model": 1,
        "forward_backward": 2,
        "optim_step": 1,
        "save_weights_for_sampler": 1,
        "save_weights": 2,
        "sample": work.samples,
    }
    for event in requests:
        phases = [item["name"] for item in inside(event, events)]
        assert (event["args"]["state"], phases) == ("done", ["queued", "running", "storing"]), event
    assert sum(event["args"].get("training", 0) for event in requests) == work.trained_tokens
    assert sum(event["args"].get("sampling_sample", 0) for event in requests) == work.sampled_tokens
    models = {event["pid"] for event in requests if event["args"]["request_id"].startswith(work.model_id)}
    samplers = {event["pid"] for event in requests if event["name"] == "sample"}
    assert (len(models), len(samplers), models & samplers) == (1, 1, set())


@pytest.mark.row("trace-file", call="CLI; plain GET")
def test_the_url_of_a_trace_needs_no_credential_and_belongs_to_one_account(stack: Stack, work: Work) -> None:
    url = cli(stack, "session", "export-trace", work.session_id, "--url-only").strip()
    with urlopen(url, timeout=30) as answer:
        assert check_trace(json.load(answer))
    assert httpx.get(url.replace("signature=", "signature=0")).status_code == 403
    place = f"{stack.base_url}/api/v1/sessions/{work.session_id}/trace_export"
    assert httpx.get(place).status_code == 401
    mine = {"X-API-Key": stack.api_key}
    assert httpx.get(place.replace(work.session_id, "unknown"), headers=mine).status_code == 404


@pytest.mark.parametrize(
    ("service", "request_types"),
    [("train", {"CreateModel", "ForwardBackward", "OptimStep", "SaveWeights"}), ("sample", {"Sample"})],
)
def test_both_services_measure_the_time_around_the_engine(
    stack: Stack, work: Work, service: str, request_types: set[str]
) -> None:
    text = httpx.get(f"{stack.service_url(service)}/metrics", timeout=30).text
    counts: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_seconds_count") and "request_type" in sample.labels:
                counts.setdefault(family.name, set()).add(sample.labels["request_type"])
                assert sample.value >= 1
    names = ("request_to_engine", "engine", "engine_to_result")
    assert {f"tinsmith_{name}_seconds" for name in names} == counts.keys()
    assert all(request_types <= seen for seen in counts.values())


def test_a_search_tells_how_a_session_ended_and_what_it_stores(stack: Stack, work: Work) -> None:
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)
    (found,) = rest.search_sessions(SessionSearchRequest(session_id=work.session_id)).result().sessions
    assert found.status is not None
    assert found.status.type == "client_finished"
    assert (found.checkpoints_count, found.checkpoint_storage_bytes) == (2, work.checkpoint_bytes)
    assert (found.project_id, found.user_metadata) == ("metered", {"who": "tests"})


@pytest.mark.parametrize("path", ["sessions", "sessions/{id}", "training_runs"])
@pytest.mark.parametrize(("scope", "status"), [("owned", 200), ("accessible", 200), ("mine", 422)])
def test_listings_know_both_scopes_and_no_other(
    stack: Stack, work: Work, path: str, scope: str, status: int
) -> None:
    url = f"{stack.base_url}/api/v1/{path.format(id=work.session_id)}"
    answer = httpx.get(url, params={"access_scope": scope}, headers={"X-API-Key": stack.api_key})
    assert answer.status_code == status, answer.text
