"""How far the sampler's log-probabilities are from the trainer's, for one trained adapter, through the whole stack.

Compared are the whole distributions after every token of some prompts (the trainer is asked for every id of the
vocabulary, and so is the sampler), and the sampler's own samples. One row for each number type is printed and written.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tinker
from numpy.typing import NDArray

from benchmarks.latency import datum
from benchmarks.records import ROOT, commit, results_path, write_rows
from tinsmith_local import Stack, StackConfig
from tinsmith_local.console import Console

MODEL = "tinsmith/tiny-qwen3"
VOCABULARY = 2048
PROMPTS, PROMPT_TOKENS, SAMPLES, NEW_TOKENS = 6, 100, 8, 64
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Run, print and write."""
    label = f"{os.cpu_count()}cores-cpu"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler_parity", description=__doc__)
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of both engines [%(default)s]"
    )
    parser.add_argument("--label", default=label, help="of the machine [%(default)s]")
    options = parser.parse_args()
    about = {
        "bench": "sampler_parity",
        "shape": "tiny-qwen3",
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": f"python -m benchmarks.sampler_parity {' '.join(sys.argv[1:])}".strip(),
        "machine": options.label,
    }
    rows: list[Mapping[str, Any]] = []
    for dtype in options.dtypes:
        rows.append(about | {"dtype": dtype} | measure(dtype))
        print(json.dumps(rows[-1]), flush=True)
    path = results_path(options.label, "sampler-parity")
    write_rows(path, rows)
    print(f"written to {path.relative_to(ROOT)}")


def measure(dtype: str) -> dict[str, float]:
    """The figures with both engines in this number type, in a stack of their own."""
    os.environ["TRAIN_DTYPE"] = dtype
    os.environ["SAMPLING_ENGINE_ARGS"] = json.dumps({"dtype": dtype})
    with tempfile.TemporaryDirectory(prefix="tinsmith-parity-") as folder:
        config = StackConfig(port=0, data_dir=Path(folder))
        with (
            Stack(config, Console(show_logs=False)) as stack,
            tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key) as service,
        ):
            trainer = trained(service)
            sampler = trainer.save_weights_and_get_sampling_client().result()
            base = service.create_sampling_client(base_model=MODEL).result()
            pairs = list(distributions(trainer, sampler))
            ours, theirs = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
            drift = np.concatenate(list(sampled_drift(trainer, sampler)))
            plain = np.array(base.compute_logprobs(tinker.ModelInput.from_ints(prompt(0))).result()[1:])
    apart = np.abs(ours - theirs)
    tokens = np.array(prompt(0)[1:])
    own = theirs[np.arange(len(tokens)), tokens]
    return {
        "distributions": len(ours),
        "mean_abs": float(apart.mean()),
        "max_abs": float(apart.max()),
        "kl_sampler_trainer": float((np.exp(theirs) * (theirs - ours)).sum(1).mean()),
        "kl_max": float((np.exp(theirs) * (theirs - ours)).sum(1).max()),
        "sampled_tokens": len(drift),
        "sampled_mean_abs": float(np.abs(drift).mean()),
        "sampled_max_abs": float(np.abs(drift).max()),
        "sampled_k3": float((np.expm1(drift) - drift).mean()),
        "adapter_moves_logprobs_by": float(np.abs(own - plain).mean()),
    }


def prompt(seed: int) -> list[int]:
    """Ordinary tokens."""
    return np.random.default_rng(seed).integers(100, 900, PROMPT_TOKENS).tolist()


def trained(service: tinker.ServiceClient) -> tinker.TrainingClient:
    """An adapter on all modules and the head, far from zero."""
    trainer = service.create_lora_training_client(MODEL, rank=8, seed=1).result()
    for _ in range(5):
        trainer.forward_backward([datum(prompt(seed)[:24]) for seed in range(4)], "cross_entropy").result()
        trainer.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    return trainer


def distributions(
    trainer: tinker.TrainingClient, sampler: tinker.SamplingClient
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Of each prompt, the logprobs `[tokens - 1, vocabulary]` of the trainer and of the sampler."""
    every_id = np.ascontiguousarray(
        np.broadcast_to(np.arange(VOCABULARY), (PROMPT_TOKENS - 1, VOCABULARY)), dtype=np.int64
    )
    asked = tinker.TensorData.from_numpy(every_id)
    ones = tinker.TensorData.from_numpy(np.ones(every_id.shape, np.float32))
    for seed in range(PROMPTS):
        tokens = prompt(seed)
        whole = tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={"target_tokens": asked, "weights": ones},
        )
        (ours,) = trainer.forward([whole], "cross_entropy").result().loss_fn_outputs
        one = tinker.SamplingParams(max_tokens=1)
        answer = sampler.sample(
            tinker.ModelInput.from_ints(tokens), 1, one, target_prompt_logprobs=asked
        ).result()
        assert answer.target_prompt_logprobs is not None
        yield ours["logprobs"].to_numpy(), answer.target_prompt_logprobs.to_numpy()


def sampled_drift(
    trainer: tinker.TrainingClient, sampler: tinker.SamplingClient
) -> Iterator[NDArray[np.float64]]:
    """Of each sample, the trainer's logprobs of its tokens minus those that the sampler gave with it."""
    params = tinker.SamplingParams(max_tokens=NEW_TOKENS, seed=3, stop=[])
    start = prompt(0)[:24]
    for sequence in sampler.sample(tinker.ModelInput.from_ints(start), SAMPLES, params).result().sequences:
        scored = datum(start + list(sequence.tokens))
        (ours,) = trainer.forward([scored], "cross_entropy").result().loss_fn_outputs
        yield ours["logprobs"].to_numpy().astype(np.float64)[len(start) - 1 :] - np.array(sequence.logprobs)


if __name__ == "__main__":
    main()
