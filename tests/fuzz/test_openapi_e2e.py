"""Whatever the OpenAPI descriptions allow, and what they do not: no 5xx, and answers as they are described."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import assume
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.requests import good
from tests.fuzz.running import for_its_time
from tests.raw import MODEL, RawClient
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def known(stack: Stack) -> Mapping[str, Any]:
    """Things that exist, by the names under which requests speak of them."""
    raw = RawClient(stack)
    session_id = raw.new_session()
    model_id = raw.new_model(session_id)
    save = raw.post("/save_weights", model_id=model_id, seq_id=1, path="one")
    path = raw.result(save["request_id"])["path"]
    sampler = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": MODEL}
    return {
        "session_id": session_id,
        "model_id": model_id,
        "run_id": model_id,
        "checkpoint_id": "weights/one",
        "sampling_session_id": raw.post("/create_sampling_session", **sampler)["sampling_session_id"],
        "request_id": save["request_id"],
        "tinker_path": path,
        "source_path": path,
        "path": path,
        "base_model": MODEL,
        "model": MODEL,
    }


@st.composite
def cases(draw: Callable[[Any], Any], operation: Any, mode: GenerationMode, known: Mapping[str, Any]) -> Any:
    """A request of this operation, with names of existing things put in here and there."""
    case = draw(operation.as_strategy(mode))
    # A path with a line break is no path of any route, so what answers is the framework's own 404.
    assume("\n" not in "".join(map(str, (case.path_parameters or {}).values())))
    body = case.body
    if "/finish" in operation.path:
        return case
    for values in (case.path_parameters, case.query, body):
        if isinstance(values, dict):
            values.update({name: known[name] for name in known if name in values and draw(st.booleans())})
    if isinstance(body, dict):
        if "retrieve_futures" in operation.path:
            body["timeout"] = 0  # nothing to wait for
        if body.get("sampling_session_id") == known["sampling_session_id"]:
            body["sampling_params"] = {"max_tokens": 1}  # accepted work is work
        if body.get("model") == MODEL:
            body["max_tokens"] = 1
    return case


@pytest.mark.parametrize("name", ["train", "sample"])
def test_every_operation_answers_as_it_is_described(
    stack: Stack, known: Mapping[str, Any], name: str
) -> None:
    url = stack.service_url(name)
    # Passes are protobuf and have a fuzzer of their own.
    described = schemathesis.openapi.from_url(f"{url}/openapi.json")
    schema = described.exclude(path="/api/v1/forward_backward")
    found: Any = schema.get_all_operations()
    operations = [result.ok() for result in found]
    answers = Counter[str]()

    def call(case: Any) -> None:
        answer = case.call_and_validate(
            base_url=url, headers={"X-API-Key": stack.api_key}, checks=CHECKS, timeout=60
        )
        answers[f"{answer.status_code // 100}xx"] += 1

    strategies = [cases(operation, mode, known) for mode in GenerationMode for operation in operations]
    for_its_time(strategies, call, seconds=20, examples=4)
    print(f"{len(operations)} operations, {dict(answers)}")
    assert min(answers["2xx"], answers["4xx"]) > len(operations), answers
    raw = RawClient(stack)
    assert "protobuf" in raw.forward_backward(good(raw.new_model(), 1))
