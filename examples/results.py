"""What the examples find out, in the shape in which report.json keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One point of a curve."""

    step: int
    value: float


@dataclass(frozen=True)
class Reply:
    """What the model wrote to a question, and whether it is the right answer."""

    text: str
    right: bool


@dataclass(frozen=True)
class Answer:
    """The replies of one set of weights to a question, and their score: an NLL or a mean reward."""

    replies: list[Reply]
    score: float


@dataclass(frozen=True)
class Sample:
    """A question that the model did not learn from, answered before and after training."""

    question: str
    reference: str
    before: Answer
    after: Answer


@dataclass(frozen=True)
class SftResult:
    """Supervised fine-tuning."""

    curve: list[Point]
    """Mean NLL of the held-out replies in nats per token, by epoch; at 0 before training."""
    samples: list[Sample]
    state_path: str
    seconds: float


@dataclass(frozen=True)
class RlResult:
    """Reinforcement learning."""

    curve: list[Point]
    """Mean reward of an iteration's rollouts, all sampled before its update."""
    reward_first: float
    """Mean reward on the held-out sums before training."""
    reward_last: float
    """Mean reward on the held-out sums after training."""
    samples: list[Sample]
    state_path: str
    seconds: float


@dataclass(frozen=True)
class ResumeResult:
    """Resuming from a saved state."""

    max_abs_diff: float
    """Largest difference between any two log-probabilities, after the same step in both models."""
    step_size: float
    """Largest change of any log-probability that the step itself made: what a difference is to be compared with."""
    seconds: float
