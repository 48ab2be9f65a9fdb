"""What the public functions accept: every check of an argument, and the sentence that says what is wrong with it.

The sentences have one form: the function, what was expected, what came, and the remedy.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from . import _ops

SIGMOID = "sigmoid_focal_loss"
SOFTMAX = "softmax_focal_loss"

_LOGITS_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_INDEX_DTYPES = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})


def check_tensors(op: str, logits: Tensor, targets: Tensor) -> None:
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


def check_integer(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: expected {name} to be an int, got {type(value).__name__}; pass one label or dimension.")


def check_class_dim(op: str, logits: Tensor, class_dim: int) -> int:
    rank = logits.dim()
    if type(class_dim) is not int:
        check_integer(op, "class_dim", class_dim)
    if not -rank <= class_dim < rank:
        raise ValueError(
            f"{op}: expected class_dim in [{-rank}, {rank}) for logits of shape {list(logits.shape)}, got {class_dim}; "
            "name the dimension of the classes."
        )
    return class_dim % rank


def check_index_targets(op: str, logits: Tensor, targets: Tensor, class_dim: int) -> int:
    """The non-negative class_dim, if targets are shaped as class indices for it."""
    dim = check_class_dim(op, logits, class_dim)
    shape = logits.shape
    if targets.shape != shape[:dim] + shape[dim + 1 :]:
        expected = [*shape[:dim], *shape[dim + 1 :]]
        either = f" or {list(shape)} (dense)" if op == SIGMOID else ""
        squeezed = [n for n in targets.shape if n != 1]
        if op == SOFTMAX and targets.shape == shape:
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


def check_dense_targets(op: str, targets: Tensor, ignore_index: int) -> None:
    if targets.dtype not in _INDEX_DTYPES and targets.dtype not in _LOGITS_DTYPES:
        raise TypeError(
            f"{op}: expected dense targets of a floating or integer dtype or bool, got {targets.dtype}; "
            "convert them: targets.float()."
        )
    if ignore_index in (0, 1):
        raise ValueError(
            f"{op}: expected ignore_index other than 0 and 1 with dense targets, whose labels these are, "
            f"got {ignore_index}; mark ignored elements with another value."
        )


def check_number(op: str, name: str, value: object, low: float, high: float, remedy: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: expected {name} to be a number, got {type(value).__name__}; {remedy}.")
    number = float(value)
    if not (low <= number <= high and number < math.inf):
        bounds = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{op}: expected {name} {bounds} and finite, got {value}; {remedy}.")
    return number


def check_companion(op: str, name: str, logits: Tensor, tensor: Tensor) -> None:
    if tensor.device != logits.device:
        raise ValueError(
            f"{op}: expected {name} on the logits' device {logits.device}, got {tensor.device}; "
            f"move it: {name}.to({str(logits.device)!r})."
        )
    if tensor.requires_grad:
        raise ValueError(
            f"{op}: expected {name} without gradient, got one that requires grad; no gradient reaches it: detach it."
        )


def computing_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def check_floating(op: str, name: str, logits: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the computing dtype."""
    if not tensor.is_floating_point():
        raise TypeError(f"{op}: expected {name} of a floating dtype, got {tensor.dtype}; convert it: {name}.float().")
    check_companion(op, name, logits, tensor)
    return tensor.to(computing_dtype(logits))


def check_class_vector(op: str, name: str, logits: Tensor, vector: Tensor, class_dim: int) -> Tensor:
    classes = logits.shape[class_dim]
    if vector.shape != (classes,):
        raise ValueError(
            f"{op}: expected {name} of shape [{classes}] (one number per class of dim {class_dim}), "
            f"got {list(vector.shape)}; pass one entry per class, or a number."
        )
    return check_floating(op, name, logits, vector).contiguous()


def check_gamma_tensor(op: str, logits: Tensor, gamma: Tensor, class_dim: int, loss: str) -> Tensor:
    """A tensor of one number, or of one for each class where the loss has them."""
    if gamma.dim() == 0:
        return check_floating(op, "gamma", logits, gamma)
    if loss != "focal":
        raise ValueError(
            f"{op}: expected gamma to be one number with the other options given, got a tensor of shape "
            f"{list(gamma.shape)}; pass a number or a 0-d tensor."
        )
    return check_class_vector(op, "gamma", logits, gamma, class_dim)


def check_optional_class_dim(op: str, logits: Tensor, class_dim: int, *by_class: object) -> int:
    """class_dim of dense targets, which need none unless something has a number for each class."""
    if any(isinstance(value, Tensor) and value.dim() > 0 for value in by_class):
        return check_class_dim(op, logits, class_dim)
    return class_dim


