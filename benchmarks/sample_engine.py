"""SGLang's own engine in a process of its own, without our service: the other side of `benchmarks.sample`.

Runs in the sample service's environment, with the arguments and settings that the service gives its engine, on the
device that TINSMITH_RAW_ENGINE_DEVICE names. Reads one job per line of standard input and answers each with one line,
both JSON:

    {"prompts": [[int]], "new_tokens": int, "adapters": [folder or null for each prompt]} -> {"wall_s", "tokens"}
"""

import os
import sys

from tinsmith_sample.engines.process import engine_environment

_DEVICE = "TINSMITH_RAW_ENGINE_DEVICE"
if __name__ == "__main__" and "OMP_WAIT_POLICY" not in os.environ:
    # Read by torch when it is imported, so they must be there before.
    os.execve(
        sys.executable,
        [sys.executable, "-m", "benchmarks.sample_engine", *sys.argv[1:]],
        os.environ | engine_environment(os.environ.get(_DEVICE, "auto"), None),
    )

from tinsmith_sample.engines import sglang_cpu, sglang_scores  # noqa: E402

# Also executed in every worker that SGLang spawns, before it imports SGLang.
sglang_cpu.install()
sglang_scores.install()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from typing import Any, TextIO  # noqa: E402


class RawEngine:
    """An engine, and the adapters it was given by their folders."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._names: dict[str, str] = {}

    def run(self, job: dict[str, Any]) -> dict[str, float]:
        """All prompts at once. Loading adapters that are new is not timed."""
        names = [None if folder is None else self._name(folder) for folder in job["adapters"]]
        start = time.perf_counter()
        tokens = self._engine.loop.run_until_complete(self._generate(job, names))
        return {"wall_s": time.perf_counter() - start, "tokens": tokens}

    def _name(self, folder: str) -> str:
        if folder not in self._names:
            name = f"v{len(self._names)}"
            result = self._engine.load_lora_adapter(name, folder)
            if not result.success:
                raise RuntimeError(result.error_message)
            self._names[folder] = name
        return self._names[folder]

    async def _generate(self, job: dict[str, Any], names: list[str | None]) -> int:
        async def one(index: int, prompt: list[int]) -> int:
            answer = await self._engine.async_generate(
                input_ids=prompt,
                sampling_params={
                    "max_new_tokens": job["new_tokens"],
                    "temperature": 1.0,
                    "ignore_eos": True,
                    "sampling_seed": index,
                },
                return_logprob=True,
                lora_path=names[index],
            )
            return len(answer["output_ids"])

        return sum(await asyncio.gather(*(one(*item) for item in enumerate(job["prompts"]))))


def serve(engine: RawEngine, answers: TextIO) -> None:
    """Say that it is up, then answer jobs until the input ends."""
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.run(json.loads(line))), file=answers, flush=True)


def main() -> None:
    """Build the engine and serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sample_engine", description=__doc__)
    parser.add_argument("model_path")
    parser.add_argument("--max-adapters", type=int, default=8, help="in one batch [%(default)s]")
    options = parser.parse_args()
    # Engines print on their way up; answers have a line of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tinsmith_sample.engines.sglang import EngineConfig, launch_order
    from tinsmith_sample.engines.sglang_host import build_engine
    from tinsmith_sample.engines.sglang_times import plain_engine

    device = os.environ.get(_DEVICE, "auto")
    config = EngineConfig(options.model_path, device=device, adapters_per_batch=options.max_adapters)
    engine = build_engine(plain_engine(), launch_order(config))
    try:
        serve(RawEngine(engine), answers)
    finally:
        engine.shutdown()
        os._exit(0)  # SGLang leaves non-daemon threads behind


if __name__ == "__main__":
    main()
