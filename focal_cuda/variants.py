"""Relatives of the focal loss: the same kernels with another term. They share what a loss of elements, or of positions,
is told besides its own numbers; focal_cuda.sigmoid_focal_loss and softmax_focal_loss describe it.
"""

from __future__ import annotations

import math

from torch import Tensor

from . import _arguments, _calls, _normalized, _targets, _weights
from ._arguments import SIGMOID, SOFTMAX

__all__ = [
    "asymmetric_loss",
    "gaussian_focal_loss",
    "normalized_focal_loss",
    "poly_focal_loss",
    "quality_focal_loss",
    "reduced_focal_loss",
    "varifocal_loss",
]


def quality_focal_loss(
    logits: Tensor,
    targets: Tensor,
    scores: Tensor | None = None,
    beta: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Quality focal loss (QFL): binary cross entropy with a score for a target, weighed by the distance to it.

    .. math:: L = |t - p|^\beta\, \bigl(-t \log p - (1 - t) \log(1 - p)\bigr), \quad p = \mathrm{sigmoid}(x)

    Args:
        logits: as for :func:`sigmoid_focal_loss`.
        targets: dense, in [0, 1]; or class index with ``scores``.
        scores: of the class index targets' shape, in [0, 1]: t at the labelled class; it is 0 at every other. Without
            them a label's t is 1. They are not made dense; those of ignored and background labels are not looked at.
        beta: >= 0; 0 is binary cross entropy. A number or a 0-d tensor on the logits' device.
        reduction, class_dim, ignore_index, background_index, sample_weight, mask, normalizer, gradient, validate: as
            for :func:`sigmoid_focal_loss`. Positives are labelled rows, or dense targets > 0.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the logits' shape.

    Raises:
        TypeError, ValueError, IndexError: as :func:`sigmoid_focal_loss`.

    Numerics: as :func:`sigmoid_focal_loss`; where p nearly equals a soft t, ``t - p`` has the precision of p. At p = t
    the gradient is 0 for every beta.

    Cost: as :func:`sigmoid_focal_loss`; scores are read once.

    Equivalent to::

        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        loss = ((t - x.sigmoid()).abs() ** beta * ce).mean()

    Source: Li et al., Generalized Focal Loss, 2020.
    """
    return _elements(
        "quality_focal_loss", logits, targets, scores=scores, gamma=beta, gamma_name="beta", loss="quality",
        own={"scores": scores, "beta": beta}, reduction=reduction, class_dim=class_dim, ignore_index=ignore_index,
        background_index=background_index, sample_weight=sample_weight, mask=mask, normalizer=normalizer,
        gradient=gradient, validate=validate,
    )  # fmt: skip


def varifocal_loss(
    logits: Tensor,
    targets: Tensor,
    scores: Tensor | None = None,
    alpha: float = 0.75,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    iou_weighted: bool = True,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Varifocal loss (VFL): positives by their score, focal negatives.

    .. math:: L = \begin{cases} t\,\bigl(-t \log p - (1 - t) \log(1 - p)\bigr) & t > 0 \\
        -\alpha\, p^\gamma \log(1 - p) & t = 0 \end{cases}

    Args:
        logits: as for :func:`sigmoid_focal_loss`.
        targets: dense, in [0, 1]; or class index with ``scores``.
        scores: as for :func:`quality_focal_loss`.
        alpha: >= 0, of negatives.
        gamma: >= 0, of negatives. A number or a 0-d tensor on the logits' device.
        iou_weighted: whether the cross entropy of positives is multiplied by t.
        reduction, class_dim, ignore_index, background_index, sample_weight, mask, normalizer, gradient, validate: as
            for :func:`sigmoid_focal_loss`. Positives are labelled rows, or dense targets > 0.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the logits' shape.

    Raises:
        TypeError, ValueError, IndexError: as :func:`sigmoid_focal_loss`.

    Numerics: as :func:`sigmoid_focal_loss`.

    Cost: as :func:`sigmoid_focal_loss`; scores are read once.

    Equivalent to::

        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        loss = torch.where(t > 0, t, alpha * x.sigmoid() ** gamma) * ce

    Source: Zhang et al., VarifocalNet, 2021.
    """
    op = "varifocal_loss"
    alpha = _arguments.check_number(op, "alpha", alpha, 0.0, math.inf, "1 is no weighting")
    _arguments.check_flag(op, "iou_weighted", iou_weighted)
    return _elements(
        op, logits, targets, scores=scores, gamma=gamma, loss="varifocal", weights=(1.0, alpha),
        parameters=(float(iou_weighted),),
        own={"scores": scores, "alpha": alpha, "gamma": gamma, "iou_weighted": iou_weighted}, reduction=reduction,
        class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        sample_weight=sample_weight, mask=mask, normalizer=normalizer, gradient=gradient, validate=validate,
    )  # fmt: skip


def gaussian_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 2.0,
    gamma: float = 4.0,
    reduction: str = "mean",
    *,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    class_dim: int = 1,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Focal loss of heat maps with a Gaussian around every object: the nearer to a peak, the lighter a negative.

    .. math:: L = \begin{cases} -w_+ (1 - p)^\alpha \log p & t = 1 \\
        -w_- (1 - t)^\gamma p^\alpha \log(1 - p) & t < 1 \end{cases}

    Args:
        logits: any shape. Raw scores: no sigmoid before, and no clamp.
        targets: dense, in [0, 1], of the logits' shape; exactly 1 at peaks.
        alpha: >= 0, the focusing exponent. A number or a 0-d tensor on the logits' device.
        gamma: >= 0, how fast the weight of negatives falls towards a peak.
        pos_weight, neg_weight: >= 0, of peaks and of all else.
        reduction, class_dim, ignore_index, sample_weight, mask, normalizer, gradient, validate: as for
            :func:`sigmoid_focal_loss`. Positives are peaks: ``reduction="sum", normalizer="positives"`` is CenterNet's.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the logits' shape.

    Raises:
        TypeError, ValueError: as :func:`sigmoid_focal_loss`.

    Numerics: as :func:`sigmoid_focal_loss`.

    Cost: logits and targets are read once, the gradient is written once.

    Equivalent to::

        p = x.sigmoid()
        positive = (t == 1) * (1 - p) ** alpha * -p.log()
        loss = positive + (t < 1) * (1 - t) ** gamma * p**alpha * -(1 - p).log()

    Source: Law and Deng, CornerNet, 2018; Zhou et al., Objects as Points, 2019.
    """
    op = "gaussian_focal_loss"
    gamma = _arguments.check_number(op, "gamma", gamma, 0.0, math.inf, "0 weighs all negatives alike")
    weights = tuple(
        _arguments.check_number(op, name, value, 0.0, math.inf, "1 is no weighting")
        for name, value in (("pos_weight", pos_weight), ("neg_weight", neg_weight))
    )
    _arguments.check_tensors(op, logits, targets)
    if targets.shape != logits.shape:
        raise ValueError(
            f"{op}: expected targets of the logits' shape {list(logits.shape)}, got {list(targets.shape)}; pass heat "
            "maps, 1 at every peak."
        )
    return _elements(
        op, logits, targets, gamma=alpha, gamma_name="alpha", loss="gaussian", weights=weights, parameters=(gamma,),
        own={"alpha": alpha, "gamma": gamma, "pos_weight": pos_weight, "neg_weight": neg_weight},
        reduction=reduction, class_dim=class_dim, ignore_index=ignore_index, background_index=None,
        sample_weight=sample_weight, mask=mask, normalizer=normalizer, gradient=gradient, validate=validate,
    )  # fmt: skip


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    gamma_negative: float | Tensor = 4.0,
    gamma_positive: float = 1.0,
    margin: float = 0.05,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Asymmetric loss (ASL) of multi-label classification: exponents of their own for positives and negatives, and
    negatives that are easy enough left out.

    .. math:: L = \begin{cases} -(1 - p)^{\gamma_+} \log p & t = 1 \\ -p_m^{\gamma_-} \log(1 - p_m) & t = 0 \end{cases}
        \qquad p_m = \max(p - m, 0)

    Args:
        logits: as for :func:`sigmoid_focal_loss`.
        targets: dense, 0 or 1; or class index.
        gamma_negative: >= 0. A number or a 0-d tensor on the logits' device.
        gamma_positive: >= 0.
        margin: m in [0, 1).
        reduction, class_dim, ignore_index, background_index, sample_weight, mask, normalizer, gradient, validate: as
            for :func:`sigmoid_focal_loss`.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the logits' shape.

    Raises:
        TypeError, ValueError, IndexError: as :func:`sigmoid_focal_loss`; ValueError for soft targets.

    Numerics: as :func:`sigmoid_focal_loss`; nothing is clamped, so that hopeless positives keep their gradient.

    Cost: as :func:`sigmoid_focal_loss`.

    Equivalent to::

        p = x.sigmoid()
        p_m = (p - margin).clamp(min=0)
        loss = torch.where(
            t == 1, (1 - p) ** gamma_positive * -p.log(), p_m**gamma_negative * -(1 - p_m).log()
        )

    Source: Ridnik et al., Asymmetric Loss for Multi-Label Classification, 2021.
    """
    op = "asymmetric_loss"
    gamma_positive = _arguments.check_number(op, "gamma_positive", gamma_positive, 0.0, math.inf, "0 is cross entropy")
    margin = _arguments.check_smoothing(op, "margin", margin)
    return _elements(
        op, logits, targets, gamma=gamma_negative, gamma_name="gamma_negative", loss="asymmetric",
        parameters=(gamma_positive, margin),
        own={"gamma_negative": gamma_negative, "gamma_positive": gamma_positive, "margin": margin},
        reduction=reduction, class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        sample_weight=sample_weight, mask=mask, normalizer=normalizer, gradient=gradient, validate=validate,
    )  # fmt: skip


def poly_focal_loss(
    logits: Tensor,
    targets: Tensor,
    epsilon: float = 1.0,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    activation: str = "sigmoid",
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Poly-1 focal loss: the focal loss with the first coefficient of its expansion in 1 - p changed by epsilon.

    .. math:: L = \alpha_t \bigl(-(1 - p_t)^\gamma \log p_t + \epsilon (1 - p_t)^{\gamma + 1}\bigr)

    Args:
        logits, targets: as for :func:`sigmoid_focal_loss` or :func:`softmax_focal_loss`; hard targets.
        epsilon: >= -1; 0 is the focal loss.
        alpha, gamma: as for the focal loss of the activation; gamma is one number or a 0-d tensor.
        activation: ``"sigmoid"`` or ``"softmax"``.
        reduction, class_dim, ignore_index, background_index, sample_weight, mask, normalizer, gradient, validate: as
            for the focal loss of the activation.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the shape of the activation's unreduced loss.

    Raises:
        TypeError, ValueError, IndexError: as the focal loss of the activation; ValueError for soft targets.

    Numerics: as the focal loss.

    Cost: as the focal loss.

    Equivalent to::

        ce = F.cross_entropy(logits, targets, reduction="none")
        q = 1 - torch.exp(-ce)
        loss = (q**gamma * ce + epsilon * q ** (gamma + 1)).mean()

    Source: Leng et al., PolyLoss, 2022.
    """
    op = "poly_focal_loss"
    epsilon = _arguments.check_number(op, "epsilon", epsilon, -1.0, math.inf, "0 is the focal loss")
    return _by_activation(
        op, activation, logits, targets, alpha, gamma=gamma, loss="shaped", parameters=(1.0, 0.0, -1.0, epsilon),
        own={"epsilon": epsilon}, reduction=reduction, class_dim=class_dim, ignore_index=ignore_index,
        background_index=background_index, sample_weight=sample_weight, mask=mask, normalizer=normalizer,
        gradient=gradient, validate=validate,
    )  # fmt: skip


def reduced_focal_loss(
    logits: Tensor,
    targets: Tensor,
    threshold: float = 0.5,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    reduction: str = "mean",
    *,
    activation: str = "sigmoid",
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Reduced focal loss: hard examples keep their whole cross entropy, and easy ones are focused less.

    .. math:: L = -\alpha_t\, m \log p_t, \quad
        m = \begin{cases} 1 & p_t < \theta \\ ((1 - p_t) / \theta)^\gamma & p_t \ge \theta \end{cases}

    Args:
        logits, targets: as for :func:`sigmoid_focal_loss` or :func:`softmax_focal_loss`; hard targets.
        threshold: in (0, 1]; at 0.5 the factor is continuous.
        alpha, gamma: as for the focal loss of the activation; gamma is one number or a 0-d tensor.
        activation: ``"sigmoid"`` or ``"softmax"``.
        reduction, class_dim, ignore_index, background_index, sample_weight, mask, normalizer, gradient, validate: as
            for the focal loss of the activation.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the shape of the activation's unreduced loss.

    Raises:
        TypeError, ValueError, IndexError: as the focal loss of the activation; ValueError for soft targets.

    Numerics: as the focal loss.

    Cost: as the focal loss.

    Equivalent to::

        ce = F.cross_entropy(logits, targets, reduction="none")
        p = torch.exp(-ce)
        loss = (torch.where(p < threshold, 1, ((1 - p) / threshold) ** gamma) * ce).mean()

    Source: Sergievskiy and Ponamarev, Reduced Focal Loss, 2019; as segmentation_models.pytorch has it.
    """
    op = "reduced_focal_loss"
    threshold = _arguments.check_number(op, "threshold", threshold, 0.0, 1.0, "0.5 makes the factor continuous")
    if threshold == 0.0:
        raise ValueError(f"{op}: expected threshold in (0, 1], got {threshold}; use the focal loss for none.")
    return _by_activation(
        op, activation, logits, targets, alpha, gamma=gamma, loss="shaped",
        parameters=(1.0 / threshold, 0.0, threshold, 0.0), own={"threshold": threshold}, reduction=reduction,
        class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        sample_weight=sample_weight, mask=mask, normalizer=normalizer, gradient=gradient, validate=validate,
    )  # fmt: skip


def normalized_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float | Tensor = 2.0,
    *,
    activation: str = "sigmoid",
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Normalized focal loss: the mean cross entropy, weighed by the modulating factors, so that training keeps its
    pace when most examples have become easy.

    .. math:: L = \frac{-\sum \alpha_t (1 - p_t)^\gamma \log p_t}{\sum (1 - p_t)^\gamma}

    Args:
        logits, targets: as for :func:`sigmoid_focal_loss` or :func:`softmax_focal_loss`; hard targets.
        alpha, gamma: as for the focal loss of the activation; gamma is one number or a 0-d tensor.
        activation: ``"sigmoid"`` or ``"softmax"``.
        sample_weight: multiplies the factors in both sums.
        class_dim, ignore_index, background_index, mask, validate: as for the focal loss of the activation.
        gradient: ``"auto"``, ``"forward"`` and ``"backward"`` are the same: before both sums are known there is none.

    Returns:
        float32 (float64 for float64 logits): a scalar. 0 where nothing is counted or every factor is 0.

    Raises:
        TypeError, ValueError, IndexError: as the focal loss of the activation; ValueError for soft targets.

    Numerics: as the focal loss; the gradient goes through both sums.

    Cost: two passes over the logits forward, one for each sum, and one backward, which writes the gradient. With an
    alpha of roles or classes two backward; their gradients are added, of half types after being rounded.

    Equivalent to::

        ce = F.cross_entropy(logits, targets, reduction="none")
        factor = (1 - torch.exp(-ce)) ** gamma
        loss = (factor * ce).sum() / factor.sum()

    Source: Zheng et al., Focus on the Positives, 2020; as segmentation_models.pytorch's ``normalized``.
    """
    op = "normalized_focal_loss"
    if gradient == "inplace":
        raise ValueError(
            f'{op}: expected gradient "auto", "forward" or "backward", got {gradient!r}: two sums need the logits; '
            'use "auto".'
        )
    return _by_activation(
        op, activation, logits, targets, alpha, gamma=gamma, loss="normalized", own={}, reduction="sum",
        class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        sample_weight=sample_weight, mask=mask, normalizer=None, gradient=gradient, validate=validate,
        route=_normalized.loss,
    )  # fmt: skip


def _elements(
    op: str,
    logits: Tensor,
    targets: Tensor,
    *,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    mask: Tensor | None,
    own: dict,
    validate: bool | None,
    scores: Tensor | None = None,
    **common,
) -> Tensor:
    """A loss of elements. own: what the composite takes besides what all do."""
    told = _targets.of_elements(
        op, logits, targets, class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        mask=mask, scores=scores, validate=validate,
    )  # fmt: skip
    options = {
        **own, "reduction": common["reduction"], "class_dim": told.class_dim, "ignore_index": told.ignore_index,
        "sample_weight": common["sample_weight"], "normalizer": common["normalizer"],
    }  # fmt: skip
    if "scores" in own:
        options["scores"] = told.scores
    if op != "gaussian_focal_loss":
        options["background_index"] = background_index
    return _calls.compute(
        op, SIGMOID, logits, told.targets, class_dim=told.class_dim, ignore_index=told.ignore_index,
        background_index=background_index, scores=told.scores, validate=validate, options=options, **common,
    )  # fmt: skip


def _by_activation(
    op: str,
    activation: str,
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None,
    *,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    mask: Tensor | None,
    validate: bool | None,
    own: dict,
    **common,
) -> Tensor:
    """A loss of hard targets with an activation to choose. own: what the composite takes besides what all do."""
    if activation not in ("sigmoid", "softmax"):
        raise ValueError(f'{op}: expected activation "sigmoid" or "softmax", got {activation!r}; choose one of them.')
    told = {"class_dim": class_dim, "ignore_index": ignore_index, "background_index": background_index, "mask": mask}
    if activation == "softmax":
        family = SOFTMAX
        targets, class_dim, ignore_index, _ = _targets.of_positions(op, logits, targets, **told)
        weight, vector = _weights.softmax_weights(op, logits, alpha, class_dim, validate)
        weights = (weight, weight)
        _arguments.check_background_of_positives(op, common["normalizer"], background_index)
    else:
        family = SIGMOID
        targets, class_dim, ignore_index, _ = _targets.of_elements(op, logits, targets, by_class=(alpha,), **told)
        weights, vector = _weights.sigmoid_weights(op, logits, alpha, None, class_dim, validate)
    options = {
        **own, "class_dim": class_dim, "ignore_index": ignore_index, "background_index": background_index,
        "gamma": common["gamma"], "sample_weight": common["sample_weight"], "alpha": alpha, "activation": activation,
    }  # fmt: skip
    if op != "normalized_focal_loss":
        options |= {"reduction": common["reduction"], "normalizer": common["normalizer"]}
    return _calls.compute(
        op, family, logits, targets, weights=weights, vector=vector, class_dim=class_dim, ignore_index=ignore_index,
        background_index=background_index, validate=validate, options=options, **common,
    )  # fmt: skip
