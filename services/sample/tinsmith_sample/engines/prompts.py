"""What is asked about a prompt, put to the engine and read from its answer."""

import secrets

import numpy as np

from tinsmith_sample.engines import messages
from tinsmith_sample.engines.base import FloatArray, PromptAlternatives, PromptScores, SampleSpec, TopRow


def prompt_start(spec: SampleSpec) -> int:
    """First prompt position SGLang must look at, -1 if none; it scores from the one after."""
    starts: list[int] = []
    if _wants_own_scores(spec):
        starts.append(len(spec.prompt) - 1 - _own_scores(spec))
    if spec.targets is not None:
        starts.append(spec.targets.positions[0] - 1)
    if spec.prompt_alternatives:
        starts.append(0)
    return min(starts, default=-1)


def scoring(spec: SampleSpec) -> messages.Scoring | None:
    """The order to score targets and to draw alternatives, if either is asked for."""
    if spec.targets is None and not spec.prompt_alternatives:
        return None
    return messages.Scoring(
        positions=[] if spec.targets is None else list(spec.targets.positions),
        ids=[] if spec.targets is None else list(spec.targets.ids),
        draws=spec.prompt_alternatives,
        temperature=spec.temperature,
        seed=secrets.randbits(63) if spec.seed is None else spec.seed,
    )


def prompt_scores(answer: messages.Generated, spec: SampleSpec) -> PromptScores | None:
    """Place what the engine scored, the end of the prompt, into the whole prompt."""
    if not _wants_own_scores(spec):
        return None
    length = len(spec.prompt)
    wanted = _own_scores(spec)
    logprobs = np.full(length, np.nan, dtype=np.float32)
    rows: list[TopRow | None] = [None] * length
    if wanted:
        scored = (answer.prompt_logprobs or [])[-wanted:]
        logprobs[-wanted:] = [np.nan if value is None else value for value in scored]
        if k := spec.topk_prompt_logprobs:
            tops = (answer.prompt_top or [])[-wanted:]
            rows[-wanted:] = [None if row is None else tuple(row[:k]) for row in tops]
    return PromptScores(logprobs=logprobs, top=tuple(rows) if spec.topk_prompt_logprobs else ())


def target_scores(answer: messages.Generated, spec: SampleSpec) -> FloatArray | None:
    """The logprobs of the spec's targets, in their order."""
    if spec.targets is None:
        return None
    taken = _targets_by_row(spec, answer)
    rows = answer.prompt_scores or []
    values = [value for row, count in zip(rows, taken, strict=True) for _, value in row[:count]]
    return np.asarray(values, np.float32)


def alternatives(answer: messages.Generated, spec: SampleSpec) -> PromptAlternatives | None:
    """The draws for each position after the first; they follow the position's targets."""
    if not spec.prompt_alternatives:
        return None
    taken = _targets_by_row(spec, answer)
    rows = answer.prompt_scores or []
    drawn = [row[count:] for row, count in zip(rows, taken, strict=True)][1:]
    shape = (len(spec.prompt) - 1, spec.prompt_alternatives)
    return PromptAlternatives(
        tokens=np.asarray([[token for token, _ in row] for row in drawn], np.int64).reshape(shape),
        logprobs=np.asarray([[value for _, value in row] for row in drawn], np.float32).reshape(shape),
    )


def _wants_own_scores(spec: SampleSpec) -> bool:
    return spec.prompt_logprobs or spec.topk_prompt_logprobs > 0


def _own_scores(spec: SampleSpec) -> int:
    """How many of the last prompt tokens are to have their own logprobs; the first token never has one."""
    most = len(spec.prompt) - 1
    return most if spec.prompt_logprobs_last_n is None else min(most, spec.prompt_logprobs_last_n)


def _targets_by_row(spec: SampleSpec, answer: messages.Generated) -> list[int]:
    """How many targets each row of the answer begins with."""
    positions = () if spec.targets is None else spec.targets.positions
    counts = np.bincount(np.asarray(positions, np.int64), minlength=len(spec.prompt))
    return counts[len(spec.prompt) - len(answer.prompt_scores or ()) :].tolist()
