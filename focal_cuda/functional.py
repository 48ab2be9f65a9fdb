"""The public functions of the two focal losses: they check their arguments, say what is wrong in one sentence, and call
the operators.
"""

from __future__ import annotations

from torch import Tensor

from . import _arguments, _calls, _probabilities, _targets, _weights
from ._arguments import SIGMOID, SOFTMAX

__all__ = ["sigmoid_focal_loss", "softmax_focal_loss"]


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
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Sigmoid (binary, one-vs-all) focal loss of raw logits, in one pass over them.

    .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t, \quad p = \mathrm{sigmoid}(x), \quad
        p_t = p\,t + (1 - p)(1 - t), \quad \alpha_t = \alpha t + (1 - \alpha)(1 - t)

    Args:
        logits: float32, bfloat16, float16 or float64; ``[N, C, ...]`` with class index targets (the classes at
            ``class_dim``), any shape with dense targets; any strides, none is copied. Raw scores: no sigmoid before.
        targets: class index, shaped like the logits without ``class_dim``, any integer dtype or bool: ``c`` in
            ``[0, C)`` is positive for class c and negative for the others; or dense, shaped like the logits, values
            in [0, 1] of any dtype (strictly between: soft, by the formula above). With a single class the label 0 is
            the positive one, so 0 and 1 of a binary problem are dense targets: ``[N, 1]`` for logits ``[N, 1]``.
        alpha: None (no weights), a number in [0, 1] (``alpha`` for positives, ``1 - alpha`` for negatives), or a
            tensor ``[C]`` of them.
        gamma: >= 0; 0 is binary cross entropy. A number, a 0-d tensor on the logits' device (read there: it may change
            without recompiling or capturing a graph again), or a tensor ``[C]``, one for each class.
        reduction: ``"none"`` (the logits' shape), ``"mean"`` over the elements that are not ignored, or ``"sum"``.
        class_dim: the dimension of the classes; as F.cross_entropy by default.
        ignore_index: rows with this label, or dense elements with this value, give 0 and get a gradient of exactly 0,
            whatever their logits.
        background_index: the label that is negative for every class; C by default.
        sample_weight: floating, multiplies the unreduced loss: of the index targets' shape (one for each row), or
            anything that broadcasts to the logits with as many dimensions; not copied. Where it is exactly 0, loss and
            gradient are 0 whatever the logits. A mean still divides by the number of counted elements.
        mask: bool, shaped as sample_weight; False is ignored as by ignore_index.
        pos_weight: a number >= 0 or a tensor ``[C]``: multiplies alpha of positives.
        label_smoothing: s in [0, 1): targets become ``t (1 - s) + s / 2`` for everything but normalizer="positives".
        probability_smoothing: s in [0, 1): the modulating factor is ``(1 - (p_t (1 - s) + s / 2))^gamma``, which never
            vanishes; for parity with codes that need it, hard targets only. Gradients are finite without it.
        from_probabilities: the logits are probabilities, and so is what the gradient is by. -log p is at most 100 and
            1 / p at most 1e12, as in F.binary_cross_entropy.
        ohem_keep_ratio: r in (0, 1]: the mean of the ``max(1, int(n r))`` largest of the n counted losses, gradients
            through those alone; of equal losses the first. Only with reduction="mean", without a normalizer and with
            sample weights >= 0.
        ohem_threshold: v >= 0: the mean of the losses > v; with ohem_keep_ratio, of the larger of the two sets.
        normalizer: divides a ``"sum"``: a number > 0, a one-element tensor on the logits' device (read there; 0 gives
            a loss of 0), or ``"positives"``: the number of positive rows (dense: of targets > 0), at least 1.
        gradient: ``"auto"``: made together with the loss for a scalar reduction (``"forward"``), except for float16,
            whose small numbers would underflow before the loss scale is known, and unreduced losses: those recompute
            (``"backward"``). ``"inplace"``: over the logits, with no extra memory; they are gone after the call
            (if they are a view, differentiate by ``loss.backward()``, not by ``autograd.grad(loss, logits)``). Under
            ``torch.no_grad()`` nothing is written.
        validate: True also checks the values of tensors (sample_weight, normalizer; on CUDA the targets, alpha, gamma
            and pos_weight, too), waiting for the device. Default: the environment variable FOCAL_CUDA_VALIDATE. On the
            CPU targets, alpha, gamma and pos_weight are always checked.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the logits' shape. No element counted: 0, with zero gradient.

    Raises:
        TypeError: something is no tensor or number, or has a dtype of another kind.
        ValueError: a shape, device or value is out of place.
        IndexError: a class label is out of range.

    Numerics: computed in float32 (float64 for float64) from the margin, without ``1 - p``: relative error <= 2e-5 at
    every margin and gamma in [0, 5] (worst seen: 1.0e-5), finite gradients for gamma < 1 too. Sums in float32 within a
    tile of at most 2048 elements, in double beyond; the same bits for any thread count.

    Cost: reads logits and targets once and writes the gradient once; saves nothing but references and the gradient.

    Equivalent to::

        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        loss = ((alpha * t + (1 - alpha) * (1 - t)) * (1 - torch.exp(-ce)) ** gamma * ce).mean()   # t in {0, 1}

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    targets, class_dim, ignore_index, _ = _targets.of_elements(
        SIGMOID, logits, targets, class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        mask=mask, by_class=(alpha, gamma, pos_weight),
    )  # fmt: skip
    weights, vector = _weights.sigmoid_weights(SIGMOID, logits, alpha, pos_weight, class_dim, validate)
    loss, parameters = "focal", ()
    if label_smoothing != 0.0:
        label_smoothing = _arguments.check_smoothing(SIGMOID, "label_smoothing", label_smoothing)
    if probability_smoothing != 0.0:
        s = _arguments.check_smoothing(SIGMOID, "probability_smoothing", probability_smoothing)
        loss, parameters = "shaped", (1.0 - s, s, -1.0, 0.0)
    _arguments.check_flag(SIGMOID, "from_probabilities", from_probabilities)
    if from_probabilities:
        loss = "probability"
    if loss != "focal":
        _arguments.check_combination(SIGMOID, label_smoothing, probability_smoothing, from_probabilities)
    options = {
        "alpha": alpha, "gamma": gamma, "reduction": reduction, "class_dim": class_dim, "ignore_index": ignore_index,
        "background_index": background_index, "sample_weight": sample_weight, "pos_weight": pos_weight,
        "label_smoothing": label_smoothing, "probability_smoothing": probability_smoothing,
        "from_probabilities": from_probabilities, "normalizer": normalizer,
    }  # fmt: skip
    return _calls.compute(
        SIGMOID, SIGMOID, logits, targets, weights=weights, vector=vector, gamma=gamma, sample_weight=sample_weight,
        smoothing=label_smoothing, loss=loss, parameters=parameters, reduction=reduction, class_dim=class_dim,
        ignore_index=ignore_index, background_index=background_index, normalizer=normalizer, gradient=gradient,
        validate=validate, options=options, gamma_by_class=True, ohem=(ohem_keep_ratio, ohem_threshold),
    )  # fmt: skip


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
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Softmax (multi-class) focal loss of raw logits, in one pass over them.

    .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t, \quad p = \mathrm{softmax}(x), \quad t = \text{target}

    Args:
        logits: float32, bfloat16, float16 or float64 ``[N, C]``, ``[N, C, d1, ...]``, or the C >= 2 classes at any
            ``class_dim``; any strides (channels_last, slices), none is copied. Raw scores: no softmax before.
        targets: class index, shaped like the logits without ``class_dim``, any integer dtype or bool, read as it is;
            or soft, floating and shaped like the logits, ``y >= 0``: the loss is then
            ``sum_c y_c alpha_c (1 - p_c)^gamma (-log p_c)``, and a position is ignored where ``y_0 == ignore_index``.
        alpha: None, a number >= 0 (one factor for all), or a tensor ``[C]`` (``alpha[target]``).
        gamma: >= 0; 0 is cross entropy. A number, a 0-d tensor on the logits' device (read there: it may change without
            recompiling or capturing a graph again), or a tensor ``[C]`` (``gamma[target]``).
        reduction: ``"none"`` (the targets' shape), ``"mean"`` over the positions that are not ignored, or ``"sum"``.
        class_dim: the dimension of the classes; as F.cross_entropy by default.
        ignore_index: positions with this label give 0 and get a gradient of exactly 0, whatever their logits.
        background_index: the class that ``normalizer="positives"`` does not count; the loss treats it as any other.
        sample_weight: floating, multiplies the unreduced loss: anything that broadcasts to the positions; not copied.
            Where it is exactly 0, loss and gradient are 0 whatever the logits. A mean still divides by the number of
            counted positions.
        mask: bool, shaped as sample_weight; False is ignored as by ignore_index.
        label_smoothing: s in [0, 1): ``y_c (1 - s) + s / C`` of every class, without making them; as F.cross_entropy.
        probability_smoothing: s in [0, 1): the modulating factor is ``(1 - (p_t (1 - s) + s / C))^gamma``; class index
            targets only.
        from_probabilities: the logits are probabilities, taken as they are (not normalised again), and so is what the
            gradient is by: for class index targets it reaches ``p_t`` alone. -log p is at most 100 and 1 / p at most
            1e12, as in F.binary_cross_entropy.
        ohem_keep_ratio: as for :func:`sigmoid_focal_loss`, of positions.
        ohem_threshold: as for :func:`sigmoid_focal_loss`, of positions.
        normalizer: divides a ``"sum"``: a number > 0, a one-element tensor on the logits' device (read there; 0 gives
            a loss of 0), or ``"positives"``: positions neither ignored nor background, at least 1.
        gradient: as for :func:`sigmoid_focal_loss`.
        validate: as for :func:`sigmoid_focal_loss`; soft targets are checked with True alone, on the CPU as well.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the targets' shape. Nothing counted: 0, with zero gradient.

    Raises:
        TypeError: something is no tensor or number, or has a dtype of another kind.
        ValueError: a shape, device or value is out of place.
        IndexError: a class label is out of range.

    Numerics: computed in float32 (float64 for float64) from the margin ``x_t - logsumexp(others)``, without ``1 - p``:
    relative error <= 2e-5 at every margin and gamma in [0, 5]. Sums in float32 within a tile of at most
    2048 elements, in double beyond; the same bits for any thread count.

    Cost: reads logits and targets once and writes the gradient once; saves nothing but references and the gradient.

    Equivalent to::

        ce = F.cross_entropy(logits, targets, reduction="none")
        loss = ((1 - torch.exp(-ce)) ** gamma * ce).mean()

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; for many classes as in segmentation practice.
    """
    targets, class_dim, ignore_index, _ = _targets.of_positions(
        SOFTMAX, logits, targets, class_dim=class_dim, ignore_index=ignore_index, background_index=background_index,
        mask=mask, soft=True,
    )  # fmt: skip
    soft = targets.dim() == logits.dim()
    weight, vector = _weights.softmax_weights(SOFTMAX, logits, alpha, class_dim, validate)
    of_positives = _arguments.check_background_of_positives(SOFTMAX, normalizer, background_index)
    loss, parameters = "focal", ()
    if label_smoothing != 0.0:
        label_smoothing = _arguments.check_smoothing(SOFTMAX, "label_smoothing", label_smoothing)
    if probability_smoothing != 0.0:
        s = _arguments.check_smoothing(SOFTMAX, "probability_smoothing", probability_smoothing)
        loss, parameters = "shaped", (1.0 - s, s, -1.0, 0.0)
        _arguments.check_combination(SOFTMAX, label_smoothing or soft, probability_smoothing, from_probabilities)
    options = {
        "alpha": alpha, "gamma": gamma, "reduction": reduction, "class_dim": class_dim, "ignore_index": ignore_index,
        "background_index": background_index, "sample_weight": sample_weight, "label_smoothing": label_smoothing,
        "probability_smoothing": probability_smoothing, "from_probabilities": from_probabilities,
        "normalizer": normalizer,
    }  # fmt: skip
    _arguments.check_flag(SOFTMAX, "from_probabilities", from_probabilities)
    if soft and of_positives and reduction == "sum":
        normalizer = _calls.positives_of_soft(targets, class_dim, ignore_index, background_index)
    common = {
        "gamma": gamma, "sample_weight": sample_weight, "reduction": reduction, "class_dim": class_dim,
        "ignore_index": ignore_index, "background_index": background_index, "normalizer": normalizer,
        "gradient": gradient, "validate": validate, "options": options, "ohem": (ohem_keep_ratio, ohem_threshold),
    }  # fmt: skip
    if from_probabilities:
        return _probabilities.softmax(logits, targets, vector, weight, **common)
    return _calls.compute(
        SOFTMAX, SOFTMAX, logits, targets, weights=(weight, weight), vector=vector, smoothing=label_smoothing,
        loss=loss, parameters=parameters, gamma_by_class=True, **common,
    )  # fmt: skip
