"""Whose turn it is in a full engine."""

import asyncio
from typing import Any

from tinsmith_sample.services.admission import Admission, Engines


class Crowd:
    """Workers that stay in their places until they are told to leave."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.inside: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._leave: dict[str, asyncio.Event] = {}

    async def enter(self, line: str, name: str, count: int = 1) -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._work(line, name, count))
        await settle()

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def _work(self, line: str, name: str, count: int) -> None:
        async with self.admission.place(line, count):
            self.inside.append(name)
            await self._leave[name].wait()
        self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_lines_have_their_turns_one_after_the_other() -> None:
    crowd = Crowd(Admission(lambda: 1))
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        await crowd.enter(name[0], name)
    order: list[str] = []
    while crowd.inside:
        (name,) = crowd.inside
        order.append(name)
        await crowd.leave(name)
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_all_places_are_taken_while_anyone_waits() -> None:
    crowd = Crowd(Admission(lambda: 3))
    for number in range(10):
        await crowd.enter("a", str(number))
        assert crowd.admission.taken == min(number + 1, 3)
    for number in range(7):
        await crowd.leave(str(number))
        assert (crowd.admission.taken, crowd.admission.waiting) == (3, 6 - number)


async def test_one_that_needs_more_places_than_there_are_is_let_in_and_others_wait_for_it() -> None:
    crowd = Crowd(Admission(lambda: 4))
    await crowd.enter("a", "a1")
    await crowd.enter("b", "b1", 10)
    await crowd.enter("c", "c1")
    assert crowd.inside == ["a1", "b1"]
    await crowd.leave("a1")
    assert crowd.inside == ["b1"]
    await crowd.leave("b1")
    assert crowd.inside == ["c1"]


async def test_those_who_give_up_take_no_place_and_keep_none() -> None:
    crowd = Crowd(Admission(lambda: 1))
    for name in ("a1", "a2", "a3"):
        await crowd.enter("a", name)
    crowd.tasks["a2"].cancel()
    await settle()
    assert crowd.admission.waiting == 1
    await crowd.leave("a1")
    assert crowd.inside == ["a3"]
    await crowd.enter("a", "a4")
    crowd.tasks["a3"].cancel()
    crowd.tasks["a4"].cancel()  # in the moment in which it is let in
    await settle()
    assert crowd.admission.taken == 0
    await crowd.enter("a", "a5")
    assert "a5" in crowd.inside


async def test_an_engine_is_given_an_eighth_more_than_it_runs(fake_engine: Any) -> None:
    fake_engine.capacity = 16
    for engines, places in ((Engines({"m": fake_engine}), 18), (Engines({"m": fake_engine}, 5), 5)):
        async with asyncio.TaskGroup() as group:
            held = asyncio.Event()

            async def work(engines: Engines = engines, held: asyncio.Event = held) -> None:
                async with engines.place("m", "a", 1):
                    await held.wait()

            for _ in range(30):
                group.create_task(work())
            await settle()
            assert engines.waiting("m") == 30 - places
            held.set()
