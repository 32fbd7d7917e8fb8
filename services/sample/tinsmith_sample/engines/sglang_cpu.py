"""What SGLang misses on a machine without an accelerator, supplied from the outside.

SGLang runs on plain CPU PyTorch, but a few of its import lines and one sampling operator assume its
compiled kernels, and its LoRA code assumes pinned host memory. `install` supplies those, and nothing that
changes a number SGLang computes for a request:

- `sgl_kernel` has no CPU build: a stand-in module whose kernels say so when they are called;
- the hash behind per-request seeds is one of its operators: written here in PyTorch;
- `torchvision`'s CUDA wheel cannot load its extension here: the two operators it refers to are declared;
- host tensors cannot be pinned where there is no device to pin them for: SGLang's LoRA modules get a
  `torch` that does not try;
- deterministic mode (which is what makes seeds count) is allowed with PyTorch attention, and does without
  the batch-invariant Triton kernels;
- LoRA on the output head is routed by `sglang_cpu_lora`;
- workers are forked, not spawned: they share their parent's imports instead of repeating them.

`install` must run before SGLang is imported.
"""

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from tinsmith_sample.engines.after_import import AfterImport

_MASK = 0xFFFFFFFF
_INSTALLED = "_tinsmith_sglang_cpu"


def install() -> None:
    """Make `import sglang` work without an accelerator. Does nothing where there is one, or when repeated."""
    if torch.accelerator.is_available() or hasattr(sys, _INSTALLED):
        return
    setattr(sys, _INSTALLED, True)
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    # SGLang compiles its seeded sampler with torch.compile: a C++ toolchain and half a minute, for no gain here.
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign]
    declare_torchvision_operators()
    if importlib.util.find_spec("sgl_kernel") is None:
        sys.modules["sgl_kernel"] = _KernelStandIn("sgl_kernel")
        _define_murmur_hash()
    sys.meta_path.insert(0, AfterImport(_ADJUSTMENTS))


class _KernelStandIn(ModuleType):
    """`sgl_kernel` without kernels: CPU names import, and raise when called; other names do not exist."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__ = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.endswith("_cpu"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"sgl_kernel.{name} has no CPU build")

        return missing


class _UnpinnedTorch(ModuleType):
    """`torch` whose tensor factories ignore `pin_memory`.

    Given to single modules: wrapping the factories of `torch` itself breaks `with torch.device("meta")`,
    with which transformers builds models, and corrupts its rotary buffers without a word.
    """

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        value = getattr(torch, name)
        if name not in {"tensor", "zeros"}:
            return value

        def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
            return value(*args, **kwargs)

        return unpinned


def _unpin(module: Any) -> None:
    module.torch = _UnpinnedTorch()


def _allow_determinism(module: Any) -> None:
    module.add_deterministic_attention_backend_choices(["torch_native"])
    module.add_radix_supported_deterministic_attention_backend_choices(["torch_native"])


def _skip_batch_invariant_kernels(module: Any) -> None:
    def enable(*_: Any, **__: Any) -> None: ...

    module.enable_batch_invariant_mode = enable


def _fork_workers(module: Any) -> None:
    """SGLang spawns because CUDA does not survive a fork. Without it, imports are most of the start-up time."""
    configure = module._set_envs_and_config

    def configure_and_fork(server_args: Any) -> None:
        configure(server_args)
        module.mp.set_start_method("fork", force=True)

    module._set_envs_and_config = configure_and_fork


def _route_head_lora(module: Any) -> None:
    def backend() -> type:
        from tinsmith_sample.engines.sglang_cpu_lora import TorchLoRABackend

        return TorchLoRABackend

    module.register_lora_backend("torch_native")(backend)


_ADJUSTMENTS: dict[str, Callable[[Any], None]] = {
    "sglang.srt.lora.layers": _unpin,
    "sglang.srt.lora.backend.torch_backend": _unpin,
    "sglang.srt.lora.backend.lora_registry": _route_head_lora,
    "sglang.srt.arg_groups.choices": _allow_determinism,
    "sglang.srt.batch_invariant_ops": _skip_batch_invariant_kernels,
    "sglang.srt.entrypoints.engine": _fork_workers,
}


def declare_torchvision_operators() -> None:
    """Let torchvision's CUDA wheel be imported (by transformers and peft too) where CUDA is missing."""
    for name in ("nms", "qnms"):
        try:
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        except RuntimeError:  # torchvision's own extension is loaded and has them
            return


def murmur_hash32(seeds: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 (x86, 32 bit) of the 16 bytes (seed low, seed high, position, column).

    `seeds` uint64 `[rows]`, `positions` int `[rows]`, `columns` int `[cols]`; uint32 `[rows, cols]`.
    """
    seed = seeds.to(torch.int64)
    row = torch.zeros_like(seed)
    for block in (seed & _MASK, (seed >> 32) & _MASK, positions.to(torch.int64) & _MASK):
        row = _absorb(row, _scramble(block))
    hashed = _absorb(row[:, None], _scramble(columns.to(torch.int64) & _MASK)[None, :])
    hashed ^= 16  # bytes hashed
    hashed = ((hashed ^ (hashed >> 16)) * 0x85EBCA6B) & _MASK
    hashed = ((hashed ^ (hashed >> 13)) * 0xC2B2AE35) & _MASK
    return (hashed ^ (hashed >> 16)).to(torch.uint32)


def _scramble(block: torch.Tensor) -> torch.Tensor:
    block = (block * 0xCC9E2D51) & _MASK
    block = ((block << 15) | (block >> 17)) & _MASK
    return (block * 0x1B873593) & _MASK


def _absorb(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    state = state ^ block
    state = ((state << 13) | (state >> 19)) & _MASK
    return (state * 5 + 0xE6546B64) & _MASK


def _define_murmur_hash() -> None:
    name = "sgl_kernel::murmur_hash32_cpu"
    torch.library.define(name, "(Tensor seed, Tensor positions, Tensor cols) -> Tensor")
    torch.library.impl(name, "CPU")(murmur_hash32)
