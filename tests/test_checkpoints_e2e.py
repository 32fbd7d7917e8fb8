"""Saving, resuming, listing and deleting through the gateway with the SDK."""

import httpx
import numpy as np
import pytest
import tinker
from numpy.typing import NDArray

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
DATA = [supervised(some_tokens(seed)) for seed in range(3)]


def steps(trainer: tinker.TrainingClient, count: int) -> list[NDArray[np.float32]]:
    """Train with a rate that changes by step, then answer the log-probabilities."""
    for index in range(count):
        trainer.forward_backward(DATA, "cross_entropy").result()
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2 / (index + 1))).result()
    return logprobs_of(trainer.forward(DATA, "cross_entropy").result())


def difference(a: list[NDArray[np.float32]], b: list[NDArray[np.float32]]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.row(
    "resume-with-optimizer",
    "load-weights-new",
    "save-weights",
    call="create_training_client_from_state_with_optimizer",
)
def test_a_resumed_run_takes_the_identical_next_step(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    steps(trainer, 3)
    path = trainer.save_state("middle").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert difference(steps(resumed, 2), steps(trainer, 2)) == 0.0


@pytest.mark.row("resume-without-optimizer", call="create_training_client_from_state")
def test_resuming_without_the_optimizer_keeps_weights_and_forgets_moments(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    here = steps(trainer, 3)
    path = trainer.save_state("middle").result().path
    resumed = service.create_training_client_from_state(path).result()
    assert difference(steps(resumed, 0), here) == 0.0
    assert difference(steps(resumed, 1), steps(trainer, 1)) > 1e-4


@pytest.mark.row("load-weights-running", call="load_state_with_optimizer")
def test_loading_into_a_running_model_goes_back_to_the_saved_weights(trainer: tinker.TrainingClient) -> None:
    saved = steps(trainer, 2)
    path = trainer.save_state("back").result().path
    assert difference(steps(trainer, 2), saved) > 1e-3
    trainer.load_state_with_optimizer(path).result()  # pyright: ignore[reportDeprecated]  (still served)
    assert difference(steps(trainer, 0), saved) == 0.0


@pytest.mark.row("name-per-kind", call="save_state(overwrite=)")
def test_a_name_is_taken_once_unless_overwritten(trainer: tinker.TrainingClient) -> None:
    trainer.save_state("same").result()
    with pytest.raises(tinker.RequestFailedError, match="exists"):
        trainer.save_state("same").result()
    assert trainer.save_state("same", overwrite=True).result().path.endswith("/weights/same")
    assert trainer.save_weights_for_sampler("same").result().path.endswith("/sampler_weights/same")


@pytest.mark.row("bad-name", "rejected-turn", call="save_state")
def test_an_impossible_name_is_refused_and_the_lane_moves_on(trainer: tinker.TrainingClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="cannot name a checkpoint"):
        trainer.save_state("../escape").result()
    assert trainer.save_state("fine").result()


@pytest.mark.row("missing-checkpoint", call="create_training_client_from_state")
def test_a_missing_checkpoint_says_so(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="never saved"):
        service.create_training_client_from_state("tinker://nobody:train:0/weights/none").result()


@pytest.mark.row(
    "list-runs",
    "get-run",
    "run-checkpoints",
    "list-checkpoints",
    "run-metadata",
    call="RestClient.list_training_runs, get_training_run, list_checkpoints, list_user_checkpoints",
)
def test_listings_show_runs_checkpoints_and_their_metadata(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    trainer = service.create_lora_training_client(
        MODEL, rank=4, user_metadata={"renderer_name": "qwen3"}
    ).result()
    trainer.save_state("one").result()
    trainer.save_state("two", ttl_seconds=3600).result()
    trainer.save_weights_for_sampler("one").result()
    run_id = trainer.get_info().model_id
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)
    run = rest.get_training_run(run_id).result()
    assert (run.base_model, run.lora_rank, run.user_metadata) == (MODEL, 4, {"renderer_name": "qwen3"})
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.checkpoint_id == "weights/two"
    listed = {item.checkpoint_id: item for item in rest.list_checkpoints(run_id).result().checkpoints}
    assert set(listed) == {"weights/one", "weights/two", "sampler_weights/one"}
    assert listed["weights/two"].expires_at is not None
    assert (listed["weights/one"].size_bytes or 0) > 10_000
    everything = rest.list_user_checkpoints(limit=1000).result()
    assert {item.tinker_path for item in listed.values()} <= {i.tinker_path for i in everything.checkpoints}
    runs = rest.list_training_runs(limit=1000).result()
    assert run_id in [item.training_run_id for item in runs.training_runs]
    assert runs.cursor.total_count == len(runs.training_runs)


@pytest.mark.row("delete-checkpoint", call="delete_checkpoint_from_tinker_path")
def test_a_deleted_checkpoint_is_gone_and_cannot_be_loaded(
    stack: Stack, service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    path = trainer.save_state("gone").result().path
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.RequestFailedError, match="deleted"):
        service.create_training_client_from_state(path).result()
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result()


@pytest.mark.row("ttl", call="set_checkpoint_ttl_from_tinker_path")
def test_a_ttl_can_be_set_and_taken_back(stack: Stack, trainer: tinker.TrainingClient) -> None:
    path = trainer.save_state("timed").result().path
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)

    def expires_at() -> object:
        run_id = trainer.get_info().model_id
        return rest.list_checkpoints(run_id).result().checkpoints[0].expires_at

    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    assert expires_at() is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert expires_at() is None


@pytest.mark.row("sampler-not-trainable", call="create_training_client_from_state")
def test_sampler_weights_cannot_be_trained_on(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    path = trainer.save_weights_for_sampler("sampled").result().path
    with pytest.raises(tinker.RequestFailedError, match="weights for sampling"):
        service.create_training_client_from_state(path).result()


@pytest.mark.row(
    "publish",
    "unpublish",
    call="publish_checkpoint_from_tinker_path, unpublish_checkpoint_from_tinker_path; raw HTTP for the 409",
)
def test_publishing_shows_in_listings_and_repeating_it_is_a_conflict(
    stack: Stack, trainer: tinker.TrainingClient
) -> None:
    path = trainer.save_state("shown").result().path
    run_id = trainer.get_info().model_id
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)

    def public() -> bool:
        return rest.list_checkpoints(run_id).result().checkpoints[0].public

    def publish_directly(method: str) -> int:
        # The SDK repeats what is answered with 409 for five minutes.
        url = f"{stack.base_url}/api/v1/training_runs/{run_id}/checkpoints/weights/shown/publish"
        return httpx.request(method, url, headers={"X-API-Key": stack.api_key}).status_code

    rest.publish_checkpoint_from_tinker_path(path).result()
    assert public()
    assert publish_directly("POST") == 409
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not public()
    assert publish_directly("DELETE") == 409


@pytest.mark.row("copy-weights", call="RestClient.copy_weights")
def test_a_copy_continues_where_its_source_stood(
    stack: Stack, service: tinker.ServiceClient, trainer: tinker.TrainingClient
) -> None:
    saved = steps(trainer, 2)
    path = trainer.save_state("source").result().path
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)
    copy = rest.copy_weights(path, "archive", weights_access_token=stack.api_key).result()
    assert copy.split("/")[2] != path.split("/")[2]
    rest.delete_checkpoint_from_tinker_path(path).result()
    resumed = service.create_training_client_from_state_with_optimizer(copy).result()
    assert difference(steps(resumed, 0), saved) == 0.0
    runs = rest.list_training_runs(limit=1000, project_id="archive").result()
    assert copy.split("/")[2] in [run.training_run_id for run in runs.training_runs]


@pytest.mark.row(
    "finish",
    "get-session",
    "list-sessions",
    "ended-session",
    call="get_session, list_sessions; raw HTTP for the end",
)
def test_a_session_lists_its_runs_and_frees_them_when_it_ends(
    stack: Stack, service: tinker.ServiceClient
) -> None:
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    model_id = trainer.get_info().model_id
    session_id = model_id.split(":")[0]
    rest = tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)
    assert rest.get_session(session_id).result().training_run_ids == [model_id]
    assert session_id in rest.list_sessions().result().sessions
    answer = httpx.post(
        f"{stack.base_url}/api/v1/sessions/{session_id}/finish",
        json={"reason": {"type": "success"}},
        headers={"X-API-Key": stack.api_key},
    )
    assert answer.status_code == 204
    with pytest.raises(tinker.RequestFailedError, match="not loaded"):
        trainer.forward(DATA, "cross_entropy").result()
    with pytest.raises(tinker.APIStatusError, match="has ended"):
        service.create_lora_training_client(MODEL, rank=4).result()
