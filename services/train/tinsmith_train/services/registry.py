"""Which models are loaded, and which scheduler runs each."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tinsmith_common.catalog import RunRecord
from tinsmith_common.errors import InvalidInput
from tinsmith_common.futures import QueueState
from tinsmith_train.engine.types import ModelInfo
from tinsmith_train.scheduler.scheduler import Scheduler

_NOTE_USE_EVERY_S = 5.0
"""A run's last request is shown in listings only; a write per operation would cost more than the operation."""


@dataclass(frozen=True)
class BaseModel:
    """A served base model: its facts, where clients load its tokenizer from, and who schedules it."""

    name: str
    tokenizer_id: str
    info: ModelInfo
    scheduler: Scheduler


@dataclass
class ModelRegistry:
    """Base models by name and the training runs that live on them."""

    bases: Mapping[str, BaseModel] = field(default_factory=dict[str, BaseModel])
    _runs: dict[str, RunRecord] = field(default_factory=dict[str, RunRecord])
    _noted: dict[str, float] = field(default_factory=dict[str, float])

    def base(self, name: str) -> BaseModel:
        """The base model of that name. Raises `InvalidInput` that lists what is served."""
        if name not in self.bases:
            raise InvalidInput(f"{name!r} is not served here; SUPPORTED_MODELS has {', '.join(self.bases)}")
        return self.bases[name]

    def add(self, run: RunRecord) -> None:
        """Note a run whose lane is open."""
        self._runs[run.id] = run

    def find(self, owner: str, model_id: str) -> RunRecord | None:
        """The owner's loaded run, if its lane still takes operations."""
        run = self._runs.get(model_id)
        if run is None or run.owner != owner or not self.scheduler_of(run).has_lane(model_id):
            return None
        return run

    def scheduler_of(self, run: RunRecord) -> Scheduler:
        """Who runs this model's operations."""
        return self.bases[run.base_model].scheduler

    def describe_wait(self, request_id: str) -> QueueState | None:
        """What the operation of a loaded model waits for. None for anything else."""
        model_id, _, seq_id = request_id.rpartition(":")
        run = self._runs.get(model_id)
        if run is None or not (seq_id.isascii() and seq_id.isdigit()):
            return None
        return self.scheduler_of(run).describe(model_id, int(seq_id))

    def should_note_use(self, model_id: str) -> bool:
        """Whether the catalog should hear of a use: once in a while, not with every operation."""
        now = time.monotonic()
        due = now - self._noted.get(model_id, -_NOTE_USE_EVERY_S) >= _NOTE_USE_EVERY_S
        if due:
            self._noted[model_id] = now
        return due

    def remove(self, model_id: str) -> None:
        """Forget a run whose lane is closing."""
        self._runs.pop(model_id, None)
        self._noted.pop(model_id, None)

    def remove_session(self, session_id: str) -> Iterator[RunRecord]:
        """Forget and yield the runs of a session."""
        for run in [run for run in self._runs.values() if run.session_id == session_id]:
            self.remove(run.id)
            yield run
