"""Runs recipes as their users do, each once per session, and reads what they leave."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cookbook.recipes import WARM, Recipe, named
from tinsmith_local import Stack

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Server:
    """A stack and the name under which it serves the tiny model."""

    stack: Stack
    model: str


@dataclass(frozen=True)
class Run:
    """What one recipe left."""

    recipe: Recipe
    command: tuple[str, ...]
    folder: Path
    seconds: float
    output: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row per step."""
        rows = _jsonl(self.folder / "metrics.jsonl")
        # The last row of some recipes holds totals alone, without a step of its own.
        return [row for row in rows if self.recipe.figure in row]

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoints that this run saved, in order."""
        return [row for row in _jsonl(self.folder / "checkpoints.jsonl") if not row.get("warm")]

    @property
    def final(self) -> dict[str, Any]:
        """The last of them."""
        return self.checkpoints[-1]

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """What the sampled episodes of a step were."""
        return _jsonl(self.folder / f"iteration_{step:06d}" / "train_rollout_summaries.jsonl")

    def series(self, name: str) -> list[float]:
        """One metric over the steps."""
        return [row[name] for row in self.metrics if name in row]


@dataclass
class Runner:
    """Runs each recipe once, in a folder that `offline.prepare` made."""

    server: Server
    folder: Path
    python_path: str = ""
    _runs: dict[str, Run] = field(default_factory=dict[str, Run])

    def __call__(self, recipe: Recipe) -> Run:
        """The recipe's run. Raises AssertionError with its last lines when it fails."""
        if recipe.name not in self._runs:
            self._runs[recipe.name] = self._start(recipe)
        return self._runs[recipe.name]

    @property
    def done(self) -> Mapping[str, Run]:
        """All runs so far, by recipe."""
        return self._runs

    def resume(self, run: Run, checkpoint: str) -> Run:
        """The same command in a folder that knows the run's checkpoints up to that one, as after a crash."""
        log = Path("logs") / f"{run.recipe.name}-resumed"
        names = [row["name"] for row in run.checkpoints]
        known = run.checkpoints[: names.index(checkpoint) + 1]
        (self.folder / log).mkdir()
        (self.folder / log / "checkpoints.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
        more = [f"log_path={log}", "behavior_if_log_dir_exists=resume"]
        return self._execute(run.recipe, [*run.command, *more], self.folder / log)

    def module(self, name: str, *arguments: str) -> None:
        """Start another of the cookbook's modules and wait for its end."""
        self._started(["-m", name, *arguments])

    def _start(self, recipe: Recipe) -> Run:
        log = Path("logs") / recipe.name
        places = self._warm_places() if recipe.uses_warm else {}
        if recipe.starts_warm:
            self._begin_warm(self.folder / log)
        command = recipe.command(self.server.stack.base_url, self.server.model, str(log), places)
        return self._execute(recipe, command, self.folder / recipe.logs.format(log=log))

    def _warm_places(self) -> dict[str, str]:
        final = self(named(WARM)).final
        return {"state": final["state_path"], "sampler": final["sampler_path"]}

    def _begin_warm(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        record = {**self(named(WARM)).final, "batch": 0, "epoch": 0, "warm": True}
        (folder / "checkpoints.jsonl").write_text(json.dumps(record) + "\n")

    def _execute(self, recipe: Recipe, command: list[str], folder: Path) -> Run:
        started = time.monotonic()
        output = self._started(command)
        return Run(recipe, tuple(command), folder, time.monotonic() - started, output)

    def _started(self, command: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        """The key and the address as a user sets them; Hugging Face's libraries may not use a network."""
        return {
            **os.environ,
            "TINKER_BASE_URL": self.server.stack.base_url,
            "TINKER_API_KEY": self.server.stack.api_key,
            "TINKER_COOKBOOK_RUNS_DIR": "runs",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.folder / "hf"),
            "PYTHONPATH": self.python_path,
        }


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
