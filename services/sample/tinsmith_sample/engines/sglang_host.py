"""The engine process: SGLang, driven over a socket by `tinsmith_sample.engines.sglang`.

SGLang keeps its settings in module state, installs signal handlers, patches transformers and re-imports the
main module in its workers. In a process of its own none of that reaches the service, a service may hold one
engine per base model, and a fault of the engine is a restart instead of an outage.

Run as `python -m tinsmith_sample.engines.sglang_host FD PARENT` with a connected socket inherited as FD, by the
process PARENT.
"""

import sys

from tinsmith_sample.engines.lifetime import die_with

if __name__ == "__main__":
    die_with(int(sys.argv[2]))  # before the imports below, which take seconds

from tinsmith_sample.engines import sglang_cpu, sglang_scores, sglang_times

# Also executed in every worker that SGLang spawns, before it imports SGLang.
sglang_cpu.install()
sglang_scores.install()
sglang_times.install()

import asyncio  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import socket  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402

from tinsmith_sample.engines import messages  # noqa: E402
from tinsmith_sample.engines.stops import first_stop  # noqa: E402

# SGLang keeps a few tokens of its context for itself; it is given that many more than we promise.
_CONTEXT_MARGIN = 8

CPU_ARGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "lora_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.05,
    "max_total_tokens": 16384,
    "max_running_requests": 256,
}
# The default LoRA backend slows base requests too: 0.63 of the Triton one's tokens/s at batch 64 on an H200.
GPU_ARGS: dict[str, Any] = {"device": "cuda", "lora_backend": "triton"}


def context_length(launch: messages.Launch) -> int:
    """Tokens of prompt plus completion: the model's own context, or less if so configured."""
    from sglang.srt.utils.hf_transformers_utils import get_config, get_context_length

    native = get_context_length(get_config(launch.model_path, trust_remote_code=False).get_text_config())
    return min(native, launch.context_length or native)


def engine_args(launch: messages.Launch) -> dict[str, Any]:
    """SGLang's arguments: what the device needs, under what the operator asked for."""
    device = launch.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    defaults = CPU_ARGS if device == "cpu" else GPU_ARGS
    common: dict[str, Any] = {
        "model_path": launch.model_path,
        "grammar_backend": "none",
        "skip_server_warmup": True,
        "context_length": context_length(launch) + _CONTEXT_MARGIN,
        "log_level": "error",  # at "warning" it reports the context margin, five times
    }
    return common | defaults | launch.engine_args


def build_engine(kind: Any, launch: messages.Launch) -> Any:
    """SGLang's `Engine`, or a subclass of it, with its workers."""
    return kind(**engine_args(launch))


