"""The SDK on a stack set up otherwise: short-lived tokens, small bodies, lanes that give up soon."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tinker

from tests.accounts import http, keys
from tests.data import some_tokens, supervised
from tinsmith_common.auth import KEY_AGE_S
from tinsmith_local import Stack, StackConfig

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
OWNER = "ann@example.org"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"PJWT_AUTH_ENABLED": "true", "ORGANIZATION": "apples", "MAX_BODY_MIB": "1", "LANE_GAP_S": "2"}
    with Stack(StackConfig(port=0, data_dir=tmp_path_factory.mktemp("tokens"), env=settings)) as stack:
        yield stack


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    return keys(stack, "create", OWNER)


def token_of(stack: Stack, key: str) -> str:
    with http(stack, key) as client:
        return client.post("/auth/token", json={}).raise_for_status().json()["jwt"]


def answers(stack: Stack, credential: str) -> list[httpx.Response]:
    """What the train and the sample service say to it."""
    with http(stack, credential) as client:
        asked = {"sampling_session_id": "none"}
        return [client.get("/sessions"), client.post("/join_sampling_session", json=asked)]


@pytest.mark.row("auth-token", "whoami", call="RestClient.whoami")
def test_training_sampling_and_whoami_run_on_a_token(stack: Stack, key: str) -> None:
    with tinker.ServiceClient(base_url=stack.base_url, api_key=key) as service:
        trainer = service.create_lora_training_client(MODEL, rank=4).result()
        trainer.forward_backward([supervised(some_tokens(1))], "cross_entropy").result()
        sampler = trainer.save_weights_and_get_sampling_client().result()
        prompt = tinker.ModelInput.from_ints(list(some_tokens(1)[:8]))
        sampled = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=2)).result()
        assert len(sampled.sequences[0].tokens) == 2
    identity = tinker.RestClient(base_url=stack.base_url, api_key=key).whoami().result()
    assert (identity.user_urn, identity.email) == (OWNER, OWNER)
    assert identity.org_urn == "tml:organization:apples"


@pytest.mark.row("cli-auth-whoami", call="CLI")
def test_the_command_line_tells_who_a_key_is(stack: Stack, key: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("tinker")), "auth", "whoami"],
        env={**os.environ, "TINKER_BASE_URL": stack.base_url, "TINKER_API_KEY": key},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert OWNER in done.stdout, done.stdout + done.stderr


def test_a_token_can_be_the_credential_of_a_client(stack: Stack, key: str) -> None:
    rest = tinker.RestClient(base_url=stack.base_url, api_key=token_of(stack, key))
    assert rest.whoami().result().user_urn == OWNER
    assert rest.list_sessions().result().sessions is not None


@pytest.mark.row("token-refresh", call="RestClient.list_sessions")
def test_a_client_whose_token_is_refused_fetches_another_and_goes_on(stack: Stack, key: str) -> None:
    rest, token = tinker.RestClient(base_url=stack.base_url, api_key=key), token_of(stack, key)
    rest.list_sessions().result()
    (stack.config.data_dir / "metadata" / "token.key").unlink()
    time.sleep(KEY_AGE_S)
    refused = answers(stack, token)
    assert [answer.status_code for answer in refused] == [401, 401]
    assert all('error="invalid_token"' in answer.headers["www-authenticate"] for answer in refused)
    assert rest.list_sessions().result().sessions is not None


def test_a_token_ends_with_its_key(stack: Stack) -> None:
    token = token_of(stack, keys(stack, "create", "bob"))
    assert [answer.status_code for answer in answers(stack, token)] == [200, 404]
    keys(stack, "revoke", keys(stack, "list").splitlines()[-1].split()[0])
    time.sleep(KEY_AGE_S)
    assert [answer.status_code for answer in answers(stack, token)] == [401, 401]


@pytest.mark.row("refused-body", call="TrainingClient.forward_backward")
def test_a_refused_body_does_not_hold_up_what_the_client_does_next(stack: Stack, key: str) -> None:
    huge = tinker.ModelInput.from_ints([5] * 600_000)
    with tinker.ServiceClient(base_url=stack.base_url, api_key=key) as service:
        trainer = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
        with pytest.raises(tinker.APIStatusError, match="MAX_BODY_MIB"):
            trainer.forward_backward([supervised(huge.to_ints())], "cross_entropy").result()
        # The refused one took seq_id 1 with it: this one is seq_id 2, and the server never heard of 1.
        result = trainer.forward([supervised(some_tokens(1))], "cross_entropy").result(timeout=60)
    assert np.isfinite(result.loss_fn_outputs[0]["logprobs"].to_numpy()).all()
