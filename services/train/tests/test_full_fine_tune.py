"""Rank 0 through the service: real stores, real Ray, real engine."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from .test_api import MODEL, loss, post, result, running

pytestmark = pytest.mark.integration


async def create(client: httpx.AsyncClient, number: int, **config: Any) -> httpx.Response:
    session = await post(client, "/create_session")
    promise = await post(
        client,
        "/create_model",
        session_id=session["session_id"],
        model_seq_id=number,
        base_model=MODEL,
        lora_config={"rank": 0, **config},
    )
    return await result(client, promise)


async def operation(client: httpx.AsyncClient, url: str, **body: Any) -> httpx.Response:
    return await result(client, await post(client, url, **body))


async def test_all_weights_train_save_load_and_export_a_model_for_hugging_face(tmp_path: Path) -> None:
    async with running(tmp_path, "on", full_fine_tune_models=2) as (app, client):
        model_id = (await create(client, 0)).json()["model_id"]
        info = await post(client, "/get_info", model_id=model_id)
        assert (info["is_lora"], info.get("lora_rank")) == (False, None)

        before = await loss(client, model_id, 1)
        adam = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
        step = await operation(client, "/optim_step", model_id=model_id, seq_id=2, adam_params=adam)
        assert "error" not in step.text
        after = await loss(client, model_id, 3)
        assert after < before - 0.1

        saved = await operation(client, "/save_weights", model_id=model_id, seq_id=4, path="one")
        path = saved.json()["path"]
        described = await post(client, "/weights_info", tinker_path=path)
        assert (described["is_lora"], described.get("lora_rank")) == (False, None)

        refused = (
            await operation(client, "/save_weights_for_sampler", model_id=model_id, seq_id=5, path="two")
        ).json()
        assert refused["category"] == "user"
        assert "save_weights_external" in refused["error"]

        exported = await operation(
            client, "/save_weights_external", model_id=model_id, seq_id=6, path="whole"
        )
        record = await app.state.services.checkpoints.live(exported.json()["path"])
        folder = await app.state.services.checkpoints.folder(record)
        assert hugging_face_loss(folder) == pytest.approx(after, abs=1e-4)

        resumed = await operation(
            client,
            "/load_weights",
            session_id=(await post(client, "/create_session"))["session_id"],
            model_seq_id=0,
            path=path,
            optimizer=True,
        )
        assert await loss(client, resumed.json()["model_id"], 1) == pytest.approx(after, abs=1e-5)

        third = (await create(client, 0)).json()
        assert third["category"] == "user"
        assert "taken by 2 other models" in third["error"]


def hugging_face_loss(folder: Path) -> float:
    """Of the datum that `loss` sends."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens, targets = torch.tensor([[300, 301, 302]]), torch.tensor([301, 302, 303])
    logits = model(input_ids=tokens).logits[0]
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
