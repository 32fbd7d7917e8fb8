"""The attention kernels of a GPU against torch's in fp32; there is none without a GPU."""

from typing import Any

import pytest
import torch

from tinsmith_train.engine.fused.attention import Attention, Bounds, Flash2, Reference
from tinsmith_train.engine.fused.flash4 import Flash4
from tinsmith_train.engine.fused.weights import Shape

SHAPE = Shape(hidden=512, intermediate=0, q_heads=8, kv_heads=2, head_dim=128, eps=1e-6, scaling=128**-0.5)
LENGTHS = ((1,), (5, 64, 1, 130), (700, 1, 300))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", [Flash2, Flash4])
def test_output_and_gradients_equal_those_in_fp32(kind: Any, lengths: tuple[int, ...]) -> None:
    device = torch.device("cuda")
    if kind is Flash4 and not Flash4.takes(SHAPE, device):
        pytest.skip("flash-attn-4 is not installed, or not for this GPU")
    generator = torch.Generator(device).manual_seed(0)
    tokens, width = sum(lengths), SHAPE.heads * SHAPE.head_dim
    qkv = torch.randn(tokens, width, device=device, generator=generator).bfloat16()
    grad = torch.randn(tokens, SHAPE.q_heads * SHAPE.head_dim, device=device, generator=generator).bfloat16()
    bounds = Bounds.of(lengths, device)
    out, *grads = run(kind(SHAPE), qkv, grad, bounds)
    expected = run(Reference(SHAPE), qkv.float(), grad.float(), bounds)
    for mine, exact in zip((out, *grads), expected, strict=True):
        # bf16 rounds at 2e-3 of a value, three times on the way to a gradient.
        assert (mine.float() - exact).norm() <= 1e-2 * exact.norm() + 1e-3


def run(attention: Attention, qkv: torch.Tensor, grad: torch.Tensor, bounds: Bounds) -> list[torch.Tensor]:
    attended = attention.forward(qkv, bounds)
    return [attended.out, *attention.backward(grad, attended, bounds)]
