"""Between the wire's words for sampling and the engine's."""

from collections.abc import Sequence

import numpy as np

from tinsmith_common.errors import InvalidInput
from tinsmith_common.wire import tinsmith_wire_pb2 as pb
from tinsmith_common.wire.codec import pack_float32, pack_int32, pack_int64
from tinsmith_common.wire.sampling import EncodedTextChunk, ModelInput, SampleRequest, TokenTensor
from tinsmith_sample.engines.base import (
    NEVER,
    Completion,
    PromptAlternatives,
    SampleResult,
    SampleSpec,
    Stops,
    TopRow,
)
from tinsmith_sample.services.targets import read_targets, write_scores

_NO_LOGPROB = -99999.0
"""Marks an unused cell of a top-k table."""

_NO_IMAGES = (
    "the prompt holds an image, and the models served here read text only: they have no vision tower. Send "
    "encoded_text chunks"
)
_REFUSED = {
    "image": _NO_IMAGES,
    "image_asset_pointer": _NO_IMAGES,
    "dmel": "the prompt holds audio, and the models served here read text only. Send encoded_text chunks",
}


def to_spec(request: SampleRequest) -> SampleSpec:
    """What the engine is to do. Raises `InvalidInput` for a prompt or targets that cannot be."""
    prompt = _tokens(request.prompt)
    targets = request.target_prompt_logprobs
    params = request.sampling_params
    return SampleSpec(
        prompt=prompt,
        num_samples=request.num_samples,
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        stops=_stops(params.stop),
        prompt_logprobs=request.prompt_logprobs,
        prompt_logprobs_last_n=request.prompt_logprobs_last_n,
        topk_prompt_logprobs=request.topk_prompt_logprobs,
        topk_sample_logprobs=request.topk_sample_logprobs,
        targets=None if targets is None else read_targets(targets, len(prompt)),
        prompt_alternatives=request.prompt_alt_tokens_k,
    )


def to_wire(result: SampleResult, spec: SampleSpec, targets: TokenTensor | None) -> bytes:
    """A serialised `SampleResponse`. `targets`: what was asked for, whose layout is the answer's."""
    response = pb.SampleResponse(prompt_cache_hit_tokens=result.cached_tokens)
    response.sequences.extend(_sequence(item, spec.topk_sample_logprobs) for item in result.completions)
    if result.prompt is not None:
        if spec.prompt_logprobs:
            response.prompt_logprobs = pack_float32(result.prompt.logprobs)
        if spec.topk_prompt_logprobs:
            response.topk_prompt_logprobs.CopyFrom(_table(result.prompt.top, spec.topk_prompt_logprobs))
    if targets is not None and result.targets is not None:
        response.target_prompt_logprobs.CopyFrom(write_scores(targets, result.targets))
    if result.alternatives is not None:
        response.prompt_alt_tokens.CopyFrom(_alternatives(result.alternatives))
    return response.SerializeToString()


def _tokens(prompt: ModelInput) -> tuple[int, ...]:
    tokens: list[int] = []
    for chunk in prompt.chunks:
        if not isinstance(chunk, EncodedTextChunk):
            raise InvalidInput(_REFUSED[chunk.type])
        tokens.extend(chunk.tokens)
    return tuple(tokens)


def _stops(stop: str | list[str] | list[int] | None) -> Stops:
    if stop is None:
        return Stops()
    if isinstance(stop, str):
        return Stops(strings=(stop,))
    if not stop:
        return NEVER
    return Stops(
        strings=tuple(item for item in stop if isinstance(item, str)),
        tokens=tuple(item for item in stop if isinstance(item, int)),
    )


def _sequence(completion: Completion, k: int) -> pb.SampledSequence:
    stopped = completion.stop_reason == "stop"
    sequence = pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if stopped else pb.STOP_REASON_LENGTH,
        tokens=pack_int32(completion.tokens),
        logprobs=pack_float32(completion.logprobs),
    )
    if k:
        sequence.topk_sampled_logprobs.CopyFrom(_table(completion.top, k))
    return sequence


def _alternatives(drawn: PromptAlternatives) -> pb.PromptAltTokens:
    return pb.PromptAltTokens(
        tokens=pb.Tensor(dense=pack_int64(drawn.tokens), dtype=pb.DTYPE_INT64, shape=drawn.tokens.shape),
        logprobs=pb.Tensor(
            dense=pack_float32(drawn.logprobs), dtype=pb.DTYPE_FLOAT32, shape=drawn.logprobs.shape
        ),
    )


def _table(rows: Sequence[TopRow | None], k: int) -> pb.TopkLogprobs:
    """Two `[len(rows), k]` buffers; a row without values is all unused cells."""
    ids = np.zeros((len(rows), k), dtype="<i4")
    logprobs = np.full((len(rows), k), _NO_LOGPROB, dtype="<f4")
    for index, row in enumerate(rows):
        for column, (token, logprob) in enumerate(row or ()):
            ids[index, column] = token
            logprobs[index, column] = logprob
    return pb.TopkLogprobs(token_ids=ids.tobytes(), logprobs=logprobs.tobytes(), k=k, length=len(rows))
