"""A long run of everything the sample service is asked at once, with crashes: is anything lost, wrong, or leaking?

Clients sample from the base model and from adapters that keep changing, give samples up, and ask for logprobs; all the
while SGLang's process or the whole sample service is killed from time to time. Every sample has a seed and is asked
for again later: the tokens must be the same. Its logprobs are computed again as a prompt's: they must agree.
Memory is the resident set of each part, whose processes are followed over their restarts. Ends with a table and with
status 1 if anything was lost, wrong or grew.
"""

import argparse
import asyncio
import math
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tinker

from benchmarks.latency import MODEL, datum
from benchmarks.load import is_engine, part_processes
from benchmarks.records import ROOT, commit, results_path, write_rows
from tinsmith_local import Console, Stack, StackConfig

_TOLERANCE = 1e-3
"""Between a sampled token's logprob and the same token's as part of a prompt: other kernels, fp32."""
_GROWTH = 1.15
"""Of a part's memory from the second quarter of the run to the last: more is a leak."""
_KEPT = 200


@dataclass(frozen=True)
class Sample:
    """What was asked of whom, and what came."""

    client: tinker.SamplingClient
    prompt: tuple[int, ...]
    params: tinker.SamplingParams
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class Findings:
    """What happened, counted by name, and what should not have."""

    counts: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])

    def fault(self, what: str) -> None:
        """Note and say it at once."""
        self.faults.append(what)
        print(f"FAULT: {what}", file=sys.stderr, flush=True)

    def growth(self, part: str, until: float) -> float | None:
        """Median of the last quarter over that of the second; None before there is enough."""
        early = [mib for at, mib in self.memory[part] if until / 4 <= at < until / 2]
        late = [mib for at, mib in self.memory[part] if at >= until * 3 / 4]
        return statistics.median(late) / statistics.median(early) if early and late else None


