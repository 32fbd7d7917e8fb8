"""For how long the fuzzers run: FUZZ_SECONDS each, a few seconds where that is not set."""

import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

T = TypeVar("T")


def for_its_time(
    strategies: Sequence[st.SearchStrategy[T]], check: Callable[[T], None], *, seconds: float, examples: int
) -> None:
    """Check `examples` of each strategy in turn, again and again until the time is over, but all of them once.

    A failure is shown as small as it can be made.
    """
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS") or seconds)
    healthy = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    rounds = 0
    while rounds < len(strategies) or time.monotonic() < end:

        @seed(random.randrange(2**32))
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=healthy,
            print_blob=True,
        )
        @given(strategies[rounds % len(strategies)])
        def some(example: T) -> None:
            note(f"{example!r}")
            check(example)

        with suppress(Unsatisfiable):  # nothing is wrong for what takes anything
            some()
        rounds += 1
    print(f"{rounds} rounds of up to {examples} examples")
