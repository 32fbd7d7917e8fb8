"""Compressed request bodies."""

import zstandard

from tinsmith_common.errors import InvalidInput, PayloadTooLarge


def decompress(body: bytes, limit_bytes: int) -> bytes:
    """Unpack one zstd frame that says how large its content is, as the SDK's do.

    No more than `limit_bytes` is ever allocated: the size is looked at first, and content beyond it is an error.
    Raises `InvalidInput` for anything but one whole frame and `PayloadTooLarge` over the limit.
    """
    try:
        size = zstandard.get_frame_parameters(body).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            raise InvalidInput("the zstd frame does not say how large its content is; compress in one call")
        if size > limit_bytes:
            raise PayloadTooLarge(
                f"the body is larger than {limit_bytes / 2**20:g} MiB when unpacked; send fewer datums per "
                "request, or raise MAX_BODY_MIB on the server"
            )
        return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidInput(f"the body is not one whole zstd frame: {error}") from error
