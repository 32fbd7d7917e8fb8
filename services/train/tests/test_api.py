"""The app as a library call: real stores, real Ray, real engine, no gateway."""

import asyncio
import importlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from fastapi import FastAPI

from tinsmith_common.errors import EngineFailure
from tinsmith_common.futures import PROTOBUF
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_train.api import create_app
from tinsmith_train.config import TrainingConfig

pytestmark = pytest.mark.integration

KEY = {"X-API-Key": "slime-dev-key"}
MODEL = "tinsmith/tiny-qwen3"


@asynccontextmanager
async def running(
    tmp_path: Path, name: str, **settings: Any
) -> AsyncGenerator[tuple[FastAPI, httpx.AsyncClient], None]:
    app = create_app(TrainingConfig(metadata_dir=tmp_path / name, long_poll_s=20, **settings))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://train/api/v1", headers=KEY, timeout=60
        ) as client,
    ):
        yield app, client


async def post(client: httpx.AsyncClient, url: str, **body: Any) -> Any:
    answer = await client.post(url, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def result(client: httpx.AsyncClient, promise: dict[str, str]) -> httpx.Response:
    """Polled for as long as it takes: on a busy machine a worker needs longer than one poll to come back."""
    body, headers = {"request_id": promise["request_id"]}, {"Accept": PROTOBUF}
    while True:
        answer = await client.post("/retrieve_future", json=body, headers=headers)
        if b'"try_again"' not in answer.content:
            return answer


async def new_model(client: httpx.AsyncClient) -> str:
    session = await post(client, "/create_session")
    address = {"session_id": session["session_id"], "model_seq_id": 0}
    promise = await post(
        client, "/create_model", **address, base_model=MODEL, lora_config={"rank": 4, "seed": 0}
    )
    return (await result(client, promise)).json()["model_id"]


def one_datum(model_id: str, seq_id: int) -> bytes:
    def dense(values: np.ndarray, dtype: Any) -> pb.Tensor:
        return pb.Tensor(dense=values.tobytes(), dtype=dtype, shape=values.shape)

    tokens = np.array([300, 301, 302], np.int32).tobytes()
    datum = pb.Datum(
        model_input=[pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=tokens))],
        loss_fn_inputs={
            "target_tokens": dense(np.array([301, 302, 303]), pb.DTYPE_INT64),
            "weights": dense(np.ones(3, np.float32), pb.DTYPE_FLOAT32),
        },
    )
    return pb.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq_id, data=[datum], loss_fn="cross_entropy"
    ).SerializeToString()


async def loss(client: httpx.AsyncClient, model_id: str, seq_id: int) -> float:
    promise = (await client.post("/forward_backward", content=one_datum(model_id, seq_id))).json()
    return pb.ForwardBackwardOutput.FromString((await result(client, promise)).content).metrics["loss:sum"]


async def test_two_apps_in_one_process_share_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, "one") as (app_one, one), running(tmp_path, "two") as (app_two, two):
        model_id = await new_model(one)
        session_id = model_id.split(":")[0]
        assert (await one.get(f"/sessions/{session_id}")).status_code == 200
        assert (await two.get(f"/sessions/{session_id}")).status_code == 404
        assert (await two.post("/get_info", json={"model_id": model_id})).status_code == 404
        assert app_one.state.services is not app_two.state.services
        assert app_one.state.registry is not app_two.state.registry
        assert (await one.get("/training_runs")).json()["cursor"]["total_count"] == 1
        assert (await two.get("/training_runs")).json()["cursor"]["total_count"] == 0


async def failed_run(client: httpx.AsyncClient) -> str | None:
    """The run that failed the one session which counts as failed; None where no session does."""
    found = (await post(client, "/sessions/search", statuses=[{"type": "failed"}]))["sessions"]
    return found[0]["status"]["reason"]["training_run_id"] if found else None


async def test_work_of_a_process_that_ended_is_reported_and_not_left_open(tmp_path: Path) -> None:
    async with running(tmp_path, "one") as (_, client):
        model_id = await new_model(client)
        # seq_id 2 waits for ever for seq_id 1.
        promise = (await client.post("/forward_backward", content=one_datum(model_id, 2))).json()
    async with running(tmp_path, "one") as (_, client):
        answer = (await result(client, promise)).json()
        assert answer["category"] == "server"
        late = (await client.post("/forward_backward", content=one_datum(model_id, 3))).json()
        assert "not loaded" in (await result(client, late)).json()["error"]
        assert await failed_run(client) == model_id


async def test_a_killed_training_worker_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, "one") as (app, client):
        model_id = await new_model(client)
        before = await loss(client, model_id, 1)
        backend: Any = app.state.runtime._backends[0]
        ray.kill(backend.actor)
        failed = (await client.post("/forward_backward", content=one_datum(model_id, 2))).json()
        assert (await result(client, failed)).json()["category"] == "server"
        assert await loss(client, await new_model(client), 1) == before
        assert await failed_run(client) == model_id
        assert (await client.get(f"/training_runs/{model_id}")).json()["corrupted"]


