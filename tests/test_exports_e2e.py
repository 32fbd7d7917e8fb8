"""Exports through the gateway: the SDK, its command line, the cookbook's download and its converters."""

import datetime
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyrage as untyped_pyrage
import pytest
import tinker
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import load_file
from tinker_cookbook import weights
from transformers import AutoModelForCausalLM

from tests.data import logprobs_of, some_tokens, supervised
from tinsmith_local import Stack

pytestmark = pytest.mark.e2e

MODEL = "tinsmith/tiny-qwen3"
MODEL_FOLDER = Path(__file__).parent.parent / "models" / "tiny-qwen3"
DATA = [supervised(some_tokens(seed)) for seed in range(2)]
pyrage: Any = untyped_pyrage
FILES = {"adapter_config.json", "adapter_model.safetensors"}
# Two fp32 implementations of the same four layers; logprobs are of order 10.
TOLERANCE = 2e-4


@pytest.fixture
def environment(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", stack.base_url)
    monkeypatch.setenv("TINKER_API_KEY", stack.api_key)


@pytest.fixture
def rest(stack: Stack) -> tinker.RestClient:
    return tinker.RestClient(base_url=stack.base_url, api_key=stack.api_key)


def trained(service: tinker.ServiceClient, *, train_unembed: bool) -> tinker.TrainingClient:
    trainer = service.create_lora_training_client(MODEL, rank=4, seed=3, train_unembed=train_unembed).result()
    for _ in range(2):
        trainer.forward_backward(DATA, "cross_entropy").result()
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return trainer


def logprobs_by(model: Any) -> list[NDArray[np.float32]]:
    """Log-probabilities of DATA's targets by a Hugging Face model."""
    values: list[NDArray[np.float32]] = []
    for datum in DATA:
        tokens = torch.tensor([datum.model_input.to_ints()])
        targets = torch.from_numpy(datum.loss_fn_inputs["target_tokens"].to_numpy())
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0]
        values.append(torch.log_softmax(logits.float(), -1).gather(1, targets[:, None])[:, 0].numpy())
    return values


def difference(a: list[NDArray[np.float32]], b: list[NDArray[np.float32]]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def load_base() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)


@pytest.mark.row(
    "export-files",
    "cookbook-download",
    "save-external",
    call="tinker_cookbook.weights.download, build_lora_adapter, build_hf_model",
)
@pytest.mark.usefixtures("environment")
def test_a_downloaded_checkpoint_gives_our_logprobs_in_peft_and_merged(
    service: tinker.ServiceClient, out: Path
) -> None:
    trainer = trained(service, train_unembed=False)
    ours = logprobs_of(trainer.forward(DATA, "cross_entropy").result())
    path = trainer.save_state("kept").result().path
    raw = weights.download(tinker_path=path, output_dir=str(out / "raw"))
    assert {file.name for file in Path(raw).iterdir()} == FILES
    assert difference(logprobs_by(load_base()), ours) > 0.1
    assert difference(logprobs_by(PeftModel.from_pretrained(load_base(), raw)), ours) < TOLERANCE
    weights.build_lora_adapter(base_model=str(MODEL_FOLDER), adapter_path=raw, output_path=str(out / "peft"))
    converted = PeftModel.from_pretrained(load_base(), str(out / "peft"))
    assert difference(logprobs_by(converted), ours) < TOLERANCE
    weights.build_hf_model(
        base_model=str(MODEL_FOLDER), adapter_path=raw, output_path=str(out / "merged"), dtype="float32"
    )
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32)
    assert difference(logprobs_by(merged), ours) < TOLERANCE


@pytest.mark.usefixtures("environment")
def test_a_download_leaves_no_export_behind(
    service: tinker.ServiceClient, rest: tinker.RestClient, out: Path
) -> None:
    path = trained(service, train_unembed=True).save_state("kept").result().path
    before = exports(rest)
    weights.download(tinker_path=path, output_dir=str(out / "raw"))
    listed = rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert path in {item.tinker_path for item in listed}
    assert exports(rest) == before


