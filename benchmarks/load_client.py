"""One client of the load benchmark, in a process of its own: many samples at once, and what became of each.

Reads TINKER_BASE_URL and TINKER_API_KEY (and SSL_CERT_FILE) as any client does; prints one line of JSON.
"""

import argparse
import asyncio
import json
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import numpy as np
import psutil
import tinker

MODEL = "tinsmith/tiny-qwen3"
PROMPT_TOKENS = 24
_EVERY_S = 0.1


@dataclass(frozen=True)
class ClientReport:
    """What a client saw. Latencies count from the moment all samples were submitted at, in seconds.

    `faults` says what was wrong with any result; empty when all are there, whole, finite and different.
    """

    samples: int
    tokens: int
    faults: tuple[str, ...]
    wall_s: float
    p50_s: float
    p99_s: float
    connections: int
    """Most TCP connections to the server at one time."""
    cpu_s: float


class ConnectionCount(threading.Thread):
    """Remembers how many connections to a port this process held at most."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._port = port
        self._process = psutil.Process()

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            connections = self._process.net_connections("tcp")
            now = sum(1 for each in connections if each.raddr and each.raddr.port == self._port)
            self.most = max(self.most, now)
            time.sleep(_EVERY_S)


def faults_of(responses: Sequence[tinker.SampleResponse], max_tokens: int) -> tuple[str, ...]:
    """What is wrong with the answers to samples of one completion each."""
    sequences = [sequence for response in responses for sequence in response.sequences]
    ids = {sequence.sequence_id for sequence in sequences}
    logprobs = [sequence.logprobs or [] for sequence in sequences]
    checks = {
        f"{len(sequences)} sequences in {len(responses)} answers": len(sequences) == len(responses),
        f"{len(ids)} different sequence ids of {len(sequences)}": len(ids - {None}) == len(sequences),
        "a sequence of another length": all(len(each.tokens) == max_tokens for each in sequences),
        "logprobs that are not one per token": all(len(each) == max_tokens for each in logprobs),
        "a logprob that is none": all(math.isfinite(x) and x <= 0 for each in logprobs for x in each),
    }
    return tuple(fault for fault, fine in checks.items() if not fine)


async def submit_all(
    sampler: tinker.SamplingClient, prompts: Sequence[tinker.ModelInput], params: tinker.SamplingParams
) -> tuple[list[tinker.SampleResponse], list[float]]:
    """All answers, and after how many seconds each was there."""
    start = time.perf_counter()

    async def one(prompt: tinker.ModelInput) -> tuple[tinker.SampleResponse, float]:
        response = await sampler.sample(prompt, 1, params)
        return response, time.perf_counter() - start

    answers = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return [response for response, _ in answers], [seconds for _, seconds in answers]


def sample_at_once(samples: int, max_tokens: int, *, batch_polls: bool) -> ClientReport:
    """Submit all samples through one sampling client, then wait for all."""
    service = tinker.ServiceClient()
    config = service.holder._client_config  # pyright: ignore[reportPrivateUsage]
    vars(config)["sample_use_retrieve_futures"] = batch_polls
    sampler = service.create_sampling_client(base_model=MODEL).result()
    params = tinker.SamplingParams(max_tokens=max_tokens, stop=[])
    generator = np.random.default_rng(0)
    prompts = [
        tinker.ModelInput.from_ints(generator.integers(100, 900, PROMPT_TOKENS).tolist())
        for _ in range(samples)
    ]
    sampler.sample(prompts[0], 1, params).result()
    count = ConnectionCount(urlsplit(os.environ["TINKER_BASE_URL"]).port or 0)
    count.start()
    process = psutil.Process()
    cpu_s = sum(process.cpu_times()[:2])
    responses, seconds = asyncio.run(submit_all(sampler, prompts, params))
    return ClientReport(
        samples=len(responses),
        tokens=sum(len(each.tokens) for response in responses for each in response.sequences),
        faults=faults_of(responses, max_tokens),
        wall_s=max(seconds),
        p50_s=float(np.percentile(seconds, 50)),
        p99_s=float(np.percentile(seconds, 99)),
        connections=count.most,
        cpu_s=sum(process.cpu_times()[:2]) - cpu_s,
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_client", description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--batch-polls", action="store_true")
    options = parser.parse_args()
    report = sample_at_once(options.samples, options.tokens, batch_polls=options.batch_polls)
    print(json.dumps(asdict(report)), flush=True)
    # One run of many aborted (SIGABRT) near its end: the interpreter's goodbye to other languages' threads is left out.
    os._exit(0)


if __name__ == "__main__":
    main()
