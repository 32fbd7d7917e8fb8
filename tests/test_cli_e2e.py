"""The SDK's own command line against the stack: each command, and what it changed."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tinker
from safetensors import safe_open

from tests.conformance.hub import running_hub
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"


def cli(stack: Stack, *arguments: str, **variables: str) -> str:
    """Run `tinker …` as a user does and answer what it printed."""
    address = {"TINKER_BASE_URL": stack.base_url, "TINKER_API_KEY": stack.api_key}
    environment = {**os.environ, **address, **variables}
    command = [str(Path(sys.executable).with_name("tinker")), *arguments]
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cli_json(stack: Stack, *arguments: str) -> Any:
    """The same, as JSON."""
    return json.loads(cli(stack, "--format", "json", *arguments))


@pytest.fixture
def rest(stack: Stack) -> tinker.RestClient:
    return tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)


@pytest.fixture
def run_id(service: tinker.ServiceClient) -> str:
    """A run with one checkpoint named `one`."""
    trainer = service.create_lora_training_client(MODEL, rank=4, train_unembed=False).result()
    trainer.save_state("one").result()
    return trainer.get_info().model_id


@pytest.mark.row("cli-model-list", "cli-run-list", "cli-run-info", call="CLI")
def test_models_and_runs_are_listed(stack: Stack, run_id: str) -> None:
    assert MODEL in cli(stack, "model", "list")
    assert run_id in json.dumps(cli_json(stack, "run", "list"))
    assert MODEL in json.dumps(cli_json(stack, "run", "info", run_id))


@pytest.mark.row("cli-checkpoint-list", "cli-checkpoint-info", call="CLI")
def test_checkpoints_are_listed_and_described(stack: Stack, run_id: str) -> None:
    path = f"tinker://{run_id}/weights/one"
    assert path in json.dumps(cli_json(stack, "checkpoint", "list"))
    assert path in json.dumps(cli_json(stack, "checkpoint", "list", "--run-id", run_id))
    assert path in json.dumps(cli_json(stack, "checkpoint", "info", path))


@pytest.mark.row(
    "cli-checkpoint-publish",
    "cli-checkpoint-unpublish",
    "cli-checkpoint-set-ttl",
    "cli-checkpoint-delete",
    call="CLI",
)
def test_a_checkpoint_is_published_withdrawn_given_a_ttl_and_deleted(
    stack: Stack, rest: tinker.RestClient, run_id: str
) -> None:
    path = f"tinker://{run_id}/weights/one"

    def listed() -> list[Any]:
        return list(rest.list_checkpoints(run_id).result().checkpoints)

    cli(stack, "checkpoint", "publish", path)
    assert listed()[0].public
    cli(stack, "checkpoint", "unpublish", path)
    assert not listed()[0].public
    cli(stack, "checkpoint", "set-ttl", path, "--ttl", "7200")
    assert timedelta(hours=1) < listed()[0].expires_at - datetime.now(UTC) <= timedelta(hours=2)
    cli(stack, "checkpoint", "delete", path, "-y")
    assert listed() == []


@pytest.mark.row("cli-checkpoint-download", call="CLI")
def test_a_download_holds_the_adapter_and_leaves_no_export_behind(
    stack: Stack, rest: tinker.RestClient, run_id: str, tmp_path: Path
) -> None:
    cli(stack, "checkpoint", "download", f"tinker://{run_id}/weights/one", "-o", str(tmp_path))
    files = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"] > 100_000
    kept = rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert [item.tinker_path for item in kept if "/external_weights/download" in item.tinker_path] == []


@pytest.mark.row("cli-billing-storage", "cli-auth-status", call="CLI")
def test_storage_and_credentials_are_told(stack: Stack, run_id: str) -> None:
    assert cli_json(stack, "billing", "checkpoint-storage")
    assert "yes" in cli(stack, "auth", "status").lower()


@pytest.mark.row("cli-checkpoint-push-hf", call="CLI")
def test_a_checkpoint_is_pushed_to_a_hub_with_a_card_that_says_where_it_is_from(
    stack: Stack, run_id: str, tmp_path: Path
) -> None:
    path = f"tinker://{run_id}/weights/one"
    with running_hub() as hub:
        there = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_any",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
        }
        cli(stack, "checkpoint", "push-hf", path, "--repo", "ann/adapter", **there)
    files = hub.files["ann/adapter"]
    assert path in files["README.md"].decode()
    assert json.loads(files["adapter_config.json"])["r"] == 4
    weights = tmp_path / "pushed.safetensors"
    weights.write_bytes(files["adapter_model.safetensors"])
    with safe_open(weights, "np") as tensors:
        assert [name for name in tensors.keys() if "lora_A" in name]  # noqa: SIM118  (no mapping)


@pytest.mark.row("cli-version", call="CLI")
def test_the_command_line_is_of_the_version_that_the_table_is_about(stack: Stack) -> None:
    assert "0.38.0" in cli(stack, "version")
