"""Supervised fine-tuning on the conversations that tinker-cookbook ships, measured on those held out."""

import json
import random
import sys
import time
from dataclasses import dataclass, field
from importlib import resources

import tinker
from tinker_cookbook import renderers
from tinker_cookbook.supervised.common import compute_mean_nll
from tinker_cookbook.supervised.data import conversation_to_datum

from examples.arguments import parse_into
from examples.client import connect, new_model, renderer_of, reply_text
from examples.progress import Progress, say
from examples.results import Answer, Point, Reply, Sample, SftResult

Conversation = list[renderers.Message]

SAMPLED_QUESTIONS = 4
MAX_REPLY_TOKENS = 64


@dataclass(frozen=True)
class SftConfig:
    """How to fine-tune."""

    epochs: int = field(default=6, metadata={"help": "passes over the conversations"})
    batch_size: int = field(default=20, metadata={"help": "conversations per optimizer step"})
    held_out: int = field(default=28, metadata={"help": "conversations, of 128, that are only measured"})
    learning_rate: float = field(default=3e-3, metadata={"help": "at first; it falls linearly to 0"})
    rank: int = field(default=32, metadata={"help": "of the LoRA matrices"})
    max_length: int = field(default=512, metadata={"help": "tokens of a conversation; the rest is cut off"})
    seed: int = field(default=0, metadata={"help": "of the split and of the starting weights"})


def run(service: tinker.ServiceClient, config: SftConfig) -> SftResult:
    """Fine-tune a new model and save its state."""
    started = time.monotonic()
    training, held_out = split(config)
    say(f"Supervised fine-tuning: {len(training)} conversations to learn from, {len(held_out)} held out")
    trainer = new_model(service, config.rank, config.seed)
    renderer = renderer_of(trainer)
    batches = batched(to_datums(training, renderer, config.max_length), config.batch_size)
    # Every held-out token counts the same; in training every conversation does, as in the cookbook.
    measured = to_datums(held_out, renderer, config.max_length, per_token=True)
    questions = held_out[:SAMPLED_QUESTIONS]

    before = answer(trainer, renderer, questions, measured)
    curve = [Point(0, held_out_nll(trainer, measured))]
    say(f"  held-out NLL before: {curve[0].value:.3f} nats per token")
    progress = Progress(config.epochs)
    for epoch in range(1, config.epochs + 1):
        train_nll = train_epoch(trainer, batches, epoch, config)
        curve.append(Point(epoch, held_out_nll(trainer, measured)))
        progress.step(epoch, f"held-out NLL {curve[-1].value:.3f}   training NLL {train_nll:.3f}")

    samples = compare(questions, before, answer(trainer, renderer, questions, measured))
    state_path = trainer.save_state("sft").result().path
    say(f"  saved as {state_path}")
    return SftResult(curve, samples, state_path, time.monotonic() - started)


def split(config: SftConfig) -> tuple[list[Conversation], list[Conversation]]:
    """The packaged conversations, shuffled: those to train on, those held out."""
    text = resources.files("tinker_cookbook").joinpath("example_data/conversations.jsonl").read_text("utf-8")
    conversations: list[Conversation] = [json.loads(line)["messages"] for line in text.splitlines()]
    random.Random(config.seed).shuffle(conversations)
    return conversations[config.held_out :], conversations[: config.held_out]


def to_datums(
    conversations: list[Conversation],
    renderer: renderers.Renderer,
    max_length: int,
    per_token: bool = False,
) -> list[tinker.Datum]:
    """The conversations with weight on the assistant's tokens: 1 each, or 1 in all for a conversation."""
    reduction = "none" if per_token else "mean"
    return [
        conversation_to_datum(conversation, renderer, max_length, reduction=reduction)
        for conversation in conversations
    ]


def batched(datums: list[tinker.Datum], size: int) -> list[list[tinker.Datum]]:
    """The datums in batches of `size`; the last may be smaller."""
    return [datums[start : start + size] for start in range(0, len(datums), size)]


def train_epoch(
    trainer: tinker.TrainingClient, batches: list[list[tinker.Datum]], epoch: int, config: SftConfig
) -> float:
    """One step per batch; returns the mean of the batches' NLL, each measured before its step."""
    pending: list[tuple[list[tinker.Datum], tinker.APIFuture[tinker.ForwardBackwardOutput]]] = []
    steps: list[tinker.APIFuture[tinker.OptimStepResponse]] = []
    total = len(batches) * config.epochs
    for index, batch in enumerate(batches):
        done = (epoch - 1) * len(batches) + index
        rate = config.learning_rate * (1 - done / total)
        # Submitted without waiting: the server works through them in this order.
        pending.append((batch, trainer.forward_backward(batch, "cross_entropy")))
        steps.append(trainer.optim_step(tinker.AdamParams(learning_rate=rate, beta2=0.95)))
    losses = [mean_nll(batch, future.result()) for batch, future in pending]
    for step in steps:
        step.result()
    return sum(losses) / len(losses)


def held_out_nll(trainer: tinker.TrainingClient, datums: list[tinker.Datum]) -> float:
    """Mean negative log-likelihood of the replies in nats per token; changes nothing in the model."""
    return mean_nll(datums, trainer.forward(datums, "cross_entropy").result())


def mean_nll(datums: list[tinker.Datum], output: tinker.ForwardBackwardOutput) -> float:
    """The cookbook's mean NLL of what the server returned for `datums`."""
    logprobs = [values["logprobs"] for values in output.loss_fn_outputs]
    return compute_mean_nll(logprobs, [datum.loss_fn_inputs["weights"] for datum in datums])


def answer(
    trainer: tinker.TrainingClient,
    renderer: renderers.Renderer,
    conversations: list[Conversation],
    datums: list[tinker.Datum],
) -> list[Answer]:
    """The current weights' most probable reply to each conversation's question, and the NLL of the true one.

    `datums` begin with those of the conversations.
    """
    sampler = trainer.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(
        max_tokens=MAX_REPLY_TOKENS, temperature=0.0, stop=renderer.get_stop_sequences()
    )
    futures = [
        sampler.sample(renderer.build_generation_prompt(conversation[:-1]), 1, params)
        for conversation in conversations
    ]
    texts = [reply_text(renderer, future.result().sequences[0].tokens) for future in futures]
    return [
        Answer([Reply(text, text == reference(conversation))], held_out_nll(trainer, [datum]))
        for text, conversation, datum in zip(texts, conversations, datums, strict=False)
    ]


def reference(conversation: Conversation) -> str:
    """The reply that the conversation ends with."""
    return renderers.get_text_content(conversation[-1])


def compare(conversations: list[Conversation], before: list[Answer], after: list[Answer]) -> list[Sample]:
    """Question, reference and the answers, conversation by conversation."""
    return [
        Sample(renderers.get_text_content(conversation[-2]), reference(conversation), first, last)
        for conversation, first, last in zip(conversations, before, after, strict=True)
    ]


def missed_goal(result: SftResult) -> str | None:
    """One sentence if the held-out NLL fell by less than a fifth."""
    first, last = result.curve[0].value, result.curve[-1].value
    if last <= 0.8 * first:
        return None
    return f"The held-out NLL went from {first:.3f} to {last:.3f}; it should fall by a fifth or more."


def main() -> None:
    """Run the example by itself."""
    config = parse_into(SftConfig, __doc__)
    with connect() as service:
        sys.exit(missed_goal(run(service, config)))


if __name__ == "__main__":
    main()