def sigmoid_weights(
    op: str, logits: Tensor, alpha: float | Tensor | None, pos_weight: float | Tensor | None, class_dim: int
) -> tuple[tuple[float, float], Tensor | None]:
    """Of positives and negatives: two numbers, and [2, C] where classes have their own."""
    weights = (1.0, 1.0)
    if alpha is not None and not isinstance(alpha, Tensor):
        weight = check_number(op, "alpha", alpha, 0.0, 1.0, "pass None for no weighting")
        weights = (weight, 1.0 - weight)
    if pos_weight is not None and not isinstance(pos_weight, Tensor):
        factor = check_number(op, "pos_weight", pos_weight, 0.0, math.inf, "pass None for no weighting")
        weights = (weights[0] * factor, weights[1])
    if not (isinstance(alpha, Tensor) or isinstance(pos_weight, Tensor)):
        return weights, None
    if isinstance(alpha, Tensor):
        alpha = check_class_vector(op, "alpha", logits, alpha, class_dim)
        positive, negative = alpha * weights[0] if weights[0] != 1.0 else alpha, 1.0 - alpha
    else:
        positive = logits.new_full((logits.shape[class_dim],), weights[0], dtype=computing_dtype(logits))
        negative = torch.full_like(positive, weights[1])
    if isinstance(pos_weight, Tensor):
        positive = positive * check_class_vector(op, "pos_weight", logits, pos_weight, class_dim)
    return (1.0, 1.0), torch.stack((positive, negative))


def softmax_weights(
    op: str, logits: Tensor, alpha: float | Tensor | None, class_dim: int
) -> tuple[float, Tensor | None]:
    """Of every class: a number, and [C] where classes have their own."""
    if isinstance(alpha, Tensor):
        return 1.0, check_class_vector(op, "alpha", logits, alpha, class_dim)
    if alpha is None:
        return 1.0, None
    return check_number(op, "alpha", alpha, 0.0, math.inf, "pass None for no weighting"), None


def _like_loss(op: str, name: str, family: str, logits: Tensor, tensor: Tensor, class_dim: int) -> Tensor:
    """The tensor expanded to the unreduced loss: logits' shape (sigmoid) or that without the classes (softmax)."""
    rank, given = logits.dim(), list(tensor.shape)
    positions = list(logits.shape)
    with_class = -rank <= class_dim < rank
    if with_class:
        del positions[class_dim]
    if family == SIGMOID and with_class and tensor.dim() == rank - 1:
        tensor = tensor.unsqueeze(class_dim)
    shape = logits.shape if family == SIGMOID else torch.Size(positions)
    if tensor.dim() != len(shape) or any(n not in (1, m) for n, m in zip(tensor.shape, shape, strict=True)):
        forms = f"{positions} or {list(shape)}" if family == SIGMOID and with_class else f"{list(shape)}"
        raise ValueError(
            f"{op}: expected {name} of shape {forms}, 1 allowed in place of any size, got {given} with logits "
            f"{list(logits.shape)}; reshape it."
        )
    return tensor.expand(shape)


def check_sample_weight(op: str, family: str, logits: Tensor, sample_weight: object, class_dim: int) -> Tensor:
    if not isinstance(sample_weight, Tensor):
        raise TypeError(
            f"{op}: expected sample_weight to be a tensor, got {type(sample_weight).__name__}; "
            "for one factor scale the loss."
        )
    weight = check_floating(op, "sample_weight", logits, sample_weight)
    return _like_loss(op, "sample_weight", family, logits, weight, class_dim)


