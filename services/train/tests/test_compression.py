"""Compressed bodies are unpacked whole, or refused without being unpacked."""

import tracemalloc

import pytest
import zstandard

from tinsmith_common.errors import InvalidInput, PayloadTooLarge
from tinsmith_train.services.compression import decompress

LIMIT = 2**20


@pytest.mark.parametrize("size", [0, 1, 100_000, LIMIT])
def test_a_frame_of_the_sdk_s_kind_comes_back_as_it_was(size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    assert decompress(zstandard.ZstdCompressor().compress(body), LIMIT) == body


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * LIMIT))
    assert len(bomb) < LIMIT / 100
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge, match="MAX_BODY_MIB"):
        decompress(bomb, LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT


def test_a_frame_that_hides_its_size_is_refused() -> None:
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * LIMIT))
    with pytest.raises(InvalidInput, match="how large"):
        decompress(hidden, LIMIT)


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    # Magic number, a descriptor (single segment, 4-byte size), the size, then the honest frame's blocks.
    honest = zstandard.ZstdCompressor().compress(bytes(64 * LIMIT))
    header = zstandard.frame_header_size(honest)
    lie = b"\x28\xb5\x2f\xfd\xa0" + (1000).to_bytes(4, "little") + honest[header:]
    with pytest.raises(InvalidInput):
        decompress(lie, LIMIT)


FRAME = zstandard.ZstdCompressor().compress(b"some content" * 100)


@pytest.mark.parametrize("body", [FRAME[:-3], FRAME + FRAME, b"no", b""])
def test_what_is_not_one_whole_frame_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="zstd"):
        decompress(body, LIMIT)
