"""Losses that are focal in their own ways.

What they have in common: ``options`` are ``class_dim``, ``ignore_index``, ``background_index``, ``sample_weight``,
``mask`` and ``dtype``; these, ``reduction`` and ``normalizer`` mean what they do in the two focal losses. p is the
sigmoid of a logit x, BCE its cross entropy with t. All are differentiable twice and finite as the two are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._batch import (
    Batch,
    Normalizer,
    Options,
    at_label,
    divide,
    per_class,
    read_elements,
    read_positions,
    reduce,
    weigh,
)
from ._terms import (
    LOG_OF_ZERO,
    Number,
    binary_weight,
    cross_entropy,
    distance_power,
    focal,
    is_soft,
    log_complement,
    margin_of_label,
    power,
    shifted_focal,
)


def quality_focal_loss(
    logits: Tensor,
    targets: Tensor,
    scores: Tensor | None = None,
    beta: float = 2.0,
    reduction: str = "mean",
    *,
    normalizer: Normalizer = None,
    **options,
) -> Tensor:
    """``|t - p|**beta * BCE`` (Li et al., Generalized Focal Loss, 2020).

    Dense targets t in [0, 1]; or class index, where t is the score at the labelled class and 0 elsewhere.
    """
    batch = read_elements(logits, targets, Options(**options), scores)
    x, t = batch.x, batch.t
    hard = focal(torch.where(t == 1, x, -x), beta)
    loss = torch.where(is_soft(t), distance_power(x, t, beta) * cross_entropy(x, t), hard)
    return reduce(loss, batch, reduction, normalizer)


def varifocal_loss(
    logits: Tensor,
    targets: Tensor,
    scores: Tensor | None = None,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    iou_weighted: bool = True,
    normalizer: Normalizer = None,
    **options,
) -> Tensor:
    """``t * BCE`` for t > 0 (BCE unless iou_weighted), ``alpha * p**gamma * -log(1 - p)`` for t = 0 (Zhang, 2021).

    Targets and scores as for :func:`quality_focal_loss`.
    """
    batch = read_elements(logits, targets, Options(**options), scores)
    x, t = batch.x, batch.t
    of_positive = cross_entropy(x, t) * (t if iou_weighted else 1.0)
    return reduce(torch.where(t > 0, of_positive, alpha * focal(-x, gamma)), batch, reduction, normalizer)


def gaussian_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 2.0,
    gamma: float = 4.0,
    reduction: str = "mean",
    *,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    normalizer: Normalizer = None,
    **options,
) -> Tensor:
    """For heat maps t in [0, 1] with a 1 at each object (Law and Deng, CornerNet, 2018).

    ``pos_weight * (1 - p)**alpha * -log p`` for t = 1, the only positives, and
    ``neg_weight * (1 - t)**gamma * p**alpha * -log(1 - p)`` elsewhere.
    """
    batch = read_elements(logits, targets, Options(**options))
    x, t = batch.x, batch.t
    at_object = t == 1
    weight = torch.where(at_object, pos_weight, neg_weight * (1 - t) ** gamma)
    loss = weight * focal(torch.where(at_object, x, -x), alpha)
    if targets.dim() == logits.dim():  # also of those whose weight is 0
        batch = batch._replace(positives=(batch.counted & (targets == 1)).sum())
    return reduce(loss, batch, reduction, normalizer)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    margin: float = 0.05,
    reduction: str = "mean",
    *,
    normalizer: Normalizer = None,
    **options,
) -> Tensor:
    """ASL (Ridnik et al., 2021), for hard targets.

    ``(1 - p)**gamma_positive * -log p`` for positives, ``p_m**gamma_negative * -log(1 - p_m)`` for negatives, with
    ``p_m = max(p - margin, 0)``.
    """
    batch = read_elements(logits, targets, Options(**options))
    x, t = batch.x, batch.t
    of_negative = shifted_focal(x, gamma_negative, margin) if margin else focal(-x, gamma_negative)
    return reduce(torch.where(t == 1, focal(x, gamma_positive), of_negative), batch, reduction, normalizer)


def poly_focal_loss(
    logits: Tensor,
    targets: Tensor,
    epsilon: float = 1.0,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    activation: str = "sigmoid",
    normalizer: Normalizer = None,
    **options,
) -> Tensor:
    """``alpha_t * ((1 - p_t)**gamma * -log p_t + epsilon * (1 - p_t)**(gamma + 1))`` (Leng et al., PolyLoss, 2022).

    Hard targets; p_t and alpha_t by the activation "sigmoid" or "softmax".
    """
    hard = _read_hard(activation, logits, targets, alpha, gamma, Options(**options))
    polynomial = power(log_complement(hard.z), hard.gamma + 1)
    return reduce(hard.alpha * (focal(hard.z, hard.gamma) + epsilon * polynomial), hard.batch, reduction, normalizer)


def reduced_focal_loss(
    logits: Tensor,
    targets: Tensor,
    threshold: float = 0.5,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    activation: str = "sigmoid",
    normalizer: Normalizer = None,
    **options,
) -> Tensor:
    """``alpha_t * -log p_t`` where p_t < threshold, elsewhere times ``((1 - p_t) / threshold)**gamma``.

    Hard targets; p_t and alpha_t by the activation. Source: Sergievskiy and Ponamarev, 2019.
    """
    hard = _read_hard(activation, logits, targets, alpha, gamma, Options(**options))
    modulated = focal(hard.z, hard.gamma) * threshold**-hard.gamma
    loss = torch.where(torch.sigmoid(hard.z) < threshold, -logsigmoid(hard.z), modulated)
    return reduce(hard.alpha * loss, hard.batch, reduction, normalizer)


def normalized_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    *,
    activation: str = "sigmoid",
    **options,
) -> Tensor:
    """``sum(alpha_t m -log p_t) / sum(m)`` with ``m = (1 - p_t)**gamma``, a scalar; sample weights are factors of m.

    Hard targets; p_t and alpha_t by the activation; the gradient goes through both sums.
    """
    batch, z, alpha, gamma = _read_hard(activation, logits, targets, alpha, gamma, Options(**options))
    log_m = gamma * log_complement(z).clamp(min=LOG_OF_ZERO)
    # Only ratios matter, so m is taken relative to its largest: all of it may underflow, and there may be none.
    largest = torch.where(batch.kept, log_m.detach(), -torch.inf).reshape(-1)
    largest = torch.cat([largest, largest.new_full((1,), -torch.inf)]).amax()
    m = weigh(torch.exp(torch.where(batch.kept, log_m - largest, 0.0)), batch)
    return divide((m * alpha * -logsigmoid(z)).sum(), m.sum())


class _Hard(NamedTuple):
    batch: Batch
    z: Tensor
    alpha: Number
    gamma: Number


def _read_hard(
    activation: str, logits: Tensor, targets: Tensor, alpha: Number | None, gamma: Number, o: Options
) -> _Hard:
    """The margins of hard targets, and what is theirs of alpha and gamma."""
    if activation == "sigmoid":
        batch = read_elements(logits, targets, o)
        x, t = batch.x, batch.t
        weight = binary_weight(t, per_class(alpha, x, o.class_dim))
        return _Hard(batch, torch.where(t == 1, x, -x), weight, per_class(gamma, x, o.class_dim))
    if activation != "softmax":
        raise ValueError(f"expected activation 'sigmoid' or 'softmax', got {activation!r}.")
    batch = read_positions(logits, targets, o)
    x, t = batch.x, batch.t
    weight = at_label(1.0 if alpha is None else alpha, t, x)
    return _Hard(batch, margin_of_label(x, t, o.class_dim), weight, at_label(gamma, t, x))