async def test_a_session_whose_client_goes_on_with_another_model_is_active_again(tmp_path: Path) -> None:
    async with running(tmp_path, "one") as (app, client):
        model_id = await new_model(client)
        session_id = model_id.split(":")[0]
        await app.state.services.failures.models_lost([model_id], EngineFailure("lost"))
        assert await failed_run(client) == model_id
        again = {"session_id": session_id, "model_seq_id": 1, "base_model": MODEL, "lora_config": {"rank": 4}}
        await result(client, await post(client, "/create_model", **again))
        assert await failed_run(client) is None


async def test_metrics_count_what_was_trained(tmp_path: Path) -> None:
    async with running(tmp_path, "one") as (_, client):
        await loss(client, await new_model(client), 1)
        text = (await client.get("http://train/metrics")).text
        assert "tinsmith_train_tokens_total 3.0" in text


async def test_maintenance_removes_the_record_and_the_files_of_what_expired(tmp_path: Path) -> None:
    async with running(tmp_path, "one", maintenance_interval_s=0.05) as (app, client):
        model_id = await new_model(client)
        for seq_id, name in enumerate(("short", "long"), start=1):
            promise = await post(
                client, "/save_weights", model_id=model_id, seq_id=seq_id, path=name, ttl_seconds=3600
            )
            assert (await result(client, promise)).json()["path"].endswith(name)
        folder = tmp_path / "one" / "checkpoints" / model_id / "weights"
        assert {path.name for path in folder.iterdir()} == {"short", "long"}
        catalog = app.state.stores.catalog
        past = datetime.now(UTC) - timedelta(seconds=1)
        await catalog.checkpoints.update(f"tinker://{model_id}/weights/short", expires_at=past)
        while (folder / "short").exists():  # noqa: ASYNC110  (nothing announces a removal)
            await asyncio.sleep(0.05)
        assert (folder / "long").exists()
        assert await catalog.checkpoints.expired() == ()
        listed = (await client.get(f"/training_runs/{model_id}/checkpoints")).json()["checkpoints"]
        assert [item["checkpoint_id"] for item in listed] == ["weights/long"]
        size = sum(path.stat().st_size for path in (folder / "long").iterdir())
        assert listed[0]["size_bytes"] == size


def test_uvicorn_finds_the_app_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METADATA_DIR", str(tmp_path))
    app = importlib.import_module("tinsmith_train.api").app
    assert isinstance(app, FastAPI)
    assert app.state.settings.metadata_dir == tmp_path


async def test_clients_are_told_the_tokenizer_that_the_setting_names(tmp_path: Path) -> None:
    models = [{"name": MODEL, "tokenizer": "somewhere/on-a-hub"}]
    async with running(tmp_path, "one", supported_models=models) as (_, client):
        info = await post(client, "/get_info", model_id=await new_model(client))
        assert info["model_data"]["tokenizer_id"] == "somewhere/on-a-hub"
        assert info["model_data"]["model_name"] == MODEL


async def test_a_model_that_cannot_be_loaded_is_named_with_what_to_change(tmp_path: Path) -> None:
    config = TrainingConfig.model_validate(
        {"metadata_dir": tmp_path, "supported_models": [{"name": "x/y", "path": str(tmp_path / "none")}]}
    )
    app = create_app(config)
    with pytest.raises(EngineFailure, match=r"x/y.*config\.json"):
        async with app.router.lifespan_context(app):
            pass


def uploaded_loss(session_id: str, target: str = "torch.sum") -> dict[str, Any]:
    nodes = [
        {"op": "placeholder", "name": "lp", "target": "logprobs"},
        {"op": "call_function", "name": "s", "target": target, "args": [{"ref": "lp"}]},
        {
            "op": "output",
            "name": "out",
            "target": "output",
            "args": [{"tuple": [{"ref": "s"}, {"dict": {}}]}],
        },
    ]
    return {
        "session_id": session_id,
        "custom_loss_seq_id": 0,
        "name": "total",
        "inputs": [{"name": "logprobs", "rank": 1}],
        "graph": {"format": 1, "nodes": nodes},
    }


async def test_a_repeated_upload_of_a_loss_is_one_promise(tmp_path: Path) -> None:
    async with running(tmp_path, "one") as (_, client):
        session_id = (await post(client, "/create_session"))["session_id"]
        first, again = [await post(client, "/create_custom_loss", **uploaded_loss(session_id)) for _ in "12"]
        assert first == again
        assert (await result(client, first)).json() == {
            "loss_id": f"{session_id}:loss:0",
            "type": "create_custom_loss",
        }
        unknown = await client.post("/create_custom_loss", json=uploaded_loss("nobody"))
        assert unknown.status_code == 404
