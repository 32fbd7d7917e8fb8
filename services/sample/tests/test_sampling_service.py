"""`asample` over HTTP: accepted at once, deduplicated, never lost, failed through the promise.

With a fake engine, because these are questions of timing and of faults. `test_service_with_engine.py` has the
real one.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio.to_thread
import httpx
import numpy as np
import pytest

from tinsmith_common.auth import ApiKeys, digest, new_key
from tinsmith_common.futures import PromiseKind
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_sample.engines.base import EngineLost

Serve = Callable[[Any], AbstractAsyncContextManager[Any]]


def _response(answer: Any) -> pb.SampleResponse:
    assert answer.headers["content-type"] == "application/x-protobuf"
    return pb.SampleResponse.FromString(answer.content)


async def test_the_promise_comes_before_the_result(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        promise = (await service.sample(sampler, 3, num_samples=2)).json()
        assert promise == {
            "request_id": f"{sampler}:3",
            "sample_sequence_ids": [f"{sampler}:3:0", f"{sampler}:3:1"],
        }
        fake_engine.gate.set()
        assert len(_response(await service.result(promise["request_id"])).sequences) == 2


async def test_a_result_is_the_protocols_message(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler = await service.session()
        promise = (await service.sample(sampler)).json()
        (sequence,) = _response(await service.result(promise["request_id"])).sequences
    assert np.frombuffer(sequence.tokens, "<i4").tolist() == [7, 8]
    assert np.frombuffer(sequence.logprobs, "<f4").tolist() == [-0.5, -1.0]
    assert sequence.stop_reason == pb.STOP_REASON_LENGTH


async def test_a_repeated_submission_is_carried_out_once(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        seq_id = 10**18 + 1  # a float would lose the 1
        answers = await asyncio.gather(*(service.sample(sampler, seq_id) for _ in range(5)))
        fake_engine.gate.set()
        await service.result(answers[0].json()["request_id"])
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["sample_sequence_ids"] == [f"{sampler}:1000000000000000001:0"]
    assert len(fake_engine.asked) == 1


async def test_a_result_can_be_read_again(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session())).json()
        first = await service.result(promise["request_id"])
        assert (await service.result(promise["request_id"])).content == first.content


async def test_work_of_a_stopped_service_is_finished_by_the_next(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session())).json()
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        assert len(_response(await service.result(promise["request_id"])).sequences) == 1


async def test_an_unreadable_journal_entry_fails_and_the_rest_is_taken_up(
    serve: Serve, fake_engine: Any
) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler = await service.session()
        futures = service.app.state.stores.futures
        await futures.submit("bad", PromiseKind.SAMPLE, "local", b"{")
        good = {"sampling_session_id": sampler, "seq_id": 1, "prompt": {"chunks": []}}
        await futures.submit("good", PromiseKind.SAMPLE, "local", json.dumps(good).encode())
    async with serve(fake_engine) as service:
        assert (await service.result("bad")).json()["category"] == "user"
        assert len(_response(await service.result("good")).sequences) == 1


async def test_a_lost_engine_is_tried_again(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineLost("it died"), EngineLost("it died")]
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session())).json()
        assert len(_response(await service.result(promise["request_id"])).sequences) == 1


async def test_a_request_that_keeps_killing_the_engine_fails(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [EngineLost("it died")] * 3
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session())).json()
        answer = await service.result(promise["request_id"])
    assert answer.json() == {"error": "it died", "category": "server"}


async def test_an_unexpected_error_fails_only_its_own_request(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    fake_engine.failures = [ZeroDivisionError("surprise")]
    async with serve(fake_engine) as service:
        sampler = await service.session()
        failed = (await service.sample(sampler, 0)).json()
        assert (await service.result(failed["request_id"])).json()["category"] == "server"
        good = (await service.sample(sampler, 1)).json()
        assert len(_response(await service.result(good["request_id"])).sequences) == 1


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        ({"type": "image", "data": "", "format": "png"}, "no vision tower"),
        ({"type": "image_asset_pointer", "location": "x", "format": "png"}, "no vision tower"),
        ({"type": "dmel", "dmel": ""}, "audio"),
    ],
)
async def test_what_a_text_model_cannot_read_is_refused_with_the_reason(
    serve: Serve, fake_engine: Any, chunk: dict[str, Any], said: str
) -> None:
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session(), prompt={"chunks": [chunk]})).json()
        failure = (await service.result(promise["request_id"])).json()
    assert said in failure["error"]
    assert failure["category"] == "user"


async def test_a_matrix_of_targets_that_does_not_fit_the_prompt_fails_with_the_reason(
    serve: Serve, fake_engine: Any
) -> None:
    targets = {"data": [1, 2, 3], "dtype": "int64", "shape": [3, 1]}
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session(), target_prompt_logprobs=targets)).json()
        failure = (await service.result(promise["request_id"])).json()
    assert "3 rows; a prompt of 3 tokens needs 2" in failure["error"]
    assert failure["category"] == "user"


@pytest.mark.parametrize(
    "targets",
    [
        {"data": [1.0, 2.0], "dtype": "float32", "shape": [2, 1]},
        {"data": [1, 2], "dtype": "int64"},
        {"data": [-2] * 100_000, "dtype": "int64", "shape": [100_000, 1]},
        {"data": [2**63], "dtype": "int64", "shape": [1, 1]},
    ],
)
async def test_what_is_no_matrix_of_token_ids_is_refused_briefly(
    serve: Serve, fake_engine: Any, targets: dict[str, Any]
) -> None:
    async with serve(fake_engine) as service:
        answer = await service.sample(await service.session(), target_prompt_logprobs=targets)
    assert answer.status_code == 400
    assert "target_prompt_logprobs" in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 500


async def test_an_unknown_sampling_session_fails_through_the_promise(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        promise = (await service.sample("nobody:sample:0")).json()
        failure = (await service.result(promise["request_id"])).json()
    assert failure == {"error": "no sampling session nobody:sample:0", "category": "user"}


@pytest.mark.parametrize(
    "params", [{"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"stop": ["x", 3]}, {"seed": -1}]
)
async def test_bad_sampling_parameters_are_refused_with_their_name(
    serve: Serve, fake_engine: Any, params: dict[str, Any]
) -> None:
    async with serve(fake_engine) as service:
        answer = await service.sample(await service.session(), sampling_params=params)
    assert answer.status_code == 400
    assert next(iter(params)) in answer.json()["detail"]


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        for seq_id in range(50):
            assert (await service.sample(sampler, seq_id)).status_code == 200
        answer = await service.sample(sampler, 50)
        fake_engine.gate.set()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


async def test_a_request_without_a_key_is_refused(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        service.http.headers.pop("X-API-Key")
        assert (await service.sample("any")).status_code == 401


async def test_nobody_can_use_up_the_numbers_of_anothers_session(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        sampler, key = await service.session(), new_key()
        await ApiKeys(service.app.state.stores.database).add(digest(key), "bob", "", "")
        transport, headers = httpx.ASGITransport(service.app), {"X-API-Key": key}
        http = httpx.AsyncClient(transport=transport, base_url="http://sample", headers=headers)
        bob = type(service)(service.app, http)
        stolen = (await bob.sample(sampler)).json()
        assert (await bob.result(stolen["request_id"])).json()["error"] == f"no sampling session {sampler}"
        (event,) = (await bob.ended(sampler))["completions"]
        assert event == {"state": "failed", "request_id": stolen["request_id"]}
        own = (await service.sample(sampler)).json()
        assert len(_response(await service.result(own["request_id"])).sequences) == 1
        await http.aclose()


async def test_a_session_on_an_unknown_base_model_is_refused(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        with pytest.raises(Exception, match="400"):
            await service.session(base_model="somebody/else")


async def test_a_session_on_unknown_weights_is_refused(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        with pytest.raises(Exception, match="404"):
            await service.session(model_path="tinker://run:train:0/sampler_weights/a")


async def test_a_sampler_tells_its_base_model(serve: Serve, fake_engine: Any) -> None:
    async with serve(fake_engine) as service:
        sampler = await service.session()
        answer = await service.http.get(f"/api/v1/samplers/{sampler}")
    assert answer.json() == {"sampler_id": sampler, "base_model": "tinsmith/tiny"}


async def test_metrics_count_requests_and_tokens(serve: Serve, fake_engine: Any) -> None:
    fake_engine.gate.set()
    async with serve(fake_engine) as service:
        promise = (await service.sample(await service.session())).json()
        await service.result(promise["request_id"])
        text = (await service.http.get("/metrics")).text
    assert 'tinsmith_sample_requests_total{model="tinsmith/tiny",outcome="done"} 1.0' in text
    assert 'tinsmith_sample_tokens_total{model="tinsmith/tiny"} 2.0' in text
    assert 'tinsmith_engine_adapters{model="tinsmith/tiny"} 0.0' in text
    assert "tinsmith_sample_queue_length 0.0" in text


async def test_neither_a_sample_nor_its_poll_goes_through_a_thread_of_the_web_framework(
    serve: Serve, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.gate.set()
    in_threads: list[str] = []
    run_sync: Any = anyio.to_thread.run_sync

    async def noted(function: Any, *arguments: Any, **options: Any) -> Any:
        in_threads.append(getattr(function, "__name__", repr(function)))
        return await run_sync(function, *arguments, **options)

    async with serve(fake_engine) as service:
        sampler = await service.session()
        monkeypatch.setattr(anyio.to_thread, "run_sync", noted)
        promise = (await service.sample(sampler)).json()
        _response(await service.result(promise["request_id"]))
    assert in_threads == []
