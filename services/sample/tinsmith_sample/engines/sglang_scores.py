"""Scores of chosen and of drawn tokens, position by position of a prompt, inside SGLang's workers.

SGLang answers the logprobs of one list of token ids for all positions alike (`token_ids_logprob`), so ids that differ
from position to position would cost positions x ids, and whole distributions more than fits. Here a request carries
a plan, the worker looks each id up, and draws, while it has the logprobs of a stretch of the prompt at hand, and
what travels back is what was asked for. The rest of SGLang's path stays as it is: the ids' logprobs return in rows
per position, which may now differ in length.

`install` must run before SGLang is imported, in every process of it.
"""

import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from tinsmith_sample.engines.after_import import AfterImport
from tinsmith_sample.engines.messages import Scoring

SWITCH = [0]
"""SGLang collects logprobs of given ids only for a request that gives some. Also scored for each sampled token."""

_PREFIX = "tinsmith_"
_PLAN = "_tinsmith_plan"
_BLOCK_ELEMENTS = 2**22
"""Draws work on float64 blocks of this many elements: 32 MiB each, whatever the vocabulary and the stretch."""

Rows: TypeAlias = list[list[Any]]
Normalizer: TypeAlias = tuple[torch.Tensor, torch.Tensor]


def install() -> None:
    """Teach SGLang to follow plans as soon as it is imported. Does nothing when repeated."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def custom_params(scoring: Scoring) -> dict[str, Any]:
    """What a request's sampling parameters carry to the worker: flat values only, as SGLang demands."""
    return {
        _PREFIX + "positions": scoring.positions,
        _PREFIX + "ids": scoring.ids,
        _PREFIX + "draws": scoring.draws,
        _PREFIX + "temperature": scoring.temperature,
        _PREFIX + "seed": scoring.seed,
    }


