"""LoRA on the output head with SGLang's PyTorch LoRA backend.

Before the output head, SGLang drops the rows of a prefill whose logits nobody asked for. Its Triton backends
route the adapters of the remaining rows with separate batch descriptions; its PyTorch backend (0.5.21) keeps
using the description of all rows, so that rows of a mixed batch get another request's head adapter. This
subclass prepares those descriptions.
"""

import dataclasses
from typing import Any

import torch
from sglang.srt.lora.backend.torch_backend import TorchNativeLoRABackend
from sglang.srt.lora.torch_ops import sgemm_lora_a_fwd, sgemm_lora_b_fwd
from sglang.srt.lora.utils import LoRABatchInfo, get_lm_head_pruned_lens


class TorchLoRABackend(TorchNativeLoRABackend):
    """`torch_native`, with the head's rows routed by the rows that are left."""

    def prepare_lora_batch(
        self, forward_batch: Any, weight_indices: list[int], *args: Any, **kwargs: Any
    ) -> None:
        """Describe the batch, and what is left of it at the head. `weight_indices`: adapter slot per request."""
        super().prepare_lora_batch(forward_batch, weight_indices, *args, **kwargs)
        self.lm_head_batch_info = None
        self.lm_head_pass_batch_infos = None
        kept_rows = get_lm_head_pruned_lens(forward_batch)
        if kept_rows is None:  # a decode step: one row per request, none dropped
            return
        self.lm_head_batch_info = self._head_batch(weight_indices, kept_rows)
        passes = self._get_lm_head_pass_segments(weight_indices, kept_rows)
        if passes is not None:
            self.lm_head_pass_batch_infos = [self._head_batch(indices, rows) for indices, rows in passes]

    def run_lora_a_sgemm(
        self,
        x: torch.Tensor,
        weights: torch.Tensor,
        *args: Any,
        stack_num: int = 1,
        pruned_batch_info: LoRABatchInfo | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`x @ A.T`, scaled, row by row with the row's adapter: `[rows, stack_num * rank]`."""
        return sgemm_lora_a_fwd(
            inputs=x,
            weights=weights,
            batch_info=pruned_batch_info or self._whole_batch(),
            num_slices=stack_num,
        )

    def run_lora_b_sgemm(
        self,
        x: torch.Tensor,
        weights: torch.Tensor,
        output_offset_cpu: torch.Tensor,
        base_output: torch.Tensor | None = None,
        *args: Any,
        pruned_batch_info: LoRABatchInfo | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`base_output + x @ B.T`, row by row with the row's adapter: `[rows, outputs]`."""
        return sgemm_lora_b_fwd(
            inputs=x,
            weights=weights,
            batch_info=pruned_batch_info or self._whole_batch(),
            slice_offsets=output_offset_cpu,
            base_output=base_output,
        )

    def _whole_batch(self) -> LoRABatchInfo:
        assert self.batch_info is not None  # SGLang's layers call this between prepare_lora_batch and reset
        return self.batch_info

    def _head_batch(self, weight_indices: list[int], rows: list[int]) -> LoRABatchInfo:
        """The current batch with `rows[i]` rows of the adapter in slot `weight_indices[i]`."""
        lengths = torch.tensor(rows, dtype=torch.int32)
        ends = torch.zeros(len(rows) + 1, dtype=torch.int32)
        ends[1:] = torch.cumsum(lengths, dim=0)
        slots = torch.tensor(weight_indices, dtype=torch.int32)
        return dataclasses.replace(
            self._whole_batch(),
            use_cuda_graph=False,
            bs=len(rows),
            num_segments=len(rows),
            max_len=max(rows),
            seg_lens=lengths,
            seg_indptr=ends,
            weight_indices=slots,
            seg_lens_cpu=lengths,
            seg_indptr_cpu=ends,
            weight_indices_cpu=slots,
            expected_tokens=sum(rows),
        )
