"""Two accounts on one stack, each with keys of the store, through the real SDK."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tinker

from tests.accounts import http, keys
from tests.data import some_tokens, supervised
from tinsmith_common.auth import KEY_AGE_S
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"


def failure(client: httpx.Client, url: str, **body: Any) -> str:
    """How an operation ended that must fail through its promise."""
    promise = client.post(url, json=body).raise_for_status().json()
    ask = {"request_id": promise["request_id"]}
    return client.post("/retrieve_future", json=ask).raise_for_status().json()["error"]


@pytest.fixture(scope="module")
def anns_key(stack: Stack) -> str:
    return keys(stack, "create", "ann")


@pytest.fixture(scope="module")
def ann(stack: Stack, anns_key: str) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=stack.base_url, api_key=anns_key) as client:
        yield client


@pytest.fixture(scope="module")
def bobs_key(stack: Stack) -> str:
    return keys(stack, "create", "bob")


@pytest.fixture(scope="module")
def anns_run(ann: tinker.ServiceClient) -> tinker.TrainingClient:
    trainer = ann.create_lora_training_client(MODEL, rank=4).result()
    trainer.save_state("mine").result()
    trainer.save_weights_for_sampler("mine").result()
    return trainer


def test_the_key_of_a_new_account_trains_and_samples(
    ann: tinker.ServiceClient, anns_run: tinker.TrainingClient
) -> None:
    anns_run.forward_backward([supervised(some_tokens(1))], "cross_entropy").result()
    anns_run.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    prompt = tinker.ModelInput.from_ints(list(some_tokens(1)[:8]))
    sampler = anns_run.save_weights_and_get_sampling_client().result()
    sampled = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=2)).result()
    assert len(sampled.sequences[0].tokens) == 2


def test_runs_and_checkpoints_of_others_are_not_found(
    stack: Stack, bobs_key: str, anns_run: tinker.TrainingClient
) -> None:
    run_id = anns_run.get_info().model_id
    rest = tinker.RestClient(base_url=stack.base_url, api_key=bobs_key)
    path = f"tinker://{run_id}/weights/mine"
    for call in (
        lambda: rest.get_session(run_id.split(":")[0]),
        lambda: rest.get_training_run(run_id),
        lambda: rest.list_checkpoints(run_id),
        lambda: rest.publish_checkpoint_from_tinker_path(path),
        lambda: rest.set_checkpoint_ttl_from_tinker_path(path, 3600),
        lambda: rest.delete_checkpoint_from_tinker_path(path),
    ):
        with pytest.raises(tinker.NotFoundError):
            call().result()
    assert rest.list_training_runs().result().training_runs == []
    assert rest.list_user_checkpoints().result().checkpoints == []
    assert rest.list_sessions().result().sessions == []


def test_weights_of_others_can_neither_be_loaded_nor_sampled(
    stack: Stack, bobs_key: str, anns_run: tinker.TrainingClient
) -> None:
    run_id = anns_run.get_info().model_id
    with tinker.ServiceClient(base_url=stack.base_url, api_key=bobs_key) as bob:
        with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
            bob.create_training_client_from_state(f"tinker://{run_id}/weights/mine").result()
        with pytest.raises(tinker.NotFoundError):
            bob.create_sampling_client(model_path=f"tinker://{run_id}/sampler_weights/mine").result()


@pytest.mark.row(
    "public-checkpoint", "access-token", call="create_training_client_from_state(weights_access_token=)"
)
def test_weights_of_others_load_when_published_or_with_their_owner_s_token(
    stack: Stack, anns_key: str, bobs_key: str, anns_run: tinker.TrainingClient
) -> None:
    data = [supervised(some_tokens(1))]
    path = anns_run.save_state("shared").result().path
    expected = anns_run.forward(data, "cross_entropy").result().metrics
    rest = tinker.RestClient(base_url=stack.base_url, api_key=anns_key)
    with tinker.ServiceClient(base_url=stack.base_url, api_key=bobs_key) as bob:

        def load(token: str | None = None) -> object:
            loaded = bob.create_training_client_from_state(path, weights_access_token=token).result()
            return loaded.forward(data, "cross_entropy").result().metrics

        for token in (None, bobs_key, "tml-nobody"):
            with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
                load(token)
        assert load(anns_key) == expected
        rest.publish_checkpoint_from_tinker_path(path).result()
        assert load() == expected
        rest.unpublish_checkpoint_from_tinker_path(path).result()
        with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
            load()


def test_operations_on_what_others_have_fail_and_take_no_place(
    stack: Stack, ann: tinker.ServiceClient, bobs_key: str, anns_run: tinker.TrainingClient
) -> None:
    model_id, session_id = anns_run.get_info().model_id, anns_run.get_info().model_id.split(":")[0]
    with http(stack, bobs_key) as bob:
        step = {"model_id": model_id, "adam_params": {"learning_rate": 1.0}}
        # Every number that ann could use next.
        for seq_id in range(30):
            assert "is not loaded" in failure(bob, "/optim_step", seq_id=seq_id, **step)
        body = {"seq_id": 0, "num_samples": 1, "prompt": {"chunks": []}, "sampling_params": {"max_tokens": 1}}
        sampler = f"{session_id}:sample:0"
        assert "no sampling session" in failure(bob, "/asample", sampling_session_id=sampler, **body)
        assert bob.get(f"/samplers/{sampler}").status_code == 404
        assert bob.post("/get_info", json={"model_id": model_id}).status_code == 404
        assert bob.post("/retrieve_future", json={"request_id": f"{model_id}:1"}).status_code == 410
        place = {"session_id": session_id, "model_seq_id": 9, "base_model": MODEL, "lora_config": {"rank": 4}}
        assert bob.post("/create_model", json=place).status_code == 404
        assert bob.post("/session_heartbeat", json={"session_id": session_id}).status_code == 404
    anns_run.forward_backward([supervised(some_tokens(1))], "cross_entropy").result()
    assert anns_run.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()


def test_a_revoked_key_is_refused_by_both_services_within_its_age(stack: Stack, bobs_key: str) -> None:
    key = keys(stack, "create", "bob")
    with http(stack, key) as client, http(stack, bobs_key) as other:
        ask = {"sampling_session_id": "none"}
        assert client.get("/sessions").status_code == 200
        assert client.post("/join_sampling_session", json=ask).status_code == 404
        keys(stack, "revoke", keys(stack, "list").splitlines()[-1].split()[0])
        time.sleep(KEY_AGE_S)  # the claim is this time, not that it takes as long
        assert client.get("/sessions").status_code == 401
        assert client.post("/join_sampling_session", json=ask).status_code == 401
        assert other.get("/sessions").status_code == 200


@pytest.mark.row(
    "cli-auth-login", "cli-auth-logout", "cli-auth-status", "apikey-me", "apikey-revoke", call="CLI"
)
def test_a_user_logs_in_with_a_key_and_can_revoke_it(stack: Stack, tmp_path: Path) -> None:
    key = keys(stack, "create", "carol@example.org", "--name", "laptop")
    environment = {**os.environ, "TINKER_BASE_URL": stack.base_url, "HOME": str(tmp_path)}
    environment.pop("TINKER_API_KEY", None)

    def tinker_auth(command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        arguments = [str(Path(sys.executable).with_name("tinker")), "auth", command]
        return subprocess.run(
            arguments,
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            start_new_session=True,  # the prompt would read from a terminal, if there is one
        )

    login = tinker_auth("login", key + "\n")
    assert "Logged in as carol@example.org (tinsmith)" in login.stdout, login.stdout + login.stderr
    assert "Tinker accessible: yes" in tinker_auth("status").stdout
    with http(stack, key) as client:
        assert client.get("/auth/apikey/me").json()["name"] == "laptop"
        assert client.delete("/auth/apikey/me").status_code == 204
        assert client.get("/auth/apikey/me").status_code == 401
    assert tinker_auth("status").returncode != 0
    assert "Removed credential 'laptop'" in tinker_auth("logout").stdout
