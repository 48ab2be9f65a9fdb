"""The terms of the losses, in log space: finite with all derivatives for every finite logit and gamma >= 0.

z is a margin, sigmoid(z) the probability of what really happened: p_t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._batch import classes

Number = float | Tensor

# Beyond this margin sigmoid is exactly 0 or 1 in float64, so that a modulating factor no longer changes.
_FAR = 800.0
# In place of -inf, of which 0 times would be NaN: it becomes 0 in every power but the 0th.
LOG_OF_ZERO = -1e30
# As F.binary_cross_entropy does: the least logarithm, and the least denominator of its derivative.
_LEAST_LOG, _LEAST_DENOMINATOR = -100.0, 1e-12


def power(log_base: Tensor, exponent: Number) -> Tensor:
    """exp(log_base) ** exponent for a base in [0, 1]; 0 ** 0 is 1."""
    return torch.exp(exponent * log_base.clamp(min=LOG_OF_ZERO))


def log_complement(z: Tensor) -> Tensor:
    """log(1 - p_t). Constant at far negative margins, where the chain rule would form inf * 0 at z = -inf."""
    return logsigmoid(-z.clamp(min=-_FAR))


def focal(z: Tensor, gamma: Number, smoothing: float = 0.0, rest: float = 0.5) -> Tensor:
    """(1 - p_t)**gamma * -log p_t; in the factor p_t becomes p_t (1 - smoothing) + smoothing (1 - rest)."""
    log_q = log_complement(z)
    if smoothing:
        log_q = _log_add(log_q + math.log1p(-smoothing), torch.full_like(log_q, math.log(smoothing * rest)))
    return power(log_q, gamma) * -logsigmoid(z)


def focal_of_target(x: Tensor, t: Tensor, gamma: Number) -> Tensor:
    """(1 - p_t)**gamma * BCE with p_t = p t + (1 - p)(1 - t), for 0 < t < 1; elsewhere a constant."""
    soft = is_soft(t)
    x, t = torch.where(soft, x, 0.0), torch.where(soft, t, 0.5)
    at = x.clamp(-_FAR, _FAR)
    log_q = _log_add(logsigmoid(at) + torch.log1p(-t), logsigmoid(-at) + torch.log(t))
    return power(log_q, gamma) * cross_entropy(x, t)


def distance_power(x: Tensor, t: Tensor, exponent: float) -> Tensor:
    """|t - p|**exponent for 0 < t < 1, 0 with slope 0 at t = p; elsewhere a constant."""
    soft = is_soft(t)
    x, t = torch.where(soft, x, 0.0).clamp(-_FAR, _FAR), torch.where(soft, t, 0.25)
    d = _excess(x, t)
    apart = torch.where(d == 0, 1.0, d.abs()) ** exponent
    return torch.where(d == 0, 0.0**exponent, apart)


def shifted_focal(x: Tensor, gamma: Number, margin: float) -> Tensor:
    """p_m**gamma * -log(1 - p_m) with p_m = max(p - margin, 0), for a margin > 0."""
    excess = _excess(x, margin)
    above = excess > 0
    p_m = torch.where(above, excess, 0.5)
    small = p_m < 0.5
    # 1 - p_m is 1 - p and the margin: nothing cancels.
    of_large = _log_add(logsigmoid(-x), torch.full_like(x, math.log(margin)))
    log_q = torch.where(small, torch.log1p(-torch.where(small, p_m, 0.0)), of_large)
    return torch.where(above, p_m**gamma * -log_q, 0.0)


def focal_of_probability(p: Tensor, t: Number, gamma: Number, smoothing: float = 0.0, rest: float = 0.5) -> Tensor:
    """The same two in p itself, which leaves digits of 1 - p_t to p; t = 1: one probability of a softmax."""
    complement = (p * (1 - t) + (1 - p) * t) * (1 - smoothing) + smoothing * rest
    cross_entropy = t * _guarded_log(p) + (1 - t) * _guarded_log_of_rest(p)
    # So little that the second derivative of its logarithm would overflow.
    none = complement < torch.finfo(complement.dtype).tiny ** 0.45
    log_complement = torch.where(none, LOG_OF_ZERO, torch.where(none, 1.0, complement).log())
    return power(log_complement, gamma) * -cross_entropy


def is_soft(t: Tensor) -> Tensor:
    return (t > 0) & (t < 1)


def cross_entropy(x: Tensor, t: Tensor) -> Tensor:
    """-(t log p + (1 - t) log(1 - p)), with 0 log 0 = 0."""
    return -torch.where(t == 0, 0.0, t * logsigmoid(x)) - torch.where(t == 1, 0.0, (1 - t) * logsigmoid(-x))


def binary_weight(t: Tensor, alpha: Number | None, pos_weight: Number | None = None) -> Number:
    """alpha_t."""
    if alpha is None and pos_weight is None:
        return 1.0
    of_positives, of_negatives = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return of_positives * (1.0 if pos_weight is None else pos_weight) * t + of_negatives * (1 - t)


def margin_of_label(x: Tensor, labels: Tensor, class_dim: int) -> Tensor:
    """x_t - logsumexp of the other classes, for each position."""
    t = labels.unsqueeze(class_dim)
    x = _near_zero(x, class_dim)
    margin = x.gather(class_dim, t) - _logsumexp_without(t == classes(x, class_dim), x, class_dim)
    return margin.squeeze(class_dim)


def margin_of_each(x: Tensor, class_dim: int) -> Tensor:
    """x_c - logsumexp of the other classes, for each class c, with as much memory as the logits take."""
    x = _near_zero(x, class_dim)
    is_largest = x.detach().argmax(class_dim, keepdim=True) == classes(x, class_dim)
    e = torch.exp(x)
    # Others of a class that is not the largest include the largest, so half of the sum at least: nothing cancels.
    others = torch.where(is_largest, 1.0, e.sum(class_dim, keepdim=True) - e)
    return x - torch.where(is_largest, _logsumexp_without(is_largest, x, class_dim), torch.log(others))


def _excess(x: Tensor, t: Number) -> Tensor:
    """p - t. By 1 - p where p is large, since the slope of a sigmoid near 1 has lost its digits."""
    return torch.where(x < 0, torch.sigmoid(x) - t, (1 - t) - torch.sigmoid(-x))


def _near_zero(x: Tensor, class_dim: int) -> Tensor:
    """Only differences matter, so they are formed first: float32 would lose digits of a large common offset."""
    largest = x.detach().amax(class_dim, keepdim=True)
    return x - torch.where(largest.isfinite(), largest, 0.0)


def _logsumexp_without(excluded: Tensor, x: Tensor, class_dim: int) -> Tensor:
    others = torch.where(excluded, -torch.inf, x)
    # logsumexp has no gradient where every other class is at -inf.
    none = (others == -torch.inf).all(class_dim, keepdim=True)
    return torch.where(none, -torch.inf, torch.logsumexp(torch.where(none, 0.0, others), class_dim, keepdim=True))


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)). The second derivative of torch.logaddexp is NaN where a and b are far apart."""
    larger, smaller = torch.where(a >= b, a, b), torch.where(a >= b, b, a)
    return larger - logsigmoid(larger - smaller)


def _guarded_log(p: Tensor) -> Tensor:
    """log p, at least -100, with 1 / max(p, 1e-12) for a derivative."""
    tiny = p < _LEAST_DENOMINATOR
    value = p.detach().log().clamp(min=_LEAST_LOG)
    return torch.where(tiny, value + (p - p.detach()) / _LEAST_DENOMINATOR, torch.where(tiny, 1.0, p).log())


def _guarded_log_of_rest(p: Tensor) -> Tensor:
    """log(1 - p), with the digits of a small p."""
    tiny = 1 - p < _LEAST_DENOMINATOR
    return torch.where(tiny, _guarded_log(1 - p), torch.log1p(-torch.where(tiny, 0.0, p)))