def masked_targets(
    op: str, family: str, logits: Tensor, targets: Tensor, mask: object, class_dim: int, ignore_index: int
) -> Tensor:
    """The targets with ignore_index where the mask is False."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{op}: expected mask to be a bool tensor, got {got}; compare: mask != 0.")
    check_companion(op, "mask", logits, mask)
    dense = targets.dim() == logits.dim()
    mask = _like_loss(op, "mask", family if dense else SOFTMAX, logits, mask, class_dim)
    if dense and family == SOFTMAX:
        mask = mask.unsqueeze(class_dim)
    if not _holds(targets.dtype, ignore_index):
        wider = torch.float32 if targets.is_floating_point() else torch.int16
        targets = targets.to(wider if _holds(wider, ignore_index) else torch.int64)
    return torch.where(mask, targets, ignore_index)


def _holds(dtype: torch.dtype, value: int) -> bool:
    return dtype != torch.bool and torch.tensor(value).to(dtype).item() == value


def check_smoothing(op: str, name: str, value: object) -> float:
    s = check_number(op, name, value, 0.0, 1.0, "0 is none")
    if s == 1.0:
        raise ValueError(f"{op}: expected {name} in [0, 1), got {value}: nothing of the targets is left; 0 is none.")
    return s


def check_combination(op: str, soft: object, probability_smoothing: object, from_probabilities: bool) -> None:
    if probability_smoothing and (soft or from_probabilities):
        other = "from_probabilities" if from_probabilities else "label_smoothing or soft targets"
        raise ValueError(
            f"{op}: expected probability_smoothing with hard targets and logits, got it with {other}; "
            "drop one: without it gradients are finite as well."
        )


def check_ohem(op: str, keep_ratio: object, threshold: object, reduction: str, normalizer: object) -> None:
    if keep_ratio is not None:
        ratio = check_number(op, "ohem_keep_ratio", keep_ratio, 0.0, 1.0, "the share of losses to keep")
        if ratio == 0.0:
            raise ValueError(f"{op}: expected ohem_keep_ratio in (0, 1], got {keep_ratio}; None keeps all.")
    if threshold is not None:
        check_number(op, "ohem_threshold", threshold, 0.0, math.inf, "the loss from which an element is hard")
    if reduction != "mean" or normalizer is not None:
        raise ValueError(
            f'{op}: expected reduction="mean" and no normalizer with OHEM, which is the mean of what it keeps, got '
            f"reduction={reduction!r}, normalizer={normalizer!r}; drop them."
        )


def check_positives(op: str, background_index: int | None, dense: bool) -> None:
    """normalizer="positives" of softmax."""
    if dense:
        raise ValueError(
            f'{op}: expected class index targets with normalizer="positives", got soft ones, which have no class; '
            "pass the number of positives as a tensor."
        )
    if background_index is None:
        raise ValueError(
            f'{op}: expected background_index with normalizer="positives", got None; name the class that is '
            "no positive."
        )


def check_scores(op: str, logits: Tensor, targets: Tensor, scores: object) -> Tensor | None:
    """Scores of class index targets; on the CPU their values, too."""
    if scores is None:
        return None
    if not isinstance(scores, Tensor) or scores.shape != targets.shape or targets.dim() == logits.dim():
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{op}: expected scores of the class index targets' shape {list(targets.shape)}, got {got}; pass one score "
            "per target, or dense targets and no scores."
        )
    scores = check_floating(op, "scores", logits, scores)
    if scores.is_cpu and not torch.compiler.is_compiling():
        _check_in_unit_range(op, "scores", scores)
    return scores


def _check_in_unit_range(op: str, name: str, values: Tensor) -> None:
    bad = ~((values >= 0) & (values <= 1))
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise ValueError(f"{op}: expected {name} in [0, 1], got {name}{at} = {values[tuple(at)].item():g}; clamp them.")


def check_normalizer(
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
        check_companion(op, "normalizer", logits, normalizer)
        return 1.0, normalizer, "sum"
    number = check_number(op, "normalizer", normalizer, 0.0, math.inf, "clamp a count to at least 1")
    if number == 0.0:
        raise ValueError(f"{op}: expected normalizer > 0, got {normalizer}; clamp a count to at least 1.")
    return 1.0 / number, None, "sum"


def check_gradient(op: str, logits: Tensor, gradient: str, reduction: str) -> str:
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


def check_values(op, family, logits, targets, vector, divisor, class_dim, ignore_index, background_index) -> None:
    """The checks that read values, and so wait for the device."""
    if vector is not None:
        negative = vector < 0 if family == SOFTMAX or vector.dim() == 1 else (vector < 0).any(0)
        bad = negative | (vector if vector.dim() == 1 else vector.sum(0)).isnan()
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            value, bounds = (vector[at], ">= 0") if vector.dim() == 1 else (vector[0, at], "in [0, 1]")
            raise ValueError(f"{op}: expected alpha {bounds}, got alpha[{at}] = {value.item():g}; correct the weights.")
    if divisor is not None and not bool(divisor >= 0):
        raise ValueError(f"{op}: expected normalizer >= 0, got {divisor.item():g}; clamp a count to at least 1.")
    if targets.dim() != logits.dim():
        return check_labels(op, family, logits, targets, class_dim, ignore_index, background_index)
    if family == SIGMOID:
        bad = ~((targets == ignore_index) | ((targets >= 0) & (targets <= 1)))
        allowed = "in [0, 1]"
    else:
        bad = ~((targets.select(class_dim, 0).unsqueeze(class_dim) == ignore_index) | (targets >= 0))
        allowed = ">= 0"
    _raise_bad_targets(op, ValueError, bad, targets, f"dense targets {allowed} or equal to", ignore_index)


def check_labels(op, family, logits, targets, class_dim, ignore_index, background_index) -> None:
    classes = logits.shape[class_dim]
    labels = targets.long()
    bad = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    allowed = f"class labels in [0, {classes})"
    if family == SIGMOID:
        background = classes if background_index is None else background_index
        bad &= labels != background
        allowed += f", background_index ({background})"
    _raise_bad_targets(op, IndexError, bad, targets, f"{allowed} or", ignore_index)


def _raise_bad_targets(
    op: str, error: type[Exception], bad: Tensor, targets: Tensor, allowed: str, ignore_index: int
) -> None:
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise error(
            f"{op}: expected {allowed} ignore_index ({ignore_index}), got targets{at} = "
            f"{targets[tuple(at)].item()}; fix the labels or set ignore_index."
        )


def check_values_of_parts(op: str, gammas: Tensor | None, sample_weight: Tensor | None, scores: Tensor | None) -> None:
    if scores is not None:
        _check_in_unit_range(op, "scores", scores)
    for name, values in (("gamma", gammas), ("sample_weight", sample_weight)):
        bad = None if values is None else ~(values >= 0) if name == "gamma" else values.isnan()
        if bad is not None and bool(bad.any()):
            at = bad.nonzero()[0].tolist()
            bounds = ">= 0" if name == "gamma" else "without NaN"
            raise ValueError(
                f"{op}: expected {name} {bounds}, got {name}{at or ''} = {values[tuple(at)].item():g}; correct it."
            )
