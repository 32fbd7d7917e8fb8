"""The hash behind seeds, against MurmurHash3 written from its definition over bytes."""

import struct

import pytest

torch = pytest.importorskip("torch")

from tinsmith_sample.engines.sglang_cpu import murmur_hash32  # noqa: E402


def _rotl(value: int, by: int) -> int:
    return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF


def _murmur3(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 of a whole number of 4-byte blocks."""
    state = seed
    for (block,) in struct.iter_unpack("<I", data):
        block = _rotl(block * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF
        state = (_rotl(state ^ block, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    state ^= len(data)
    state = (state ^ state >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    state = (state ^ state >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return state ^ state >> 16


def test_the_reference_gives_the_published_value() -> None:
    assert _murmur3(b"test", seed=0x9747B28C) == 0x704B81DC


def test_the_operator_equals_the_reference() -> None:
    seeds, positions, columns = [0, 1, 2**63 - 1, 2**64 - 1], [0, 5, 4095, 2**31 - 1], [0, 1, 151_935]
    hashed = murmur_hash32(
        torch.tensor(seeds, dtype=torch.uint64), torch.tensor(positions), torch.tensor(columns)
    )
    expected = [
        [_murmur3(struct.pack("<QII", seed, position, column)) for column in columns]
        for seed, position in zip(seeds, positions, strict=True)
    ]
    assert hashed.tolist() == expected
