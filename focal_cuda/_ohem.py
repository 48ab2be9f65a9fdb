"""The mean of the hardest losses (online hard example mining): its operators, their shapes for tracing (fakes) and its
gradient. Which losses are kept, csrc/hardest.h says; no argument is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops, _values
from ._arguments import SOFTMAX

Rule = tuple[float | None, float | None]  # keep_ratio, threshold: one or both


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
        batched = _ops.is_batched(upstream)
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
    if _ops.transformed():
        return composite(losses, counted, keep_ratio, threshold)
    numbers = _numbers(keep_ratio, threshold)
    losses = losses.contiguous()
    if losses.requires_grad and torch.is_grad_enabled():
        return HardestMean.apply(losses, counted, *numbers)
    return OPERATORS.forward(losses, counted, *numbers)[0]


def _numbers(keep_ratio: float | None, threshold: float | None) -> tuple[float, float]:
    return 0.0 if keep_ratio is None else keep_ratio, -1.0 if threshold is None else threshold


class HardestFocal(torch.autograd.Function):
    """An unreduced focal loss and the mean of its hardest, as one: its backward writes the gradient by the losses over
    the losses, and the one by the logits over that, where they fit. Fresh arrays cost more than the arithmetic:
    with three of them 3.5 times the plain loss, with one 2.1 ([1e5, 80] float32, two cores; twice the traffic).
    """

    @staticmethod
    def forward(ctx, logits, targets, weights, gamma, sample_weight, scores, rule, call):
        parts = (weights, gamma, sample_weight, scores)
        ctx.call, ctx.rule = call, rule
        ctx.losses, counted = _unreduced(call, logits, targets, parts)
        mean, kept = OPERATORS.forward(ctx.losses, counted, *_numbers(*rule))
        ctx.save_for_backward(logits, targets, counted, kept, *parts)
        return mean

    @staticmethod
    def backward(ctx, upstream):
        call = ctx.call
        logits, targets, counted, kept, *parts = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        compiling = torch.compiler.is_compiling()  # a graph has no memory to hand on
        if create_graph or _ops.is_batched(upstream):
            with torch.enable_grad():
                mean = _composed(logits, targets, _ops.Parts(*parts), ctx.rule, call)
            gradient = torch.autograd.grad(mean, logits, upstream, create_graph=create_graph)[0]
        else:
            losses, ctx.losses = ctx.losses, None
            if compiling or losses is None:  # the first backward has used them up
                losses, _ = _unreduced(call, logits, targets, parts)
            fits = losses.dtype == logits.dtype and losses.shape == logits.shape and logits.is_contiguous()
            gradient = losses if fits and not compiling else torch.empty_like(logits)
            backward = _ops.FAMILIES[call.family].backward
            backward(losses, logits, targets, *parts, upstream, *call.numbers, False, gradient, kept)
        return gradient, *(None,) * 7


def _unreduced(
    call: _ops.Call, logits: Tensor, targets: Tensor, parts: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """The losses, and how many of them are counted."""
    forward = _ops.FAMILIES[call.family].forward
    return forward(logits, targets, *parts, None, call.scale, *call.numbers, False)[:2]


def _composed(logits: Tensor, targets: Tensor, parts: _ops.Parts, rule: Rule, call: _ops.Call) -> Tensor:
    losses = _ops.focal_loss(logits, targets, parts, None, call)
    return hardest_mean(losses, count(logits, targets, call), *rule)


def count(logits: Tensor, targets: Tensor, call: _ops.Call) -> Tensor:
    """How many elements of an unreduced loss are counted, by torch operations."""
    class_dim, softmax, dense = call.numbers.class_dim, call.family == SOFTMAX, targets.dim() == logits.dim()
    if softmax and dense:
        targets = targets.select(class_dim, 0)
    elements = 1 if softmax or dense else logits.shape[class_dim]
    return torch.count_nonzero(~_values.equals(targets, call.numbers.ignore_index)) * elements


def hardest_focal_loss(
    rule: Rule, logits: Tensor, targets: Tensor, parts: _ops.Parts, divisor: Tensor | None, call: _ops.Call
) -> Tensor:
    """In the place of _ops.focal_loss: the mean over the hardest of the losses of an unreduced call."""
    assert divisor is None
    if _ops.transformed() or torch.compiler.is_compiling():
        return _composed(logits, targets, parts, rule, call)
    if logits.requires_grad and torch.is_grad_enabled():
        return HardestFocal.apply(logits, targets, *parts, rule, call)
    losses, counted = _unreduced(call, logits, targets, parts)
    return OPERATORS.forward(losses, counted, *_numbers(*rule))[0]
