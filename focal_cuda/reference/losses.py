"""The two focal losses (Lin et al., 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._batch import Normalizer, Options, at_label, classes, per_class, read_elements, read_positions, reduce
from ._terms import (
    binary_weight,
    focal,
    focal_of_probability,
    focal_of_target,
    is_soft,
    margin_of_each,
    margin_of_label,
)


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    pos_weight: float | Tensor | None = None,
    label_smoothing: float = 0.0,
    probability_smoothing: float = 0.0,
    from_probabilities: bool = False,
    ohem_keep_ratio: float | None = None,
    ohem_threshold: float | None = None,
    normalizer: Normalizer = None,
    dtype: torch.dtype | None = torch.float64,
) -> Tensor:
    """Sigmoid (one-vs-all) focal loss, differentiable any number of times.

    With ``p = sigmoid(x)``, ``p_t = p t + (1 - p)(1 - t)`` and ``alpha_t = alpha t + (1 - alpha)(1 - t)``::

        loss = alpha_t * (1 - p_t)**gamma * -(t log p + (1 - t) log(1 - p))

    Args:
        logits: any shape with dense targets; ``class_dim`` holds the C classes with index targets.
        targets: logits' shape (values in [0, 1]), or logits' shape without ``class_dim`` (class index).
        alpha: None, one float, or a tensor [C].
        gamma: >= 0: a number, a 0-d tensor, or a tensor [C].
        reduction: "none", "mean" (over what is not ignored) or "sum".
        class_dim: the dimension of the classes.
        ignore_index: index targets with this value leave their whole row out, dense ones their element.
        background_index: the label that is negative for every class; C when None.
        sample_weight: factors, broadcast to the logits or one for each row; what has 0 is left out of all but counts.
        mask: False ignores; shaped as sample_weight.
        pos_weight: a number or tensor [C] that multiplies the first term of alpha_t (1 and 1 - t without alpha).
        label_smoothing: s in [0, 1); t becomes ``t (1 - s) + s / 2``.
        probability_smoothing: s in [0, 1); in the modulating factor p_t becomes ``p_t (1 - s) + s / 2``. Hard targets.
        from_probabilities: whether the logits are p.
        ohem_keep_ratio: mean over the ``max(1, int(n * ratio))`` largest of the n counted losses.
        ohem_threshold: mean over the counted losses above it; with both, over the larger set.
        normalizer: divides a "sum": a number, a one-element tensor (0 gives 0), or "positives".
        dtype: what to compute in and return; None means float64 for float64 logits, float32 for all others.

    Returns:
        The loss in ``dtype``: a scalar, or logits' shape with ``reduction="none"``.

    Numerics: log space throughout; values and derivatives are finite for every finite logit and gamma >= 0. Of
    probabilities a logarithm is at least -100, and the denominator of its derivative at least 1e-12.
    """
    batch = read_elements(
        logits, targets, Options(class_dim, ignore_index, background_index, sample_weight, mask, dtype)
    )
    x, t = batch.x, batch.t * (1 - label_smoothing) + label_smoothing / 2
    gamma, alpha, pos_weight = (per_class(value, x, class_dim) for value in (gamma, alpha, pos_weight))
    if from_probabilities:
        loss = focal_of_probability(x, t, gamma, probability_smoothing)
    else:
        loss = focal(torch.where(t == 1, x, -x), gamma, probability_smoothing)
        if label_smoothing or (targets.dim() == logits.dim() and targets.is_floating_point()):
            loss = torch.where(is_soft(t), focal_of_target(x, t, gamma), loss)
    loss = loss * binary_weight(t, alpha, pos_weight)
    return reduce(loss, batch, reduction, normalizer, ohem_keep_ratio, ohem_threshold)


def softmax_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
    probability_smoothing: float = 0.0,
    from_probabilities: bool = False,
    ohem_keep_ratio: float | None = None,
    ohem_threshold: float | None = None,
    normalizer: Normalizer = None,
    dtype: torch.dtype | None = torch.float64,
) -> Tensor:
    """Softmax (multi-class) focal loss, differentiable any number of times.

    With ``p = softmax(logits)`` over the classes, and t the target or y the soft targets::

        loss = alpha[t] * (1 - p[t])**gamma * -log p[t]
        loss = sum over c of  y[c] * alpha[c] * (1 - p[c])**gamma * -log p[c]

    Args:
        logits: ``class_dim`` holds the C >= 2 classes.
        targets: class index, logits' shape without ``class_dim``; or soft: floats >= 0 in logits' shape.
        alpha: None, one factor for all, or a tensor [C].
        gamma: >= 0: a number, a 0-d tensor, or a tensor [C].
        reduction: "none", "mean" (over what is not ignored) or "sum".
        class_dim: the dimension of the classes.
        ignore_index: positions with this target, or this value as the soft target of class 0, are left out.
        background_index: the label (soft: the first largest target) that normalizer="positives" does not count.
        sample_weight: factors, broadcast to the positions; what has 0 is left out of all but counts.
        mask: False ignores; shaped as sample_weight.
        label_smoothing: s in [0, 1); y becomes ``y (1 - s) + s / C``.
        probability_smoothing: s in [0, 1); in the modulating factor p[t] becomes ``p[t] (1 - s) + s / C``. Labels only.
        from_probabilities: whether the logits are p; they are not normalised.
        ohem_keep_ratio: mean over the ``max(1, int(n * ratio))`` largest of the n counted losses.
        ohem_threshold: mean over the counted losses above it; with both, over the larger set.
        normalizer: divides a "sum": a number, a one-element tensor (0 gives 0), or "positives".
        dtype: what to compute in and return; None means float64 for float64 logits, float32 for all others.

    Returns:
        The loss in ``dtype``: a scalar, or the positions' shape with ``reduction="none"``.

    Numerics: ``1 - p[c]`` comes from the log-sum-exp of the other classes, so it keeps its precision however
    sure the prediction is. A logit of -inf takes its class out; as a target's it gives an infinite loss. Of
    probabilities a logarithm is at least -100, and the denominator of its derivative at least 1e-12.
    """
    batch = read_positions(
        logits, targets, Options(class_dim, ignore_index, background_index, sample_weight, mask, dtype)
    )
    x, t = batch.x, batch.t
    alpha, soft = 1.0 if alpha is None else alpha, targets.dim() == logits.dim()
    if soft or label_smoothing:
        y = t if soft else (t.unsqueeze(class_dim) == classes(x, class_dim)).to(x.dtype)
        y = y * (1 - label_smoothing) + label_smoothing / x.shape[class_dim]
        alpha, gamma = (per_class(value, x, class_dim) for value in (alpha, gamma))
        if from_probabilities:
            terms = focal_of_probability(x, 1.0, gamma)
        else:
            # A class without a target may be at -inf.
            terms = focal(torch.where(y == 0, 0.0, margin_of_each(x, class_dim)), gamma)
        loss = (y * alpha * terms).sum(class_dim)
    else:
        alpha, gamma = (at_label(value, t, x) for value in (alpha, gamma))
        rest = 1 - 1 / x.shape[class_dim]
        if from_probabilities:
            p = x.gather(class_dim, t.unsqueeze(class_dim)).squeeze(class_dim)
            loss = focal_of_probability(p, 1.0, gamma, probability_smoothing, rest)
        else:
            loss = focal(margin_of_label(x, t, class_dim), gamma, probability_smoothing, rest)
        loss = loss * alpha
    return reduce(loss, batch, reduction, normalizer, ohem_keep_ratio, ohem_threshold)
