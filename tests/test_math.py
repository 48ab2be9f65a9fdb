"""The arithmetic by itself: the elementary functions within the errors they state, and the loss of a margin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import GAMMAS, MARGINS
from tolerance import EXP, EXP_PER_UNIT, EXP_PER_UNIT_UNFUSED, LOG, LOG1P, assert_close, grad_bound, loss_bound
from torch import Tensor

import focal_cuda
from focal_cuda import _C, reference


def floats(low: float, high: float) -> np.ndarray:
    """Thousands of float32 numbers of every binade between two positive numbers, and the binades' ends."""
    values = [np.float32(low), np.float32(high)]
    bits = np.array(values, dtype=np.float32).view(np.uint32)
    random = np.random.default_rng(0)
    for start in range(int(bits[0]), int(bits[1]) + 1, 2**23):
        stop = min(start + 2**23, int(bits[1]) + 1)
        binade = np.concatenate([[start, stop - 1], random.integers(start, stop, 4000)])
        values.append(binade.astype(np.uint32).view(np.float32))
    return np.concatenate([np.atleast_1d(v) for v in values])


def apply(function: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    _C.elementary(function, x, out)
    return out.astype(np.float64)


def fused() -> bool:
    """Whether products and sums are rounded once: the base instruction set has no fused multiply-add."""
    return _C.cpu_capability() != "base"


def check_exp() -> None:
    x = -floats(1e-38, 87.0)
    truth = np.exp(x.astype(np.float64))
    error = np.abs(apply("exp", x) - truth)
    per_unit = EXP_PER_UNIT if fused() else EXP_PER_UNIT_UNFUSED
    assert (error <= truth * (EXP + per_unit * np.abs(x))).all()
    assert apply("exp", np.array([0.0, -0.0], dtype=np.float32)).tolist() == [1, 1]
    low = np.array([-87.75, -88.02, -90, -104, -1e4, -3e38, -np.inf], dtype=np.float32)
    assert (apply("exp", low) == 0).all()
    assert np.isnan(apply("exp", np.array([np.nan], dtype=np.float32))).all()
    # In between it goes down to 0, without a jump up.
    ends = np.linspace(-88.5, -87, 2000).astype(np.float32)
    assert (np.diff(apply("exp", ends)) >= 0).all()


def check_log1p() -> None:
    x = np.concatenate([floats(1e-38, 1.0), np.zeros(1, dtype=np.float32)])
    truth = np.log1p(x.astype(np.float64))
    assert (np.abs(apply("log1p", x) - truth) <= LOG1P * truth).all()


def check_log() -> None:
    x = floats(2**-126, 3e38)
    truth = np.log(x.astype(np.float64))
    scale = np.maximum(np.abs(truth), np.abs(x.astype(np.float64) - 1))
    assert (np.abs(apply("log", x) - truth) <= LOG * scale).all()
    special = apply("log", np.array([0.0, -0.0, np.inf, np.nan], dtype=np.float32))
    assert special[:3].tolist() == [-np.inf, -np.inf, np.inf] and np.isnan(special[3])


def grid(dtype: torch.dtype) -> Tensor:
    positive = torch.cat(
        [
            torch.linspace(0, 120, 20_001, dtype=torch.float64),
            torch.logspace(-40, 4.5, 10_001, dtype=torch.float64),
            torch.tensor(MARGINS, dtype=torch.float64),
        ]
    )
    return torch.cat([positive, -positive, torch.tensor([torch.inf, -torch.inf, torch.nan])]).to(dtype)


def check_margins(gamma: float, dtype: torch.dtype, device: str = "cpu", operators=torch.ops.focal_cuda) -> None:
    """Value and derivative at tens of thousands of margins, of all sizes and both signs."""
    z = grid(dtype)
    value, deriv = operators.margin_probe(z.to(device), gamma)
    exact = z.double().requires_grad_()
    truth = reference.sigmoid_focal_loss(exact, torch.ones_like(exact), None, gamma, "none")
    (slope,) = torch.autograd.grad(truth.sum(), exact)
    assert_close(value.cpu(), truth.detach(), loss_bound(truth.detach(), dtype), "value")
    assert_close(deriv.cpu(), slope, grad_bound(slope, dtype), "derivative")


@pytest.mark.parametrize("check", [check_exp, check_log1p, check_log], ids=lambda f: f.__name__)
def test_elementary_functions(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("bad", ["sin", "", "Exp"])
def test_unknown_functions_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="exp, log1p or log"):
        _C.elementary(bad, np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))


@pytest.mark.parametrize("gamma", [*GAMMAS, 0.1, 0.999, 1.001, 2.001, 4.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_margins(gamma: float, dtype: torch.dtype, device: str, operators) -> None:
    check_margins(gamma, dtype, device, operators)


def test_exponents_join_smoothly(device: str, operators) -> None:
    """The special cases of gamma are short cuts, not other functions."""
    z = torch.linspace(-20, 20, 4001, device=device)
    for gamma in (0.0, 1.0, 2.0):
        for a, b in zip(*(operators.margin_probe(z, gamma + d) for d in (0.0, 1e-9)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=0)


def test_the_loss_falls_and_stays_positive(device: str, operators) -> None:
    """More margin is never worse: a training step may rely on the sign of the slope."""
    z = torch.linspace(-30, 30, 20_001, dtype=torch.float64, device=device)
    for gamma in GAMMAS:
        value, deriv = operators.margin_probe(z, gamma)
        assert (value.diff() < 0).all() and (value > 0).all() and (deriv < 0).all()


def test_the_probe_and_the_loss_are_one(device: str, operators) -> None:
    """The public function has the arithmetic of the probe, to the bit."""
    z = torch.linspace(-100, 100, 4099, device=device)
    for gamma in GAMMAS:
        value, deriv = operators.margin_probe(z, gamma)
        x = z.clone().requires_grad_()
        loss = focal_cuda.sigmoid_focal_loss(x, torch.ones_like(z), None, gamma, "none")
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert torch.equal(loss.detach(), value) and torch.equal(grad, deriv)
