"""What adapters compose of torch operations, where no kernel has the formula, is as sound as a kernel: at any margin,
against the formula in a hundred digits, and differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable

import libraries
import mpmath
import pytest
import torch
from compat_cases import CLASSES, soft
from tolerance import assert_close, grad_bound, loss_bound
from torch import Tensor

from focal_cuda import compat

FAR = torch.tensor([-100.0, -60.0, -17.0, -4.0, -1.5, 0.0, 1.5, 4.0, 17.0, 60.0, 100.0])
mpf = mpmath.mpf


def exact(formula: Callable[..., mpf], x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """The value of a formula of mpmath's numbers, and its derivative by each element of x."""
    with mpmath.workdps(100):
        given = [[mpf(number) for number in element.tolist()] for element in (x, *others)]

        def at(j: int, shift: mpf) -> mpf:
            return formula([v + shift * (i == j) for i, v in enumerate(given[0])], *given[1:])

        slopes = [float(mpmath.diff(lambda shift, j=j: at(j, shift), 0, h=mpf(10) ** -30)) for j in range(len(x))]
        return torch.tensor(float(at(0, mpf(0))), dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)


def hold(
    loss_of: Callable[[Tensor], Tensor], expected: tuple[Tensor, Tensor], x: Tensor, size: Tensor | None = None
) -> None:
    leaf = x.clone().requires_grad_()
    loss = loss_of(leaf)
    (grad,) = torch.autograd.grad(loss, leaf)
    value, slope = expected
    assert_close(loss.detach(), value, loss_bound(value, x.dtype), "loss")
    assert_close(grad, slope, grad_bound(slope, x.dtype, size=size), "gradient")


def p_of(z: mpf) -> mpf:
    return 1 / (1 + mpmath.exp(-z))


@pytest.mark.parametrize("clip", [0.05, 0.0, 0.6])
@pytest.mark.parametrize(("gamma_neg", "gamma_pos"), [(4.0, 1.0), (0.5, 0.25), (0.0, 0.0)])
@pytest.mark.parametrize("target", [0.0, 1e-3, 0.4, 1.0])
def test_soft_asymmetric_loss(target: float, gamma_neg: float, gamma_pos: float, clip: float) -> None:
    y = torch.full_like(FAR, target)
    y[-1] = 0.5  # whatever the rest

    def formula(x: list[mpf], y: list[mpf]) -> mpf:
        total = mpf(0)
        for v, t in zip(x, y, strict=True):
            right = min(1 - p_of(v) + mpf(clip), mpf(1))
            missed = 1 - (p_of(v) * t + right * (1 - t))
            factor = missed ** (mpf(gamma_pos) * t + mpf(gamma_neg) * (1 - t)) if missed else mpf(gamma_neg == 0)
            total -= factor * (t * mpmath.log(p_of(v)) + (1 - t) * mpmath.log(right))
        return total

    criterion = compat.timm.AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip, reduction="sum")
    hold(lambda x: criterion(x, y), exact(formula, FAR, y), FAR)


@pytest.mark.parametrize("threshold", [None, 0.45, 0.2])
@pytest.mark.parametrize("gamma", [2.0, 0.5])
@pytest.mark.parametrize("far", [FAR, FAR[:2], FAR[-2:]], ids=["all", "wrong", "right"])
def test_normalized_elements(far: Tensor, gamma: float, threshold: float | None) -> None:
    """Also where the factors themselves are too small for numbers."""
    t = (torch.arange(len(far)) % 3 == 0).float()
    x = torch.where(t == 1, far, -far)
    upstream = torch.rand(far.shape) + 0.1

    def formula(x: list[mpf], t: list[mpf], u: list[mpf]) -> mpf:
        right = [p_of(v if hit else -v) for v, hit in zip(x, t, strict=True)]
        factors = [(1 - p) ** mpf(gamma) for p in right]
        if threshold is not None:
            cut = mpf(threshold)
            factors = [mpf(1) if p < cut else ((1 - p) / cut) ** mpf(gamma) for p in right]
        parts = [-w * m * mpmath.log(p) for w, m, p in zip(u, factors, right, strict=True)]
        return mpmath.fsum(parts) / mpmath.fsum(factors)

    criterion = compat.smp.FocalLoss(
        "binary", gamma=gamma, normalized=True, reduced_threshold=threshold, reduction="none"
    )
    hold(lambda x: (criterion(x, t) * upstream).sum(), exact(formula, x, t, upstream), x)


@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (compat.timm.AsymmetricLossMultiLabel(smoothing=0.1, pos_weight=2.0), soft(6, CLASSES)),
        (compat.smp.FocalLoss("multilabel", normalized=True, reduced_threshold=0.4), soft(6, CLASSES).bool()),
    ],
    ids=["timm", "smp"],
)
def test_is_differentiable_twice(criterion: Callable, targets: Tensor) -> None:
    x = torch.randn(6, CLASSES, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(criterion(x, targets), x, create_graph=True)
    direction = torch.randn_like(x)
    (along,) = torch.autograd.grad(grad, x, direction)
    step = 1e-5 * direction
    ahead, behind = (
        torch.autograd.grad(criterion(at := (x + s).detach().requires_grad_(), targets), at)[0] for s in (step, -step)
    )
    torch.testing.assert_close(along, (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_quality_focal_loss_of_probabilities(target: float) -> None:
    """Which become logits first, without a digit less; at 0 and 1 all stays finite."""
    p = torch.tensor([1e-12, 1e-6, 0.01, 0.1, 0.5, 0.7, 0.95, 1 - 1e-5, 1 - 2**-24]).view(-1, 1)
    t = torch.full_like(p, target)
    criterion = compat.mmdet.QualityFocalLoss(activated=True, reduction="none")
    leaf, leaf64 = p.clone().requires_grad_(), p.double().requires_grad_()
    loss = criterion(leaf, t)
    expected = libraries.mmdet_quality(leaf64, t.double(), activated=True, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    (slope,) = torch.autograd.grad(expected.sum(), leaf64)
    assert_close(loss.detach(), expected.detach(), loss_bound(expected.detach(), p.dtype), "loss")
    size = expected.detach().unsqueeze(1) / (p * (1 - p)).double() + slope.abs()  # it cancels at p = t
    assert_close(grad, slope, grad_bound(slope, p.dtype, size=size), "gradient")
    ends = torch.tensor([[0.0], [1.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(criterion(ends, t[:2]).sum(), ends)
    assert grad.isfinite().all() and criterion(ends, t[:2]).isfinite().all()
