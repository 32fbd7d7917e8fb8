"""A train service of its own, without gateway and sampler: for figures of it alone, and for tests with other bounds."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

_START_TIMEOUT_S = 300
API_KEY = "tml-benchmark"


class TrainService:
    """A context manager: entering returns when it is ready. The SDK can talk to `url` directly."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "train.log"
        self._env = os.environ | {
            "TRAINING_HOST": "127.0.0.1",
            "TRAINING_PORT": str(port),
            "METADATA_DIR": str(folder / "metadata"),
            "TINKER_API_KEY": API_KEY,
            **env,
        }

    def __enter__(self) -> "TrainService":
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "tinsmith_train"]
            self._process = subprocess.Popen(command, env=self._env, stdout=log, stderr=log)
        self._usage = psutil.Process(self._process.pid)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"the train service did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def cpu_seconds(self) -> float:
        """What the service, Ray and the worker have used so far."""
        total = 0.0
        for process in [self._usage, *self._usage.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def metrics(self) -> dict[tuple[str, str], float]:
        """Prometheus samples by name and by the value of the first label (with `le`: of that)."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        samples: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label: Any = "/".join(str(value) for _, value in sorted(sample.labels.items()))
                samples[sample.name, label] = sample.value
        return samples

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).is_success
        except httpx.TransportError:
            return False
