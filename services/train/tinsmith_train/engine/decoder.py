"""From the tokens of a packed row to its hidden states, with the deltas of the adapters that own it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from tinsmith_train.engine.adapters import Adapter
from tinsmith_train.engine.attention import PackedRow
from tinsmith_train.engine.lora import SpanSet, SpanTable


@dataclass(frozen=True)
class Owner:
    """Tokens `[start, stop)` of a row belong to this adapter. The owners of a row tile it in order."""

    start: int
    stop: int
    adapter: Adapter


class Decoder(Protocol):
    """The base model up to its output head."""

    @property
    def bytes_per_token(self) -> int | None:
        """Activations that a training pass keeps for each token, or None where that is not known."""
        ...

    def hidden(
        self, tokens: Tensor, positions: Tensor, lengths: tuple[int, ...], owners: Sequence[Owner]
    ) -> Tensor:
        """`[T, hidden]` of a packed row; tokens and positions int64 `[T]`, `lengths` of its sequences.

        With gradients on, a backward pass from the result adds to the owners' gradients.
        """
        ...


class ModuleDecoder:
    """Runs a Hugging Face decoder module by module; its linear layers look up their deltas in `table`."""

    bytes_per_token = None

    def __init__(self, module: nn.Module, table: SpanTable, paths: Sequence[str]) -> None:
        self._module = module
        self._table = table
        self._paths = tuple(paths)

    def hidden(
        self, tokens: Tensor, positions: Tensor, lengths: tuple[int, ...], owners: Sequence[Owner]
    ) -> Tensor:
        """See `Decoder`."""
        return self._run(lengths, owners, input_ids=tokens[None], position_ids=positions[None])

    def hidden_of(
        self, embedded: Tensor, positions: Tensor, lengths: tuple[int, ...], owners: Sequence[Owner]
    ) -> Tensor:
        """The same from embeddings `[T, hidden]` and positions int64 `[3, T]`."""
        return self._run(lengths, owners, inputs_embeds=embedded[None], position_ids=positions[:, None])

    def _run(self, lengths: tuple[int, ...], owners: Sequence[Owner], **inputs: Tensor) -> Tensor:
        packed = PackedRow.of(lengths, inputs["position_ids"].device)
        with self._table.active({path: spans_of(path, owners) for path in self._paths}):
            output: Any = self._module(**inputs, use_cache=False, packed=packed)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def spans_of(path: str, owners: Sequence[Owner]) -> SpanSet:
    """Where the module with this path has deltas, and which."""
    here = [(owner, owner.adapter.pairs[path]) for owner in owners if path in owner.adapter.pairs]
    return SpanSet(
        bounds=tuple((owner.start, owner.stop, owner.adapter.scale) for owner, _ in here),
        factors=tuple(factor for _, pair in here for factor in (pair.a, pair.b)),
        sinks=tuple(sink for _, pair in here for sink in (pair.a_grad, pair.b_grad)),
    )
