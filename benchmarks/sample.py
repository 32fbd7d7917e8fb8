"""The sample service through Envoy and SGLang's own engine, in turn, on the same prompts: tokens/s and their ratio.

Both engines live side by side, built with the same arguments; while one works the other sleeps. The unmodified SDK
drives the service, and its work shares the cores with the service and its engine: on few cores that is part of
what the ratio tells. Medians of all rounds; rows go to `benchmarks/results/`.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tinker

from benchmarks.latency import datum
from benchmarks.records import ROOT, commit, results_path, write_rows
from tinsmith_local import Console, Stack, StackConfig
from tinsmith_local.config import default_sample_python

MODEL = "tinsmith/tiny-qwen3"
MODEL_PATH = ROOT / "models" / "tiny-qwen3"
ADAPTER_RANK = 8


@dataclass(frozen=True)
class Case:
    """Requests at once, each of one sample, over so many adapters (0: the base model)."""

    requests: int
    adapters: int = 0

    def __str__(self) -> str:
        weights = {0: "base model", 1: "1 adapter"}.get(self.adapters, f"{self.adapters} adapters mixed")
        return f"{self.requests} requests at once, {weights}"


CASES = (Case(64), Case(256), Case(64, 1), Case(64, 16))
IN_FLIGHT = (512, 2000)


class RawEngine:
    """`benchmarks.sample_engine`, driven over its standard streams."""

    def __init__(self, device: str) -> None:
        self._process = subprocess.Popen(
            [default_sample_python(), "-m", "benchmarks.sample_engine", str(MODEL_PATH)],
            env={**os.environ, "TINSMITH_RAW_ENGINE_DEVICE": device},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def tokens_per_s(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, adapters: Sequence[str | None]
    ) -> float:
        """All prompts at once."""
        job = {"prompts": prompts, "new_tokens": new_tokens, "adapters": adapters}
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        answer = self._read()
        return answer["tokens"] / answer["wall_s"]

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the raw engine ended, status {self._process.wait()}")
        return json.loads(line)


@dataclass(frozen=True)
class Sampler:
    """A sampling client, and where the weights are that it samples from."""

    client: tinker.SamplingClient
    folder: str | None = None

    def submit(
        self, prompt: Sequence[int], new_tokens: int, seed: int, samples: int = 1
    ) -> Callable[[], int]:
        """Ask; the answer waits and counts the tokens that came."""
        params = tinker.SamplingParams(max_tokens=new_tokens, stop=[], seed=seed)
        future = self.client.sample(tinker.ModelInput.from_ints(list(prompt)), samples, params)
        return lambda: sum(len(sequence.tokens) for sequence in future.result().sequences)


def some_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Different prompts of ordinary tokens, so that nothing comes from a cache."""
    return np.random.default_rng(seed).integers(100, 900, (count, length)).tolist()


