"""How much may wait. One more than that is refused for now; its client sends it again."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tinsmith_common.errors import InvalidInput, Overloaded
from tinsmith_train.scheduler.metrics import SchedulerMetrics

INCOMPLETE_FACTOR = 4
"""How far a lane may go over its bounds while it waits for a turn that has not arrived. Clients send the first chunk
of a batch when all others were taken: refusing one of those for long would stop both sides for ever."""


@dataclass(frozen=True)
class Bound:
    """Operations, and the tokens in them, that may wait and run in one place."""

    operations: int
    tokens: int


@dataclass(frozen=True)
class Bounds:
    """Of one model, of all models of one account, and of everything."""

    model: Bound
    owner: Bound
    service: Bound


@dataclass
class _Load:
    operations: int = 0
    tokens: int = 0


@dataclass
class Ticket:
    """The room that an operation takes up from its submission to its end."""

    tokens: int
    loads: list[tuple[str, _Load]] = field(repr=False)

    def release(self) -> None:
        """Give the room back. Safe to call twice."""
        for _, load in self.loads:
            load.operations -= 1
            load.tokens -= self.tokens
        self.loads = []


class Admission:
    """Counts what waits and runs. Shared by the schedulers of a service, whose memory is one."""

    def __init__(self, bounds: Bounds, metrics: SchedulerMetrics) -> None:
        self._bounds = bounds
        self._metrics = metrics
        self._models: defaultdict[str, _Load] = defaultdict(_Load)
        self._owners: defaultdict[str, _Load] = defaultdict(_Load)
        self._service = _Load()

    def admit(self, owner: str, model_id: str, tokens: int, *, incomplete: bool) -> Ticket:
        """Take up room for an operation. A model of which nothing waits gets it in any case.

        Raises `Overloaded` when there is none now, and, for a lane that is `incomplete`, where waiting would not
        help, `InvalidInput`.
        """
        self._forget_idle()
        factor = INCOMPLETE_FACTOR if incomplete else 1
        if self._models[model_id].operations:
            for scope, load, bound in self._scopes(owner, model_id):
                what = _excess(load, bound, tokens, factor)
                if what is not None:
                    self._metrics.refused.labels(scope).inc()
                    raise _refusal(scope, what, incomplete=incomplete)
        return self._take(owner, model_id, tokens)

    def admit_failed(self, owner: str, model_id: str) -> Ticket:
        """Room for an operation that is going to fail in its turn, which takes next to none."""
        return self._take(owner, model_id, 0)

    def _take(self, owner: str, model_id: str, tokens: int) -> Ticket:
        loads = [(scope, load) for scope, load, _ in self._scopes(owner, model_id)]
        for _, load in loads:
            load.operations += 1
            load.tokens += tokens
        return Ticket(tokens, loads)

    def _scopes(self, owner: str, model_id: str) -> Iterator[tuple[str, _Load, Bound]]:
        yield "model", self._models[model_id], self._bounds.model
        yield "owner", self._owners[owner], self._bounds.owner
        yield "service", self._service, self._bounds.service

    def _forget_idle(self) -> None:
        for loads in (self._models, self._owners):
            if len(loads) > 1000:
                for name in [name for name, load in loads.items() if not load.operations]:
                    del loads[name]


def _excess(load: _Load, bound: Bound, tokens: int, factor: int) -> str | None:
    """What would be over its bound, in words."""
    if load.operations + 1 > bound.operations * factor:
        return f"{load.operations:,} operations, of at most {bound.operations * factor:,}"
    if load.tokens + tokens > bound.tokens * factor:
        return f"{load.tokens:,} tokens, of at most {bound.tokens * factor:,}; this one has {tokens:,}"
    return None


_WHOSE = {"model": "of this model", "owner": "of this account", "service": "of all accounts"}
_SETTING = {"model": "MODEL", "owner": "ACCOUNT", "service": "SERVICE"}


def _refusal(scope: str, what: str, *, incomplete: bool) -> Overloaded | InvalidInput:
    waiting = f"the work {_WHOSE[scope]} that waits has {what} (MAX_QUEUED_…_PER_{_SETTING[scope]})"
    if incomplete:
        return InvalidInput(
            f"{waiting}, and an earlier operation of this model has not arrived: send smaller batches"
        )
    return Overloaded(f"{waiting}: send this again later, when some of it has run")