@dataclass(frozen=True)
class Plan:
    """What to score in one prompt.

    Token `ids[i]` in the place of prompt token `positions[i]` (ascending), then draws by `uniforms`, float64
    `[len(prompt) - 1, k]` in [0, 1): row i draws alternatives to prompt token i + 1.
    """

    positions: NDArray[np.int64]
    ids: NDArray[np.int64]
    temperature: float
    uniforms: NDArray[np.float64]

    def score(
        self, logprobs: torch.Tensor, first: int, normalizer: Normalizer | None = None
    ) -> tuple[Rows, Rows]:
        """Logprobs and ids for each row of `logprobs`, `[rows, vocabulary]`: row i follows prompt token first + i.

        With a normalizer (max, logsumexp - max; one value per row) the rows are logits.
        """
        size = max(1, _BLOCK_ELEMENTS // logprobs.shape[1])
        values: Rows = []
        ids: Rows = []
        for start in range(0, len(logprobs), size):
            block = logprobs[start : start + size].float()
            if normalizer is not None:
                row_max, row_log_sum = (part[start : start + size, None] for part in normalizer)
                block = (block - row_max) - row_log_sum
            block_values, block_ids = self._score_block(block, first + start)
            values += block_values
            ids += block_ids
        return values, ids

    def _score_block(self, logprobs: torch.Tensor, first: int) -> tuple[Rows, Rows]:
        values: Rows = [[] for _ in logprobs]
        ids: Rows = [[] for _ in logprobs]
        low, high = np.searchsorted(self.positions, [first + 1, first + 1 + len(logprobs)])
        rows, wanted = self.positions[low:high] - (first + 1), self.ids[low:high]
        on = logprobs.device
        found = logprobs[torch.from_numpy(rows).to(on), torch.from_numpy(wanted).to(on)].tolist()
        for row, token, value in zip(rows.tolist(), wanted.tolist(), found, strict=True):
            values[row].append(value)
            ids[row].append(token)
        uniforms = torch.from_numpy(self.uniforms[first : first + len(logprobs)]).to(on)
        if uniforms.numel():
            drawn, drawn_values = self._draw(logprobs[: len(uniforms)], uniforms)
            for row, (tokens, scores) in enumerate(zip(drawn.tolist(), drawn_values.tolist(), strict=True)):
                values[row] += scores
                ids[row] += tokens
        return values, ids

    def _draw(self, logprobs: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens by inversion of each row's cumulative distribution, and their logprobs."""
        if self.temperature == 0:
            tokens = logprobs.argmax(-1, keepdim=True).expand_as(uniforms)
        else:
            scores = logprobs.double()
            weights = ((scores - scores.amax(-1, keepdim=True)) / self.temperature).exp_()
            heights = weights.cumsum_(-1)
            tokens = torch.searchsorted(heights, uniforms * heights[:, -1:], right=True)
            tokens = tokens.clamp_(max=logprobs.shape[1] - 1)
        return tokens, logprobs.gather(-1, tokens)


class _Stretch(list[int]):
    """The ids of a request in one pass, as SGLang hands them on, and the plan they stand for.

    The pass's first scored row follows prompt token `first`.
    """

    def __init__(self, ids: list[int], plan: Plan, first: int) -> None:
        super().__init__(ids)
        self.plan = plan
        self.first = first


class _Span:
    """Rows in the place of a tensor on its way from the GPU."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def tolist(self) -> Rows:
        return self._rows


class _Finder(AfterImport):
    def __init__(self) -> None:
        super().__init__(
            {
                "sglang.srt.managers.schedule_batch": _attach_plans,
                "sglang.srt.layers.logprob_processor": _follow_plans,
            }
        )


def _attach_plans(module: Any) -> None:
    """A pass over prompts knows where in its prompt each request stands; note it next to the plan."""
    prepare = module.ScheduleBatch.prepare_for_extend

    def prepare_for_extend(batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = prepare(batch, *args, **kwargs)
        if batch.return_logprob:
            places = zip(
                batch.reqs,
                batch.token_ids_logprobs,
                batch.prefix_lens,
                batch.extend_logprob_start_lens,
                strict=True,
            )
            batch.token_ids_logprobs = [
                ids if (plan := _plan_of(request)) is None else _Stretch(ids, plan, prefix + start)
                for request, ids, prefix, start in places
            ]
        return result

    module.ScheduleBatch.prepare_for_extend = prepare_for_extend


def _plan_of(request: Any) -> Plan | None:
    """The plan that a scheduler's request carries; read once, for a long prompt comes in several passes."""
    carried = request.sampling_params.custom_params
    if not carried or _PREFIX + "ids" not in carried:
        return None
    if not hasattr(request, _PLAN):
        places = (len(request.origin_input_ids) - 1, carried[_PREFIX + "draws"])
        plan = Plan(
            positions=np.asarray(carried[_PREFIX + "positions"], np.int64),
            ids=np.asarray(carried[_PREFIX + "ids"], np.int64),
            temperature=carried[_PREFIX + "temperature"],
            uniforms=np.random.default_rng(carried[_PREFIX + "seed"]).random(places),
        )
        setattr(request, _PLAN, plan)
    return getattr(request, _PLAN)


def _follow_plans(module: Any) -> None:
    original = module.get_token_ids_logprobs_chunk

    def get_token_ids_logprobs_chunk(
        logprobs: torch.Tensor,
        token_ids_logprobs: list[list[int] | None],
        pruned_lens: list[int],
        token_ids_logprobs_val: list[Any],
        token_ids_logprobs_idx: list[Any],
        split_pruned_len: int = 0,
        log_normalizer: Normalizer | None = None,
        copy_to_pinned_cpu: bool = False,
    ) -> int:
        """As SGLang's. `pruned_lens` rows belong to each sequence; of the first, `split_pruned_len` are done."""
        entry = len(token_ids_logprobs_val) - (split_pruned_len > 0)
        left = original(
            logprobs,
            [None if isinstance(ids, _Stretch) else ids for ids in token_ids_logprobs],
            pruned_lens,
            token_ids_logprobs_val,
            token_ids_logprobs_idx,
            split_pruned_len,
            log_normalizer,
            copy_to_pinned_cpu,
        )
        row, done = 0, split_pruned_len
        for index, (ids, length) in enumerate(zip(token_ids_logprobs, pruned_lens, strict=True), entry):
            rows = slice(row, row + max(0, length - done))
            if isinstance(ids, _Stretch):
                parts = log_normalizer and (log_normalizer[0][rows], log_normalizer[1][rows])
                values, tokens = ids.plan.score(logprobs[rows], ids.first + done, parts)
                token_ids_logprobs_val[index] += [_Span(values)] if copy_to_pinned_cpu else values
                token_ids_logprobs_idx[index] += tokens
            row, done = rows.stop, 0
        return left

    module.get_token_ids_logprobs_chunk = get_token_ids_logprobs_chunk