def service_rate(samplers: Sequence[Sampler], prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
    """Tokens per second of all prompts at once, dealt to the samplers in turn."""
    start = time.perf_counter()
    waits = [
        sampler.submit(prompt, new_tokens, seed)
        for seed, (prompt, sampler) in enumerate(zip(prompts, itertools.cycle(samplers), strict=False))
    ]
    tokens = sum(wait() for wait in waits)
    assert tokens == len(prompts) * new_tokens, f"{tokens} tokens came of {len(prompts)} x {new_tokens}"
    return tokens / (time.perf_counter() - start)


@dataclass(frozen=True)
class Bench:
    """Both sides, up and warm."""

    stack: Stack
    raw: RawEngine
    service: tinker.ServiceClient
    options: argparse.Namespace

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per case."""
        adapters = [self._adapter(seed) for seed in range(max(case.adapters for case in CASES))]
        base = Sampler(self.service.create_sampling_client(base_model=MODEL).result())
        for case in CASES:
            yield self._compare(case, adapters[: case.adapters] or [base])
        yield self._added_latency(base)
        yield self._singles_against_one(base)
        for count in IN_FLIGHT:
            rate = service_rate([base], some_prompts(count, self.options.prompt, count), 4)
            yield {
                "case": f"{count} requests at once of 4 tokens, none lost",
                "tokens_per_s": rate,
                "requests": count,
            }
        yield self._new_weights()

    def _adapter(self, seed: int) -> Sampler:
        trainer = self.service.create_lora_training_client(MODEL, rank=ADAPTER_RANK, seed=seed).result()
        tokens = some_prompts(1, 32, seed)[0]
        trainer.forward_backward([datum(tokens)], "cross_entropy")
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2))
        path = trainer.save_weights_for_sampler("bench").result().path
        run, kind, name = path.removeprefix("tinker://").split("/")
        folder = self.stack.config.data_dir / "metadata" / "checkpoints" / run / kind / name
        return Sampler(self.service.create_sampling_client(model_path=path).result(), str(folder.resolve()))

    def _compare(self, case: Case, samplers: Sequence[Sampler]) -> dict[str, Any]:
        ours: list[float] = []
        theirs: list[float] = []
        folders = [
            sampler.folder
            for sampler, _ in zip(itertools.cycle(samplers), range(case.requests), strict=False)
        ]
        for number in range(self.options.rounds + 1):
            prompts = some_prompts(case.requests, self.options.prompt, 1000 + number)
            ours.append(service_rate(samplers, prompts, self.options.tokens))
            theirs.append(self.raw.tokens_per_s(prompts, self.options.tokens, folders))
        mine, other = statistics.median(ours[1:]), statistics.median(theirs[1:])
        return {
            "case": str(case),
            "requests": case.requests,
            "adapters": case.adapters,
            "tokens_per_s": mine,
            "other_tokens_per_s": other,
            "ratio": mine / other,
            "spread": max(theirs[1:]) / min(theirs[1:]) - 1,
        }

    def _added_latency(self, base: Sampler) -> dict[str, Any]:
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(self.options.calls):
            prompts = some_prompts(1, self.options.prompt, 5000 + number)
            ours.append(1 / service_rate([base], prompts, 1))
            theirs.append(1 / self.raw.tokens_per_s(prompts, 1, [None]))
        mine, other = (statistics.median(times[2:]) * 1e3 for times in (ours, theirs))
        return {
            "case": "one request of 1 token: p50 in ms",
            "requests": 1,
            "p50_ms": mine,
            "other_p50_ms": other,
            "added_ms": mine - other,
        }

    def _singles_against_one(self, base: Sampler) -> dict[str, Any]:
        singles: list[float] = []
        one: list[float] = []
        for number in range(self.options.rounds + 1):
            prompt = some_prompts(1, self.options.prompt, 9000 + number)[0]
            singles.append(service_rate([base], [prompt] * 16, self.options.tokens))
            start = time.perf_counter()
            tokens = base.submit(prompt, self.options.tokens, number, samples=16)()
            one.append(tokens / (time.perf_counter() - start))
        mine, other = statistics.median(singles[1:]), statistics.median(one[1:])
        return {
            "case": "16 requests of one sample against one of 16",
            "requests": 16,
            "tokens_per_s": mine,
            "other_tokens_per_s": other,
            "ratio": mine / other,
        }

    def _new_weights(self) -> dict[str, Any]:
        trainer = self.service.create_lora_training_client(MODEL, rank=32).result()
        prompt = some_prompts(1, self.options.prompt, 77)[0]
        times: list[float] = []
        for number in range(8):
            trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
            start = time.perf_counter()
            client = trainer.save_weights_and_get_sampling_client().result()
            Sampler(client).submit(prompt, 1, number)()
            times.append((time.perf_counter() - start) * 1e3)
        return {
            "case": "save of a rank-32 adapter to the first token on it: p50 in ms",
            "p50_ms": statistics.median(times[1:]),
            "first_ms": times[0],
        }


def describe(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    if "ratio" in row:
        return (
            f"ratio {row['ratio']:.2f}   {row['case']}: {row['tokens_per_s']:,.0f} tokens/s "
            f"against {row['other_tokens_per_s']:,.0f}"
        )
    if "added_ms" in row:
        return f"added {row['added_ms']:.1f} ms   {row['case']}: {row['p50_ms']:.1f} against {row['other_p50_ms']:.1f}"
    value = f"{row['p50_ms']:,.0f} ms" if "p50_ms" in row else f"{row['tokens_per_s']:,.0f} tokens/s"
    return f"{value}   {row['case']}"


def main() -> int:
    """Run, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each case, after one to warm up [%(default)s]"
    )
    parser.add_argument(
        "--calls", type=int, default=40, help="to measure the added latency with [%(default)s]"
    )
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt [%(default)s]")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each request [%(default)s]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="[%(default)s]")
    parser.add_argument("--label", default=f"{os.cpu_count()}cores-cpu", help="of the machine [%(default)s]")
    options = parser.parse_args()
    about = {
        "bench": "sample",
        "shape": "tiny-qwen3",
        "backend": "tinsmith",
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": options.label,
        "command": f"python -m benchmarks.sample {' '.join(sys.argv[1:])}".strip(),
    }
    path = results_path(options.label, "sample")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tinsmith-sample-") as folder:
        config = StackConfig(port=0, data_dir=Path(folder), env={"SAMPLING_DEVICE": options.device})
        with (
            Stack(config, Console(show_logs=False)) as stack,
            RawEngine(options.device) as raw,
            tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service,
        ):
            for row in Bench(stack, raw, service, options).rows():
                rounded = {
                    key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()
                }
                found.append(about | {"load_before": round(os.getloadavg()[0], 1)} | rounded)
                write_rows(path, found)
                print(describe(row), file=sys.stderr, flush=True)
    print(f"written to {path.relative_to(ROOT)}")
    print("\n".join(map(describe, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
