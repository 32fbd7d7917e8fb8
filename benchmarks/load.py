"""Thousands of samples at once through the whole stack: cleartext and HTTPS, a poll per sample and batch polls.

Every mode runs in a client process of its own, the modes in turns, against one stack that is started here. What a
row says of the services is taken while its client runs: memory is the highest resident set of a part's processes
(shared pages count once in each), CPU what they used. On a busy machine compare CPU and connections, not times.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.records import ROOT, commit, results_path, write_rows
from tinsmith_local import Console, Stack, StackConfig

_EVERY_S = 0.2
_CLIENT_TIMEOUT_S = 900
# Figures of Envoy, by what they are called here: sums over all listeners or clusters.
_OPEN = {
    "downstream_connections": re.compile(r"http\.(http|https)\.downstream_cx_active"),
    "upstream_connections": re.compile(r"cluster\..*\.upstream_cx_active"),
}
_REFUSED = re.compile(r"cluster\..*\.upstream_(cx_overflow|rq_pending_overflow|rq_retry_overflow)")
_REQUESTS = re.compile(r"cluster\..*\.upstream_rq_total")


@dataclass(frozen=True)
class Mode:
    """How the client talks to the stack."""

    tls: bool
    batch_polls: bool


MODES = [Mode(tls, batch_polls) for tls in (False, True) for batch_polls in (False, True)]


@dataclass
class Part:
    """One part's processes while a client runs."""

    peak_rss_mib: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Watch:
    """Figures of the services and of Envoy, taken until told to stop."""

    stack: Stack
    parts: dict[str, Part] = field(default_factory=dict[str, Part])
    peaks: dict[str, int] = field(default_factory=dict[str, int])
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._cpu = cpu_seconds(self.stack)
        self._counted = envoy_counters(self.stack)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for name, seconds in cpu_seconds(self.stack).items():
            self.parts[name].cpu_s = round(seconds - self._cpu[name], 2)
        counted = envoy_counters(self.stack)
        self.refused, self.requests = (counted[key] - self._counted[key] for key in ("refused", "requests"))

    def _follow(self) -> None:
        while not self._stop.wait(_EVERY_S):
            for name, processes in part_processes(self.stack).items():
                part = self.parts.setdefault(name, Part())
                mib = sum(process.memory_info().rss for process in processes) / 2**20
                part.peak_rss_mib = max(part.peak_rss_mib, round(mib, 1))
            stats = envoy_stats(self.stack)
            for name, pattern in _OPEN.items():
                now = sum(value for key, value in stats.items() if pattern.fullmatch(key))
                self.peaks[name] = max(self.peaks.get(name, 0), now)


def part_processes(stack: Stack) -> dict[str, list[psutil.Process]]:
    """The processes of each part; the sample service's engine is a part of its own."""
    trees = {
        name: [process for process in psutil.Process(pid).children(recursive=True) if process.is_running()]
        for name, pid in stack.pids().items()
    }
    engine = [process for process in trees["sample"] if is_engine(process)]
    below = {each for process in engine for each in [process, *process.children(recursive=True)]}
    return {
        **{name: [process for process in tree if process not in below] for name, tree in trees.items()},
        "engine": list(below),
    }


def is_engine(process: psutil.Process) -> bool:
    """Whether it is the main process of an engine. One that has ended is none."""
    try:
        return "tinsmith_sample.engines.sglang_host" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU seconds that the living processes of each part have used."""
    return {
        name: sum(sum(process.cpu_times()[:2]) for process in processes)
        for name, processes in part_processes(stack).items()
    }


def envoy_stats(stack: Stack) -> Mapping[str, int]:
    """All counters and gauges of the gateway."""
    answer = httpx.get(f"{stack.service_url('gateway')}/stats?format=json", timeout=30, trust_env=False)
    return {each["name"]: each["value"] for each in answer.json()["stats"] if "value" in each}


def envoy_counters(stack: Stack) -> dict[str, int]:
    """Requests that Envoy passed on, and those it refused or did not repeat because of a limit."""
    stats = envoy_stats(stack)
    return {
        name: sum(value for key, value in stats.items() if pattern.fullmatch(key))
        for name, pattern in {"requests": _REQUESTS, "refused": _REFUSED}.items()
    }


def run_client(stack: Stack, mode: Mode, samples: int, tokens: int) -> dict[str, Any]:
    """One client process to its end: what it reports. Raises CalledProcessError when it fails."""
    url = stack.tls_url if mode.tls else stack.base_url
    environment = {**os.environ, **stack.client_environment, "TINKER_BASE_URL": url, "TINKER_TELEMETRY": "0"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.load_client",
        "--samples",
        str(samples),
        "--tokens",
        str(tokens),
    ]
    command += ["--batch-polls"] if mode.batch_polls else []
    run = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=_CLIENT_TIMEOUT_S,
        cwd=ROOT,
    )
    return json.loads(run.stdout.splitlines()[-1])


def rows(stack: Stack, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per round, number of samples and mode, the modes in turns."""
    for index, samples in itertools.product(range(options.rounds), options.samples):
        for mode in MODES:
            load = os.getloadavg()[0]
            with Watch(stack) as watch:
                report = run_client(stack, mode, samples, options.tokens)
            yield {
                "round": index,
                "load_before": round(load, 1),
                "transport": "https, http/2" if mode.tls else "http/1.1",
                "polls": "batch" if mode.batch_polls else "one per sample",
                **{
                    key: round(value, 3) if isinstance(value, float) else value
                    for key, value in report.items()
                },
                "gateway_requests": watch.requests,
                "gateway_refused": watch.refused,
                "gateway_peaks": watch.peaks,
                "parts": {name: asdict(part) for name, part in sorted(watch.parts.items())},
            }


def describe(row: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    memory = ", ".join(f"{name} {part['peak_rss_mib']:.0f}" for name, part in row["parts"].items())
    cpu = ", ".join(f"{name} {part['cpu_s']:.1f}" for name, part in row["parts"].items())
    return (
        f"{row['transport']}, polls {row['polls']}: {row['samples']} samples in {row['wall_s']:.1f} s "
        f"(p50 {row['p50_s']:.1f}, p99 {row['p99_s']:.1f}), {row['connections']} connections, "
        f"{row['gateway_requests']} requests, {row['gateway_refused']} refused\n"
        f"    CPU seconds: client {row['cpu_s']:.1f}, {cpu}\n    most MiB: {memory}"
    )


def main() -> int:
    """Run, print and write; 1 when any sample was lost, doubled or wrong."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[512, 2000], help="at once [%(default)s]")
    parser.add_argument("--tokens", type=int, default=4, help="of each [%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="of all modes [%(default)s]")
    parser.add_argument("--label", default=f"{cores}cores-cpu", help="of the machine [%(default)s]")
    options = parser.parse_args()
    about = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "command": f"python -m benchmarks.load {' '.join(sys.argv[1:])}".strip(),
        "machine": options.label,
    }
    path = results_path(options.label, "load")
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tinsmith-load-") as folder:
        config = StackConfig(port=0, tls_port=0, data_dir=Path(folder))
        with Stack(config, Console(show_logs=False)) as stack:
            for row in rows(stack, options):
                found.append(about | row)
                write_rows(path, found)
                print(describe(row), flush=True)
                for fault in row["faults"]:
                    print(f"    FAULT: {fault}", flush=True)
    print(f"written to {path.relative_to(ROOT)}")
    return 1 if any(row["faults"] or row["gateway_refused"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