class Tenant:
    """One client: its own model, whose weights change, and the samplers it got of them."""

    def __init__(self, stack: Stack, number: int, findings: Findings) -> None:
        self._random = random.Random(number)
        self._findings = findings
        self._service = tinker.ServiceClient(base_url=stack.base_url, api_key=stack.api_key)
        self._trainer = self._service.create_lora_training_client(MODEL, rank=8, seed=number).result()
        self._samplers: deque[tinker.SamplingClient] = deque(maxlen=4)
        self._samplers.append(self._service.create_sampling_client(base_model=MODEL).result())
        self._kept: deque[Sample] = deque(maxlen=_KEPT)

    async def run(self, until: float) -> None:
        """Do one thing after another until the time (`time.monotonic`)."""
        while time.monotonic() < until:
            action, name = self._choose()
            try:
                await action()
            except Exception as error:
                self._findings.fault(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            else:
                self._findings.counts[name] += 1

    def _choose(self) -> tuple[Callable[[], Awaitable[None]], str]:
        actions: list[tuple[Callable[[], Awaitable[None]], str, int]] = [
            (self._sample, "samples", 10),
            (self._sample_again, "sampled again", 4),
            (self._score, "scored again", 3),
            (self._give_up, "given up", 2),
            (self._new_weights, "new weights", 1),
        ]
        action, name, _ = self._random.choices(actions, [weight for *_, weight in actions])[0]
        return action, name

    async def _sample(self) -> None:
        client = self._random.choice(self._samplers)
        prompt = tuple(self._random.choices(range(100, 900), k=self._random.randint(1, 64)))
        params = tinker.SamplingParams(
            max_tokens=self._random.randint(1, 48),
            seed=self._random.getrandbits(31),
            stop=[],
            temperature=1.0,
        )
        tokens, logprobs = await _ask(client, prompt, params)
        if len(tokens) != params.max_tokens or len(logprobs) != len(tokens):
            self._findings.fault(
                f"{len(tokens)} tokens and {len(logprobs)} logprobs, not {params.max_tokens}"
            )
        elif not all(math.isfinite(value) and value <= 0 for value in logprobs):
            self._findings.fault("a logprob that is none")
        else:
            self._kept.append(Sample(client, prompt, params, tokens, logprobs))

    async def _sample_again(self) -> None:
        if not self._kept:
            return
        kept = self._random.choice(self._kept)
        tokens, _ = await _ask(kept.client, kept.prompt, kept.params)
        if tokens != kept.tokens:
            self._findings.fault(f"seed {kept.params.seed} gave other tokens than before")

    async def _score(self) -> None:
        if not self._kept:
            return
        kept = self._random.choice(self._kept)
        text = tinker.ModelInput.from_ints([*kept.prompt, *kept.tokens])
        scores = await kept.client.compute_logprobs_async(text)
        found = np.array(scores[len(kept.prompt) :], float)
        error = float(np.abs(found - np.array(kept.logprobs)).max())
        if not error <= _TOLERANCE:
            self._findings.fault(f"logprobs computed again are off by {error:.2e}")

    async def _give_up(self) -> None:
        client = self._random.choice(self._samplers)
        params = tinker.SamplingParams(max_tokens=400, stop=[])
        task = asyncio.ensure_future(client.sample_async(tinker.ModelInput.from_ints([5, 6, 7]), 1, params))
        await asyncio.sleep(self._random.random())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _new_weights(self) -> None:
        tokens = self._random.choices(range(100, 900), k=24)
        passed = await self._trainer.forward_backward_async([datum(tokens)], "cross_entropy")
        step = await self._trainer.optim_step_async(tinker.AdamParams(learning_rate=1e-3))
        await passed.result_async()
        await step.result_async()
        self._samplers.append(await self._trainer.save_weights_and_get_sampling_client_async())
        # What the oldest sampler gave cannot be asked for again without it.
        current = set(map(id, self._samplers))
        self._kept = deque((kept for kept in self._kept if id(kept.client) in current), maxlen=_KEPT)


async def _ask(
    client: tinker.SamplingClient, prompt: tuple[int, ...], params: tinker.SamplingParams
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    answer = await client.sample_async(tinker.ModelInput.from_ints(list(prompt)), 1, params)
    sequence = answer.sequences[0]
    return tuple(sequence.tokens), tuple(sequence.logprobs or ())


class Chaos(threading.Thread):
    """Kills the engine or the whole sample service, in turns, and writes down what memory every part takes."""

    def __init__(self, stack: Stack, findings: Findings, every_s: float, began: float) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._findings = findings
        self._every_s = every_s
        self._began = began
        self._over = threading.Event()

    def run(self) -> None:
        """Until `finish`."""
        deeds = [(self._kill_engine, "engines killed"), (self._restart_service, "services restarted")]
        next_deed, turn = time.monotonic() + self._every_s, 0
        while not self._over.wait(2.0):
            self._measure()
            if time.monotonic() >= next_deed:
                deed, name = deeds[turn % len(deeds)]
                turn += 1
                try:
                    deed()
                except Exception as error:
                    self._findings.fault(f"{name}: {type(error).__name__}: {str(error)[:300]}")
                self._findings.counts[name] += 1
                next_deed = time.monotonic() + self._every_s

    def finish(self) -> None:
        """Stop and wait for what it is about."""
        self._over.set()
        self.join()

    def _kill_engine(self) -> None:
        for process in psutil.Process(self._stack.pids()["sample"]).children(recursive=True):
            if is_engine(process):
                process.kill()

    def _restart_service(self) -> None:
        self._stack.restart("sample")

    def _measure(self) -> None:
        now = time.monotonic() - self._began
        try:
            trees = part_processes(self._stack)
            sizes = {name: sum(each.memory_info().rss for each in tree) for name, tree in trees.items()}
        except psutil.NoSuchProcess:  # one ended meanwhile; the next look is two seconds away
            return
        for part, size in sizes.items():
            self._findings.memory.setdefault(part, []).append((now, size / 2**20))


async def soak(stack: Stack, options: argparse.Namespace, findings: Findings) -> float:
    """All tenants side by side; the seconds that it took, the last answers included."""
    tenants = [await asyncio.to_thread(Tenant, stack, number, findings) for number in range(options.tenants)]
    began = time.monotonic()
    chaos = Chaos(stack, findings, options.kill_every, began)
    chaos.start()
    try:
        lanes = [tenant.run(began + options.minutes * 60) for tenant in tenants for _ in range(options.lanes)]
        await asyncio.gather(*lanes)
    finally:
        await asyncio.to_thread(chaos.finish)
    return time.monotonic() - began


def judge(findings: Findings, seconds: float) -> dict[str, Any]:
    """The row of this run; a part that grew is a fault."""
    memory: dict[str, dict[str, float]] = {}
    for part, values in sorted(findings.memory.items()):
        growth = findings.growth(part, seconds)
        memory[part] = {"peak_mib": round(max(mib for _, mib in values), 1)}
        if growth is not None:
            memory[part]["growth"] = round(growth, 3)
            if growth > _GROWTH and part != "ray":
                findings.fault(f"{part} grew by {growth - 1:.0%} between the second and the last quarter")
    return {
        "seconds": round(seconds, 1),
        "counts": dict(sorted(findings.counts.items())),
        "memory": memory,
        "faults": findings.faults,
    }


def main() -> int:
    """Run, print and write; 1 when there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="[%(default)s]")
    parser.add_argument("--tenants", type=int, default=3, help="clients with a model each [%(default)s]")
    parser.add_argument("--lanes", type=int, default=4, help="things a client does at a time [%(default)s]")
    parser.add_argument(
        "--kill-every", type=float, default=120.0, help="seconds between crashes [%(default)s]"
    )
    parser.add_argument("--label", default=f"{os.cpu_count()}cores-cpu", help="of the machine [%(default)s]")
    options = parser.parse_args()
    about = {"bench": "soak", "date": date.today().isoformat(), "commit": commit(), "machine": options.label}
    findings = Findings()
    with (
        tempfile.TemporaryDirectory(prefix="tinsmith-soak-") as folder,
        Stack(StackConfig(port=0, data_dir=Path(folder)), Console(show_logs=False)) as stack,
    ):
        seconds = asyncio.run(soak(stack, options, findings))
    command = f"python -m benchmarks.soak {' '.join(sys.argv[1:])}".strip()
    row: dict[str, Any] = {**about, "command": command, **judge(findings, seconds)}
    path = results_path(options.label, "soak")
    write_rows(path, [row])
    print(f"written to {path.relative_to(ROOT)}")
    print(", ".join(f"{count} {name}" for name, count in row["counts"].items()))
    for part, figures in row["memory"].items():
        print(
            f"{part:<8} peak {figures['peak_mib']:,.0f} MiB, last over second quarter {figures.get('growth', '-')}"
        )
    print(f"{len(findings.faults)} faults in {seconds:.0f} s")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main())
