"""What a loss is multiplied by, weights of classes and of samples; and gamma where classes have their own."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from . import _arguments, _values
from ._arguments import SIGMOID

_NONE = "None weighs nothing"
# Weights of classes with a mean of 1 are what alpha of a sigmoid loss is given most often, and would make it negative.
_SHARE = f"it is the share of positives, and 1 - alpha that of negatives; {_NONE}, and pos_weight may be larger"


def check_class_vector(op: str, name: str, logits: Tensor, vector: Tensor, class_dim: int) -> Tensor:
    classes = logits.shape[class_dim]
    if vector.shape != (classes,):
        remedy = "pass one entry per class, or a number"
        if vector.numel() == 1:
            remedy = f"one number for all classes is {name}.item()"
        elif name == "alpha" and classes == 1 and vector.shape == (2,):
            remedy = "of negatives and positives pass the positives' alone: alpha[1].item()"
        raise ValueError(
            f"{op}: expected {name} of shape [{classes}] (one number per class of dim {class_dim}), "
            f"got {list(vector.shape)}; {remedy}."
        )
    return _arguments.check_floating(op, name, logits, vector).contiguous()


def check_class_numbers(op: str, name: str, numbers: Tensor, share: bool = False) -> None:
    """The values of alpha, gamma and the like. share: alpha of a sigmoid loss."""
    _values.check_numbers(op, name, numbers, **({"most": 1.0, "remedy": _SHARE} if share else {}))


def check_gamma_tensor(op: str, name: str, logits: Tensor, gamma: Tensor, class_dim: int, by_class: bool) -> Tensor:
    """A tensor of one number, or of one for each class where the loss takes that."""
    if gamma.dim() == 0:
        return _arguments.check_floating(op, name, logits, gamma)
    if not by_class:
        raise ValueError(
            f"{op}: expected {name} to be one number, got a tensor of shape {list(gamma.shape)}; "
            "pass a number or a 0-d tensor."
        )
    return check_class_vector(op, name, logits, gamma, class_dim)


def sigmoid_weights(
    op: str,
    logits: Tensor,
    alpha: float | Tensor | None,
    pos_weight: float | Tensor | None,
    class_dim: int,
    validate: bool | None,
) -> tuple[tuple[float, float], Tensor | None]:
    """Of positives and negatives: two numbers, and [2, C] where classes have their own."""
    weights = (1.0, 1.0)
    if alpha is not None and not isinstance(alpha, Tensor):
        weight = _arguments.check_number(op, "alpha", alpha, 0.0, 1.0, _SHARE)
        weights = (weight, 1.0 - weight)
    if pos_weight is not None and not isinstance(pos_weight, Tensor):
        factor = _arguments.check_number(op, "pos_weight", pos_weight, 0.0, math.inf, _NONE)
        weights = (weights[0] * factor, weights[1])
    if not (isinstance(alpha, Tensor) or isinstance(pos_weight, Tensor)):
        return weights, None
    if isinstance(alpha, Tensor):
        alpha = check_class_vector(op, "alpha", logits, alpha, class_dim)
        if _values.due(validate, alpha):
            check_class_numbers(op, "alpha", alpha, share=True)
        positive, negative = alpha * weights[0] if weights[0] != 1.0 else alpha, 1.0 - alpha
    else:
        positive = logits.new_full((logits.shape[class_dim],), weights[0], dtype=_arguments.computing_dtype(logits))
        negative = torch.full_like(positive, weights[1])
    if isinstance(pos_weight, Tensor):
        pos_weight = check_class_vector(op, "pos_weight", logits, pos_weight, class_dim)
        if _values.due(validate, pos_weight):
            _values.check_numbers(op, "pos_weight", pos_weight)
        positive = positive * pos_weight
    return (1.0, 1.0), torch.stack((positive, negative))


def softmax_weights(
    op: str, logits: Tensor, alpha: float | Tensor | None, class_dim: int, validate: bool | None
) -> tuple[float, Tensor | None]:
    """Of every class: a number, and [C] where classes have their own."""
    if isinstance(alpha, Tensor):
        alpha = check_class_vector(op, "alpha", logits, alpha, class_dim)
        if _values.due(validate, alpha):
            _values.check_numbers(op, "alpha", alpha)
        return 1.0, alpha
    if alpha is None:
        return 1.0, None
    return _arguments.check_number(op, "alpha", alpha, 0.0, math.inf, _NONE), None


def like_loss(op: str, name: str, family: str, logits: Tensor, tensor: Tensor, class_dim: int) -> Tensor:
    """The tensor expanded to the unreduced loss: logits' shape (sigmoid) or that without the classes (softmax)."""
    rank, given = logits.dim(), list(tensor.shape)
    positions = list(logits.shape)
    with_class = type(class_dim) is int and -rank <= class_dim < rank
    if with_class:
        del positions[class_dim]
    if family == SIGMOID and with_class and tensor.dim() == rank - 1:
        tensor = tensor.unsqueeze(class_dim)
    shape = logits.shape if family == SIGMOID else torch.Size(positions)
    if tensor.dim() != len(shape) or any(n not in (1, m) for n, m in zip(tensor.shape, shape, strict=True)):
        forms = f"{positions} or {list(shape)}" if family == SIGMOID and with_class else f"{list(shape)}"
        remedy = "reshape it"
        if family != SIGMOID and with_class and len(given) == rank and given[class_dim] == 1:
            remedy = f"squeeze dim {class_dim % rank}"
        elif len(given) == 1 and len(positions) > 1 and given[0] == positions[0]:
            remedy = f"of one for each sample make {name}.view({', '.join(['-1'] + ['1'] * (len(positions) - 1))})"
        raise ValueError(
            f"{op}: expected {name} of shape {forms}, 1 allowed in place of any size, got {given} with logits "
            f"{list(logits.shape)}; {remedy}."
        )
    return tensor.expand(shape)


def check_sample_weight(op: str, family: str, logits: Tensor, sample_weight: object, class_dim: int) -> Tensor:
    if not isinstance(sample_weight, Tensor):
        remedy = "for one factor scale the loss" if isinstance(sample_weight, Real) else "wrap it in torch.as_tensor"
        raise TypeError(f"{op}: expected sample_weight to be a tensor, got {type(sample_weight).__name__}; {remedy}.")
    weight = _arguments.check_floating(op, "sample_weight", logits, sample_weight)
    return like_loss(op, "sample_weight", family, logits, weight, class_dim)
