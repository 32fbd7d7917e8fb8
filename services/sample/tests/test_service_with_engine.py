"""The whole service with the real engine, as a process that is killed and started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sqlalchemy import create_engine, insert

from tinsmith_common.catalog.tables import SamplingSessionRow
from tinsmith_common.wire import tinsmith_wire_pb2 as pb

pytestmark = pytest.mark.engine

MODEL = "tinsmith/tiny"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Process:
    """`python -m tinsmith_sample` on the stores in `folder`."""

    folder: Path
    model: Path
    port: int = field(default_factory=_free_port)
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = os.environ | {
            "SAMPLING_HOST": "127.0.0.1",
            "SAMPLING_PORT": str(self.port),
            "SUPPORTED_MODELS": json.dumps([{"name": MODEL, "path": str(self.model)}]),
            "METADATA_DIR": str(self.folder),
            "SAMPLING_DEVICE": "cpu",
            "SAMPLING_ENGINE_ARGS": '{"max_total_tokens": 4096}',
            "TINKER_API_KEY": "key",
        }
        self.running = subprocess.Popen([sys.executable, "-m", "tinsmith_sample"], env=env)
        self._wait_for("/healthz", 200)

    def wait_ready(self) -> None:
        self._wait_for("/readyz", 200)

    def kill(self) -> list[psutil.Process]:
        """kill -9 the service alone. Answers the processes it had started."""
        assert self.running is not None
        children = psutil.Process(self.running.pid).children(recursive=True)
        self.running.kill()
        self.running.wait()
        return children

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        headers = {"X-API-Key": "tml-key", "Accept": "application/x-protobuf"}
        return httpx.post(url, json=body, headers=headers, timeout=60)

    def sample(self, seq_id: int, sampler: str = "s:sample:0", **params: Any) -> str:
        body = {
            "sampling_session_id": sampler,
            "seq_id": seq_id,
            "num_samples": 2,
            "prompt_logprobs": True,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [9, 8, 7]}]},
            "sampling_params": {"max_tokens": 5, "seed": 1, "stop": []} | params,
        }
        answer = self.post("asample", body)
        answer.raise_for_status()
        return answer.json()["request_id"]

    def result(self, request_id: str) -> pb.SampleResponse:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            answer = self.post("retrieve_future", {"request_id": request_id})
            if answer.headers["content-type"] == "application/x-protobuf":
                return pb.SampleResponse.FromString(answer.content)
            assert "try_again" in answer.text, answer.text
        raise TimeoutError(request_id)

    def _wait_for(self, path: str, status: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.running is not None
            assert self.running.poll() is None, "the service ended"
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}{path}").status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise TimeoutError(path)


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("metadata"), tiny_model)
    process.start()
    _add_sampling_session(process.folder, "s:sample:0", None)
    yield process
    if process.running is not None and process.running.poll() is None:
        process.running.terminate()
        # uvicorn shuts down in good order and then lets the signal have its usual effect.
        assert process.running.wait(timeout=30) == -signal.SIGTERM


def _add_sampling_session(folder: Path, name: str, weights_key: str | None) -> None:
    """What the train service does when it saves weights for a sampler."""
    values = {
        "id": name,
        "session_id": "s",
        "owner": "local",
        "base_model": MODEL,
        "created_at": datetime.now(UTC),
        "weights_key": weights_key,
    }
    engine = create_engine(f"sqlite:///{folder / 'futures.db'}")
    with engine.begin() as connection:
        connection.execute(insert(SamplingSessionRow).values(values))
    engine.dispose()


def test_samples_are_taken_before_the_engine_is_up_and_survive_a_kill(service: Process) -> None:
    """The first process is killed while it starts or works; its promises are kept by the second."""
    requests = [service.sample(seq_id, max_tokens=100) for seq_id in range(5)]
    children = service.kill()
    assert not psutil.wait_procs(children, timeout=20)[1]
    service.start()
    responses = [service.result(request_id) for request_id in requests]
    assert {len(np.frombuffer(item.tokens, "<i4")) for r in responses for item in r.sequences} == {100}
    # All five asked the same with the same seed.
    assert len({response.sequences[0].tokens for response in responses}) == 1


def test_prompt_logprobs_arrive_with_nan_at_position_zero(service: Process) -> None:
    logprobs = np.frombuffer(service.result(service.sample(10)).prompt_logprobs, "<f4")
    assert np.isnan(logprobs).tolist() == [True, False, False]


def test_weights_saved_again_under_the_same_name_are_new_weights(service: Process, make_adapter: Any) -> None:
    saved = make_adapter(4, ("down_proj", "lm_head"), seed=300).folder
    target = service.folder / "checkpoints" / "s:train:0" / "sampler_weights" / "a"
    target.parent.mkdir(parents=True)
    saved.rename(target)
    _add_sampling_session(service.folder, "s:sample:1", "s:train:0/sampler_weights/a")

    def scores(seq_id: int) -> NDArray[np.float32]:
        answer = service.result(service.sample(seq_id, "s:sample:1"))
        return np.frombuffer(answer.prompt_logprobs, "<f4")[1:]

    first = scores(0)
    # The last digit depends on what shares the batch and the cache; other weights move the first ones.
    np.testing.assert_allclose(scores(1), first, atol=3e-5)
    weights = target / "adapter_model.safetensors"
    flipped = {name: -x if "lora_B" in name else x for name, x in load_file(weights).items()}
    replacement = target.with_name("new")
    shutil.copytree(target, replacement)
    save_file(flipped, replacement / weights.name)
    shutil.rmtree(target)
    replacement.rename(target)
    assert np.abs(scores(2) - first).max() > 1e-2


def test_readiness_and_metrics_speak_of_the_engine(service: Process) -> None:
    service.wait_ready()
    text = httpx.get(f"http://127.0.0.1:{service.port}/metrics").text
    assert 'tinsmith_engine_adapters{model="tinsmith/tiny"}' in text
    assert 'tinsmith_sample_seconds_bucket{le="0.01",model="tinsmith/tiny"}' in text
