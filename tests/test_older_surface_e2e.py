"""The endpoints of docs/older-surface.md through the gateway: requests and answers as they are on the wire."""

import io
import json
import tarfile
import urllib.request
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from numpy.typing import NDArray
from safetensors.numpy import load
from tokenizers import Tokenizer

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
TOKENS = some_tokens(3)
DATA = [supervised(TOKENS)]
# Trainer and sampler are two fp32 implementations of the model; measured: 2e-6.
SAME = 1e-4


class RawClient:
    """What a program without the SDK sends: JSON, and no `Accept` for anything else."""

    def __init__(self, stack: Stack) -> None:
        headers = {"X-API-Key": stack.api_key}
        self.http = httpx.Client(base_url=f"{stack.base_url}/api/v1", headers=headers, timeout=120)

    def post(self, endpoint: str, /, **body: Any) -> dict[str, Any]:
        answer = self.http.post(endpoint, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def result(self, endpoint: str, /, **body: Any) -> dict[str, Any]:
        """The result behind the promise that a request is answered with."""
        return self.post("retrieve_future", request_id=self.post(endpoint, **body)["request_id"])


@pytest.fixture(scope="module")
def raw(stack: Stack) -> RawClient:
    return RawClient(stack)


def chunks(tokens: list[int]) -> dict[str, Any]:
    return {"chunks": [{"type": "encoded_text", "tokens": tokens}]}


def json_input(loss_fn: str = "cross_entropy") -> dict[str, Any]:
    """DATA as JSON."""
    size = len(TOKENS) - 1
    inputs = {
        "target_tokens": {"data": TOKENS[1:], "dtype": "int64", "shape": [size]},
        "weights": {"data": [1.0] * size, "dtype": "float32", "shape": [size]},
    }
    return {"data": [{"model_input": chunks(TOKENS[:-1]), "loss_fn_inputs": inputs}], "loss_fn": loss_fn}


def array(tensor: dict[str, Any]) -> NDArray[np.float32]:
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def new_trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    """Always the same weights."""
    return service.create_lora_training_client(MODEL, rank=4, seed=11).result()


def model_of(trainer: tinker.TrainingClient) -> str:
    return trainer.get_info().model_id


@pytest.mark.row("older-forward", call="raw HTTP")
def test_forward_answers_the_logprobs_of_the_protobuf_pass_and_each_position_s_loss(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    expected = logprobs_of(new_trainer(service).forward(DATA, "cross_entropy").result())[0]
    address = {"model_id": model_of(new_trainer(service)), "seq_id": 1}
    result = raw.result("forward", **address, forward_input=json_input())
    (output,) = result["loss_fn_outputs"]
    # The same weights, tokens and arithmetic: the same numbers.
    np.testing.assert_array_equal(array(output["logprobs"]), expected)
    np.testing.assert_array_equal(array(output["elementwise_loss"]), -expected)
    assert result["metrics"]["loss:sum"] == pytest.approx(-expected.sum(), rel=1e-5)


@pytest.mark.row("older-json-pass", call="raw HTTP")
def test_forward_backward_as_json_trains_as_the_protobuf_one_does(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    ours, theirs = new_trainer(service), new_trainer(service)
    theirs.forward_backward(DATA, "cross_entropy").result()
    theirs.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    address = {"model_id": model_of(ours)}
    raw.result("forward_backward", **address, seq_id=1, forward_backward_input=json_input())
    raw.result("optim_step", **address, seq_id=2, adam_params={"learning_rate": 1e-2})
    after = raw.result("forward", **address, seq_id=3, forward_input=json_input())["loss_fn_outputs"][0]
    trained = logprobs_of(theirs.forward(DATA, "cross_entropy").result())[0]
    np.testing.assert_allclose(array(after["logprobs"]), trained, atol=1e-5)


def test_a_bad_json_pass_fails_in_its_turn_and_the_next_one_runs(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    address = {"model_id": model_of(new_trainer(service))}
    broken = json_input() | {"data": [{"loss_fn_inputs": {}}]}
    failed = raw.result("forward_backward", **address, seq_id=1, forward_backward_input=broken)
    assert failed["category"] == "user"
    assert "data.0.model_input" in failed["error"]
    assert raw.result("forward", **address, seq_id=2, forward_input=json_input())["loss_fn_outputs"]


@pytest.mark.row("older-unload", call="raw HTTP")
def test_unload_model_frees_the_model_and_keeps_what_it_saved(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    trainer = new_trainer(service)
    saved = trainer.save_state("kept").result().path
    model_id = model_of(trainer)
    assert raw.result("unload_model", model_id=model_id) == {"model_id": model_id, "type": "unload_model"}
    assert raw.result("unload_model", model_id=model_id)["model_id"] == model_id
    late = raw.result("optim_step", model_id=model_id, seq_id=2, adam_params={})
    assert "not loaded" in late["error"]
    again = service.create_training_client_from_state(saved).result()
    assert again.forward(DATA, "cross_entropy").result().metrics["loss:sum"] > 0
    unknown = raw.result("unload_model", model_id="no:train:0")
    assert unknown["category"] == "user"


@pytest.mark.row("older-tokenizer", call="raw HTTP")
def test_get_tokenizer_answers_one_that_encodes_as_the_sdk_s(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    trainer = new_trainer(service)
    answer = raw.http.get("get_tokenizer", params={"model_id": model_of(trainer)}).json()
    assert (answer["model_name"], answer["tokenizer_config"]["model_max_length"] > 0) == (MODEL, True)
    text = "What is 2 + 3?"
    theirs: Any = trainer.get_tokenizer()
    assert Tokenizer.from_str(json.dumps(answer["tokenizer"])).encode(text).ids == theirs.encode(text)
    assert raw.http.get("get_tokenizer", params={"model_id": "no:train:0"}).status_code == 404


@pytest.mark.row("older-sample", call="raw HTTP")
def test_sample_answers_at_once_what_asample_answers_through_a_promise(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    path = new_trainer(service).save_weights_for_sampler("older").result().path
    sampler = service.create_sampling_client(model_path=path).result()
    params: dict[str, Any] = {"max_tokens": 6, "seed": 3, "stop": []}
    expected = sampler.sample(
        tinker.ModelInput.from_ints(TOKENS), 1, tinker.SamplingParams(**params), include_prompt_logprobs=True
    ).result()
    scores: Any = expected.prompt_logprobs
    ask = {"prompt": chunks(TOKENS), "sampling_params": params, "prompt_logprobs": True}
    created = raw.post("create_sampling_client", model_path=path)
    session = {"sampling_session_id": created["sampling_session_id"], "seq_id": 0}
    direct, by_session = raw.post("sample", **ask, model_path=path), raw.post("sample", **ask, **session)
    by_promise = raw.result("asample", **ask, **session)
    for answer in (direct, by_session, by_promise):
        assert answer["sequences"][0]["tokens"] == expected.sequences[0].tokens
        assert answer["sequences"][0]["stop_reason"] == "length"
        assert answer["prompt_logprobs"][0] is None
        np.testing.assert_allclose(answer["prompt_logprobs"][1:], scores[1:], atol=SAME)


@pytest.mark.row("older-sampling-client", call="raw HTTP")
def test_a_sampling_client_of_a_session_is_a_sampling_session(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    session_id = raw.post("create_session", tags=[])["session_id"]
    created = raw.post("create_sampling_client", session_id=session_id, base_model=MODEL)
    assert created["sampling_session_id"] == f"{session_id}:sample:0"
    assert raw.http.get(f"samplers/{session_id}:sample:0").json()["base_model"] == MODEL


@pytest.mark.row("older-archive", call="raw HTTP")
def test_an_archive_holds_what_an_export_holds(raw: RawClient, service: tinker.ServiceClient) -> None:
    trainer = new_trainer(service)
    trainer.forward_backward(DATA, "cross_entropy").result()
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    trainer.save_state("kept").result()
    trainer.save_weights_external("exported").result()
    place = f"training_runs/{model_of(trainer)}/checkpoints"
    urls = raw.http.get(f"{place}/external_weights/exported/external_weights_urls").json()["urls"]
    answer = raw.http.get(f"{place}/weights/kept/archive").json()
    redirect = raw.http.get(f"{place}/weights/kept/archive", headers={"Accept": "application/gzip"})
    assert redirect.status_code == 302
    assert redirect.headers["expires"].endswith(" GMT")
    for url in (answer["url"], redirect.headers["location"]):
        with urllib.request.urlopen(url) as content, tarfile.open(fileobj=io.BytesIO(content.read())) as tar:
            names = set(tar.getnames())
            weights = tar.extractfile("adapter_model.safetensors")
            assert weights is not None
            archived = load(weights.read())
        assert names == {*urls, "checkpoint_complete"}
        with urllib.request.urlopen(urls["adapter_model.safetensors"]) as content:
            exported = load(content.read())
        assert set(archived) == set(exported)
        for name, tensor in exported.items():
            np.testing.assert_array_equal(archived[name], tensor)


def test_a_listing_for_a_client_that_does_not_know_exports_leaves_them_out(
    raw: RawClient, service: tinker.ServiceClient
) -> None:
    trainer = new_trainer(service)
    trainer.save_state("kept").result()
    trainer.save_weights_external("exported").result()
    place = f"training_runs/{model_of(trainer)}/checkpoints"

    def listed(path: str, version: str) -> tuple[set[str], int]:
        headers = {"X-Stainless-Package-Version": version}
        answer = raw.http.get(path, headers=headers, params={"limit": 1000}).json()
        types = {item["checkpoint_type"] for item in answer["checkpoints"]}
        cursor = answer.get("cursor")
        assert cursor is None or cursor["total_count"] == len(answer["checkpoints"])
        return types, len(answer["checkpoints"])

    assert listed(place, "0.28.1") == ({"training", "external"}, 2)
    assert listed(place, "0.25.0") == ({"training"}, 1)
    assert "external" not in listed("checkpoints", "0.25.0")[0]
    assert listed("checkpoints", "0.38.0")[1] > listed("checkpoints", "0.25.0")[1]


@pytest.mark.row("unknown-fields", call="raw HTTP")
def test_fields_of_the_future_are_ignored_everywhere(raw: RawClient, service: tinker.ServiceClient) -> None:
    future = {"a_field_of_the_future": {"x": 1}}
    session_id = raw.post("create_session", tags=[], **future)["session_id"]
    address = {"session_id": session_id, "model_seq_id": 0}
    lora = {"rank": 4, **future}
    model = raw.result("create_model", **address, base_model=MODEL, lora_config=lora, **future)["model_id"]
    adam = {"learning_rate": 0.1, **future}
    assert "error" not in raw.result("optim_step", model_id=model, seq_id=1, adam_params=adam, **future)
    assert "path" in raw.result("save_weights", model_id=model, seq_id=2, path="a", **future)
    path = raw.result("save_weights_for_sampler", model_id=model, seq_id=3, path="a", **future)["path"]
    params = {"max_tokens": 1, **future}
    prompt = {"chunks": [{"tokens": [1], **future}], **future}
    sampled = raw.post("sample", model_path=path, prompt=prompt, sampling_params=params, **future)
    assert len(sampled["sequences"][0]["tokens"]) == 1
