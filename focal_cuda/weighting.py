"""Class weights from class frequencies, for alpha and pos_weight of the losses: made once, before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import check_number

__all__ = ["class_weights"]

_OP = "class_weights"


def class_weights(counts_or_rates: Tensor | Sequence[float], beta: float = 1.0, method: str = "inverse") -> Tensor:
    r"""A weight for each class from how often it occurs: the rarer, the heavier; 1 in the mean.

    .. math:: \text{inverse: } w_c \propto n_c^{-\beta} \qquad
        \text{effective number: } w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}} \qquad
        \text{balanced: } w_c \propto \frac{\sum_i n_i}{C\, n_c}

    Args:
        counts_or_rates: ``[C]``, numbers >= 0, at least one of them > 0, on any device: how many samples (pixels,
            boxes) of each class there are. ``"inverse"`` and ``"balanced"`` take rates as well: only ratios matter.
        beta: ``"inverse"``: >= 0; 0 weighs all alike, 0.5 by the root, 1 gives every class the same total weight, and
            more suppresses frequent classes further. ``"effective_number"``: in [0, 1), usually 0.9 to 0.9999; 0 weighs
            all alike, towards 1 it is the inverse. ``"balanced"`` has none.
        method: ``"inverse"``, ``"effective_number"`` or ``"balanced"``. The last is the name scikit-learn's users know:
            in the mean 1, it is ``"inverse"`` with ``beta=1``.

    Returns:
        ``[C]`` on the same device, float64 for float64, of the default dtype for anything else. Their mean
        is 1. A class with count 0 gets the weight of the rarest that occurs: finite, and no lighter than any other
        should a sample turn up.

    Raises:
        TypeError: something is no number.
        ValueError: a shape, a value or a method is out of place.

    Numerics: computed in float64, relative to the rarest class, so that no count and no beta overflows.

    Cost: for the setup of a training: it reads the smallest and the largest count, and so waits for the device once.

    Equivalent to::

        weights = counts**-beta          # "inverse"
        weights = weights / weights.mean()

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019 (effective number); King and
    Zeng, Logistic Regression in Rare Events Data, 2001, as scikit-learn's ``compute_class_weight`` (balanced).
    """
    if method not in ("inverse", "effective_number", "balanced"):
        raise ValueError(
            f'{_OP}: expected method to be "inverse", "effective_number" or "balanced", got {method!r}; '
            "choose one of them."
        )
    beta = _check_beta(beta, method)
    counts = as_numbers(_OP, "counts_or_rates", counts_or_rates)
    if counts.dim() != 1 or not counts.numel():
        raise ValueError(
            f"{_OP}: expected counts_or_rates of shape [C], got {list(counts.shape)}; pass one number per class, as "
            "torch.bincount(labels.flatten(), minlength=C) gives them."
        )
    _check_counts(counts, method)
    occurs = counts > 0
    rarest = torch.where(occurs, counts, math.inf).amin()
    # In place of an empty class's count, so that it has the rarest's weight, and nothing is divided by 0.
    counts = torch.where(occurs, counts, rarest)
    if method == "effective_number":  # beta**n - 1 = expm1(n log beta)
        weights = torch.expm1(torch.xlogy(rarest, beta)) / torch.expm1(torch.xlogy(counts, beta))
    else:
        weights = (rarest / counts) ** beta
    weights = weights / weights.mean()
    double = isinstance(counts_or_rates, Tensor) and counts_or_rates.dtype == torch.float64
    return weights if double else weights.to(torch.get_default_dtype())


def as_numbers(op: str, name: str, values: float | Sequence[float] | Tensor) -> Tensor:
    """The values in float64, where they are; TypeError for what is no number and no sequence of them."""
    if isinstance(values, Tensor) and values.is_complex():
        raise TypeError(f"{op}: expected {name} to be real, got {values.dtype}; pass real numbers.")
    try:
        return torch.as_tensor(values, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{op}: expected {name} to be a tensor or numbers, got {type(values).__name__}; pass a list of numbers."
        ) from error


def _check_beta(beta: float, method: str) -> float:
    if method == "balanced" and beta != 1.0:
        raise ValueError(
            f'{_OP}: expected no beta with method="balanced", got {beta}; leave it out, or use method="inverse".'
        )
    beta = check_number(_OP, "beta", beta, 0.0, math.inf, "0 weighs all classes alike")
    if method == "effective_number" and beta >= 1.0:
        raise ValueError(
            f'{_OP}: expected beta in [0, 1) with method="effective_number", got {beta}; pass for example 0.9999.'
        )
    return beta


def _check_counts(counts: Tensor, method: str) -> None:
    least, most = torch.stack(torch.aminmax(counts)).tolist()  # both NaN if one count is
    if not 0.0 <= least <= most < math.inf:
        at = int((~((counts >= 0) & (counts < math.inf))).nonzero()[0])
        raise ValueError(
            f"{_OP}: expected counts_or_rates >= 0 and finite, got {counts[at].item():g} for class {at}; "
            "correct the counts."
        )
    if most == 0.0:
        raise ValueError(
            f"{_OP}: expected a class that occurs, got only zeros for {counts.numel()} classes; count the labels first."
        )
    if method == "effective_number" and most < 1.0:
        raise ValueError(
            f'{_OP}: expected counts with method="effective_number", got rates (the largest is {most:g}); '
            "multiply them by the number of samples."
        )
