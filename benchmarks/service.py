"""What the train service adds to its engine, and what a small client notices of a huge one.

One service without gateway on two models, driven by the SDK:
1. tokens per CPU-second of the service with its worker and Ray, against torch + peft in this process, in turns;
2. small calls: their time at the client, and by the service's own histograms the time from a request's last byte to the
   engine's start and from the engine's end to the committed result;
3. a small forward_backward alone and beside another client's huge one, in turns.

Lines end with what they are; the last ones begin with `ratio`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tinker
import torch

from benchmarks.engine import Shape, peft_step
from benchmarks.latency import MODEL, PROMPT_TOKENS, datum
from benchmarks.train_service import API_KEY, TrainService

BENCH_MODEL = "benchmark/qwen3"
Samples = Mapping[tuple[str, str], float]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="small calls of each kind [%(default)s]")
    parser.add_argument("--steps", type=int, default=6, help="training steps of each side [%(default)s]")
    parser.add_argument("--hog-tokens", type=int, default=200_000, help="of one huge pass [%(default)s]")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides [%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        shape = Shape()
        model = shape.model()
        model.save_pretrained(Path(folder) / "model")
        models = [MODEL, {"name": BENCH_MODEL, "path": f"{folder}/model", "tokenizer": "none"}]
        env = {"SUPPORTED_MODELS": json.dumps(models), "TRAIN_THREADS": str(options.threads)}
        with (
            TrainService(Path(folder), env) as service,
            tinker.ServiceClient(base_url=service.url, api_key=API_KEY) as client,
        ):
            small_calls(service, client, options.rounds)
            beside_a_hog(client, options.rounds, options.hog_tokens)
            efficiency(service, client, shape, model, options.steps)


def small_calls(service: TrainService, client: tinker.ServiceClient, rounds: int) -> None:
    """Print what each costs, seen from outside and from inside."""
    trainer = client.create_lora_training_client(MODEL, rank=8).result()
    data, adam = [small_datum()], tinker.AdamParams(learning_rate=1e-4)
    calls: dict[str, Callable[[], object]] = {
        "ForwardBackward": lambda: trainer.forward_backward(data, "cross_entropy").result(),
        "OptimStep": lambda: trainer.optim_step(adam).result(),
    }
    before = service.metrics()
    times: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            times[kind].append(timed_ms(call))
    after = service.metrics()
    for kind, ms in times.items():
        names = ("request_to_engine", "engine", "engine_to_result")
        inside = [histogram_p50_ms(before, after, f"tinsmith_{name}_seconds", kind) for name in names]
        print(
            f"{kind}: p50 {statistics.median(ms):.1f} ms at the client, first {ms[0]:.1f} ms; inside p50 about "
            f"{inside[0]:.2f} ms to the engine, {inside[1]:.1f} ms in it, {inside[2]:.2f} ms to the stored result"
        )


def beside_a_hog(client: tinker.ServiceClient, rounds: int, hog_tokens: int) -> None:
    """Print p50 of a small pass alone, and while a pass of `hog_tokens` runs for another model."""
    small, hog = (client.create_lora_training_client(MODEL, rank=8).result() for _ in range(2))
    tokens = np.random.default_rng(1).integers(100, 900, 513)
    huge = [datum(tokens.tolist())] * (hog_tokens // 512)
    call: Callable[[], object] = lambda: small.forward_backward([small_datum()], "cross_entropy").result()  # noqa: E731
    alone = [timed_ms(call) for _ in range(rounds)]
    began = time.perf_counter()
    running = hog.forward_backward(huge, "cross_entropy")
    time.sleep(1.0)  # until it is submitted and under way
    beside: list[float] = []
    while not running.future().done():
        beside.append(timed_ms(call))
    running.result()
    seconds = time.perf_counter() - began
    print(
        f"a small forward_backward: p50 {statistics.median(alone):.1f} ms alone, {statistics.median(beside):.0f} ms "
        f"(at most {max(beside):.0f} ms, {len(beside)} calls) beside one of {hog_tokens:,} tokens, which took "
        f"{seconds:.1f} s"
    )


def efficiency(
    service: TrainService, client: tinker.ServiceClient, shape: Shape, model: torch.nn.Module, steps: int
) -> None:
    """Print tokens per CPU-second of both sides, which take steps in turns."""
    tokens = np.random.default_rng(0).integers(0, shape.vocab, (shape.sequences, shape.length + 1))
    theirs = peft_step(shape, model, tokens)
    trainer = client.create_lora_training_client(BENCH_MODEL, rank=shape.rank, train_unembed=False).result()
    data = [datum(row.tolist()) for row in tokens]
    adam = tinker.AdamParams(learning_rate=1e-4)

    def ours() -> None:
        running = trainer.forward_backward(data, "cross_entropy")
        stepped = trainer.optim_step(adam)
        running.result()
        stepped.result()

    ours()
    theirs()
    cpu: dict[str, list[float]] = {"service": [], "peft": []}
    for _ in range(steps):
        before = service.cpu_seconds()
        ours()
        cpu["service"].append(service.cpu_seconds() - before)
        before = time.process_time()
        theirs()
        cpu["peft"].append(time.process_time() - before)
    rates = {name: shape.tokens / statistics.median(seconds) for name, seconds in cpu.items()}
    print(", ".join(f"{name}: {rate:,.0f} tokens per CPU-second" for name, rate in rates.items()))
    print(
        f"ratio {rates['service'] / rates['peft']:.2f}: tokens per CPU-second, the train service with its worker "
        "and Ray over torch + peft in one process"
    )


def small_datum() -> tinker.Datum:
    """Of 23 tokens."""
    return datum(np.random.default_rng(0).integers(100, 900, PROMPT_TOKENS).tolist())


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def histogram_p50_ms(before: Samples, after: Samples, name: str, kind: str) -> float:
    """The median of what a histogram took up in between, within its bucket by straight line."""
    counts = sorted(
        (float(label.split("/")[0]), value - before.get((sample, label), 0.0))
        for (sample, label), value in after.items()
        if sample == f"{name}_bucket" and label.endswith(f"/{kind}")
    )
    half, low, seen = counts[-1][1] / 2, 0.0, 0.0
    for high, total in counts:
        if total >= half:
            return (low + (high - low) * (half - seen) / max(total - seen, 1e-9)) * 1e3
        low, seen = high, total
    return float("nan")


if __name__ == "__main__":
    main()
