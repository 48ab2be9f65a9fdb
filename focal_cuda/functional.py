"""The public functions: they check their arguments, say what is wrong in one sentence, and call the operators."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from . import _arguments, _ops
from ._arguments import SIGMOID, SOFTMAX

__all__ = ["sigmoid_focal_loss", "softmax_focal_loss"]

_GRADIENTS = ("auto", "forward", "backward", "inplace")
_VALIDATE = os.environ.get("FOCAL_CUDA_VALIDATE", "0") not in ("", "0")


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
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
            in [0, 1] of any dtype (strictly between: soft, by the formula above).
        alpha: None (no weights), a number in [0, 1] (``alpha`` for positives, ``1 - alpha`` for negatives), or a
            tensor ``[C]`` of them.
        gamma: >= 0; 0 is binary cross entropy.
        reduction: ``"none"`` (the logits' shape), ``"mean"`` over the elements that are not ignored, or ``"sum"``.
        class_dim: the dimension of the classes; as F.cross_entropy by default.
        ignore_index: rows with this label, or dense elements with this value, give 0 and get a gradient of exactly 0,
            whatever their logits.
        background_index: the label that is negative for every class; C by default.
        normalizer: divides a ``"sum"``: a number > 0, a one-element tensor on the logits' device (read there; 0 gives
            a loss of 0), or ``"positives"``: the number of positive rows (dense: of targets > 0), at least 1.
        gradient: ``"auto"``: made together with the loss for a scalar reduction (``"forward"``), except for float16,
            whose small numbers would underflow before the loss scale is known, and unreduced losses: those recompute
            (``"backward"``). ``"inplace"``: over the logits, with no extra memory; they are gone after the call
            (if they are a view, differentiate by ``loss.backward()``, not by ``autograd.grad(loss, logits)``).
        validate: True also checks alpha's and normalizer's values, and on CUDA the targets, waiting for the device.
            Default: the environment variable FOCAL_CUDA_VALIDATE. On the CPU targets are always checked.

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
    _arguments.check_tensors(SIGMOID, logits, targets)
    if targets.shape != logits.shape:
        class_dim = _arguments.check_index_targets(SIGMOID, logits, targets, class_dim)
    else:
        _arguments.check_dense_targets(SIGMOID, targets, ignore_index)
        if isinstance(alpha, Tensor):
            class_dim = _arguments.check_class_dim(SIGMOID, logits, class_dim)
    weights, vector = (1.0, 1.0), None
    if isinstance(alpha, Tensor):
        vector = _arguments.check_alpha_vector(SIGMOID, logits, alpha, class_dim)
    elif alpha is not None:
        weight = _arguments.check_number(SIGMOID, "alpha", alpha, 0.0, 1.0, "pass None for no weighting")
        weights = (weight, 1.0 - weight)
    return _focal_loss(
        SIGMOID, logits, targets, alpha, vector, weights, gamma, reduction, class_dim, ignore_index,
        background_index, normalizer, gradient, validate,
    )  # fmt: skip


def softmax_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    normalizer: float | Tensor | str | None = None,
    gradient: str = "auto",
    validate: bool | None = None,
) -> Tensor:
    r"""Softmax (multi-class) focal loss of raw logits, in one pass over them.

    .. math:: L = -\alpha_t (1 - p_t)^\gamma \log p_t, \quad p = \mathrm{softmax}(x), \quad t = \text{target}

    Args:
        logits: float32, bfloat16, float16 or float64 ``[N, C]``, ``[N, C, d1, ...]``, or the C >= 2 classes at any
            ``class_dim``; any strides (channels_last, slices), none is copied. Raw scores: no softmax before.
        targets: class index, shaped like the logits without ``class_dim``, any integer dtype or bool, read as it is.
        alpha: None, a number >= 0 (one factor for all), or a tensor ``[C]`` (``alpha[target]``).
        gamma: >= 0; 0 is cross entropy.
        reduction: ``"none"`` (the targets' shape), ``"mean"`` over the positions that are not ignored, or ``"sum"``.
        class_dim: the dimension of the classes; as F.cross_entropy by default.
        ignore_index: positions with this label give 0 and get a gradient of exactly 0, whatever their logits.
        background_index: the class that ``normalizer="positives"`` does not count; the loss treats it as any other.
        normalizer: divides a ``"sum"``: a number > 0, a one-element tensor on the logits' device (read there; 0 gives
            a loss of 0), or ``"positives"``: positions neither ignored nor background, at least 1.
        gradient: as for :func:`sigmoid_focal_loss`.
        validate: as for :func:`sigmoid_focal_loss`.

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
    _arguments.check_tensors(SOFTMAX, logits, targets)
    class_dim = _arguments.check_index_targets(SOFTMAX, logits, targets, class_dim)
    if logits.shape[class_dim] < 2:
        raise ValueError(
            f"{SOFTMAX}: expected logits with at least 2 classes in dim {class_dim}, got {list(logits.shape)}, where "
            "the softmax is a constant; use sigmoid_focal_loss."
        )
    weight, vector = 1.0, None
    if isinstance(alpha, Tensor):
        vector = _arguments.check_alpha_vector(SOFTMAX, logits, alpha, class_dim)
    elif alpha is not None:
        weight = _arguments.check_number(SOFTMAX, "alpha", alpha, 0.0, math.inf, "pass None for no weighting")
    if isinstance(normalizer, str) and normalizer == "positives" and background_index is None:
        raise ValueError(
            f"{SOFTMAX}: expected background_index with normalizer={normalizer!r}, got None; name the class that is "
            "no positive."
        )
    return _focal_loss(
        SOFTMAX, logits, targets, alpha, vector, (weight, weight), gamma, reduction, class_dim, ignore_index,
        background_index, normalizer, gradient, validate,
    )  # fmt: skip