def exports(rest: tinker.RestClient) -> set[str]:
    listed = rest.list_user_checkpoints(limit=1000).result().checkpoints
    return {item.tinker_path for item in listed if item.checkpoint_type == "external"}


@pytest.mark.row("lora-scale", "export-files", call="save_weights_external, weights.download")
@pytest.mark.usefixtures("environment")
def test_the_head_is_exported_under_the_protocols_name(service: tinker.ServiceClient, out: Path) -> None:
    trainer = trained(service, train_unembed=True)
    ours = logprobs_of(trainer.forward(DATA, "cross_entropy").result())
    path = trainer.save_weights_external("plain").result().path
    weights.download(tinker_path=path, output_dir=str(out))
    tensors = load_file(out / "adapter_model.safetensors")
    assert tensors["base_model.model.model.unembed_tokens.lora_A.weight"].shape == (4, 256)
    assert not [name for name in tensors if "lm_head" in name]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 32.0)
    # With tied embeddings only the head may change, so the delta is added to the logits by hand.
    peft: Any = PeftModel.from_pretrained(load_base(), str(out))
    base = peft.base_model.model
    a, b = (
        torch.from_numpy(tensors[f"base_model.model.model.unembed_tokens.lora_{side}.weight"])
        for side in "AB"
    )
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight + b @ a * (32 / 4))
    assert difference(logprobs_by(base), ours) < TOLERANCE


@pytest.mark.row("export-age", call="save_weights_external(age_encryption_recipients=)")
def test_an_encrypted_export_opens_with_every_recipients_key_and_no_other(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    identities = [pyrage.x25519.Identity.generate() for _ in range(3)]
    saved = (
        trained(service, train_unembed=True)
        .save_weights_external(
            "secret", age_encryption_recipients=[str(i.to_public()) for i in identities[:2]]
        )
        .result()
    )
    urls = rest.get_external_weights_urls(saved.path).result().urls
    assert set(urls) == {f"{file}.age" for file in FILES}
    sealed = {name: urllib.request.urlopen(url).read() for name, url in urls.items()}
    run_id = saved.path.split("/")[2]
    (listed,) = rest.list_checkpoints(run_id).result().checkpoints
    assert listed.size_bytes == sum(len(content) for content in sealed.values())
    for identity in identities[:2]:
        config = json.loads(pyrage.decrypt(sealed["adapter_config.json.age"], [identity]))
        assert config["lora_alpha"] == 32
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed["adapter_config.json.age"], [identities[2]])


def test_a_recipient_that_is_no_key_is_refused_by_name(trainer: tinker.TrainingClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="age1nonsense"):
        trainer.save_weights_external("bad", age_encryption_recipients=["age1nonsense"]).result()
    assert trainer.save_weights_external("bad").result().path.endswith("/external_weights/bad")


@pytest.mark.row("export-urls", "download-file", call="get_external_weights_urls; plain GET")
def test_download_urls_need_no_credential_and_admit_no_alteration(
    trainer: tinker.TrainingClient, rest: tinker.RestClient
) -> None:
    path = trainer.save_weights_external("signed").result().path
    answer = rest.get_external_weights_urls(path).result()
    assert answer.expires - datetime.datetime.now(datetime.UTC) > datetime.timedelta(minutes=30)
    url = answer.urls["adapter_config.json"]
    with urllib.request.urlopen(url) as response:
        content = response.read()
        assert int(response.headers["Content-Length"]) == len(content)
    for altered in (
        url.replace("expires=", "expires=9"),
        url.replace("adapter_config.json", "adapter_model.safetensors"),
        url.replace("adapter_config.json", "%2e%2e/%2e%2e/weights/x"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(altered)
        assert refusal.value.code in {403, 404}
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url)
