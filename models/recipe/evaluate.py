"""What the model can do: perplexity on unseen text, additions by sampling and greedily, a few samples."""

import math
import re
from collections import defaultdict

import torch
from tokenizers import Tokenizer
from transformers import DynamicCache, Qwen3ForCausalLM

from models.recipe.corpus import chat
from models.recipe.data import TokenStream
from models.recipe.sums import carries
from models.recipe.tokenizer import TURN_END, TURN_START
from models.recipe.train import token_losses

_INTEGER = re.compile(r"-?\d+")
_EXAMPLE = ("What is 4 + 5?", "9")


def evaluate(model: Qwen3ForCausalLM, tokenizer: Tokenizer, held_out: TokenStream) -> dict[str, float]:
    """Perplexity and the share of right additions, all by name."""
    small = [(x, y) for x in range(21) for y in range(21)]
    large = [(x, y) for x in range(0, 101, 5) for y in range(3, 101, 5)]
    carry = [pair for pair in small if carries(*pair)]
    scores = {"perplexity": _perplexity(model, held_out)}
    cases = (("20", small, 0), ("20_carry", carry, 0), ("20_one_example", small, 1), ("100", large, 0))
    for name, pairs, shots in cases:
        for mode, temperature, repeats in (("sampled", 1.0, 4), ("greedy", 0.0, 1)):
            prompts = [_prompt(x, y, shots) for x, y in pairs for _ in range(repeats)]
            replies = complete(model, tokenizer, prompts, temperature)
            sums = [x + y for x, y in pairs for _ in range(repeats)]
            scores[f"sums_to_{name}_{mode}"] = sum(map(_is_right, replies, sums)) / len(sums)
    return {name: round(score, 4) for name, score in scores.items()}


@torch.no_grad()
def complete(
    model: Qwen3ForCausalLM,
    tokenizer: Tokenizer,
    prompts: list[str],
    temperature: float,
    max_tokens: int = 16,
) -> list[str]:
    """One completion of each prompt, `<|im_end|>` included when it was written; temperature 0 is greedy."""
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for index, encoding in enumerate(tokenizer.encode_batch(prompts, add_special_tokens=False)):
        by_length[len(encoding.ids)].append((index, encoding.ids))
    replies = [""] * len(prompts)
    for group in by_length.values():
        ids = torch.tensor([ids for _, ids in group], device=model.device)
        rows = _continue_rows(model, ids, temperature, max_tokens, tokenizer.token_to_id(TURN_END))
        for (index, _), row in zip(group, rows, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=False)
            replies[index] = text.partition(TURN_END)[0] + TURN_END if TURN_END in text else text
    return replies


def _continue_rows(
    model: Qwen3ForCausalLM, prompts: torch.Tensor, temperature: float, max_tokens: int, end: int
) -> list[list[int]]:
    """Up to `max_tokens` new ids after each of the prompts [rows, length], fewer once all hold `end`."""
    given, cache = prompts, DynamicCache(config=model.config)
    written: list[torch.Tensor] = []
    ended = torch.zeros(len(prompts), 1, dtype=torch.bool, device=prompts.device)
    while len(written) < max_tokens and not ended.all():
        output = model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        if temperature > 0:
            given = torch.multinomial((logits / temperature).softmax(-1), 1)
        else:
            given = logits.argmax(-1, keepdim=True)
        written.append(given)
        ended |= given == end
    return torch.cat(written, dim=1).tolist()


def _prompt(x: int, y: int, shots: int) -> str:
    before = chat([_EXAMPLE] * shots) + "\n" * bool(shots)
    return f"{before}{TURN_START}user\nWhat is {x} + {y}?{TURN_END}\n{TURN_START}assistant\n"


def _is_right(reply: str, total: int) -> bool:
    """Whether the reply ended and its last integer is the sum."""
    numbers = _INTEGER.findall(reply)
    return reply.endswith(TURN_END) and bool(numbers) and int(numbers[-1]) == total


@torch.no_grad()
def _perplexity(model: Qwen3ForCausalLM, held_out: TokenStream) -> float:
    generator = torch.Generator(held_out.tokens.device).manual_seed(0)
    losses = [token_losses(model, held_out.rows(16, 256, generator)).mean().item() for _ in range(16)]
    return math.exp(sum(losses) / len(losses))
