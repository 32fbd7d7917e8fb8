"""Reinforcement learning on small additions: sampled rollouts, the importance-sampling loss, one reward per sum."""

import asyncio
import dataclasses
import random
import sys
import time
from dataclasses import dataclass, field
from functools import partial

import tinker
from tinker_cookbook import renderers
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.recipes.math_rl.arithmetic_env import ArithmeticEnv
from tinker_cookbook.rl.data_processing import (
    assemble_training_data,
    compute_advantages,
    remove_constant_reward_groups,
)
from tinker_cookbook.rl.problem_env import ProblemEnv
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition

from examples.arguments import parse_into
from examples.client import connect, new_model, renderer_of, reply_text
from examples.progress import Progress, say
from examples.results import Answer, Point, Reply, RlResult, Sample

Sum = tuple[int, int]

LARGEST_TERM = 20
SAMPLED_SUMS = 6
SAMPLED_REPLIES = 4
REWARD_BEFORE = 0.5
REWARD_AFTER = 0.8


@dataclass(frozen=True)
class RlConfig:
    """How to reinforce."""

    iterations: int = field(default=15, metadata={"help": "rounds of sampling and training"})
    sums: int = field(default=32, metadata={"help": "different sums per iteration"})
    group_size: int = field(default=8, metadata={"help": "answers sampled per sum, compared with each other"})
    held_out: int = field(default=48, metadata={"help": "sums, of 441, that are only measured"})
    learning_rate: float = field(default=3e-3, metadata={"help": "of every step"})
    rank: int = field(default=32, metadata={"help": "of the LoRA matrices"})
    max_tokens: int = field(default=16, metadata={"help": "of an answer"})
    seed: int = field(default=0, metadata={"help": "of the choice of sums and of the starting weights"})


@dataclass(frozen=True)
class Outcome:
    """A finished run: its figures, and the model with the datums of its last step, to go on from."""

    result: RlResult
    trainer: tinker.TrainingClient
    datums: list[tinker.Datum]


def run(service: tinker.ServiceClient, config: RlConfig) -> Outcome:
    """Reinforce a new model and save its state."""
    return asyncio.run(reinforce(service, config))


async def reinforce(service: tinker.ServiceClient, config: RlConfig) -> Outcome:
    """The loop: sample with the current weights, reward, step; measured on held-out sums before and after."""
    started = time.monotonic()
    training, held_out = split(config)
    say(
        f"Reinforcement learning: {len(training)} sums up to {LARGEST_TERM} + {LARGEST_TERM}, {len(held_out)} held out"
    )
    trainer = await asyncio.to_thread(new_model, service, config.rank, config.seed)
    renderer = renderer_of(trainer)

    sampler = await trainer.save_weights_and_get_sampling_client()
    before = await roll_out(sampler, renderer, held_out, config)
    say(f"  mean reward on held-out sums before: {mean_reward(before):.3f}")
    curve: list[Point] = []
    datums: list[tinker.Datum] = []
    draw = random.Random(config.seed)
    progress = Progress(config.iterations)
    for iteration in range(1, config.iterations + 1):
        groups = await roll_out(sampler, renderer, draw.sample(training, config.sums), config)
        datums = to_datums(groups)
        await train(trainer, datums, config)
        sampler = await trainer.save_weights_and_get_sampling_client()
        curve.append(Point(iteration, mean_reward(groups)))
        report(trainer, curve[-1])
        progress.step(iteration, f"mean reward {curve[-1].value:.3f}   {len(datums)} answers to learn from")

    after = await roll_out(sampler, renderer, held_out, config)
    say(f"  mean reward on held-out sums after: {mean_reward(after):.3f}")
    state_path = (await trainer.save_state("rl")).path
    say(f"  saved as {state_path}")
    samples = compare(renderer, held_out, before, after)
    seconds = time.monotonic() - started
    result = RlResult(curve, mean_reward(before), mean_reward(after), samples, state_path, seconds)
    return Outcome(result, trainer, datums)


def split(config: RlConfig) -> tuple[list[Sum], list[Sum]]:
    """All sums in a random order: those to train on, those held out."""
    sums = [(x, y) for x in range(LARGEST_TERM + 1) for y in range(LARGEST_TERM + 1)]
    random.Random(config.seed).shuffle(sums)
    return sums[config.held_out :], sums[: config.held_out]


async def roll_out(
    sampler: tinker.SamplingClient, renderer: renderers.Renderer, sums: list[Sum], config: RlConfig
) -> list[TrajectoryGroup]:
    """A group of rewarded answers to each sum, all sampled at temperature 1."""
    makers = [partial(ArithmeticEnv, x, y, renderer=renderer) for x, y in sums]
    return list(await asyncio.gather(*(answer_group(sampler, maker, config) for maker in makers)))