def _focal_loss(
    op, logits, targets, alpha, vector, weights, gamma, reduction, class_dim, ignore_index,
    background_index, normalizer, gradient, validate,
):  # fmt: skip
    """What both losses share, after their targets and alpha are understood."""
    if type(gamma) is not float or not 0.0 <= gamma < math.inf:
        gamma = _arguments.check_number(op, "gamma", gamma, 0.0, math.inf, "gamma = 0 is cross entropy")
    if type(ignore_index) is not int:
        _arguments.check_integer(op, "ignore_index", ignore_index)
    if background_index is not None and type(background_index) is not int:
        _arguments.check_integer(op, "background_index", background_index)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f'{op}: expected reduction to be "none", "mean" or "sum", got {reduction!r}; choose one of them.'
        )
    if gradient not in _GRADIENTS:
        raise ValueError(
            f'{op}: expected gradient to be "auto", "forward", "backward" or "inplace", got {gradient!r}; '
            "choose one of them."
        )
    scale, divisor, kind = 1.0, None, reduction
    if normalizer is not None:
        scale, divisor, kind = _arguments.check_normalizer(op, logits, normalizer, reduction)
    if gradient == "auto":
        policy = "backward" if reduction == "none" or logits.dtype == torch.float16 else "forward"
    else:
        policy = _arguments.check_gradient(op, logits, gradient, reduction)
    if validate or (validate is None and _VALIDATE):
        _arguments.check_values(op, logits, targets, vector, divisor, class_dim, ignore_index, background_index)
    background = _ops.NO_BACKGROUND if background_index is None else background_index
    numbers = _ops.Numbers(*weights, gamma, class_dim, ignore_index, background, _ops.REDUCTIONS[kind])
    composite = (alpha, gamma, reduction, class_dim, ignore_index, background_index, normalizer)
    return _ops.focal_loss(logits, targets, vector, divisor, _ops.Call(op, policy, scale, numbers, composite))
