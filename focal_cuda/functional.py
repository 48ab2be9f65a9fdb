"""The public functions: they check their arguments, say what is wrong in one sentence, and call the operators."""

from __future__ import annotations

import math
import os
from numbers import Real

import torch
from torch import Tensor

from . import _ops

__all__ = ["sigmoid_focal_loss", "softmax_focal_loss"]

_LOGITS_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_INDEX_DTYPES = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})
_GRADIENTS = frozenset({"auto", "forward", "backward", "inplace"})
_VALIDATE = os.environ.get("FOCAL_CUDA_VALIDATE", "0") not in ("", "0")

_SIGMOID = "sigmoid_focal_loss"
_SOFTMAX = "softmax_focal_loss"


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
            (``"backward"``). ``"inplace"``: over the logits, with no extra memory; they are gone after the call.
        validate: True also checks alpha's and normalizer's values, and on CUDA the targets, waiting for the device.
            Default: the environment variable FOCAL_CUDA_VALIDATE. On the CPU targets are always checked.

    Returns:
        float32 (float64 for float64 logits): a scalar, or the logits' shape. No element counted: 0, with zero gradient.

    Raises:
        TypeError: something is no tensor or number, or has a dtype of another kind.
        ValueError: a shape, device or value is out of place.
        IndexError: a class label is out of range.

    Numerics: computed in float32 (float64 for float64) from the margin, without ``1 - p``: relative error <= 4e-6 for
    every logit and gamma >= 0, finite gradients for gamma < 1 too. Sums in double, the same bits for any thread count.

    Cost: reads logits and targets once and writes the gradient once; saves nothing but references and the gradient.

    Equivalent to::

        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        loss = ((alpha * t + (1 - alpha) * (1 - t)) * (1 - torch.exp(-ce)) ** gamma * ce).mean()   # t in {0, 1}

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    _check_tensors(_SIGMOID, logits, targets)
    dense = targets.shape == logits.shape
    if not dense:
        class_dim = _check_index_targets(_SIGMOID, logits, targets, class_dim)
    elif isinstance(alpha, Tensor):
        class_dim = _check_class_dim(_SIGMOID, logits, class_dim)
    if dense and ignore_index in (0, 1):
        raise ValueError(
            f"{_SIGMOID}: expected ignore_index other than 0 and 1 with dense targets, whose labels these are, "
            f"got {ignore_index}; mark ignored elements with another value."
        )
    weights, vector = (1.0, 1.0), None
    if isinstance(alpha, Tensor):
        vector = _check_alpha_vector(_SIGMOID, logits, alpha, class_dim)
    elif alpha is not None:
        weight = _check_number(_SIGMOID, "alpha", alpha, 0.0, 1.0, "pass None for no weighting")
        weights = (weight, 1.0 - weight)
    if background_index is None:
        background = _ops.NO_BACKGROUND if dense else logits.shape[class_dim]
    else:
        background = background_index
    return _focal_loss(
        _SIGMOID, logits, targets, alpha, vector, weights, gamma, reduction, class_dim, ignore_index,
        background, background_index, normalizer, gradient, validate,
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
    relative error <= 2e-5 at every margin and gamma in [0, 5]. Sums in double, the same bits for any thread count.

    Cost: reads logits and targets once and writes the gradient once; saves nothing but references and the gradient.

    Equivalent to::

        ce = F.cross_entropy(logits, targets, reduction="none")
        loss = ((1 - torch.exp(-ce)) ** gamma * ce).mean()

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; for many classes as in segmentation practice.
    """
    _check_tensors(_SOFTMAX, logits, targets)
    class_dim = _check_index_targets(_SOFTMAX, logits, targets, class_dim)
    if logits.shape[class_dim] < 2:
        raise ValueError(
            f"{_SOFTMAX}: expected logits with at least 2 classes in dim {class_dim}, got {list(logits.shape)}, where "
            "the softmax is a constant; use sigmoid_focal_loss."
        )
    weight, vector = 1.0, None
    if isinstance(alpha, Tensor):
        vector = _check_alpha_vector(_SOFTMAX, logits, alpha, class_dim)
    elif alpha is not None:
        weight = _check_number(_SOFTMAX, "alpha", alpha, 0.0, math.inf, "pass None for no weighting")
    if isinstance(normalizer, str) and background_index is None:
        raise ValueError(
            f"{_SOFTMAX}: expected background_index with normalizer={normalizer!r}, got None; name the class that is "
            "no positive."
        )
    background = _ops.NO_BACKGROUND if background_index is None else background_index
    return _focal_loss(
        _SOFTMAX, logits, targets, alpha, vector, (weight, weight), gamma, reduction, class_dim, ignore_index,
        background, background_index, normalizer, gradient, validate,
    )  # fmt: skip


def _focal_loss(
    op, logits, targets, alpha, vector, weights, gamma, reduction, class_dim, ignore_index,
    background, background_index, normalizer, gradient, validate,
):  # fmt: skip
    """What both losses share, after their targets and alpha are understood."""
    if type(gamma) is not float or not 0.0 <= gamma < math.inf:
        gamma = _check_number(op, "gamma", gamma, 0.0, math.inf, "gamma = 0 is cross entropy")
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
        scale, divisor, kind = _check_normalizer(op, logits, normalizer, reduction)
    if gradient == "auto":
        policy = "backward" if reduction == "none" or logits.dtype == torch.float16 else "forward"
    else:
        policy = _check_gradient(op, logits, gradient, reduction)
    if validate or (validate is None and _VALIDATE):
        _check_values(op, logits, targets, vector, divisor, class_dim, ignore_index, background)
    numbers = _ops.Numbers(*weights, gamma, class_dim, ignore_index, background, _ops.REDUCTIONS[kind])
    composite = (alpha, gamma, reduction, class_dim, ignore_index, background_index, normalizer)
    return _ops.focal_loss(logits, targets, vector, divisor, _ops.Call(op, policy, scale, numbers, composite))


def _check_tensors(op: str, logits: Tensor, targets: Tensor) -> None:
    for name, value in (("logits", logits), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a tensor, got {type(value).__name__}; wrap it in torch.as_tensor."
            )
    if logits.dtype not in _LOGITS_DTYPES:
        raise TypeError(
            f"{op}: expected logits of a floating dtype (float32, bfloat16, float16, float64), got {logits.dtype}; "
            "convert them, and pass raw scores, not classes."
        )
    if logits.device.type not in _ops.DEVICES:
        raise NotImplementedError(
            f"{op}: expected logits on a device this build has kernels for ({', '.join(sorted(_ops.DEVICES))}), got "
            f"{logits.device}; move them, or use focal_cuda.reference.{op}, in plain torch operations."
        )
    if targets.device != logits.device:
        raise ValueError(
            f"{op}: expected targets on the logits' device {logits.device}, got {targets.device}; "
            f"move them: targets.to({str(logits.device)!r})."
        )
    if targets.requires_grad:
        raise ValueError(
            f"{op}: expected targets without gradient, got some that require it; none reaches them: detach them."
        )


def _check_class_dim(op: str, logits: Tensor, class_dim: int) -> int:
    rank = logits.dim()
    if type(class_dim) is not int and not isinstance(class_dim, int):
        raise TypeError(f"{op}: expected class_dim to be an int, got {type(class_dim).__name__}; pass one dimension.")
    if not -rank <= class_dim < rank:
        raise ValueError(
            f"{op}: expected class_dim in [{-rank}, {rank}) for logits of shape {list(logits.shape)}, got {class_dim}; "
            "name the dimension of the classes."
        )
    return class_dim % rank


def _check_index_targets(op: str, logits: Tensor, targets: Tensor, class_dim: int) -> int:
    """The non-negative class_dim, if targets are shaped as class indices for it."""
    dim = _check_class_dim(op, logits, class_dim)
    shape = logits.shape
    if targets.shape != shape[:dim] + shape[dim + 1 :]:
        expected = [*shape[:dim], *shape[dim + 1 :]]
        either = f" or {list(shape)} (dense)" if op == _SIGMOID else ""
        squeezed = [n for n in targets.shape if n != 1]
        if op == _SOFTMAX and targets.shape == shape:
            remedy = "pass class indices (targets.argmax of the class dimension)"
        elif squeezed == [n for n in expected if n != 1] and targets.dim() == len(expected) + 1:
            at = next(
                (d for d in range(targets.dim()) if list(targets.shape[:d] + targets.shape[d + 1 :]) == expected),
                0,
            )
            remedy = f"squeeze dim {at}"
        else:
            remedy = "nothing is broadcast: reshape the targets, or set class_dim"
        raise ValueError(
            f"{op}: expected targets of shape {expected} (logits without dim {dim}){either}, "
            f"got {list(targets.shape)} with logits {list(shape)}; {remedy}."
        )
    if targets.dtype not in _INDEX_DTYPES:
        raise TypeError(
            f"{op}: expected class index targets of an integer dtype, got {targets.dtype}; "
            "convert them: targets.long()."
        )
    return dim


def _check_number(op: str, name: str, value: object, low: float, high: float, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: expected {name} to be a number, got {type(value).__name__}; {remedy}.")
    number = float(value)
    if not (low <= number <= high and number < math.inf):
        bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{op}: expected {name} {bounds} and finite, got {value}; {remedy}.")
    return number


def _check_companion(op: str, name: str, logits: Tensor, tensor: Tensor) -> None:
    if tensor.device != logits.device:
        raise ValueError(
            f"{op}: expected {name} on the logits' device {logits.device}, got {tensor.device}; "
            f"move it: {name}.to({str(logits.device)!r})."
        )
    if tensor.requires_grad:
        raise ValueError(
            f"{op}: expected {name} without gradient, got one that requires grad; no gradient reaches it: detach it."
        )


def _check_alpha_vector(op: str, logits: Tensor, alpha: Tensor, class_dim: int) -> Tensor:
    classes = logits.shape[class_dim]
    if alpha.shape != (classes,):
        raise ValueError(
            f"{op}: expected alpha of shape [{classes}] (one number per class of dim {class_dim}), "
            f"got {list(alpha.shape)}; pass one entry per class, or a number."
        )
    if not alpha.is_floating_point():
        raise TypeError(f"{op}: expected alpha of a floating dtype, got {alpha.dtype}; convert it: alpha.float().")
    _check_companion(op, "alpha", logits, alpha)
    computing = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return alpha.to(computing).contiguous()


def _check_normalizer(
    op: str, logits: Tensor, normalizer: float | Tensor | str, reduction: str
) -> tuple[float, Tensor | None, str]:
    """What a sum is multiplied by, the tensor it is divided by, and the kind of reduction."""
    if reduction != "sum":
        raise ValueError(
            f'{op}: expected reduction="sum" with a normalizer, which divides it, got reduction={reduction!r}; '
            'pass reduction="sum".'
        )
    if isinstance(normalizer, str):
        if normalizer != "positives":
            raise ValueError(
                f'{op}: expected normalizer to be a number, a one-element tensor or "positives", got {normalizer!r}; '
                "choose one of them."
            )
        return 1.0, None, "positives"
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1 or normalizer.is_complex():
            raise ValueError(
                f"{op}: expected normalizer with one real element, got {normalizer.dtype} of shape "
                f"{list(normalizer.shape)}; reduce it first: normalizer.sum()."
            )
        _check_companion(op, "normalizer", logits, normalizer)
        return 1.0, normalizer, "sum"
    number = _check_number(op, "normalizer", normalizer, 0.0, math.inf, "clamp a count to at least 1")
    if number == 0.0:
        raise ValueError(f"{op}: expected normalizer > 0, got {normalizer}; clamp a count to at least 1.")
    return 1.0 / number, None, "sum"


def _check_gradient(op: str, logits: Tensor, gradient: str, reduction: str) -> str:
    if gradient != "backward" and reduction == "none":
        raise ValueError(
            f'{op}: expected gradient "auto" or "backward" with reduction="none", whose upstream gradient is not known '
            f'in the forward pass, got {gradient!r}; reduce the loss, or use "auto".'
        )
    if gradient == "inplace":
        if not logits.requires_grad or not torch.is_grad_enabled():
            raise ValueError(
                f'{op}: expected logits that require grad with gradient="inplace", got logits that need none; '
                'use "auto", which writes no gradient then.'
            )
        if logits.is_leaf:
            raise ValueError(
                f'{op}: expected logits made by a layer with gradient="inplace", got a leaf, which would lose its '
                'values; use "auto".'
            )
        if not torch.compiler.is_compiling() and _overlaps_itself(logits):
            raise ValueError(
                f'{op}: expected logits whose elements have memory of their own with gradient="inplace", got expanded '
                'ones; use "auto".'
            )
    return gradient


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may share memory: a stride within the reach of the smaller ones."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _check_values(op, logits, targets, vector, divisor, class_dim, ignore_index, background) -> None:
    """The checks that read values, and so wait for the device."""
    if vector is not None:
        bad = (vector < 0) | (vector > 1) | vector.isnan() if op == _SIGMOID else ~(vector >= 0)
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            bounds = "in [0, 1]" if op == _SIGMOID else ">= 0"
            raise ValueError(
                f"{op}: expected alpha {bounds}, got alpha[{at}] = {vector[at].item():g}; correct the weights."
            )
    if divisor is not None and not bool(divisor >= 0):
        raise ValueError(f"{op}: expected normalizer >= 0, got {divisor.item():g}; clamp a count to at least 1.")
    if targets.shape == logits.shape:
        bad = ~((targets == ignore_index) | ((targets >= 0) & (targets <= 1)))
        error, allowed = ValueError, f"dense targets in [0, 1] or equal to ignore_index ({ignore_index})"
    else:
        classes = logits.shape[class_dim]
        labels = targets.long()
        bad = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
        allowed = f"class labels in [0, {classes})"
        if op == _SIGMOID:
            bad &= labels != background
            allowed += f", background_index ({background})"
        error, allowed = IndexError, f"{allowed} or ignore_index ({ignore_index})"
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise error(
            f"{op}: expected {allowed}, got targets{at} = {targets[tuple(at)].item()}; "
            "fix the labels or set ignore_index."
        )
