"""Section 8: what is listed, what is not, and what has expired."""

import sqlite3
import time
import urllib.error
import urllib.request

import pytest
import tinker

from tests.data import some_tokens
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"


@pytest.fixture
def rest(stack: Stack) -> tinker.RestClient:
    return tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)


@pytest.mark.row(
    "ids",
    "save-sampler-named",
    "save-external",
    "save-weights",
    call="save_state, save_weights_for_sampler, save_weights_external",
)
def test_paths_name_run_kind_and_name(trainer: tinker.TrainingClient, rest: tinker.RestClient) -> None:
    run_id = trainer.get_info().model_id
    session_id, _, number = run_id.partition(":train:")
    assert number.isdigit()
    assert ":" not in session_id
    paths = {
        "weights": trainer.save_state("final").result().path,
        "sampler_weights": trainer.save_weights_for_sampler("final").result().path,
        "external_weights": trainer.save_weights_external("final").result().path,
    }
    assert paths == {kind: f"tinker://{run_id}/{kind}/final" for kind in paths}
    listed = {item.tinker_path: item for item in rest.list_checkpoints(run_id).result().checkpoints}
    types = {kind: listed[path].checkpoint_type for kind, path in paths.items()}
    assert types == {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}


@pytest.mark.row("expiry", call="save_state(ttl_seconds=)")
def test_what_has_expired_is_in_no_list_and_cannot_be_loaded(
    stack: Stack, service: tinker.ServiceClient, trainer: tinker.TrainingClient, rest: tinker.RestClient
) -> None:
    run_id = trainer.get_info().model_id
    short = trainer.save_state("short", ttl_seconds=3600).result().path
    trainer.save_state("long", ttl_seconds=7200).result()
    # An hour is the shortest that the protocol knows, so the clock is turned for this one.
    (database,) = stack.config.data_dir.rglob("futures.db")
    with sqlite3.connect(database, timeout=30) as store:
        changed = store.execute(
            "UPDATE checkpoints SET expires_at = '2001-01-01 00:00:00.000000' WHERE path = ?", (short,)
        )
        assert changed.rowcount == 1
    names = [item.checkpoint_id for item in rest.list_checkpoints(run_id).result().checkpoints]
    assert names == ["weights/long"]
    everything = rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert short not in [item.tinker_path for item in everything]
    with pytest.raises(tinker.RequestFailedError, match="expired"):
        service.create_training_client_from_state(short).result()
    assert trainer.save_state("short").result().path == short, "the name is free again"


@pytest.mark.row("snapshots-unlisted", call="save_weights_and_get_sampling_client, close")
def test_snapshots_are_in_no_list_and_end_with_their_session(stack: Stack, rest: tinker.RestClient) -> None:
    service = tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key)
    trainer = service.create_lora_training_client(MODEL, rank=4).result()
    sampler = trainer.save_weights_and_get_sampling_client().result()
    prompt = tinker.ModelInput.from_ints(some_tokens(1))
    sequence = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=1)).result().sequences[0]
    sampler_id = (sequence.sequence_id or "").rsplit(":", 2)[0]
    run_id = trainer.get_info().model_id
    assert rest.list_checkpoints(run_id).result().checkpoints == []
    assert rest.get_sampler(sampler_id).result().base_model == MODEL
    service.close("success").result()
    with pytest.raises(tinker.NotFoundError):
        rest.get_sampler(sampler_id).result()


@pytest.mark.row("download-file", "export-urls", call="get_external_weights_urls; plain GET")
def test_a_download_url_of_a_deleted_export_gives_nothing(
    trainer: tinker.TrainingClient, rest: tinker.RestClient
) -> None:
    path = trainer.save_weights_external("brief").result().path
    first, again = (rest.get_external_weights_urls(path).result() for _ in "12")
    assert first.urls.keys() == again.urls.keys()
    assert (first.expires.timestamp() - time.time()) > 300
    rest.delete_checkpoint_from_tinker_path(path).result()
    for url in first.urls.values():
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url)
