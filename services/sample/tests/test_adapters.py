"""The cache of resident adapters, with an engine whose loads can be held back or made to fail."""

import asyncio
from pathlib import Path

import pytest

from tinsmith_common.errors import EngineFailure
from tinsmith_sample.engines.adapters import AdapterCache
from tinsmith_sample.engines.base import Adapter


class _Engine:
    def __init__(self, capacity: int = 2) -> None:
        self.log: list[str] = []
        self.broken: set[str] = set()
        self.stuck: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.cache = AdapterCache(capacity, self._load, self._unload)

    async def _load(self, name: str, adapter: Adapter) -> None:
        await self.gate.wait()
        if adapter.key in self.broken:
            raise EngineFailure("no such weights")
        self.log.append(f"load {adapter.key} as {name}")

    async def _unload(self, name: str) -> None:
        if name in self.stuck:
            raise EngineFailure("the engine took too long")
        self.log.append(f"unload {name}")

    async def use(self, key: str) -> str:
        async with self.cache.use(_adapter(key)) as name:
            return name


def _adapter(key: str) -> Adapter:
    return Adapter(key, Path("/nowhere"))


async def test_an_adapter_is_loaded_once_for_many_users() -> None:
    engine = _Engine()
    names = await asyncio.gather(*(engine.use("a") for _ in range(10)))
    assert engine.log == ["load a as v1"]
    assert set(names) == {"v1"}


async def test_the_least_recently_used_adapter_makes_room() -> None:
    engine = _Engine()
    for key in ("a", "b", "a", "c"):
        await engine.use(key)
    assert engine.log == ["load a as v1", "load b as v2", "unload v2", "load c as v3"]


async def test_an_evicted_adapter_returns_under_a_new_name() -> None:
    engine = _Engine(capacity=1)
    assert [await engine.use(key) for key in ("a", "b", "a")] == ["v1", "v2", "v3"]


async def test_an_adapter_in_use_is_not_evicted() -> None:
    engine = _Engine(capacity=1)
    async with engine.cache.use(_adapter("a")):
        waiting = asyncio.create_task(engine.use("b"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.log == ["load a as v1"]
    assert await waiting == "v2"


async def test_a_failed_load_is_told_to_all_who_wait_and_tried_again_later() -> None:
    engine = _Engine()
    engine.broken.add("a")
    results = await asyncio.gather(engine.use("a"), engine.use("a"), return_exceptions=True)
    assert [type(result) for result in results] == [EngineFailure, EngineFailure]
    engine.broken.clear()
    assert await engine.use("a") == "v2"


async def test_a_failed_load_takes_no_place() -> None:
    engine = _Engine(capacity=1)
    engine.broken.add("a")
    with pytest.raises(EngineFailure):
        await engine.use("a")
    assert len(engine.cache) == 0


async def test_a_cancelled_user_does_not_break_the_load_for_others() -> None:
    engine = _Engine()
    engine.gate.clear()
    first = asyncio.create_task(engine.use("a"))
    second = asyncio.create_task(engine.use("a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    engine.gate.set()
    assert await second == "v1"


async def test_an_adapter_that_cannot_be_unloaded_does_not_block_the_next() -> None:
    engine = _Engine(capacity=1)
    await engine.use("a")
    engine.stuck.add("v1")
    assert await engine.use("b") == "v2"
    assert engine.cache.stuck == 1


async def test_a_cancelled_user_lets_go_of_its_adapter() -> None:
    engine = _Engine(capacity=1)

    async def hold() -> None:
        async with engine.cache.use(_adapter("a")):
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0.01)
    holder.cancel()
    assert await engine.use("b") == "v2"


async def test_a_newer_adapter_of_a_line_lets_the_older_one_go_first() -> None:
    engine = _Engine(capacity=3)
    for adapter in (
        _adapter("kept"),
        Adapter("line-1", Path("/nowhere"), line="line"),
        Adapter("line-2", Path("/nowhere"), line="line"),
        _adapter("new"),
    ):
        async with engine.cache.use(adapter):
            pass
    assert engine.log[-2:] == ["unload v2", "load new as v4"]
