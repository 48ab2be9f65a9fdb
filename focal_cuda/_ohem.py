"""The mean of the hardest losses (online hard example mining): its operators, their shapes for tracing (fakes) and its
gradient. Which losses are kept, csrc/hardest.h says; no argument is checked here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops


class Operators(NamedTuple):
    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload


OPERATORS = Operators(torch.ops.focal_cuda.hardest.default, torch.ops.focal_cuda.hardest_backward.default)


@torch.library.register_fake("focal_cuda::hardest")
def _fake_hardest(losses: Tensor, counted: Tensor, keep_ratio: float, threshold: float) -> tuple[Tensor, Tensor]:
    return losses.new_empty(()), losses.new_empty(3, dtype=torch.int64)


torch.library.register_fake("focal_cuda::hardest_backward", lambda upstream, losses, kept, grad_losses: None)


def composite(losses: Tensor, counted: Tensor, keep_ratio: float | None, threshold: float | None) -> Tensor:
    """The same mean out of torch operations, differentiable under every transform of torch.func."""
    flat = losses.flatten()
    n = counted.reshape(()).double()
    k = torch.zeros_like(n)
    if keep_ratio is not None:
        k = (n * keep_ratio).trunc().clamp(1, max(flat.numel(), 1))
    if threshold is not None:
        k = torch.maximum(k, (~(flat <= threshold)).sum().double())  # a NaN is above
    k = torch.where(n > 0, k, 0)
    largest = flat.sort(descending=True, stable=True).values
    kept = torch.where(torch.arange(flat.numel(), device=flat.device) < k, largest, 0)
    return (kept.sum(dtype=torch.float64) / k.clamp(min=1)).to(losses.dtype)


class HardestMean(torch.autograd.Function):
    """Saves the losses and three numbers. Its backward is linear in the upstream gradient, and so differentiable."""

    @staticmethod
    def forward(ctx, losses, counted, keep_ratio, threshold):
        mean, kept = OPERATORS.forward(losses, counted, keep_ratio, threshold)
        ctx.save_for_backward(losses, kept)
        return mean

    @staticmethod
    def backward(ctx, upstream):
        losses, kept = ctx.saved_tensors
        gradient = torch.empty_like(losses)
        batched = not torch.compiler.is_compiling() and _ops._is_batched(upstream)
        if not (torch.is_grad_enabled() or batched):
            OPERATORS.backward(upstream, losses, kept, gradient)
            return gradient, None, None, None
        with torch.no_grad():
            OPERATORS.backward(losses.new_ones(()), losses, kept, gradient)
        return torch.where(gradient > 0, upstream * gradient, 0.0), None, None, None


def hardest_mean(losses: Tensor, counted: Tensor, keep_ratio: float | None, threshold: float | None) -> Tensor:
    """The mean over the k hardest losses (>= 0, NaN the hardest; float32 or float64): k = int(counted * keep_ratio), at
    least 1, or as many as are above the threshold, whichever is more. Equal losses: the first in logical order.

    counted: one int64 or float64 on their device; with none counted or none kept the mean is 0.
    """
    if _ops._functorch_active():
        return composite(losses, counted, keep_ratio, threshold)
    numbers = (0.0 if keep_ratio is None else keep_ratio, -1.0 if threshold is None else threshold)
    losses = losses.contiguous()
    if losses.requires_grad and torch.is_grad_enabled():
        return HardestMean.apply(losses, counted, *numbers)
    return OPERATORS.forward(losses, counted, *numbers)[0]
