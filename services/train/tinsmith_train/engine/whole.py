"""Full fine-tuning: a tenant's own copy of all weights, run through the base model's modules.

Weights, gradient and Adam's moments are fp32, 16 bytes a parameter, and a pass holds a copy in the base model's dtype
besides. Rows of such a model are never shared with others, whose matmuls have other weights.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint as recomputed

from tinsmith_common.errors import InvalidInput
from tinsmith_train.engine.adapters import Adapter, LoraPair
from tinsmith_train.engine.attention import PackedRow
from tinsmith_train.engine.families import LogitMap
from tinsmith_train.engine.logprobs import LogitMemory, mapped_logits
from tinsmith_train.engine.types import LoraSpec

BYTES_PER_PARAMETER = 16
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class WholeModel:
    """What a copy is made of: the causal language model, its decoder and its head, by their paths in it."""

    model: Any
    decoder: str
    head: str
    map: LogitMap

    def parameters(self) -> dict[str, nn.Parameter]:
        """By path in the model, those that two modules share once."""
        return dict(self.model.named_parameters())

    def size(self) -> int:
        """Parameters of a copy."""
        return sum(parameter.numel() for parameter in self.parameters().values())

    def memory_gib(self) -> float:
        """Of a copy with its gradient and moments, as long as it lives."""
        return self.size() * BYTES_PER_PARAMETER / 2**30


class FullModel(Adapter):
    """As an adapter, with all of the model's weights in the flat buffers instead of low-rank factors."""

    def __init__(self, spec: LoraSpec, source: WholeModel, device: torch.device) -> None:
        if not (spec.train_attn and spec.train_mlp and spec.train_unembed):
            raise InvalidInput(
                "rank 0 trains all weights: leave train_attn, train_mlp and train_unembed on, or choose a LoRA rank"
            )
        self.spec = spec
        self.targets = ()
        self.pairs: dict[str, LoraPair] = {}
        self.weights_file = WEIGHTS_FILE
        self._source = source
        self._shapes = {name: p.shape for name, p in source.parameters().items()}
        self._allocate(source.size(), device)
        self._leaves = self._make_leaves()

    @property
    def scale(self) -> float:
        """No factor: there are no deltas."""
        return 1.0

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views into one of the flat buffers, by Hugging Face's parameter names."""
        return {_public(name): tensor for name, tensor in self._split(flat).items()}

    def logprobs(
        self,
        tokens: Tensor,
        positions: Tensor,
        lengths: tuple[int, ...],
        target_rows: Tensor,
        targets: Tensor,
        memory: LogitMemory,
    ) -> Tensor:
        """fp32 `[M]` of a packed row that is all this model's; see `Decoder.hidden` and `target_logprobs`."""
        source, dtype = self._source, next(self._source.model.parameters()).dtype
        weights = {name: leaf.to(dtype) for name, leaf in self._leaves.items()}
        prefix = f"{source.decoder}."
        decoder = source.model.get_submodule(source.decoder)
        output: Any = functional_call(
            decoder,
            {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)},
            kwargs={
                "input_ids": tokens[None],
                "position_ids": positions[None],
                "use_cache": False,
                "packed": PackedRow.of(lengths, tokens.device),
            },
        )
        return self._head(output.last_hidden_state[0], weights, target_rows, targets, memory)

    def write_folder(self, directory: Path) -> None:
        """Write a folder that Hugging Face loads, in the base model's dtype, into an existing directory."""
        dtype = next(self._source.model.parameters()).dtype
        self._write_config(directory)
        host = self.weights.detach().to(dtype).cpu()
        save_file(_contiguous(self.named(host)), directory / WEIGHTS_FILE, metadata={"format": "pt"})

    def write_weights(self, directory: Path) -> None:
        """The same in fp32, to go on from."""
        self._write_config(directory)
        save_file(
            _contiguous(self.named(self.weights.detach().cpu())),
            directory / WEIGHTS_FILE,
            metadata={"format": "pt"},
        )

    def _write_config(self, directory: Path) -> None:
        config: dict[str, Any] = self._source.model.config.to_diff_dict()
        config.setdefault("architectures", [type(self._source.model).__name__])
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, default=str) + "\n")

    def _head(
        self,
        hidden: Tensor,
        weights: dict[str, Tensor],
        target_rows: Tensor,
        targets: Tensor,
        memory: LogitMemory,
    ) -> Tensor:
        """In chunks of rows, each computed again in the backward pass."""
        source = self._source
        name = f"{source.head}.weight"
        tied = name not in weights
        weight = weights[
            _name_of(source.model, source.model.get_submodule(source.head).weight) if tied else name
        ]
        bias = weights.get(f"{source.head}.bias")
        size = max(1, memory.chunk_bytes // (4 * weight.shape[0]))
        edges = [*range(0, len(hidden), size), len(hidden)]
        firsts = torch.searchsorted(target_rows, torch.tensor(edges, device=target_rows.device)).tolist()
        chunks = [
            recomputed(
                self._chunk,
                hidden[start:stop],
                weight,
                bias,
                target_rows[first:last] - start,
                targets[first:last],
                use_reentrant=False,
            )
            for (start, stop), (first, last) in zip(pairwise(edges), pairwise(firsts), strict=True)
        ]
        return torch.cat(chunks)  # pyright: ignore[reportArgumentType]

    def _chunk(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, at: Tensor, targets: Tensor
    ) -> Tensor:
        logits, _ = mapped_logits(F.linear(rows, weight, bias), self._source.map)
        return torch.log_softmax(logits, dim=-1, dtype=torch.float32)[at, targets]

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), flat.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def _make_leaves(self) -> dict[str, Tensor]:
        parameters, grads = self._source.parameters(), self._split(self.grad)
        leaves = self._split(self.weights)
        for name, leaf in leaves.items():
            leaf.copy_(parameters[name].detach())
            leaf.requires_grad_().grad = grads[name]
        return leaves


def _public(name: str) -> str:
    """Hugging Face's name of a parameter, without our wrapper of its module."""
    return name.replace(".base.", ".")


def _name_of(model: nn.Module, wanted: Tensor) -> str:
    return next(name for name, parameter in model.named_parameters() if parameter is wanted)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
