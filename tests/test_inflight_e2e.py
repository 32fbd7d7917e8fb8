"""Inflight sampler weights, with the SDK through the gateway."""

import threading
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from numpy.typing import NDArray

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
TOKENS = some_tokens(3, 30)
PROMPT = tinker.ModelInput.from_ints(TOKENS)
PARITY = 1e-4
"""As in test_sampling_e2e.py, for its reasons. A step moves the logprobs by more than a hundred times that."""


def _train(trainer: tinker.TrainingClient) -> NDArray[np.float32]:
    """A large step. Answers the trainer's logprobs of the prompt afterwards."""
    trainer.forward_backward([supervised(some_tokens(4))], "cross_entropy").result()
    trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return logprobs_of(trainer.forward([supervised(TOKENS)], "cross_entropy").result())[0]


def _save(trainer: tinker.TrainingClient) -> tinker.SamplingClient:
    return trainer.save_weights_and_get_sampling_client(kind="inflight").result()


def _scores(sampler: tinker.SamplingClient) -> NDArray[np.float32]:
    return np.array(sampler.compute_logprobs(PROMPT).result()[1:], np.float32)


@pytest.mark.row("save-sampler-inflight", call='save_weights_and_get_sampling_client(kind="inflight")')
def test_a_save_moves_every_inflight_session_and_no_snapshot(trainer: tinker.TrainingClient) -> None:
    before = _train(trainer)
    first = _save(trainer)
    snapshot = trainer.save_weights_and_get_sampling_client().result()
    np.testing.assert_allclose(_scores(first), before, atol=PARITY)
    after = _train(trainer)
    assert np.abs(after - before).max() > 100 * PARITY
    np.testing.assert_allclose(_scores(first), before, atol=PARITY)  # nothing moves without a save
    second = _save(trainer)
    for sampler in (first, second):
        np.testing.assert_allclose(_scores(sampler), after, atol=PARITY)
    np.testing.assert_allclose(_scores(snapshot), before, atol=PARITY)


def test_models_have_targets_of_their_own(service: tinker.ServiceClient) -> None:
    trainers = [service.create_lora_training_client(MODEL, rank=8, seed=seed).result() for seed in (1, 2)]
    samplers = [_save(trainer) for trainer in trainers]
    base = _scores(samplers[1])
    moved = _train(trainers[0])
    _save(trainers[0])
    np.testing.assert_allclose(_scores(samplers[0]), moved, atol=PARITY)
    np.testing.assert_allclose(_scores(samplers[1]), base, atol=PARITY)


def test_sessions_do_not_share_what_was_computed_of_their_prompts(trainer: tinker.TrainingClient) -> None:
    first, second = _save(trainer), _save(trainer)
    params = tinker.SamplingParams(max_tokens=1)

    def hits(sampler: tinker.SamplingClient) -> int:
        return sampler.sample(PROMPT, 1, params).result().prompt_cache_hit_tokens

    assert [hits(first), hits(second)] == [0, 0]
    assert min(hits(first), hits(second)) > 0


def test_samples_in_progress_survive_updates_and_old_files_go(
    stack: Stack, trainer: tinker.TrainingClient
) -> None:
    """Each save while samples run takes the files of the last but one away."""
    sampler = _save(trainer)
    params = tinker.SamplingParams(max_tokens=60, stop=[])
    failures: list[BaseException] = []
    stop = threading.Event()

    def keep_sampling() -> None:
        try:
            while not stop.is_set():
                response = sampler.sample(PROMPT, 4, params).result()
                assert [len(sequence.tokens) for sequence in response.sequences] == [60] * 4
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=keep_sampling)
    thread.start()
    for _ in range(5):
        _train(trainer)
        _save(trainer)
    newest = _train(trainer)
    _save(trainer)
    stop.set()
    thread.join()
    assert not failures
    np.testing.assert_allclose(_scores(sampler), newest, atol=PARITY)
    folder = stack.config.data_dir / "metadata" / "checkpoints" / trainer.model_id / "inflight"
    assert len(list(folder.iterdir())) == 2


def test_inflight_weights_have_no_lifetime_of_their_own(trainer: tinker.TrainingClient) -> None:
    save = trainer._save_weights_for_sampler_impl  # pyright: ignore[reportPrivateUsage]  (the SDK sends no ttl)
    with pytest.raises(tinker.RequestFailedError, match="as long as their session"):
        save(None, 7200, None, "inflight").result()
    assert _save(trainer)


def test_inflight_weights_have_no_name(stack: Stack, trainer: tinker.TrainingClient) -> None:
    """The SDK sends none either; its next operation would have been this one."""

    def post(route: str, **body: Any) -> Any:
        headers = {"X-API-Key": stack.api_key}
        return httpx.post(f"{stack.base_url}/api/v1/{route}", json=body, headers=headers, timeout=60).json()

    promise = post(
        "save_weights_for_sampler", model_id=trainer.model_id, seq_id=1, kind="inflight", path="named"
    )
    assert "have no name" in post("retrieve_future", request_id=promise["request_id"])["error"]
