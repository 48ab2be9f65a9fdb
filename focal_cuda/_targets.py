"""How targets are told: as class indices or dense, with a mask or without."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import _arguments, _values, _weights
from ._arguments import SIGMOID, SOFTMAX


class Targets(NamedTuple):
    """What the kernels are given in the place of the caller's."""

    targets: Tensor
    class_dim: int
    ignore_index: int
    scores: Tensor | None = None


def of_elements(
    op: str,
    logits: Tensor,
    targets: Tensor,
    *,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    mask: object,
    scores: object = None,
    validate: bool | None = None,
    by_class: tuple[object, ...] = (),
) -> Targets:
    """Of a one-vs-all loss. by_class: what may have a number for each class."""
    _arguments.check_tensors(op, logits, targets)
    _arguments.check_integers(op, ignore_index, background_index)
    if targets.shape != logits.shape:
        class_dim = _arguments.check_index_targets(op, SIGMOID, logits, targets, class_dim)
        if logits.shape[class_dim] == 1 and class_dim < logits.dim() - 1 and background_index is None:
            _warn_of_one_class(op, logits, targets, class_dim)
    else:
        _arguments.check_dense_targets(op, targets, ignore_index)
        if any(isinstance(value, Tensor) and value.dim() > 0 for value in by_class):
            class_dim = _arguments.check_class_dim(op, logits, class_dim)
    if scores is not None:
        scores = _arguments.check_scores(op, logits, targets, scores)
        if _values.on_cpu(scores) or _values.wanted(validate):
            # Those of no class are not looked at, whatever they are.
            labels = targets.long()
            of_class = (labels >= 0) & (labels < logits.shape[class_dim]) & (labels != ignore_index)
            of_class = of_class if background_index is None else of_class & (labels != background_index)
            _values.check_numbers(op, "scores", torch.where(of_class, scores, 0.0), most=1.0)
    told = Targets(targets, class_dim, ignore_index, scores)
    if mask is None:
        return told
    _check_mask(op, logits, mask)
    if targets.dim() != logits.dim():
        if mask.dim() != logits.dim() or mask.shape[class_dim] == 1:
            rows = mask.squeeze(class_dim) if mask.dim() == logits.dim() else mask
            return told._replace(targets=_masked(op, SOFTMAX, logits, targets, rows, class_dim, ignore_index))
        told = _dense(op, logits, told, background_index)
    masked = _masked(op, SIGMOID, logits, told.targets, mask, class_dim, told.ignore_index)
    return told._replace(targets=masked)


def of_positions(
    op: str,
    logits: Tensor,
    targets: Tensor,
    *,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    mask: object,
    soft: bool = False,
) -> Targets:
    """Of a softmax loss. soft: it takes floating targets of the logits' shape."""
    _arguments.check_tensors(op, logits, targets)
    _arguments.check_integers(op, ignore_index, background_index)
    dense = soft and targets.shape == logits.shape and targets.is_floating_point()
    if dense:
        _arguments.check_dense_targets(op, targets, ignore_index)
        class_dim = _arguments.check_class_dim(op, logits, class_dim)
    else:
        class_dim = _arguments.check_index_targets(op, SOFTMAX, logits, targets, class_dim)
    if logits.shape[class_dim] < 2:
        sigmoid = SIGMOID if op == SOFTMAX else 'activation="sigmoid"'
        raise ValueError(
            f"{op}: expected logits with at least 2 classes in dim {class_dim}, got {list(logits.shape)}, where "
            f"the softmax is a constant; use {sigmoid}."
        )
    if mask is not None:
        _check_mask(op, logits, mask)
        targets = _masked(op, SOFTMAX, logits, targets, mask, class_dim, ignore_index)
    return Targets(targets, class_dim, ignore_index)


def _warn_of_one_class(op: str, logits: Tensor, targets: Tensor, class_dim: int) -> None:
    """Maps of one class and labels: rarely meant, and with masks of 0 and 1 the loss of the opposite."""
    if torch.compiler.is_compiling():
        return
    warnings.warn(
        f"{op}: expected masks of 0 and 1 in the logits' shape {list(logits.shape)}, got {list(targets.shape)}, which "
        "are labels: 0 is the one class, and positive, 1 is background, and negative. For a binary mask pass "
        f"targets.unsqueeze({class_dim}); if labels are meant, say background_index=1.",
        stacklevel=4,
    )


def _check_mask(op: str, logits: Tensor, mask: object) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{op}: expected mask to be a bool tensor, got {got}; compare: mask != 0.")
    _arguments.check_companion(op, "mask", logits, mask)


def _masked(
    op: str, family: str, logits: Tensor, targets: Tensor, mask: Tensor, class_dim: int, ignore_index: int
) -> Tensor:
    """The targets with ignore_index where the mask, which is like the loss of the family, is False."""
    mask = _weights.like_loss(op, "mask", family, logits, mask, class_dim)
    if targets.dim() > mask.dim():
        mask = mask.unsqueeze(class_dim)
    wider = (torch.float32, torch.float64) if targets.is_floating_point() else (torch.int16, torch.int64)
    dtype = next((d for d in (targets.dtype, *wider) if _holds(d, ignore_index)), wider[-1])
    return torch.where(mask, targets.to(dtype), ignore_index)


def _holds(dtype: torch.dtype, value: int) -> bool:
    if dtype.is_floating_point:
        return abs(value) <= 2 / torch.finfo(dtype).eps
    return dtype != torch.bool and torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _dense(op: str, logits: Tensor, told: Targets, background_index: int | None) -> Targets:
    """Class index targets, and their scores, as dense ones: what a mask of elements needs."""
    targets, dim, ignore_index, scores = told
    classes = logits.shape[dim]
    background = classes if background_index is None else background_index
    if _values.on_cpu(targets):
        _values.check_labels(op, targets, classes, ignore_index, background)
    labels = targets.long().unsqueeze(dim)
    shape = [-1 if d == dim else 1 for d in range(logits.dim())]
    hit = (labels == torch.arange(classes, device=labels.device).view(shape)) & (labels != background)
    values = hit.to(torch.int8) if scores is None else torch.where(hit, scores.unsqueeze(dim), 0.0)
    ignored = -1
    return Targets(torch.where(labels == ignore_index, ignored, values), dim, ignored)
