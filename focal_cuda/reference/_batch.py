"""What all losses do alike: reading targets, leaving out what is ignored, weighting, reducing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Normalizer = float | Tensor | str | None


class Options(NamedTuple):
    """The arguments that every loss has."""

    class_dim: int = 1
    ignore_index: int = -100
    background_index: int | None = None
    sample_weight: Tensor | None = None
    mask: Tensor | None = None
    dtype: torch.dtype | None = torch.float64


class Batch(NamedTuple):
    """Logits and targets of a call; "left out" is what is not counted or has a weight of 0."""

    x: Tensor  # the logits in the type of the computation, 0 where left out
    t: Tensor  # dense targets in the shape of the logits, or class indices; 0 where left out
    counted: Tensor  # like the unreduced loss: what is not ignored
    kept: Tensor  # like the unreduced loss: what is not left out
    weight: Tensor | None
    positives: Tensor  # how many there are


def read_elements(logits: Tensor, targets: Tensor, o: Options, scores: Tensor | None = None) -> Batch:
    """For one-vs-all losses, whose unreduced loss has a value for each logit. scores: what labels stand for, not 1."""
    x = logits.to(_compute_dtype(logits, o.dtype))
    if targets.dim() == logits.dim():
        t = targets.to(x.dtype)
        counted = t != o.ignore_index
        positive = t > 0
    else:
        labels = targets.long().unsqueeze(o.class_dim)
        counted = (labels != o.ignore_index).expand_as(x)
        positive = labels == classes(x, o.class_dim)
        if o.background_index is not None:
            positive = positive & (labels != o.background_index)
        t = positive.to(x.dtype)
        if scores is not None:
            t = torch.where(positive, scores.to(x.dtype).unsqueeze(o.class_dim), 0.0)
    counted, kept, weight = _choose(counted, x.dtype, o)
    # Replaced before any arithmetic: a NaN would survive a later mask in the gradient.
    x, t = torch.where(kept, x, 0.0), torch.where(kept, t, 0.0)
    return Batch(x, t, counted, kept, weight, (counted & positive).sum())


def read_positions(logits: Tensor, targets: Tensor, o: Options) -> Batch:
    """For softmax losses, whose unreduced loss has a value for each position."""
    x = logits.to(_compute_dtype(logits, o.dtype))
    if targets.dim() == logits.dim():
        t = targets.to(x.dtype)
        counted, label = t.select(o.class_dim, 0) != o.ignore_index, t.argmax(o.class_dim)
    else:
        t = label = targets.long()
        counted = label != o.ignore_index
    counted, kept, weight = _choose(counted, x.dtype, o)
    x = torch.where(kept.unsqueeze(o.class_dim), x, 0.0)
    t = torch.where(kept.unsqueeze(o.class_dim) if t.dim() == x.dim() else kept, t, 0)
    positive = counted if o.background_index is None else counted & (label != o.background_index)
    return Batch(x, t, counted, kept, weight, positive.sum())


def reduce(
    loss: Tensor,
    batch: Batch,
    reduction: str,
    normalizer: Normalizer = None,
    ohem_keep_ratio: float | None = None,
    ohem_threshold: float | None = None,
) -> Tensor:
    """The result of a loss from its unreduced values."""
    loss = weigh(loss, batch)
    if reduction == "none":
        return loss
    if reduction == "mean":
        if ohem_keep_ratio is None and ohem_threshold is None:
            return loss.sum() / batch.counted.sum().clamp(min=1)
        return _mean_of_hardest(loss.reshape(-1), batch.counted.reshape(-1), ohem_keep_ratio, ohem_threshold)
    if reduction != "sum":
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}.")
    if normalizer is None:
        return loss.sum()
    if isinstance(normalizer, str):
        return loss.sum() / batch.positives.clamp(min=1)
    if isinstance(normalizer, Tensor):
        return divide(loss.sum(), normalizer.reshape(()).to(loss.dtype))
    return loss.sum() / normalizer


def weigh(values: Tensor, batch: Batch) -> Tensor:
    """Times the sample weights, and 0 where left out."""
    return torch.where(batch.kept, values if batch.weight is None else values * batch.weight, 0.0)


def divide(sum_: Tensor, n: Tensor) -> Tensor:
    """sum_ / n, and 0 by 0."""
    return torch.where(n == 0, 0.0, sum_ / torch.where(n == 0, 1.0, n))


def classes(x: Tensor, class_dim: int) -> Tensor:
    """0 ... C - 1 along the dimension of the classes."""
    return along(torch.arange(x.shape[class_dim], device=x.device), x, class_dim)


def along(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """The vector shaped to broadcast along one dimension of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return vector.reshape(shape)


def per_class(value: float | Tensor, x: Tensor, class_dim: int) -> float | Tensor:
    """A number, or one for each class, to be broadcast to x."""
    if not isinstance(value, Tensor):
        return value
    return along(value.to(x.dtype), x, class_dim) if value.dim() else value.to(x.dtype)


def at_label(value: float | Tensor, labels: Tensor, x: Tensor) -> float | Tensor:
    """A number, or the one of each position's class."""
    if not isinstance(value, Tensor):
        return value
    return value.to(x.dtype)[labels] if value.dim() else value.to(x.dtype)


def _compute_dtype(logits: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        return dtype
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _choose(counted: Tensor, dtype: torch.dtype, o: Options) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is counted, what of it is kept, and the weights, from what the targets count."""
    if o.mask is not None:
        counted = counted & _like_loss(o.mask, counted, o.class_dim)
    if o.sample_weight is None:
        return counted, counted, None
    weight = _like_loss(o.sample_weight.to(dtype), counted, o.class_dim)
    return counted, counted & (weight != 0), weight


def _like_loss(given: Tensor, loss: Tensor, class_dim: int) -> Tensor:
    """What broadcasts to the unreduced loss, of something given so or per row."""
    return given if given.dim() == loss.dim() else given.unsqueeze(class_dim)


def _mean_of_hardest(loss: Tensor, counted: Tensor, keep_ratio: float | None, threshold: float | None) -> Tensor:
    """Online hard example mining; both sets are the first so many of one order, so the larger holds the other."""
    of_counted = torch.where(counted, loss.detach(), -torch.inf)
    order = of_counted.sort(descending=True, stable=True).indices
    kept = torch.zeros((), dtype=torch.int64, device=loss.device)
    if keep_ratio is not None:
        # In float64, as int(n * keep_ratio) is.
        kept = (counted.sum().double() * keep_ratio).long().clamp(min=1)
    if threshold is not None:
        # A NaN compares as not below, so that it is kept; it comes first in the order.
        kept = kept.maximum((counted & ~(loss.detach() <= threshold)).sum())
    ranks = torch.arange(loss.numel(), device=loss.device)
    return torch.where(ranks < kept, loss[order], 0.0).sum() / kept.clamp(min=1)
