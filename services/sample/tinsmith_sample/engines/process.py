"""The engine's process as seen from the service: start it, ask it things, notice its end."""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias, overload

from tinsmith_common.errors import EngineFailure
from tinsmith_sample.engines import messages
from tinsmith_sample.engines.base import EngineLost

_HOST_MODULE = "tinsmith_sample.engines.sglang_host"
_STOP_TIMEOUT_S = 15.0

_Answer: TypeAlias = messages.Generated | messages.Load | messages.Done
_Parts: TypeAlias = asyncio.Queue[messages.Grown | EngineFailure]


class EngineProcess:
    """One run of `sglang_host`. Orders are answered in any order; each may be cancelled."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._open: dict[int, asyncio.Future[_Answer]] = {}
        self._streams: dict[int, _Parts] = {}
        self._alive = True
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def launch(
        cls, launch: messages.Launch, *, threads: int | None, timeout_s: float
    ) -> "tuple[EngineProcess, messages.Ready]":
        """Start the process and wait for its engine. Raises `EngineFailure`.

        `threads` for CPU work; None: `OMP_NUM_THREADS` if it is set, else half the cores.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                _HOST_MODULE,
                str(theirs.fileno()),
                str(os.getpid()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C is for the service, which then hangs up.
                start_new_session=True,
                env=os.environ | engine_environment(launch.device, threads),
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(messages.frame(launch))
        try:
            async with asyncio.timeout(timeout_s):
                ready = messages.ready_decoder.decode(await messages.read_frame(reader))
        except BaseException as error:
            writer.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it listens only once its engine is built; its workers die with it
            await process.wait()
            if isinstance(error, TimeoutError):
                raise EngineFailure(f"the engine did not start within {timeout_s:.0f} s") from error
            if isinstance(error, asyncio.IncompleteReadError | ConnectionError):
                raise EngineFailure(
                    f"the engine ended while starting (exit status {process.returncode}); its log says why"
                ) from error
            raise
        return cls(process, reader, writer), ready

    @property
    def alive(self) -> bool:
        """Whether the process can be asked things."""
        return self._alive

    @property
    def pid(self) -> int:
        """Process id of the engine's main process."""
        return self._process.pid

    @property
    def open_orders(self) -> int:
        """Orders without an answer yet."""
        return len(self._open) + len(self._streams)

    def new_id(self) -> int:
        """An id for the next order."""
        return next(self._ids)

    @overload
    async def ask(self, order: messages.Generate) -> messages.Generated: ...
    @overload
    async def ask(self, order: messages.Ping) -> messages.Load: ...
    @overload
    async def ask(self, order: messages.LoadAdapter | messages.UnloadAdapter) -> messages.Done: ...
    async def ask(self, order: messages.Work) -> _Answer:
        """Carry out an order and return its answer. Cancelling aborts it.

        Raises `EngineFailure` when the engine refuses or fails, `EngineLost` when its process ends first.
        """
        if not self._alive:
            raise EngineLost("the engine's process has ended")
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._open[order.id] = answer
        self._send(order)
        try:
            return await answer
        except asyncio.CancelledError:
            if order.id in self._open and self._alive:
                self._send(messages.Abort(id=order.id))
            raise
        finally:
            self._open.pop(order.id, None)

    async def stream(self, orders: Sequence[messages.Generate]) -> AsyncGenerator[messages.Grown]:
        """Carry out streaming orders and yield the parts of all their answers as they come.

        Closing it aborts what is unfinished. Raises what `ask` raises.
        """
        if not self._alive:
            raise EngineLost("the engine's process has ended")
        parts: _Parts = asyncio.Queue()
        unfinished = {order.id for order in orders}
        for order in orders:
            self._streams[order.id] = parts
            self._send(order)
        try:
            while unfinished:
                part = await parts.get()
                if isinstance(part, EngineFailure):
                    raise part
                if part.last:
                    unfinished.remove(part.id)
                    del self._streams[part.id]
                yield part
        finally:
            for order_id in unfinished:
                del self._streams[order_id]
                if self._alive:
                    self._send(messages.Abort(id=order_id))

    async def stop(self) -> None:
        """Hang up, upon which the process ends its workers and itself; kill it if it does not."""
        self._alive = False
        self._listening.cancel()
        self._writer.close()
        await _reap(self._process)
        self._fail_open()

    def _send(self, order: messages.Order) -> None:
        self._writer.write(messages.frame(order))

    async def _listen(self) -> None:
        try:
            while True:
                reply = messages.reply_decoder.decode(await messages.read_frame(self._reader))
                self._pass_on(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._alive = False
            self._fail_open()

    def _pass_on(self, reply: messages.Reply) -> None:
        """Hand a reply to whoever waits for it, if there is still someone."""
        parts, answer = self._streams.get(reply.id), self._open.get(reply.id)
        if isinstance(reply, messages.Failed):
            self._fail(parts, answer, EngineFailure(reply.message))
        elif isinstance(reply, messages.Grown):
            if parts is not None:
                parts.put_nowait(reply)
        elif answer is not None and not answer.done():
            answer.set_result(reply)

    def _fail_open(self) -> None:
        lost = "the engine's process ended while it worked on this"
        for order_id in [*self._open, *self._streams]:
            self._fail(self._streams.get(order_id), self._open.get(order_id), EngineLost(lost))

    @staticmethod
    def _fail(parts: _Parts | None, answer: asyncio.Future[_Answer] | None, failure: EngineFailure) -> None:
        if parts is not None:
            parts.put_nowait(failure)
        if answer is not None and not answer.done():
            answer.set_exception(failure)


def engine_environment(device: str, threads: int | None) -> dict[str, str]:
    """What a process must have set before it imports torch and SGLang."""
    default_threads = os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // 2)
    # SGLang looks for a GPU in many places; where the CPU is asked for, none may find one.
    no_gpu = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return no_gpu | {
        "OMP_NUM_THREADS": str(threads or default_threads),
        # Threads that spin at a barrier wait for one that has no core: on 2 busy cores the tiny model fell
        # from 118 to 6 tokens/s (batch 1) and from 1,591 to 20 (batch 64).
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        # Logprobs of the model, not of the temperature-scaled distribution.
        "SGLANG_RETURN_ORIGINAL_LOGPROB": "1",
        # Our margin may lie beyond what the model's configuration names as its context.
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",
        "SGLANG_EXTERNAL_MODEL_PACKAGE": "tinsmith_sample.engines.sglang_models",
        "TOKENIZERS_PARALLELISM": "false",
        # Progress bars, and warnings about quantisation kernels that are not used, from every worker.
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore::UserWarning",
    }


async def _reap(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
