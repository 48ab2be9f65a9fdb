"""How far a result may lie from the float64 oracle: the only place in the tests with such numbers.

The oracle sees the logits as the kernel does, already rounded to their type, so all of the error is the kernel's.
Every bound is relative to the true value of the element itself: there is no absolute tolerance beyond the smallest
normal number, because it accepts anything where the loss is small, and small is what a focal loss is; and a bound
relative to the largest gradient of a row would accept anything beside the target among 128k classes. Where the value is
a difference that vanishes, as the gradient of a soft target is at p = t, the bound is relative to what it is the
difference of, for each element (compare.sizes).
test_tolerance.py shows that wrong results are rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Precision:
    """The bounds of one computation type."""

    relative: float  # for each loss, each gradient, and each sum (no term is negative, so nothing cancels)
    tiny: float  # the smallest normal number: below it the machine itself stops being relative


# Most of it is q**gamma = exp(gamma log q), which carries the rounding of its argument: up to 87 units in float32
# before it underflows, 708 in float64. The worst of all tests at introduction: 7.3e-6 in float32 (1.0e-5 without
# fused multiply-add), 1.7e-14 in float64.
PRECISIONS = {
    torch.float32: Precision(relative=2e-5, tiny=torch.finfo(torch.float32).tiny),
    torch.float64: Precision(relative=6e-14, tiny=torch.finfo(torch.float64).tiny),
}

# The float32 elementary functions, as csrc/math/policy.h states them: relative errors but for log's, which is
# relative to the larger of |log x| and |x - 1|. exp's grows with its argument x, more without fused multiply-add.
EXP, EXP_PER_UNIT, EXP_PER_UNIT_UNFUSED, LOG1P, LOG = 2e-7, 2e-8, 7e-8, 4e-7, 1.2e-7

# The oracle itself, in float64, against the formulas in 50 digits or written in another way.
ORACLE, ORACLE_GRAD = 1e-11, 1e-10

# Other libraries, in float32 with their cancellations, at moderate logits; of gradients relative to the largest.
PEER = {"rtol": 1e-4, "atol": 1e-6}


def precision(dtype: torch.dtype) -> Precision:
    """The bounds for logits of this type; half types are computed in float32."""
    return PRECISIONS[torch.float64 if dtype == torch.float64 else torch.float32]


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbouring numbers of a type around a float64 value."""
    info = torch.finfo(dtype)
    magnitude = value.abs().clamp(min=info.tiny, max=info.max)
    return torch.ldexp(torch.full_like(magnitude, info.eps), torch.frexp(magnitude).exponent - 1)


def loss_bound(expected: Tensor, dtype: torch.dtype, size: Tensor | None = None) -> Tensor:
    """The allowed error of each loss value for logits of this type.

    size: what the error is relative to, where that is not the value itself (compare.sizes).
    """
    p = precision(dtype)
    return p.relative * (expected.abs() if size is None else size) + p.tiny


def grad_bound(
    expected: Tensor, dtype: torch.dtype, factor: float = 1.0, roundings: int = 1, size: Tensor | None = None
) -> Tensor:
    """The allowed error of each gradient.

    factor: the largest number an underflowing gradient was multiplied with: the upstream gradient.
    roundings: 2 where a gradient was stored, read and multiplied by the upstream gradient, 1 elsewhere.
    size: what the error is relative to, where that is not the gradient itself (compare.sizes).
    """
    relative = precision(dtype).relative * (expected.abs() if size is None else size)
    return relative + _rounding(expected, dtype, factor, roundings)


def _rounding(expected: Tensor, dtype: torch.dtype, factor: float, roundings: int) -> Tensor:
    """What storing a result costs, at the bottom of the number range and, in half types, everywhere."""
    factor = max(1.0, factor)
    bottom = precision(dtype).tiny * factor
    if dtype not in (torch.float16, torch.bfloat16):
        return torch.full_like(expected, bottom)
    info = torch.finfo(dtype)
    stored = ulp(expected, dtype) / 2 + bottom
    if roundings == 2:
        stored = stored + info.eps / 2 * expected.abs() + info.smallest_normal * info.eps / 2 * factor
    return stored


def mismatch(actual: Tensor, expected: Tensor, bound: Tensor) -> str | None:
    """What is wrong with a result, or None. NaN and infinities must be where the oracle has them."""
    actual = actual.detach().double()
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = (actual - expected).abs()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    wrong = ~(same | (expected.isfinite() & (error <= bound)))
    if not wrong.any():
        return None
    severity = torch.where(wrong, (error / bound).nan_to_num(torch.inf, torch.inf), -1.0)
    worst = int(severity.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), actual.shape)) if actual.dim() else ()
    got, want, allowed = (v.expand_as(expected).reshape(-1)[worst].item() for v in (actual, expected, bound))
    return (
        f"{int(wrong.sum())} of {wrong.numel()} wrong; worst at {place}: got {got!r}, expected {want!r}, "
        f"error {abs(got - want):.3g} of allowed {allowed:.3g}"
    )


def assert_close(actual: Tensor, expected: Tensor, bound: Tensor, what: str) -> None:
    problem = mismatch(actual, expected, bound)
    assert problem is None, f"{what}: {problem}"
