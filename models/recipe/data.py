"""Token streams: documents tokenised by many processes, and rows cut from them on the device."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from models.recipe.corpus import documents

_DOCUMENTS_PER_CALL = 4096


@dataclass(frozen=True)
class TokenStream:
    """Documents end to end.

    `tokens` [T] int32 and `starts` [D] int64 (the offset at which each document begins) lie on one device.
    """

    tokens: torch.Tensor
    starts: torch.Tensor

    def rows(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Random rows [count, length + 1] int64, each beginning where a document begins."""
        usable = int(torch.searchsorted(self.starts, self.tokens.numel() - length - 1, right=True))
        chosen = torch.randint(usable, (count,), generator=generator, device=self.starts.device)
        offsets = torch.arange(length + 1, device=self.starts.device)
        return self.tokens[self.starts[chosen, None] + offsets].long()


def build_stream(tokenizer: Path, tokens: int, seed: int, workers: int, device: torch.device) -> TokenStream:
    """At least `tokens` tokens of the corpus; shard `i` is written with its own seed, `seed + i`."""
    share = -(-tokens // workers)
    jobs = [(str(tokenizer), share, seed + worker) for worker in range(workers)]
    # Spawned, because a forked child would inherit the tokenizer's and CUDA's threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        shards = list(pool.map(_shard, jobs))
    ids = np.concatenate([ids for ids, _ in shards])
    lengths = np.concatenate([lengths for _, lengths in shards])
    starts = np.cumsum(lengths) - lengths
    return TokenStream(torch.from_numpy(ids.astype(np.int32)).to(device), torch.from_numpy(starts).to(device))


def _shard(job: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Ids [T] uint16 of at least that many tokens and the documents' lengths [D] int64."""
    path, tokens, seed = job
    tokenizer = Tokenizer.from_file(path)
    source = documents(seed)
    pieces: list[np.ndarray] = []
    made = 0
    while made < tokens:
        batch = tokenizer.encode_batch_fast(
            list(islice(source, _DOCUMENTS_PER_CALL)), add_special_tokens=False
        )
        pieces.extend(np.array(encoding.ids, dtype=np.uint16) for encoding in batch)
        made = sum(len(encoding.ids) for encoding in batch) + made
    return np.concatenate(pieces), np.array([len(piece) for piece in pieces], dtype=np.int64)
