"""Sampling by one request and its answer."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb

Serve = Callable[[Any], AbstractAsyncContextManager[Any]]

MODEL = "tinsmith/tiny"
BODY = {"prompt": {"chunks": [{"tokens": [5, 6]}]}, "sampling_params": {"max_tokens": 2}}


async def sample(service: Any, accept: str = "application/json", **body: Any) -> Any:
    return await service.http.post("/api/v1/sample", json=BODY | body, headers={"Accept": accept})


async def test_a_base_model_is_sampled_without_any_session(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        answers = [await sample(service, base_model=MODEL) for _ in range(2)]
    one = {"stop_reason": "length", "tokens": [7, 8], "logprobs": [-0.5, -1.0]}
    expected = {"type": "sample", "sequences": [one], "prompt_cache_hit_tokens": 0}
    assert [answer.json() for answer in answers] == [expected, expected]
    # Equal requests without a number are two requests.
    assert [spec.prompt for spec in fake_engine.asked] == [(5, 6), (5, 6)]


async def test_a_numbered_request_sent_again_answers_the_same_sample(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        target: dict[str, Any] = {"sampling_session_id": await service.session(), "seq_id": 4}
        first, second = await sample(service, **target), await sample(service, **target)
    assert first.json() == second.json()
    assert len(fake_engine.asked) == 1


async def test_a_sampling_client_without_a_session_is_the_same_for_the_same_model(
    serve: Serve, fake_engine: Any
) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        answers = [
            await service.http.post("/api/v1/create_sampling_client", json={"base_model": MODEL})
            for _ in range(2)
        ]
        sampler = answers[0].json()["sampling_session_id"]
        assert answers[0].json() == answers[1].json()
        assert (await sample(service, sampling_session_id=sampler)).status_code == 200


async def test_a_client_that_names_protobuf_gets_it(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        answer = await sample(service, "application/x-protobuf", base_model=MODEL)
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert len(pb.SampleResponse.FromString(answer.content).sequences) == 1


async def test_what_the_engine_refuses_is_a_400_that_says_why(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.failures.append(InvalidInput("too long"))
    async with serve(fake_engine) as service:
        answer = await sample(service, base_model=MODEL)
    assert (answer.status_code, answer.json()) == (400, {"detail": "too long"})


async def test_a_request_without_any_model_and_one_for_an_unknown_model_are_told_so(
    serve: Serve, fake_engine: Any
) -> None:
    async with serve(fake_engine) as service:
        nothing, unknown = await sample(service), await sample(service, base_model="no/such")
    assert nothing.status_code == 400
    assert "base_model" in nothing.json()["detail"]
    assert unknown.status_code == 400
    assert MODEL in unknown.json()["detail"]


async def test_an_answer_that_does_not_come_in_time_is_a_408(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        service.app.state.direct._answer_within_s = 0.05
        answer = await sample(service, base_model=MODEL)
        assert answer.status_code == 408
        assert "asample" in answer.json()["detail"]
        fake_engine.gate.set()
