"""A tiny random Qwen3 with adapters, its numbers by Hugging Face, one real engine per session, and a fake one.

Heavy imports are inside the fixtures that need them: unit tests run without torch.
"""

import asyncio
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import pytest
import pytest_asyncio
from fastapi import FastAPI
from numpy.typing import NDArray

from tinsmith_common.auth import DEFAULT_OWNER
from tinsmith_common.catalog import SessionRecord
from tinsmith_common.futures import PROTOBUF
from tinsmith_common.settings import TINY_MODEL, locate_model
from tinsmith_sample.api import create_app
from tinsmith_sample.config import SamplingConfig
from tinsmith_sample.engines.base import (
    Adapter,
    Completion,
    Piece,
    ResidentAdapter,
    SampleResult,
    SampleSpec,
    SamplingEngine,
)
from tinsmith_sample.engines.sglang import EngineConfig, SGLangEngine

CONTEXT = 256
VOCABULARY = 512


class Reference(Protocol):
    """Logprobs by Hugging Face, with adapters by peft."""

    def __call__(self, tokens: list[int], adapter: Adapter | None = None) -> NDArray[np.float32]: ...


MakeAdapter = Callable[..., Adapter]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen3 (tied embedding, float32, vocabulary 512, context 256) and its tokenizer."""
    torch = _torch()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer = _make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.15,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    """The tiny model's tokenizer."""
    _torch()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def make_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """Makes PEFT adapters whose A and B are both random, so that they change every logit."""
    torch = _torch()
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    # peft warns that merging into a tied head would change the embedding too; nothing is merged here.
    warnings.filterwarnings("ignore", module="peft", category=UserWarning)

    def make(rank: int, targets: tuple[str, ...], seed: int, alpha: int = 32) -> Adapter:
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        # B is scaled so that adapters of all ranks change the logits about equally.
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.5 * rank**0.5 / alpha if "lora_B" in name else 0.1)
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        model.save_pretrained(str(folder))
        return Adapter(key=f"adapter-{seed}", folder=folder)

    return make


@pytest.fixture(scope="session")
def distributions(tiny_model: Path) -> Callable[..., NDArray[np.float32]]:
    """Logprobs of every token after each token but the last, float32 `[len(tokens) - 1, vocabulary]`."""
    torch = _torch()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    models: dict[Path | None, Any] = {}

    def model_with(adapter: Adapter | None) -> Any:
        key = adapter.folder if adapter else None
        if key not in models:
            base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
            models[key] = (PeftModel.from_pretrained(base, key) if key else base).eval()
        return models[key]

    def logprobs(tokens: Sequence[int], adapter: Adapter | None = None) -> NDArray[np.float32]:
        with torch.no_grad():
            logits = model_with(adapter)(torch.tensor([tokens])).logits[0, :-1]
        return torch.log_softmax(logits.float(), -1).numpy()

    return logprobs


@pytest.fixture(scope="session")
def reference(distributions: Callable[..., NDArray[np.float32]]) -> Reference:
    """log p(tokens[i + 1] | tokens[: i + 1]) at temperature 1, float32 `[len(tokens) - 1]`."""

    def logprobs(tokens: list[int], adapter: Adapter | None = None) -> NDArray[np.float32]:
        return distributions(tokens, adapter)[np.arange(len(tokens) - 1), tokens[1:]]

    return logprobs


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(tiny_model: Path) -> AsyncIterator[SGLangEngine]:
    """The real engine on the tiny model, for the whole session; at most six adapters resident.

    It takes prompts in passes of 64 tokens and scores 48 rows at a time, as it does with thousands in earnest.
    """
    os.environ["SGLANG_LOGPROB_CHUNK_SIZE"] = "48"
    config = EngineConfig(
        str(tiny_model),
        device="cpu",
        max_resident_adapters=6,
        adapters_per_batch=8,
        engine_args={"max_total_tokens": 8192, "chunked_prefill_size": 64},
    )
    engine = SGLangEngine(config)
    await engine.start()
    yield engine
    await engine.stop()


