"""The formulas in 50 digits, and how closely the float64 oracle follows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mpmath
import torch
from tolerance import ORACLE, ORACLE_GRAD
from torch import Tensor

from focal_cuda import reference

F64 = torch.float64
DIGITS = 50
Number = mpmath.mpf


def close(a: Tensor, b: Tensor, atol: float = 1e-300) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=ORACLE, atol=atol)


def value_and_grad(op: str, logits: Tensor, targets: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """A loss of the reference, and the gradient of its sum."""
    x = logits.detach().clone().requires_grad_()
    loss = getattr(reference, op)(x, targets, *args, **kwargs)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), grad


def second_derivative(loss: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a loss, and that of the gradient in a random direction."""
    (grad,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    if not grad.requires_grad:
        return grad, torch.zeros_like(x)
    return grad, torch.autograd.grad((grad * torch.randn_like(grad)).sum(), x)[0]


def p(x: Number) -> Number:
    return 1 / (1 + mpmath.exp(-x))


def cross_entropy(x: Number, t: float) -> Number:
    """By log1p, because 50 digits do not hold 1 + exp(-750)."""
    return t * mpmath.log1p(mpmath.exp(-x)) + (1 - t) * mpmath.log1p(mpmath.exp(x))


def sigmoid_focal(x: Number, t: float, alpha: float, gamma: float) -> Number:
    """The paper's formula, term for term."""
    complement = p(x) * (1 - t) + p(-x) * t
    return (alpha * t + (1 - alpha) * (1 - t)) * complement**gamma * cross_entropy(x, t)


def softmax_focal(x: Sequence[Number], y: Sequence[float], gamma: float) -> Number:
    e = [mpmath.exp(v) for v in x]
    others = [sum(e[:c] + e[c + 1 :]) for c in range(len(e))]
    terms = [(others[c] / sum(e)) ** gamma * mpmath.log1p(others[c] / e[c]) for c in range(len(e))]
    return mpmath.fsum(target * term for target, term in zip(y, terms, strict=True) if target)


def assert_follows(f: Callable[[Number], Number], x: float, loss: Tensor, grad: Tensor, *, cancels: bool) -> None:
    """Loss and gradient at x are f and its derivative there. cancels: the gradient passes through 0 among larger
    terms, where it is as exact as the loss it belongs to."""
    with mpmath.workdps(DIGITS):
        value, slope = f(mpmath.mpf(x)), mpmath.diff(f, mpmath.mpf(x))
    close(loss, torch.tensor(float(value), dtype=F64))
    scale = max(abs(float(slope)), float(loss) if cancels else 0.0)
    assert abs(grad.item() - float(slope)) <= ORACLE_GRAD * scale + 1e-290, (x, grad.item(), float(slope))
