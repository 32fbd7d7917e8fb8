"""One seed per sample."""

import secrets

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def sample_seeds(seed: int | None, count: int) -> list[int]:
    """`count` distinct 63-bit seeds (not negative): a function of `seed`, or random when there is none."""
    start = secrets.randbits(64) if seed is None else seed
    seeds: dict[int, None] = {}
    index = 0
    while len(seeds) < count:
        seeds[_split_mix(start, index) >> 1] = None
        index += 1
    return list(seeds)


def _split_mix(seed: int, index: int) -> int:
    """The `index`-th output of SplitMix64 started at `seed`."""
    state = (seed + (index + 1) * _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