async def answer_group(
    sampler: tinker.SamplingClient, make_env: partial[ArithmeticEnv], config: RlConfig
) -> TrajectoryGroup:
    """`group_size` answers to one sum from a single request, each rewarded by its own environment."""
    envs: list[ProblemEnv] = [make_env() for _ in range(config.group_size)]
    prompt, stop = await envs[0].initial_observation()
    params = tinker.SamplingParams(max_tokens=config.max_tokens, temperature=1.0, stop=stop)
    response = await sampler.sample(prompt, config.group_size, params)
    trajectories = [
        await reward(env, prompt, sequence) for env, sequence in zip(envs, response.sequences, strict=True)
    ]
    return TrajectoryGroup(trajectories, [0.0] * len(envs), [{} for _ in envs])


async def reward(env: ProblemEnv, prompt: tinker.ModelInput, sequence: tinker.SampledSequence) -> Trajectory:
    """The trajectory of a single answer: 1 if it is right, less 0.1 if it does not end."""
    action = TokensWithLogprobs(
        tokens=sequence.tokens,
        maybe_logprobs=sequence.logprobs,
        stop_reason=sequence.stop_reason,
        sequence_id=sequence.sequence_id,
    )
    step = await env.step(sequence.tokens)
    transition = Transition(prompt, action, step.reward, step.episode_done, step.metrics)
    return Trajectory([transition], step.next_observation)


def to_datums(groups: list[TrajectoryGroup]) -> list[tinker.Datum]:
    """Answers with the advantage over their group's mean; a group of equal rewards teaches nothing and is left out."""
    groups = remove_constant_reward_groups(groups)
    datums, _ = assemble_training_data(groups, compute_advantages(groups))
    return [without_mask(datum) for datum in datums]


def without_mask(datum: tinker.Datum) -> tinker.Datum:
    """The datum less the cookbook's own key `mask`, which no loss takes."""
    inputs = {name: values for name, values in datum.loss_fn_inputs.items() if name != "mask"}
    return dataclasses.replace(datum, loss_fn_inputs=inputs)


async def train(trainer: tinker.TrainingClient, datums: list[tinker.Datum], config: RlConfig) -> None:
    """One step of the importance-sampling loss."""
    gradients = trainer.forward_backward(datums, "importance_sampling")
    step = trainer.optim_step(adam(config))
    await gradients
    await step


def report(trainer: tinker.TrainingClient, point: Point) -> None:
    """Tell the server the mean reward, for the curve on its page at /ui."""
    if telemetry := trainer.get_telemetry():
        figures: dict[str, object] = {
            "model_id": trainer.model_id,
            "step": point.step,
            "reward": point.value,
        }
        telemetry.log("tinsmith/metrics", figures)


def adam(config: RlConfig) -> tinker.AdamParams:
    """The optimizer's parameters, the same in every step."""
    return tinker.AdamParams(learning_rate=config.learning_rate, beta2=0.95)


def mean_reward(groups: list[TrajectoryGroup]) -> float:
    """Mean over all answers of all groups."""
    rewards = [value for group in groups for value in group.get_total_rewards()]
    return sum(rewards) / len(rewards)


def compare(
    renderer: renderers.Renderer,
    sums: list[Sum],
    before: list[TrajectoryGroup],
    after: list[TrajectoryGroup],
) -> list[Sample]:
    """The first answers to the first sums."""

    def answer(group: TrajectoryGroup) -> Answer:
        turns = [trajectory.transitions[0] for trajectory in group.trajectories_G[:SAMPLED_REPLIES]]
        replies = [
            Reply(reply_text(renderer, turn.ac.tokens), turn.metrics["correct"] == 1) for turn in turns
        ]
        return Answer(replies, mean_reward([group]))

    rows = list(zip(sums, before, after, strict=True))[:SAMPLED_SUMS]
    return [
        Sample(f"What is {x} + {y}?", str(x + y), answer(first), answer(last)) for (x, y), first, last in rows
    ]


def missed_goal(result: RlResult) -> str | None:
    """One sentence if the reward on held-out sums did not rise from below 0.5 to at least 0.8."""
    if result.reward_first < REWARD_BEFORE and result.reward_last >= REWARD_AFTER:
        return None
    return (
        f"The mean reward on held-out sums went from {result.reward_first:.3f} to {result.reward_last:.3f}; "
        f"it should rise from below {REWARD_BEFORE} to at least {REWARD_AFTER}."
    )


def main() -> None:
    """Run the example by itself."""
    config = parse_into(RlConfig, __doc__)
    with connect() as service:
        sys.exit(missed_goal(run(service, config).result))


if __name__ == "__main__":
    main()