@dataclass
class FakeEngine:
    """Answers with the seeds' count of equal tokens once `gate` is open. For faults a real engine has rarely."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[Exception] = field(default_factory=list[Exception])
    asked: list[SampleSpec] = field(default_factory=list[SampleSpec])
    adapters: list[Adapter | None] = field(default_factory=list[Adapter | None])
    running: int = 0
    cached_tokens: int = 0

    capacity: int = 256

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def healthy(self) -> bool:
        return True

    def stats(self) -> Mapping[str, float]:
        return {"adapters": 0.0}

    def residents(self) -> Sequence[ResidentAdapter]:
        return [ResidentAdapter(f"{MODEL}:train:0/sampler_weights/one@1.2", "v1", True, 1)]

    async def sample(self, spec: SampleSpec, adapter: Adapter | None = None) -> SampleResult:
        self.asked.append(spec)
        self.adapters.append(adapter)
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.failures:
            raise self.failures.pop(0)
        one = Completion((7, 8), np.asarray([-0.5, -1.0], np.float32), "length")
        return SampleResult(completions=(one,) * spec.num_samples, cached_tokens=self.cached_tokens)

    @asynccontextmanager
    async def stream(
        self, specs: Sequence[SampleSpec], adapter: Adapter | None = None
    ) -> AsyncGenerator[AsyncIterator[Piece]]:
        self.asked.extend(specs)
        self.running += 1
        try:
            yield self._pieces()
        finally:
            self.running -= 1

    async def _pieces(self) -> AsyncIterator[Piece]:
        """Of one sample. The gate is before the second token."""
        yield Piece(0, 0, Completion((7,), np.asarray([-0.5], np.float32), "length"), last=False)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        yield Piece(0, 0, Completion((8,), np.asarray([-1.0], np.float32), "length"), last=True)


MODEL = "tinsmith/tiny"


@dataclass
class Service:
    """One app, answering over an in-process transport."""

    app: FastAPI
    http: httpx.AsyncClient

    async def session(self, **body: Any) -> str:
        """A sampling session in a new client session. Answers its id."""
        now = datetime.now(UTC)
        record = SessionRecord(
            id=f"s{now.timestamp()}", owner=DEFAULT_OWNER, created_at=now, last_seen_at=now
        )
        await self.app.state.stores.catalog.sessions.create(record)
        request = {"session_id": record.id, "sampling_session_seq_id": 0} | (body or {"base_model": MODEL})
        answer = await self.http.post("/api/v1/create_sampling_session", json=request)
        answer.raise_for_status()
        return answer.json()["sampling_session_id"]

    async def sample(self, sampler: str, seq_id: int = 0, **body: Any) -> httpx.Response:
        """Submit an `asample`."""
        request = {
            "sampling_session_id": sampler,
            "seq_id": seq_id,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]},
            "sampling_params": {"max_tokens": 2},
        }
        return await self.http.post("/api/v1/asample", json=request | body)

    async def result(self, request_id: str) -> httpx.Response:
        """Poll until there is an answer."""
        while True:
            answer = await self.http.post(
                "/api/v1/retrieve_future", json={"request_id": request_id}, headers={"Accept": PROTOBUF}
            )
            if answer.headers["content-type"] != "application/json" or "try_again" not in answer.text:
                return answer

    async def cancel(self, request_id: str) -> None:
        """Give a request up."""
        answer = await self.http.post("/api/v1/cancel_future", json={"request_id": request_id})
        assert answer.is_success, answer.text

    async def ended(self, sampler: str, cursor: int = 0, clone: int = 0, **body: Any) -> dict[str, Any]:
        """A `retrieve_futures` poll."""
        target = {
            "type": "sampling_session",
            "sampling_session_id": sampler,
            "cloned_sampler_id": clone,
        }
        request = {"target": target, "prev_cursor": cursor} | body
        return (await self.http.post("/api/v1/retrieve_futures", json=request)).raise_for_status().json()


@asynccontextmanager
async def _serve(folder: Path, engine: SamplingEngine, **settings: Any) -> AsyncGenerator[Service]:
    defaults: dict[str, Any] = {
        "supported_models": [{"name": MODEL, "path": locate_model(TINY_MODEL)}],
        "metadata_dir": folder,
        "tinker_api_key": "key",
        "long_poll_s": 2,
        "max_queued_samples": 50,
    }
    config = SamplingConfig(**defaults | settings)
    app = create_app(config, {MODEL: engine})
    transport = httpx.ASGITransport(app)
    headers = {"X-API-Key": "tml-key"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://sample", headers=headers) as http,
    ):
        yield Service(app, http)


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Starts services on the same stores: one after the other, or on different ports at the same time."""

    def start(engine: SamplingEngine, **settings: Any) -> AbstractAsyncContextManager[Service]:
        return _serve(tmp_path, engine, **settings)

    return start


@pytest.fixture
def fake_engine() -> FakeEngine:
    return FakeEngine()


def _torch() -> Any:
    from tinsmith_sample.engines.sglang_cpu import declare_torchvision_operators

    declare_torchvision_operators()
    import torch

    return torch


def _make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the quick brown fox jumps over the lazy dog and then it stops there to rest a while"] * 4
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
