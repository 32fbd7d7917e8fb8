"""Which models are loaded, and which scheduler runs each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tinsmith_common.catalog import RunRecord
from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.types import ModelInfo
from tinsmith_train.scheduler.scheduler import Scheduler


@dataclass(frozen=True)
class BaseModel:
    """A served base model: its facts, where its tokenizer loads from, and who schedules it."""

    name: str
    tokenizer_id: str
    info: ModelInfo
    scheduler: Scheduler


@dataclass
class ModelRegistry:
    """Base models by name and the training runs that live on them."""

    bases: Mapping[str, BaseModel] = field(default_factory=dict[str, BaseModel])
    _runs: dict[str, RunRecord] = field(default_factory=dict[str, RunRecord])

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

    def remove_session(self, session_id: str) -> Iterator[RunRecord]:
        """Forget and yield the runs of a session."""
        for run in [run for run in self._runs.values() if run.session_id == session_id]:
            del self._runs[run.id]
            yield run