class Host:
    """Carries out orders on one engine, each in a task of its own."""

    def __init__(self, engine: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._manager = engine.tokenizer_manager
        self._reader = reader
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer orders until the service hangs up."""
        self._say(await self._ready())
        while True:
            try:
                order = messages.order_decoder.decode(await messages.read_frame(self._reader))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if isinstance(order, messages.Abort):
                # Never by cancelling the task: the adapter's reference count would stay up for ever.
                self._manager.abort_request(str(order.id))
                continue
            task = asyncio.create_task(self._carry_out(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ready(self) -> messages.Ready:
        config = self._manager.model_config
        states = await self._manager.get_internal_state()  # one of each data-parallel rank
        worker = self._engine._scheduler_init_result.scheduler_infos[0]
        return messages.Ready(
            vocab_size=config.vocab_size,
            context_length=min(config.context_len, worker["max_total_num_tokens"]) - _CONTEXT_MARGIN,
            running=sum(state["effective_max_running_requests_per_dp"] for state in states),
        )

    def _say(self, message: messages.Ready | messages.Reply) -> None:
        self._writer.write(messages.frame(message))

    async def _carry_out(self, order: messages.Work) -> None:
        try:
            self._say(await self._result(order))
        except TimeoutError:
            self._say(messages.Failed(id=order.id, message="the engine took too long"))
        except Exception as error:
            self._say(messages.Failed(id=order.id, message=str(error) or type(error).__name__))
        finally:
            self._manager.first_tokens.pop(str(order.id), None)

    async def _result(self, order: messages.Work) -> messages.Reply:
        match order:
            case messages.Generate():
                return await (self._stream(order) if order.stream else self._generate(order))
            case messages.LoadAdapter():
                await self._load(order)
            case messages.UnloadAdapter():
                await self._unload(order)
            case messages.Ping():
                return await self._load_figures(order)
        return messages.Done(id=order.id)

    async def _load_figures(self, order: messages.Ping) -> messages.Load:
        await self._manager.get_internal_state()
        loads = await self._manager.get_loads()
        return messages.Load(
            id=order.id,
            running=sum(load.num_running_reqs for load in loads),
            waiting=sum(load.num_waiting_reqs for load in loads),
        )

    async def _load(self, order: messages.LoadAdapter) -> None:
        from sglang.srt.managers.io_struct import LoadLoRAAdapterReqInput

        request = LoadLoRAAdapterReqInput(lora_name=order.name, lora_path=order.folder)
        result = await self._manager.load_lora_adapter(request)
        if not result.success:
            raise RuntimeError(result.error_message)

    async def _unload(self, order: messages.UnloadAdapter) -> None:
        from sglang.srt.managers.io_struct import UnloadLoRAAdapterReqInput

        request = UnloadLoRAAdapterReqInput(lora_name=order.name)
        async with asyncio.timeout(order.timeout_s):
            result = await self._manager.unload_lora_adapter(request)
        # Otherwise a stray request for this name would bring it back from its old folder.
        self._manager.lora_ref_cache.pop(order.name, None)
        if not result.success:
            raise RuntimeError(result.error_message)

    async def _generate(self, order: messages.Generate) -> messages.Generated:
        scoring = order.scoring
        carried = {} if scoring is None else {"custom_params": sglang_scores.custom_params(scoring)}
        answer = await self._engine.async_generate(
            input_ids=order.tokens,
            sampling_params=order.sampling | self._stop_params(order.stop_strings) | carried,
            return_logprob=True,
            logprob_start_len=order.prompt_logprobs_from,
            top_logprobs_num=order.top_logprobs,
            token_ids_logprob=None if scoring is None else sglang_scores.SWITCH,
            lora_path=order.adapter,
            cache_salt=order.cache_namespace,
            rid=str(order.id),
        )
        meta = answer["meta_info"]
        finish = meta["finish_reason"]
        if finish["type"] == "abort":
            raise RuntimeError(finish.get("message") or "aborted")
        tokens: list[int] = answer["output_ids"]
        stopped: bool = finish["type"] == "stop"
        kept = len(tokens)
        if order.stop_strings:
            end = first_stop(tokens, order.stop_strings, self._decode)
            if end is not None:
                kept, stopped = end, True
        return messages.Generated(
            id=order.id,
            tokens=tokens[:kept],
            logprobs=[value for value, *_ in meta["output_token_logprobs"][:kept]],
            stopped=stopped,
            cached_tokens=meta.get("cached_tokens", 0),
            first_token_at=self._manager.first_tokens.get(str(order.id)),
            **self._extras(order, meta, kept),
        )

    async def _stream(self, order: messages.Generate) -> messages.Reply:
        """Say each part as it comes, and return the last one."""
        parts = await self._engine.async_generate(
            input_ids=order.tokens,
            sampling_params=order.sampling | self._stop_params(order.stop_strings),
            return_logprob=True,
            top_logprobs_num=order.top_logprobs,
            lora_path=order.adapter,
            cache_salt=order.cache_namespace,
            rid=str(order.id),
            stream=True,
        )
        failure, last = "the engine ended a stream without saying why", None
        async for answer in parts:  # to its very end, or SGLang would hold its locks until it is collected
            meta = answer["meta_info"]
            finish = meta["finish_reason"]
            if finish is not None and finish["type"] == "abort":
                failure = finish.get("message") or "aborted"
                continue
            part = self._part(order, answer["output_ids"], meta)
            if finish is None:
                self._say(messages.Grown(id=order.id, part=part, last=False))
            else:
                last = messages.Grown(id=order.id, part=part, last=True)
        if last is None:
            raise RuntimeError(failure)
        return last

    def _part(self, order: messages.Generate, tokens: list[int], meta: dict[str, Any]) -> messages.Generated:
        finish = meta["finish_reason"]
        return messages.Generated(
            id=order.id,
            tokens=tokens,
            logprobs=[value for value, *_ in meta["output_token_logprobs"]],
            stopped=finish is not None and finish["type"] == "stop",
            cached_tokens=meta.get("cached_tokens", 0),
            **self._extras(order, meta, len(tokens)),
        )

    def _extras(self, order: messages.Generate, meta: dict[str, Any], kept: int) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if order.prompt_logprobs_from >= 0:
            extras["prompt_logprobs"] = [value for value, *_ in meta["input_token_logprobs"]]
        if order.top_logprobs:
            extras["top"] = [_pairs(row) for row in meta["output_top_logprobs"][:kept]]
            if order.prompt_logprobs_from >= 0:
                extras["prompt_top"] = [
                    _pairs(row) if row is not None else None for row in meta["input_top_logprobs"]
                ]
        if order.scoring is not None:
            extras["prompt_scores"] = [_pairs(row or []) for row in meta["input_token_ids_logprobs"]]
        return extras

    def _decode(self, tokens: list[int]) -> str:
        return self._manager.tokenizer.decode(tokens, skip_special_tokens=False)

    @staticmethod
    def _stop_params(stop_strings: list[str]) -> dict[str, Any]:
        if not stop_strings:
            return {}
        # SGLang looks for a stop string in the last few tokens, as many as its usual spelling has. A sampler may
        # spell it with more. A pattern widens the window to one token per character (at most 256 bytes).
        pattern = re.escape(max(stop_strings, key=len))
        params: dict[str, Any] = {"stop": stop_strings}
        return params | {"stop_regex": [pattern]} if len(pattern.encode()) <= 256 else params


def _pairs(row: list[tuple[float, int, Any]]) -> list[tuple[int, float]]:
    return [(token, value) for value, token, *_ in row]


def _launch_from(connection: socket.socket) -> messages.Launch:
    with connection.makefile("rb", buffering=0) as stream:
        length = int.from_bytes(stream.read(4), "big")
        body = b""
        while len(body) < length:
            body += stream.read(length - len(body)) or sys.exit("the service hung up")
    return messages.launch_decoder.decode(body)


async def _serve(engine: Any, connection: socket.socket) -> None:
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    await Host(engine, reader, writer).serve()


def main() -> None:
    """Build the engine as told, then serve until the service hangs up."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    os.register_at_fork(after_in_child=connection.close)
    engine = build_engine(sglang_times.timed_engine(), _launch_from(connection))
    try:
        engine.loop.run_until_complete(_serve(engine, connection))
    finally:
        engine.shutdown()
        # SGLang leaves non-daemon threads behind; the workers are gone, so nothing is left to wait for.
        os._exit(0)


if __name__ == "__main__":
    main()
