"""Runs a public function forward and backward and holds the result against the float64 oracle, or its error against
the form that all have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tolerance import assert_close, grad_bound, loss_bound, precision
from torch import Tensor

import focal_cuda
from focal_cuda import _calls, _ops, reference
from focal_cuda.reference._batch import divide
from focal_cuda.reference._terms import margin_of_each


@dataclass(frozen=True)
class Result:
    loss: Tensor
    grad: Tensor


def numbers_of(*, loss: str = "focal", reduction: str = "mean", **told: Any) -> _ops.Numbers:
    """The plain numbers of a call of the operators: those of a plain loss but for what is told."""
    plain = {
        "positive_weight": 1.0, "negative_weight": 1.0, "gamma": 2.0, "smoothing": 0.0,
        "first": 0.0, "second": 0.0, "third": 0.0, "fourth": 0.0,
        "class_dim": 1, "ignore_index": -100, "background_index": _ops.NO_BACKGROUND,
    }  # fmt: skip
    return _ops.Numbers(**plain | told, loss=_calls.LOSSES.index(loss), reduction=_ops.REDUCTIONS[reduction])


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


def is_softmax(op: str, options: dict[str, Any]) -> bool:
    return op == "softmax_focal_loss" or options.get("activation") == "softmax"


def shape_of_loss(op: str, logits: Tensor, options: dict[str, Any]) -> tuple[int, ...]:
    if op == "normalized_focal_loss" or options.get("reduction", "mean") != "none":
        return ()
    size = list(logits.shape)
    if is_softmax(op, options):
        del size[options.get("class_dim", 1)]
    return tuple(size)


def check(
    op: str,
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    **options: Any,
) -> Result:
    """One of the two focal losses against the oracle."""
    return hold(op, logits, targets, alpha=alpha, gamma=gamma, reduction=reduction, **options)


def hold(
    op: str,
    logits: Tensor,
    targets: Tensor,
    *,
    upstream: Tensor | None = None,
    gradient: str = "auto",
    **options: Any,
) -> Result:
    """Loss and gradient against the oracle, under a random upstream gradient, and what always holds."""
    before = logits.detach().clone()
    if upstream is None:
        upstream = random_upstream(shape_of_loss(op, logits, options), logits)
    result = run(op, logits, targets, upstream=upstream, gradient=gradient, **options)
    expected = oracle(op, logits, targets, upstream=upstream, **options)
    size = sizes(op, logits, targets, upstream, expected, **options)

    assert result.loss.dtype == loss_dtype(logits)
    assert result.grad.dtype == logits.dtype
    assert torch.equal(bits(logits), bits(before)), "the logits were written to"
    assert_close(result.loss, expected.loss, loss_bound(expected.loss, logits.dtype, size.loss), "loss")
    # In place the gradient lies in the logits before the upstream gradient is known.
    again = gradient == "inplace" and not bool((upstream == 1).all())
    factor = upstream.abs().max().item() if upstream.numel() else 1.0
    bound = grad_bound(expected.grad, logits.dtype, factor, 1 + again, size.grad)
    assert_close(result.grad, expected.grad, bound, "gradient")
    return result


# --- what an error is relative to -------------------------------------------------------------------------------------

# Whose value is made of a difference: t - p, p - margin.
OF_DIFFERENCES = ("quality_focal_loss", "asymmetric_loss")


def sizes(op: str, logits: Tensor, targets: Tensor, upstream: Tensor, expected: Result, **options: Any) -> Result:
    """How large the numbers are that loss and gradient are made of, element by element: where they are differences and
    vanish, the error is relative to these. By the oracle, for it knows all weights and scales."""
    if op == "poly_focal_loss" and options.get("epsilon", 1.0) < 0:
        made_of = oracle(op, logits, targets, upstream=upstream, **options | {"epsilon": -options["epsilon"]})
        return Result(made_of.loss.abs(), made_of.grad.abs())
    if op == "normalized_focal_loss":
        return Result(2 * expected.loss.abs(), _size_of_normalized(logits, targets, upstream, expected, **options))
    dim = options.get("class_dim", 1)
    smoothed = options.get("label_smoothing", 0) > 0
    if is_softmax(op, options):
        soft = targets.dim() == logits.dim() or smoothed
        if soft and not options.get("from_probabilities"):
            return Result(expected.loss.abs(), _size_of_soft_softmax(logits, targets, upstream, expected, **options))
        return Result(expected.loss.abs(), expected.grad.abs())
    t = dense_targets(logits, targets, options.get("scores"), dim)
    vanishing = (t == 0) if op == "asymmetric_loss" else ((t > 0) & (t < 1)) | smoothed
    if not vanishing.any():
        return Result(expected.loss.abs(), expected.grad.abs())
    return _sizes_of_elements(op, logits, targets, upstream, expected, vanishing, **options)


def dense_targets(logits: Tensor, targets: Tensor, scores: Tensor | None, class_dim: int) -> Tensor:
    """Targets as dense ones in float64, whatever they are where ignored."""
    if targets.dim() == logits.dim():
        return targets.double()
    classes = torch.arange(logits.shape[class_dim], device=logits.device)
    hit = targets.long().unsqueeze(-1).eq(classes).movedim(-1, class_dim)
    return hit.double() if scores is None else hit * scores.double().unsqueeze(class_dim)


def _sizes_of_elements(
    op: str, logits: Tensor, targets: Tensor, upstream: Tensor, expected: Result, vanishing: Tensor, **options: Any
) -> Result:
    """Of p and t that are near each other the difference is as wrong as if the logit were off by a few units of the
    relative error: what that would change is their size."""
    x = logits.detach().double().requires_grad_()
    loss = getattr(reference, op)(x, targets, **options)
    (unit,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
    (slope,) = torch.autograd.grad(loss, x, upstream.double(), create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    p = x.detach()
    reach = 2 * p * (1 - p) if options.get("from_probabilities") else 2.0
    near = torch.where(vanishing, reach * unit.abs(), 0.0).nan_to_num(0.0)
    near = near if loss.dim() or not logits.dim() else near.sum()
    of_loss = expected.loss.abs() + (near if op in OF_DIFFERENCES else 0.0)
    of_grad = reach * bend.abs()
    if op == "asymmetric_loss":
        # Of a hopeless negative p q underflows before the gradient, which is so many times that, does.
        limits, times = precision(logits.dtype), slope.detach().abs() / (p.sigmoid() * (-p).sigmoid())
        of_grad = of_grad + times.nan_to_num(0.0, 0.0) * limits.tiny / limits.relative
    return Result(of_loss, expected.grad.abs() + torch.where(vanishing, of_grad, 0.0).nan_to_num(0.0))


def _size_of_soft_softmax(
    logits: Tensor, targets: Tensor, upstream: Tensor, expected: Result, **options: Any
) -> Tensor:
    """A class's gradient comes down from its own target and up from all others'."""
    dim = options.get("class_dim", 1)
    alpha, gamma = options.get("alpha"), options.get("gamma", 2.0)
    positions = logits.select(dim, 0)
    weight = options.pop("sample_weight", None)
    weight = (torch.ones_like(positions) if weight is None else weight.expand_as(positions)).detach().double().clone()
    # What the loss of a position is multiplied by: the weights' gradient is that times the loss.
    loss = reference.softmax_focal_loss(logits.double(), targets, sample_weight=weight.requires_grad_(), **options)
    (of_weight,) = torch.autograd.grad(loss, weight, upstream.double())
    plain = options | {"reduction": "none", "normalizer": None}
    unweighted = reference.softmax_focal_loss(logits.double(), targets, **plain)
    factor = (of_weight * weight.detach() / unweighted).nan_to_num(0.0, 0.0, 0.0).unsqueeze(dim)

    z = margin_of_each(logits.detach().double(), dim).requires_grad_()
    own = reference.sigmoid_focal_loss(z, torch.ones_like(z), None, gamma, "none", class_dim=dim)
    (own,) = torch.autograd.grad(own.sum(), z)
    s = options.get("label_smoothing", 0.0)
    y = dense_targets(logits, targets, None, dim) * (1 - s) + s / logits.shape[dim]
    if isinstance(alpha, Tensor):
        alpha = alpha.double().view([-1 if d == dim % z.dim() else 1 for d in range(z.dim())])
    own = (own * y * (1.0 if alpha is None else alpha) * factor).nan_to_num(0.0, 0.0, 0.0)
    return own.abs() + (expected.grad - own).abs()


def _size_of_normalized(logits: Tensor, targets: Tensor, upstream: Tensor, expected: Result, **options: Any) -> Tensor:
    """Of a quotient's gradient: that of the numerator, and that of the denominator. Both sums are off, and half types
    round each of the two."""
    activation = options.pop("activation", "sigmoid")
    op = f"{activation}_focal_loss"
    options = {"alpha": None} | options
    numerator = oracle(op, logits, targets, reduction="sum", **options).loss
    denominator = divide(numerator, expected.loss)
    of_numerator = oracle(op, logits, targets, reduction="sum", normalizer=denominator, upstream=upstream, **options)
    parts = of_numerator.grad.abs() + (expected.grad - of_numerator.grad).abs()
    limits = precision(logits.dtype)
    parts = parts + limits.tiny / limits.relative  # each of the two may be too small for a normal number
    if logits.dtype not in (torch.float16, torch.bfloat16):
        return 3 * parts
    info = torch.finfo(logits.dtype)
    return 3 * parts + (info.eps * parts + info.smallest_normal * info.eps) / precision(logits.dtype).relative


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


def fails(error: type[Exception], op: str, *args: Any, names: str, **kwargs: Any) -> str:
    """The message, which must have the form "<op>: expected <argument> ..., got ...; <remedy>" and match names."""
    with pytest.raises(error) as raised:
        getattr(focal_cuda, op)(*args, **kwargs)
    assert raised.type is error
    message = str(raised.value)
    assert re.fullmatch(rf"{op}: expected .*, got .*; .+\.", message), message
    assert re.search(names, message), message
    return message
