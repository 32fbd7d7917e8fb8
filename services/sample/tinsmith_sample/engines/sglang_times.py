"""When SGLang had the first token of each request. Its scheduler knows, but tells only where all of SGLang's own
metrics are switched on, which cost time in every batch; here it tells this alone.

`install` must run before SGLang is imported, in every process of it.
"""

import sys
from functools import partial
from typing import Any

from tinsmith_sample.engines.after_import import AfterImport

_TOLD = "_tinsmith_told"


def install() -> None:
    """Let SGLang's scheduler send its times along. Does nothing when repeated."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(AfterImport):
    def __init__(self) -> None:
        super().__init__({"sglang.srt.observability.req_time_stats": _tell_times})


def _tell_times(module: Any) -> None:
    """Once a request, with its first result: a stream has one for every token."""
    get_state = module.SchedulerReqTimeStats.__getstate__

    def get_state_once(stats: Any) -> Any:
        stats.has_timing_data = bool(stats.prefill_finished_time) and not getattr(stats, _TOLD, False)
        if stats.has_timing_data:
            setattr(stats, _TOLD, True)
        return get_state(stats)

    module.SchedulerReqTimeStats.__getstate__ = get_state_once


def plain_engine() -> Any:
    """SGLang's own `Engine`."""
    from sglang.srt.entrypoints.engine import Engine

    return Engine


def timed_engine() -> Any:
    """The same, whose tokenizer manager has `first_tokens`."""
    from sglang.srt.entrypoints.engine import init_tokenizer_manager

    class TimedEngine(plain_engine()):
        init_tokenizer_manager_func = staticmethod(
            partial(init_tokenizer_manager, TokenizerManagerClass=_timed_manager())
        )

    return TimedEngine


def _timed_manager() -> Any:
    from sglang.srt.managers.io_struct import unwrap_from_pickle
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.observability.req_time_stats import convert_time_to_realtime

    class TimedManager(TokenizerManager):
        """`first_tokens` holds the time, in seconds since 1970, of every request, until it is taken."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.first_tokens: dict[str, float] = {}
            super().__init__(*args, **kwargs)

        async def _handle_batch_output(self, recv_obj: Any) -> None:
            # Before SGLang's own part, which wakes who waits for the result.
            recv_obj.time_stats = unwrap_from_pickle(recv_obj.time_stats)
            stats: Any = recv_obj.time_stats or ()
            for rid, times in zip(recv_obj.rids, stats, strict=False):
                ended = getattr(times, "prefill_finished_time", 0.0)
                if ended and rid in self.rid_to_state:
                    self.first_tokens[rid] = convert_time_to_realtime(ended)
            await super()._handle_batch_output(recv_obj)

    return TimedManager
