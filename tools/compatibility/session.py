"""What a user of the SDK does in a session, run by the interpreter that has the version to be tried.

Prints one JSON object per capability: `name`, `about` (what is checked), `verdict` ("yes", "no such call", or what
went wrong) and `note`.
Every capability is checked by value. Only the SDK and what it depends on are imported.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tinker
from safetensors.numpy import load_file

# The calls of this script differ between the versions, so that none of them can be type-checked.
sdk: Any = tinker

MODEL = "tinsmith/tiny-qwen3"
RANK = 8
SAME = 1e-4
"""Trainer and sampler are two fp32 implementations of the model; measured: 2e-6."""


class NoSuchCall(Exception):
    """This version of the SDK has no such thing."""


class Session:
    """One client session and what its capabilities leave to those after them."""

    def __init__(self) -> None:
        self.service: Any = None
        self.trainer: Any = None
        self.sampler: Any = None
        self.saved = ""
        self.next_loss = 0.0

    def create(self) -> str:
        """A session, the list of models, and a model."""
        self.service = sdk.ServiceClient()
        served = [model.model_name for model in self.service.get_server_capabilities().supported_models]
        assert MODEL in served, served
        self.trainer = settled(self.service.create_lora_training_client(MODEL, rank=RANK, seed=1))
        info = self.trainer.get_info()
        assert (info.model_data.model_name, info.lora_rank) == (MODEL, RANK), info
        return ""

    def tokenizer(self) -> str:
        """The tokenizer that the server names."""
        tokenizer = self.trainer.get_tokenizer()
        assert tokenizer.decode(tokenizer.encode("What is 2 + 3?")) == "What is 2 + 3?"
        return ""

    def train(self) -> str:
        """Ten steps on one batch, submitted as recipes do: the loss falls and is the sum of its log-probabilities."""
        passes = []
        for _ in range(10):
            passes.append(self.trainer.forward_backward(BATCH, "cross_entropy"))
            settled(self.trainer.optim_step(sdk.AdamParams(learning_rate=1e-2)))
        results = [settled(future) for future in passes]
        losses = [result.metrics["loss:sum"] for result in results]
        assert losses[-1] < 0.8 * losses[0], losses
        logprobs = np.concatenate([values(output["logprobs"]) for output in results[0].loss_fn_outputs])
        assert abs(-logprobs.sum() - losses[0]) < 1e-3 * losses[0], (logprobs.sum(), losses[0])
        terms = [values(o["elementwise_loss"]) for o in results[0].loss_fn_outputs if "elementwise_loss" in o]
        if not terms:
            return "passes as protobuf"
        assert abs(np.concatenate(terms).sum() - losses[0]) < 1e-3 * losses[0]
        return "passes as JSON, with `elementwise_loss` in their results"

    def forward(self) -> str:
        """The same log-probabilities as the pass that trains, and no training."""
        first = self._logprobs()
        again = settled(self.trainer.forward_backward(BATCH, "cross_entropy"))
        for a, b in zip(first, again.loss_fn_outputs, strict=True):
            np.testing.assert_array_equal(a, values(b["logprobs"]))
        settled(self.trainer.optim_step(sdk.AdamParams(learning_rate=0.0)))
        return ""

    def policy_loss(self) -> str:
        """A loss with options: ppo with the model's own log-probabilities as the policy's is -sum A."""
        data = []
        for tokens, logprobs in zip(SEQUENCES, self._logprobs(), strict=True):
            inputs = {
                "target_tokens": np.array(tokens[1:], np.int64),
                "logprobs": logprobs.astype(np.float32),
                "advantages": np.full(len(tokens) - 1, 0.5, np.float32),
            }
            data.append(datum(tokens, inputs))
        config = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
        result = settled(self.trainer.forward_backward(data, "ppo", config))
        expected = -0.5 * sum(len(tokens) - 1 for tokens in SEQUENCES)
        assert abs(result.metrics["loss:sum"] - expected) < 1e-3, result.metrics
        settled(self.trainer.optim_step(sdk.AdamParams(learning_rate=0.0)))
        return ""

    def sample(self) -> str:
        """Unnamed weights: scores equal the trainer's; two samples of a seed, the same again."""
        self.sampler = settled(self.trainer.save_weights_and_get_sampling_client())
        prompt = sdk.ModelInput.from_ints(SEQUENCES[0])
        scores = self.sampler.compute_logprobs(prompt).result()
        assert scores[0] is None, scores[0]
        np.testing.assert_allclose(np.array(scores[1:], float), self._logprobs()[0], atol=SAME)
        drawn = [self._draw(), self._draw()]
        first, again = ([list(s.tokens) for s in result.sequences] for result in drawn)
        assert first == again
        assert first[0] != first[1]
        assert [len(s.logprobs) for s in drawn[0].sequences] == [8, 8]
        top = drawn[0].topk_prompt_logprobs
        assert top[0] is None, top[0]
        assert [len(row) for row in top[1:]] == [2] * (len(SEQUENCES[0]) - 1)
        for (_, best), score in zip((row[0] for row in top[1:]), scores[1:], strict=True):
            assert best >= score - SAME
        return ""

    def pickled_sampler(self) -> str:
        """A sampling client that was sent to another process samples there."""
        code = "import pickle, sys, tinker; c = pickle.load(sys.stdin.buffer); p = tinker.ModelInput.from_ints(%r); "
        code += "print(c.compute_logprobs(p).result()[1])"
        done = subprocess.run(
            [sys.executable, "-c", code % (SEQUENCES[0],)],
            input=pickle.dumps(self.sampler),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()[-500:]
        assert abs(float(done.stdout) - self._logprobs()[0][0]) < SAME
        return ""

    def save_and_resume(self) -> str:
        """With the optimizer's state, the next step is that of the run that went on."""
        saved = settled(self.trainer.save_state("kept"))
        self.saved = saved.path
        self.next_loss = self._step(self.trainer)
        resumed = self.service.create_training_client_from_state_with_optimizer(self.saved)
        assert self._step(settled(resumed)) == self.next_loss
        assert self._step(settled(resumed)) == self._step(self.trainer)
        fresh = settled(self.service.create_training_client_from_state(self.saved))
        assert self._step(fresh) == self.next_loss
        assert self._step(fresh) != self._step(self.trainer)
        return ""

    def load_state(self) -> str:
        """Into a model that exists, at any time."""
        before = self._logprobs()
        settled(self.trainer.load_state(self.saved))
        assert any((a != b).any() for a, b in zip(before, self._logprobs(), strict=True))
        assert self._step(self.trainer) == self.next_loss
        return ""

    def named_sampler(self) -> str:
        """Named sampler weights, sampled by their path; and the base model."""
        path = settled(self.trainer.save_weights_for_sampler("named")).path
        sampler = settled(self.service.create_sampling_client(model_path=path))
        prompt = sdk.ModelInput.from_ints(SEQUENCES[0])
        scores = sampler.compute_logprobs(prompt).result()
        np.testing.assert_allclose(np.array(scores[1:], float), self._logprobs()[0], atol=SAME)
        base = settled(self.service.create_sampling_client(base_model=MODEL))
        assert abs(base.compute_logprobs(prompt).result()[1] - scores[1]) > SAME
        return ""

    def listings(self) -> str:
        """Runs, checkpoints, sessions, samplers, and what a checkpoint holds."""
        rest = self.service.create_rest_client()
        run_id = self.saved.split("/")[2]
        assert rest.get_training_run(run_id).result().lora_rank == RANK
        runs = rest.list_training_runs(limit=100).result()
        assert run_id in [run.training_run_id for run in runs.training_runs]
        found = {item.tinker_path for item in rest.list_checkpoints(run_id).result().checkpoints}
        assert self.saved in found, found
        assert found <= {c.tinker_path for c in rest.list_user_checkpoints(limit=1000).result().checkpoints}
        session_id = run_id.split(":")[0]
        assert session_id in rest.list_sessions(limit=100).result().sessions
        session = rest.get_session(session_id).result()
        assert run_id in session.training_run_ids
        sampler = rest.get_sampler(session.sampler_ids[0]).result()
        assert sampler.base_model == MODEL
        assert rest.get_weights_info_by_tinker_path(self.saved).result().lora_rank == RANK
        return ""

    def manage(self) -> str:
        """Publish, withdraw, set an expiry and delete."""
        rest = self.service.create_rest_client()
        path = settled(self.trainer.save_state("managed")).path

        def seen() -> Any:
            listed = rest.list_checkpoints(path.split("/")[2]).result().checkpoints
            return next((item for item in listed if item.tinker_path == path), None)

        rest.publish_checkpoint_from_tinker_path(path).result()
        assert seen().public
        rest.unpublish_checkpoint_from_tinker_path(path).result()
        assert not seen().public
        rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
        assert seen().expires_at is not None
        rest.delete_checkpoint_from_tinker_path(path).result()
        assert seen() is None
        return ""

    def archive(self) -> str:
        """One file that holds the adapter, by a URL that needs no credential."""
        rest = self.service.create_rest_client()
        if not hasattr(rest, "get_checkpoint_archive_url_from_tinker_path"):
            raise NoSuchCall
        answer = rest.get_checkpoint_archive_url_from_tinker_path(self.saved).result()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "archive.tar.gz"
            urllib.request.urlretrieve(answer.url, file)
            with tarfile.open(file) as tar:
                tar.extractall(folder, filter="data")
            check_adapter(Path(folder))
            assert (Path(folder) / "checkpoint_complete").exists()
        return ""

    def external_weights(self) -> str:
        """An export, one URL per file."""
        rest = self.service.create_rest_client()
        if not hasattr(rest, "get_external_weights_urls"):
            raise NoSuchCall
        path = settled(self.trainer.save_weights_external("export")).path
        answer = rest.get_external_weights_urls(path).result()
        with tempfile.TemporaryDirectory() as folder:
            for name, url in answer.urls.items():
                urllib.request.urlretrieve(url, Path(folder) / name)
            check_adapter(Path(folder))
        return ""

    def command_line(self) -> str:
        """`tinker run list`, `checkpoint list` and `checkpoint download`."""
        run_id = self.saved.split("/")[2]
        assert run_id in command("run", "list")
        assert self.saved in command("checkpoint", "list", "--run-id", run_id)
        with tempfile.TemporaryDirectory() as folder:
            command("checkpoint", "download", self.saved, "-o", folder, "--force")
            check_adapter(next(Path(folder).rglob("adapter_config.json")).parent)
        return ""

    def unload(self) -> str:
        """The call that frees a model, which the SDK has in its lower layer."""
        if not hasattr(sdk.resources.AsyncModelsResource, "unload"):
            raise NoSuchCall
        holder, model = self.trainer.holder, self.trainer.model_id

        async def send() -> Any:
            with holder.aclient(sdk.lib.client_connection_pool_type.ClientConnectionPoolType.TRAIN) as client:
                request = sdk.types.UnloadModelRequest(model_id=model)
                return await client.models.unload(request=request)

        promise = holder.run_coroutine_threadsafe(send()).result()
        assert promise.request_id
        refused = ""
        try:
            settled(self.trainer.optim_step(sdk.AdamParams()))
        except Exception as error:
            refused = str(error)
        assert "not loaded" in refused, refused
        return ""

    def _logprobs(self) -> list[Any]:
        result = settled(self.trainer.forward(BATCH, "cross_entropy"))
        return [values(output["logprobs"]) for output in result.loss_fn_outputs]

    def _draw(self) -> Any:
        params = sdk.SamplingParams(max_tokens=8, seed=5, temperature=1.0, stop=[])
        return self.sampler.sample(
            sdk.ModelInput.from_ints(SEQUENCES[0]),
            2,
            params,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=2,
        ).result()

    def _step(self, trainer: Any) -> float:
        result = settled(trainer.forward_backward(BATCH, "cross_entropy"))
        settled(trainer.optim_step(sdk.AdamParams(learning_rate=1e-2)))
        return result.metrics["loss:sum"]


def settled(answer: Any) -> Any:
    """The value of a call that answers a future in some versions and the value itself in others."""
    return answer.result() if hasattr(answer, "result") else answer


def values(tensor: Any) -> Any:
    """A tensor of a result as an array."""
    return tensor.to_numpy()


def datum(tokens: list[int], inputs: dict[str, Any]) -> Any:
    """Tokens and loss inputs as the SDK has them."""
    tensors = {name: sdk.TensorData.from_numpy(array) for name, array in inputs.items()}
    return sdk.Datum(model_input=sdk.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=tensors)


def check_adapter(folder: Path) -> None:
    """A PEFT adapter of the right rank that has been trained."""
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == RANK
    tensors = load_file(folder / "adapter_model.safetensors")
    trained = [name for name, tensor in tensors.items() if name.endswith("lora_B.weight") and tensor.any()]
    assert any("q_proj" in name for name in trained), list(tensors)
    assert any("unembed_tokens" in name for name in trained), list(tensors)


def command(*arguments: str) -> str:
    """Run `tinker …` and answer what it printed.

    One that a signal ended is run again: once in some hundred runs the client's process dies at its exit, with
    its whole answer printed. What a server answers makes it exit with a status of its own.
    """
    tool = Path(sys.executable).with_name("tinker")

    def run() -> subprocess.CompletedProcess[str]:
        line = [tool, "--format", "json", *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    done = run()
    if done.returncode < 0:
        done = run()
    assert done.returncode == 0, f"status {done.returncode}: {(done.stdout + done.stderr)[-500:]}"
    return done.stdout


def some_tokens(seed: int, length: int) -> list[int]:
    """Reproducible ids, all of them ordinary tokens."""
    return np.random.default_rng(seed).integers(100, 900, length).tolist()


def supervised(tokens: list[int]) -> Any:
    """Predict every token from those before it."""
    weights = np.ones(len(tokens) - 1, np.float32)
    return datum(tokens, {"target_tokens": np.array(tokens[1:], np.int64), "weights": weights})


SEQUENCES = [some_tokens(seed, length) for seed, length in ((1, 12), (2, 9))]
BATCH = [supervised(tokens) for tokens in SEQUENCES]
CAPABILITIES = (
    "create", "tokenizer", "train", "forward", "policy_loss", "sample", "pickled_sampler", "save_and_resume",
    "load_state", "named_sampler", "listings", "manage", "archive", "external_weights", "command_line", "unload",
)  # fmt: skip


def attempt(call: Callable[[], str]) -> tuple[str, str]:
    """Verdict and note of one capability."""
    try:
        return "yes", call()
    except NoSuchCall:
        return "no such call", ""
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"[:300], ""


def main() -> None:
    """Try everything; a capability that fails does not keep the others from being tried."""
    logging.disable(logging.WARNING)
    session = Session()
    for name in CAPABILITIES:
        call = getattr(session, name)
        verdict, note = attempt(call)
        about = (call.__doc__ or "").strip()
        print(json.dumps({"name": name, "about": about, "verdict": verdict, "note": note}), flush=True)
    # Threads of the SDK would hold up an ordinary end.
    os._exit(0)


if __name__ == "__main__":
    main()
