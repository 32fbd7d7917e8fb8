"""What one small call costs through the gateway with the SDK: run it with `python -m tinsmith_local run -- …`."""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import tinker

MODEL = "tinsmith/tiny-qwen3"
PROMPT_TOKENS = 24
NEW_TOKENS = 64


def percentiles(call: Callable[[], object], rounds: int) -> str:
    """Milliseconds: median, 95th percentile, and the first call."""
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    p95 = sorted(times)[int(0.95 * rounds)]
    return f"p50 {statistics.median(times):.1f} ms   p95 {p95:.1f} ms   first {times[0]:.1f} ms"


def datum(tokens: list[int]) -> tinker.Datum:
    """Predict each token from those before it."""
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.array(tokens[1:], np.int64)),
            "weights": tinker.TensorData.from_numpy(np.ones(len(tokens) - 1, np.float32)),
        },
    )


def tokens_per_second(sampler: tinker.SamplingClient, prompt: tinker.ModelInput, requests: int) -> float:
    """Sampled tokens per second with that many requests at once."""
    params = tinker.SamplingParams(max_tokens=NEW_TOKENS, stop=[])
    start = time.perf_counter()
    futures = [sampler.sample(prompt, 1, params) for _ in range(requests)]
    sampled = sum(len(future.result().sequences[0].tokens) for future in futures)
    return sampled / (time.perf_counter() - start)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="calls of each kind [%(default)s]")
    rounds = parser.parse_args().rounds
    tokens = np.random.default_rng(0).integers(100, 900, PROMPT_TOKENS).tolist()
    prompt = tinker.ModelInput.from_ints(tokens)
    service = tinker.ServiceClient()
    trainer = service.create_lora_training_client(MODEL, rank=8).result()
    adam, data = tinker.AdamParams(learning_rate=1e-3), [datum(tokens)]
    one_token = tinker.SamplingParams(max_tokens=1)
    calls: dict[str, Callable[[], object]] = {
        f"forward_backward of {PROMPT_TOKENS - 1} tokens": lambda: trainer.forward_backward(
            data, "cross_entropy"
        ).result(),
        "optim_step": lambda: trainer.optim_step(adam).result(),
        "save_weights_and_get_sampling_client": lambda: (
            trainer.save_weights_and_get_sampling_client().result()
        ),
    }
    for name, call in calls.items():
        print(f"{name:<38}{percentiles(call, rounds)}")
    sampler = trainer.save_weights_and_get_sampling_client().result()
    print(
        f"{'sample of 1 token':<38}{percentiles(lambda: sampler.sample(prompt, 1, one_token).result(), rounds)}"
    )
    for requests in (1, 16, 64):
        rate = tokens_per_second(sampler, prompt, requests)
        print(f"{f'{requests} requests of {NEW_TOKENS} tokens':<38}{rate:,.0f} tokens/s")


if __name__ == "__main__":
    main()
