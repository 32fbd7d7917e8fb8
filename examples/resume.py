"""Resume from a saved state in a new client, take the same step in both models, and compare what they compute."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import tinker
from tinker.types import LossFnType

from examples.arguments import parse_into
from examples.client import connect, new_model, renderer_of
from examples.progress import say
from examples.results import ResumeResult
from examples.sft import SftConfig, split, to_datums

TOLERANCE = 1e-6


@dataclass(frozen=True)
class ResumeConfig:
    """What to train before the state is saved, when the example runs by itself."""

    steps: int = field(default=3, metadata={"help": "optimizer steps before the state is saved"})
    batch_size: int = field(default=20, metadata={"help": "conversations in the one batch of all steps"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of every step, the compared one included"})
    rank: int = field(default=32, metadata={"help": "of the LoRA matrices"})
    seed: int = field(default=0, metadata={"help": "of the batch and of the starting weights"})


@dataclass(frozen=True)
class Step:
    """One step, the same wherever it is taken."""

    datums: list[tinker.Datum]
    loss: LossFnType
    adam: tinker.AdamParams


def run(original: tinker.TrainingClient, state_path: str, step: Step) -> ResumeResult:
    """Compare `original`, whose state was saved at `state_path` just now, with what a new client resumes from there."""
    started = time.monotonic()
    say(f"Resuming from {state_path} in a new client")
    with connect() as service:
        resumed = service.create_training_client_from_state_with_optimizer(state_path).result()
        before = logprobs_of(original, step)
        expected = take(original, step)
        found = take(resumed, step)
    result = ResumeResult(
        max_abs_diff=largest_difference(expected, found),
        step_size=largest_difference(before, expected),
        seconds=time.monotonic() - started,
    )
    say(
        f"  the same step in both: log-probabilities moved by up to {result.step_size:.3f}, "
        f"and differ by at most {result.max_abs_diff:.1e}"
    )
    return result


def take(model: tinker.TrainingClient, step: Step) -> list[list[float]]:
    """Take the step; returns the log-probabilities of its targets with the weights after it."""
    gradients = model.forward_backward(step.datums, step.loss)
    update = model.optim_step(step.adam)
    gradients.result()
    update.result()
    return logprobs_of(model, step)


def logprobs_of(model: tinker.TrainingClient, step: Step) -> list[list[float]]:
    """The log-probabilities of the step's targets, datum by datum, with the weights as they are."""
    output = model.forward(step.datums, step.loss).result()
    return [values["logprobs"].tolist() for values in output.loss_fn_outputs]


def largest_difference(left: list[list[float]], right: list[list[float]]) -> float:
    """The largest absolute difference of any two corresponding numbers."""

    def pairs() -> Iterator[tuple[float, float]]:
        for one, other in zip(left, right, strict=True):
            yield from zip(one, other, strict=True)

    return max(abs(one - other) for one, other in pairs())


def missed_goal(result: ResumeResult) -> str | None:
    """One sentence if the resumed model computes something else, or if the step did nothing that would show it."""
    if result.max_abs_diff <= TOLERANCE < result.step_size:
        return None
    return (
        f"After a step that moved log-probabilities by {result.step_size:.1e}, the resumed model's differ by "
        f"{result.max_abs_diff:.1e}; at most {TOLERANCE:.0e} is allowed."
    )


def main() -> None:
    """Run the example by itself: a few steps of supervised fine-tuning, saved and resumed."""
    config = parse_into(ResumeConfig, __doc__)
    with connect() as service:
        trainer = new_model(service, config.rank, config.seed)
        conversations, _ = split(SftConfig(seed=config.seed))
        datums = to_datums(conversations[: config.batch_size], renderer_of(trainer), max_length=512)
        step = Step(datums, "cross_entropy", tinker.AdamParams(learning_rate=config.learning_rate))
        for _ in range(config.steps):
            take(trainer, step)
        sys.exit(missed_goal(run(trainer, trainer.save_state("resume").result().path, step)))


if __name__ == "__main__":
    main()
