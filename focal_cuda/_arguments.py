"""What the public functions accept: every check of an argument, and the sentence that says what is wrong with it.

The sentences have one form: the function, what was expected, what came, and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from . import _ops, _remedy

SIGMOID = "sigmoid_focal_loss"
SOFTMAX = "softmax_focal_loss"

_LOGITS_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_INDEX_DTYPES = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})


_INTEGERS = {
    "ignore_index": "leave it out if no label is ignored, and pass mask if several are",
    "background_index": "pass one label",
    "class_dim": "pass the dimension of the classes",
}


def check_tensors(op: str, logits: Tensor, targets: Tensor) -> None:
    for name, value in (("logits", logits), ("targets", targets)):
        if not isinstance(value, Tensor):
            # A model's outputs often come with a name, or with others.
            inside = isinstance(value, Mapping) or (isinstance(value, Sequence) and any(map(torch.is_tensor, value)))
            remedy = "take the tensor out of it" if inside else "wrap it in torch.as_tensor"
            raise TypeError(f"{op}: expected {name} to be a tensor, got {type(value).__name__}; {remedy}.")
        if value.layout is not torch.strided or value.is_nested:
            got = "a nested tensor" if value.is_nested else value.layout
            raise TypeError(
                f"{op}: expected {name} in strided memory, got {got}; convert: {name}.to_dense(), or "
                "torch.nested.to_padded_tensor and ignore_index."
            )
    if logits.dtype not in _LOGITS_DTYPES:
        swapped = not logits.dtype.is_floating_point and targets.dtype in _LOGITS_DTYPES
        remedy = "logits come before targets" if swapped else "convert them, and pass raw scores, not classes"
        raise TypeError(
            f"{op}: expected logits of a floating dtype (float32, bfloat16, float16, float64), got {logits.dtype}; "
            f"{remedy}."
        )
    if logits.device.type not in _ops.DEVICES:
        raise NotImplementedError(
            f"{op}: expected logits on a device this build has kernels for ({', '.join(sorted(_ops.DEVICES))}), got "
            f"{logits.device}; move them, or use focal_cuda.reference.{op}, in plain torch operations. "
            f"{_remedy.ASK_THE_DOCTOR}"
        )
    if targets.device != logits.device:
        raise ValueError(
            f"{op}: expected targets on the logits' device {logits.device}, got {targets.device}; "
            f"move them: targets.to({str(logits.device)!r})."
        )
    if targets.requires_grad:
        raise ValueError(
            f"{op}: expected targets without gradient, got some that require it; none reaches them: detach them, if "
            "they are not the logits, which come first."
        )


def check_integer(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        remedy = (
            f"pass {name}=int(...)" if isinstance(value, (Integral, Tensor)) else _INTEGERS.get(name, "pass an int")
        )
        raise TypeError(f"{op}: expected {name} to be an int, got {type(value).__name__}; {remedy}.")


def check_integers(op: str, ignore_index: int, background_index: int | None) -> None:
    if type(ignore_index) is not int:
        check_integer(op, "ignore_index", ignore_index)
    if background_index is not None and type(background_index) is not int:
        check_integer(op, "background_index", background_index)


def check_class_dim(op: str, logits: Tensor, class_dim: int) -> int:
    rank = logits.dim()
    if type(class_dim) is not int:
        check_integer(op, "class_dim", class_dim)
    if not -rank <= class_dim < rank:
        remedy = "name the dimension of the classes"
        if rank == 1 and class_dim == 1:
            binary = "take sigmoid_focal_loss" if op == SOFTMAX else "give targets the logits' shape"
            remedy = f"for the classes of one sample set class_dim=0, for one score of each sample {binary}"
        raise ValueError(
            f"{op}: expected class_dim in [{-rank}, {rank}) for logits of shape {list(logits.shape)}, got {class_dim}; "
            f"{remedy}."
        )
    return class_dim % rank


def check_flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: expected {name} to be True or False, got {type(value).__name__}; pass a bool.")


def check_index_targets(op: str, family: str, logits: Tensor, targets: Tensor, class_dim: int) -> int:
    """The non-negative class_dim, if targets are shaped as class indices for it."""
    dim = check_class_dim(op, logits, class_dim)
    shape = logits.shape
    if targets.shape != shape[:dim] + shape[dim + 1 :]:
        expected = [*shape[:dim], *shape[dim + 1 :]]
        either = f" or {list(shape)} (dense)" if family == SIGMOID else ""
        remedy = _remedy_of_shape(family, list(shape), list(targets.shape), dim)
        raise ValueError(
            f"{op}: expected targets of shape {expected} (logits without dim {dim}){either}, "
            f"got {list(targets.shape)} with logits {list(shape)}; {remedy}."
        )
    if targets.dtype not in _INDEX_DTYPES:
        remedy = "convert them: targets.long()"
        if family == SIGMOID and shape[dim] == 1:  # as a label, 0 is the class
            remedy = f"for 0 and 1 pass dense targets: targets.unsqueeze({dim})"
        raise TypeError(f"{op}: expected class index targets of an integer dtype, got {targets.dtype}; {remedy}.")
    return dim


def _remedy_of_shape(family: str, logits: list[int], targets: list[int], dim: int) -> str:
    """What to do about targets that are no class indices of the logits: the usual mistakes by their shapes."""

    def without(sizes: list[int], d: int) -> list[int]:
        return sizes[:d] + sizes[d + 1 :]

    expected = without(logits, dim)
    if targets == logits and family == SOFTMAX:
        return "pass class indices (targets.argmax of the class dimension)"
    extra = [d for d in range(len(targets)) if without(targets, d) == expected]
    for d in extra:
        if targets[d] == 1:
            return f"squeeze dim {d}"
    if extra and targets[extra[-1]] == logits[dim]:
        return f"pass class indices, targets.argmax({extra[-1]}), or soft ones as targets.movedim({extra[-1]}, {dim})"
    missing = [d for d in range(len(expected)) if expected[d] == 1 and without(expected, d) == targets]
    if missing:
        return f"unsqueeze dim {missing[0]}"
    classes = [d for d in range(len(logits)) if without(logits, d) == targets]
    if classes:
        return f"the classes seem to be in dim {classes[-1]}: set class_dim={classes[-1]}"
    if len(expected) > 1 and len(targets) == len(expected) and targets[0] == expected[0]:
        return "bring both to one size, logits by F.interpolate, masks by nearest neighbours"
    return "nothing is broadcast: give each position its label, or set class_dim"


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
        if (isinstance(value, Sequence) and not isinstance(value, str)) or hasattr(value, "__array__"):
            remedy = "for a number of each class, where it may have one, pass a tensor: torch.as_tensor(...)"
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


def check_smoothing(op: str, name: str, value: object) -> float:
    s = check_number(op, name, value, 0.0, 1.0, "0 is none")
    if s == 1.0:
        raise ValueError(f"{op}: expected {name} in [0, 1), got {value}: nothing of the targets is left; 0 is none.")
    return s


def check_background_of_positives(op: str, normalizer: object, background_index: int | None) -> bool:
    """Of softmax: whether the normalizer counts positives, which needs a class that is none."""
    if not (isinstance(normalizer, str) and normalizer == "positives"):
        return False
    if background_index is None:
        raise ValueError(
            f'{op}: expected background_index with normalizer="positives", got None; name the class that is '
            "no positive."
        )
    return True


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


def check_scores(op: str, logits: Tensor, targets: Tensor, scores: object) -> Tensor:
    """Scores of class index targets."""
    if not isinstance(scores, Tensor) or scores.shape != targets.shape or targets.dim() == logits.dim():
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{op}: expected scores of the class index targets' shape, got {got} with targets {list(targets.shape)}; "
            "pass one score per target, or dense targets and no scores."
        )
    return check_floating(op, "scores", logits, scores)


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
    if gradient not in ("forward", "backward", "inplace"):
        raise ValueError(
            f'{op}: expected gradient to be "auto", "forward", "backward" or "inplace", got {gradient!r}; '
            "choose one of them."
        )
    if gradient != "backward" and reduction == "none":
        raise ValueError(
            f'{op}: expected gradient "auto" or "backward" with reduction="none", whose upstream gradient is not known '
            f'in the forward pass, got {gradient!r}; reduce the loss, or use "auto".'
        )
    if gradient == "inplace":
        if not torch.is_grad_enabled():  # a loss that is validated on other data: nothing is to be written
            return "backward"
        if not logits.requires_grad:
            raise ValueError(
                f'{op}: expected logits that require grad with gradient="inplace", got logits that need none; '
                'use "auto", which writes no gradient then.'
            )
        if logits.is_leaf:
            raise ValueError(
                f'{op}: expected logits made by a layer with gradient="inplace", got a leaf, which would lose its '
                'values; use "auto".'
            )
        if not torch.compiler.is_compiling() and logits.is_neg():
            raise ValueError(
                f'{op}: expected logits as they lie in memory with gradient="inplace", got a view that negates '
                'them (of x.conj().imag, say); use "auto".'
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
