"""Whose turn it is: self-clocked fair queueing over lanes, by tokens.

A lane's next portion gets a number: where the lane's last one ended, plus its tokens. The smallest number goes
first, and the clock is the number of what went last. A lane that was idle begins at the clock: it gets no credit for
having waited, and its short work comes before the long work of a lane that is always busy. While n lanes are busy,
each gets 1/n of the tokens. Tokens count as often as their account has lanes that are busy, so that accounts share
alike and not by their number of models. (Golestani, "A self-clocked fair queueing scheme for broadband
applications", INFOCOM 1994.)
"""

import heapq
from collections import Counter
from collections.abc import Iterable

from tinsmith_train.scheduler.lanes import Lane
from tinsmith_train.scheduler.operations import Portion


class FairOrder:
    """Gives out cycles: passes that run together, at most `cycle_tokens` unless one alone is longer; or one task."""

    def __init__(self, cycle_tokens: int) -> None:
        self._cycle_tokens = cycle_tokens
        self._clock = 0.0

    def take(self, lanes: Iterable[Lane]) -> list[Portion]:
        """What runs next; empty when no lane is ready.

        A lane gives several short passes to a cycle, but only one part of a long one, and nothing beside a task:
        what comes after them must wait for them.
        """
        ready = self._busy(lanes)
        shares = Counter(lane.owner for lane in ready)
        heap = [(self._end(lane, shares), place, lane) for place, lane in enumerate(ready)]
        heapq.heapify(heap)
        taken: list[Portion] = []
        filled = 0
        while heap:
            end, place, lane = heapq.heappop(heap)
            portion = lane.peek()
            if taken and (portion.part is None or filled + portion.cost > self._cycle_tokens):
                if portion.part is None:
                    continue
                break
            taken.append(lane.take())
            filled += portion.cost
            lane.served = self._clock = end
            if portion.part is None:
                break
            if portion.is_whole_pass and lane.ready and lane.peek().is_whole_pass:
                heapq.heappush(heap, (self._end(lane, shares), place, lane))
        for lane in ready:
            lane.busy = lane.ready
        return taken

    def _busy(self, lanes: Iterable[Lane]) -> list[Lane]:
        ready = [lane for lane in lanes if lane.ready]
        for lane in ready:
            if not lane.busy:
                lane.busy, lane.served = True, max(lane.served, self._clock)
        return ready

    def _end(self, lane: Lane, shares: Counter[str]) -> float:
        return lane.served + lane.peek().cost * shares[lane.owner]
