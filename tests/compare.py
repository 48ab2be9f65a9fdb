"""Runs a public function forward and backward and holds the result against the float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tolerance import assert_close, grad_bound, loss_bound, soft_grad_bound
from torch import Tensor

import focal_cuda
from focal_cuda import reference


@dataclass(frozen=True)
class Result:
    loss: Tensor
    grad: Tensor


def loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def run(op: str, logits: Tensor, targets: Tensor, *args: Any, upstream: Tensor | None = None, **kwargs: Any) -> Result:
    """Loss and gradient by focal_cuda.<op>. Without an upstream gradient, 1 for a scalar loss."""
    leaf = logits.detach().requires_grad_()
    # The in-place mode refuses leaves, and the caller's logits are needed again.
    x = leaf.clone() if kwargs.get("gradient") == "inplace" else leaf
    loss = getattr(focal_cuda, op)(x, targets, *args, **kwargs)
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    return Result(loss.detach(), grad)


def oracle(
    op: str, logits: Tensor, targets: Tensor, *args: Any, upstream: Tensor | None = None, **kwargs: Any
) -> Result:
    """The same by the reference, in float64."""
    x = logits.detach().double().requires_grad_()
    loss = getattr(reference, op)(x, targets, *args, **kwargs)
    (grad,) = torch.autograd.grad(loss, x, None if upstream is None else upstream.double())
    return Result(loss.detach(), grad)


def random_upstream(shape: torch.Size | tuple[int, ...], logits: Tensor) -> Tensor:
    """An upstream gradient that is never 1: a random number of either sign for each loss value."""
    upstream = torch.randn(shape, dtype=torch.float64) + 0.01
    return upstream.to(loss_dtype(logits)).to(logits.device)


def check(
    op: str,
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    upstream: Tensor | None = None,
    **kwargs: Any,
) -> Result:
    """Loss and gradient against the oracle, under a random upstream gradient, and what always holds."""
    before = logits.detach().clone()
    if upstream is None:
        shape = () if reduction != "none" else logits.shape if op == "sigmoid_focal_loss" else targets.shape
        upstream = random_upstream(shape, logits)
    args = (alpha, gamma, reduction)
    result = run(op, logits, targets, *args, upstream=upstream, **kwargs)
    gradient = kwargs.pop("gradient", None)
    expected = oracle(op, logits, targets, *args, upstream=upstream, **kwargs)

    assert result.loss.dtype == loss_dtype(logits)
    assert result.grad.dtype == logits.dtype
    assert torch.equal(bits(logits), bits(before)), "the logits were written to"
    assert_close(result.loss, expected.loss, loss_bound(expected.loss, logits.dtype), "loss")
    # In place the gradient lies in the logits before the upstream gradient is known.
    again = gradient == "inplace" and not bool((upstream == 1).all())
    class_dim = kwargs.get("class_dim", 1)
    bound = bound_of_grad(expected.grad, logits.dtype, targets, upstream, class_dim, 1 + again)
    assert_close(result.grad, expected.grad, bound, "gradient")
    return result


def bound_of_grad(
    expected: Tensor,
    dtype: torch.dtype,
    targets: Tensor,
    upstream: Tensor,
    class_dim: int,
    roundings: int = 1,
) -> Tensor:
    factor = upstream.abs().max().item() if upstream.numel() else 1.0
    dense = targets.dim() == expected.dim()
    if dense and targets.is_floating_point() and ((targets > 0) & (targets < 1)).any():
        row_dim = class_dim if expected.dim() > 1 else 0
        return soft_grad_bound(expected, dtype, row_dim, factor, roundings)
    return grad_bound(expected, dtype, factor, roundings)


def bits(x: Tensor) -> Tensor:
    """The tensor as integers, so that NaN equals NaN and -0 differs from 0."""
    return x.detach().contiguous().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])


def assert_bitwise(a: Result, b: Result) -> None:
    assert torch.equal(bits(a.loss), bits(b.loss)), "the losses differ"
    assert torch.equal(bits(a.grad), bits(b.grad)), "the gradients differ"


def assert_agree(a: Result, b: Result, backend: str, factor: float = 1.0) -> None:
    """The same numbers from memory laid out in another way: to the bit on the CPU, which has one kernel for both; where
    layouts have kernels of their own, each may be as far from the truth as it is anywhere. factor: as in grad_bound."""
    if backend == "cpu":
        return assert_bitwise(a, b)
    loss, grad = b.loss.double(), b.grad.double()
    assert_close(a.loss, loss, 2 * loss_bound(loss, a.grad.dtype), "loss")
    assert_close(a.grad, grad, 2 * grad_bound(grad, a.grad.dtype, factor), "gradient")
