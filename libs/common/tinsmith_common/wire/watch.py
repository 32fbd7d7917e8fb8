"""What the page at `/ui` reads. Not of the Tinker protocol. Times are UTC."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from tinsmith_common.wire.base import WireModel


class WatchedFailure(WireModel):
    request_id: str
    session_id: str
    request_type: str
    owner: str
    at: datetime
    error: str
    category: str


class WatchedStep(WireModel):
    """One optimizer step; see `tinsmith_common.watch.Step` for what its figures mean."""

    number: int
    seq_id: int
    at: datetime
    loss: str | None
    loss_sum: float | None
    weight_sum: float | None
    advantage_mean: float | None
    datums: int
    tokens: int
    grad_norm: float | None
    learning_rate: float | None
    optimizer_step: int | None


class WatchedReport(WireModel):
    """A figure that the run's client reported."""

    name: str
    number: int
    at: datetime
    value: float
    step: int | None


class WatchedRun(WireModel):
    """`state`: `loaded` takes operations, `lost` went with its worker or a restart, `ended` has no lane any more."""

    run_id: str
    session_id: str
    owner: str
    display_name: str | None
    base_model: str
    rank: int
    created_at: datetime
    last_request_at: datetime
    state: Literal["loaded", "lost", "ended"]
    last_step: WatchedStep | None


class WatchedLane(WireModel):
    """`waiting` counts operations that have arrived and do not run yet. `missing`: the `seq_id` it is stalled by."""

    run_id: str
    base_model: str
    state: Literal["idle", "queued", "running", "stalled", "closing"]
    waiting: int
    waiting_tokens: int
    missing: int | None


class WatchTraining(WireModel):
    """The train service now. `trained_tokens` counts since it started; only operators get it, as it is of everybody."""

    owner: str
    operator: bool
    at: datetime
    ready: bool
    runs: list[WatchedRun]
    runs_total: int
    lanes: list[WatchedLane]
    failures: list[WatchedFailure]
    trained_tokens: int | None = None


class WatchRunHistory(WireModel):
    """Steps after the asked number and reports after the asked time, in order. Of long runs, both are thinned out."""

    run_id: str
    steps: list[WatchedStep]
    reports: list[WatchedReport]


class WatchedAdapter(WireModel):
    """An adapter in an engine. `weights` names its checkpoint or snapshot; `users` are requests that hold it."""

    base_model: str
    name: str
    weights: str
    run_id: str
    state: Literal["loading", "resident"]
    users: int


class WatchedEngine(WireModel):
    """One base model's engine of a replica. Counts of tokens and seconds are since the replica started."""

    base_model: str
    running_requests: int
    waiting_requests: int
    resident_adapters: int
    max_adapters: int | None = None
    sampled_tokens: int
    prompt_tokens: int
    cached_tokens: int
    first_token_count: int
    first_token_seconds: float


class WatchedReplica(WireModel):
    """`silent`: it has not reported for much longer than it should have. `queue`: samples accepted, not finished."""

    replica_id: str
    host: str
    started_at: datetime
    reported_at: datetime
    state: Literal["ready", "starting", "silent"]
    queue: int
    engines: list[WatchedEngine]
    adapters: list[WatchedAdapter]
    other_adapters: int = Field(default=0, description="of other accounts")


class WatchSampling(WireModel):
    """The replicas of the sample service, as each last reported."""

    owner: str
    operator: bool
    at: datetime
    replicas: list[WatchedReplica]
    failures: list[WatchedFailure]
