"""The normalized focal loss: two sums over the same logits, and one gradient that goes through both."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops
from ._calls import LOSSES


def _numbers(call: _ops.Call, loss: str, weighted: bool) -> _ops.Numbers:
    """Of the call, for another loss of margins; unless weighted, without alpha."""
    numbers = call.numbers._replace(loss=LOSSES.index(loss))
    return numbers if weighted else numbers._replace(positive_weight=1.0, negative_weight=1.0)


def _sums(call: _ops.Call, logits: Tensor, targets: Tensor, parts: _ops.Parts) -> tuple[Tensor, Tensor]:
    """Of the focal losses, and of the modulators."""
    forward = _ops.FAMILIES[call.family].forward
    plain = parts._replace(weights=None)
    losses = forward(logits, targets, *parts, None, 1.0, *_numbers(call, "focal", True), False)[0]
    factors = forward(logits, targets, *plain, None, 1.0, *_numbers(call, "modulator", False), False)[0]
    return losses, factors.clamp(min=torch.finfo(factors.dtype).tiny)


class NormalizedFocal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, weights, gamma, sample_weight, scores, call):
        parts = _ops.Parts(weights, gamma, sample_weight, scores)
        losses, factors = _sums(call, logits, targets, parts)
        ctx.call = call
        ctx.save_for_backward(logits, targets, losses, factors, *parts)
        return losses / factors

    @staticmethod
    def backward(ctx, upstream):
        logits, targets, losses, factors, *parts = ctx.saved_tensors
        call, parts = ctx.call, _ops.Parts(*parts)
        if torch.is_grad_enabled():
            gradient = _ops._second_order(call, upstream, logits, targets)
        elif _ops.is_batched(upstream):
            gradient = _gradient(call, torch.ones_like(losses), logits, targets, losses, factors, parts) * upstream
        else:
            gradient = _gradient(call, upstream, logits, targets, losses, factors, parts)
        return gradient, *(None,) * 6


def _gradient(
    call: _ops.Call,
    upstream: Tensor,
    logits: Tensor,
    targets: Tensor,
    losses: Tensor,
    factors: Tensor,
    parts: _ops.Parts,
) -> Tensor:
    def of(loss: str, parts: _ops.Parts, scale: Tensor, weighted: bool = False) -> Tensor:
        gradient, numbers = torch.empty_like(logits), _numbers(call, loss, weighted)
        backward = _ops.FAMILIES[call.family].backward
        backward(upstream, logits, targets, *parts, scale.double(), *numbers, False, gradient)
        return gradient

    plain, weight = parts._replace(weights=None), call.numbers.positive_weight
    if parts.weights is None and weight == call.numbers.negative_weight:
        gamma = torch.full_like(losses, call.numbers.gamma) if parts.gamma is None else parts.gamma.reshape(())
        level = losses / (factors * weight) if weight else losses
        return of("normalized", plain._replace(gamma=torch.stack([gamma, level])), weight / factors)
    gradient = of("focal", parts, 1 / factors, weighted=True)
    return gradient.add_(of("modulator", plain, -losses / factors.square()))


def loss(logits: Tensor, targets: Tensor, parts: _ops.Parts, divisor: Tensor | None, call: _ops.Call) -> Tensor:
    """In the place of _ops.focal_loss."""
    assert divisor is None
    if _ops.transformed():
        return call.composite_loss(logits, targets)
    if logits.requires_grad and torch.is_grad_enabled():
        return NormalizedFocal.apply(logits, targets, *parts, call)
    losses, factors = _sums(call, logits, targets, parts)
    return losses / factors
