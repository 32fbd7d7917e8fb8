"""Where a completion ends when stop strings are given."""

from collections.abc import Callable, Sequence


def first_stop(
    tokens: Sequence[int], stop_strings: Sequence[str], decode: Callable[[list[int]], str]
) -> int | None:
    """How many tokens, from the first, it takes until their text holds one of the stop strings.

    None when the whole text holds none. The text of a prefix grows with the prefix, so the count is found by
    bisection.
    """

    def holds_stop(count: int) -> bool:
        text = decode(list(tokens[:count]))
        return any(stop in text for stop in stop_strings)

    if not holds_stop(len(tokens)):
        return None
    without, with_stop = 0, len(tokens)
    while with_stop - without > 1:
        middle = (without + with_stop) // 2
        if holds_stop(middle):
            with_stop = middle
        else:
            without = middle
    return with_stop
