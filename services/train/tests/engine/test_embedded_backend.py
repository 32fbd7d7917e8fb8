"""The embedded backend under a real Ray."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from tinsmith_common.errors import EngineFailure, InvalidInput, NotFound
from tinsmith_train.backends.base import TrainBackend
from tinsmith_train.backends.embedded import EmbeddedBackend, EmbeddedConfig
from tinsmith_train.engine.types import AdamParams, ForwardBackward, ForwardBackwardResult, LoraSpec, PassPart

from .conftest import VOCAB, MakeDatum, MakeModel, MakeTrainer

pytestmark = pytest.mark.integration

SPEC = LoraSpec(4, seed=5)


@pytest.fixture(scope="module", autouse=True)
def ray_runtime() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model_folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture
async def backend(model_folder: str) -> AsyncIterator[EmbeddedBackend]:
    backend = EmbeddedBackend(EmbeddedConfig("test/base", source=model_folder, device="cpu", threads=1))
    yield backend
    await backend.stop()


async def test_it_trains_saves_and_exports_as_the_engine_in_this_process_does(
    backend: TrainBackend, make_trainer: MakeTrainer, make_datum: MakeDatum, tmp_path: Path
) -> None:
    info = await backend.start()
    assert (info.architecture, info.vocab_size, info.max_context_length) == ("Qwen3ForCausalLM", VOCAB, 64)
    await backend.create_adapter("a", SPEC)
    local = make_trainer()
    local.create_adapter("a", SPEC)
    good = ForwardBackward("a", (make_datum(0, 9),), "cross_entropy")
    bad = ForwardBackward("a", (make_datum(0, 9),), "nonsense")

    first, second = await backend.forward_backward([PassPart.whole("m:1", bad), PassPart.whole("m:2", good)])
    metrics = await backend.optim_step("a", AdamParams(1e-2))
    await backend.save_state("a", tmp_path)

    assert isinstance(first, InvalidInput)
    assert backend.clock.started_at is not None
    assert backend.clock.ended_at is not None
    assert backend.clock.started_at < backend.clock.ended_at
    (expected,) = local.forward_backward([good])
    assert isinstance(second, ForwardBackwardResult)
    assert isinstance(expected, ForwardBackwardResult)
    np.testing.assert_array_equal(second.logprobs[0], expected.logprobs[0])
    assert metrics == local.optim_step("a", AdamParams(1e-2))
    assert await backend.load_state("b", tmp_path, with_optimizer=True) == SPEC
    with pytest.raises(NotFound, match="no adapter 'nobody'"):
        await backend.optim_step("nobody", AdamParams())


async def test_the_loop_stays_free_while_the_model_loads(backend: EmbeddedBackend) -> None:
    starting = asyncio.create_task(backend.start())
    ticks = 0
    while not starting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await starting
    assert ticks > 20


async def test_a_dead_worker_is_an_engine_failure_and_start_gives_a_new_one(
    backend: EmbeddedBackend, make_datum: MakeDatum
) -> None:
    await backend.start()
    await backend.create_adapter("a", SPEC)
    item = ForwardBackward("a", (make_datum(0, 9),), "cross_entropy")
    ray.kill(backend.actor)
    with pytest.raises(EngineFailure, match=r"worker of 'test/base' died"):
        await backend.forward_backward([PassPart.whole("m:1", item)])
    await backend.start()
    (answer,) = await backend.forward_backward([PassPart.whole("m:1", item)])
    assert isinstance(answer, NotFound)


async def test_a_model_that_cannot_be_loaded_says_what_to_check(tmp_path: Path) -> None:
    backend = EmbeddedBackend(EmbeddedConfig("no/model", source=str(tmp_path), device="cpu"))
    with pytest.raises(EngineFailure, match=r"'no/model' could not be loaded .*: check that it is a folder"):
        await backend.start()
    await backend.stop()
    with pytest.raises(EngineFailure, match="not running"):
        await backend.create_adapter("a", SPEC)
