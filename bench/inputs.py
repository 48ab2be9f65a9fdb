"""Inputs like a network's in training: mostly sure, mostly right, with rare positives and blobby masks.

Uniform random logits and labels would make easy positions rare and every class lookup a cache miss, which
flatters whoever is bound by arithmetic.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

IGNORED_SHARE = 0.05
POSITIVE_SHARE = 1e-3  # of the anchors in detection
BLOB = 16  # edge of the blobs of a mask, in positions
IGNORED = -100  # in `labels`, whatever the scenario's own ignore_index is


class Inputs:
    """One set of logits and targets, and the forms of the targets that other implementations want.

    Those forms are made once, outside every timed region, to the advantage of whoever needs them.
    """

    def __init__(
        self,
        *,
        family: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: str,
        seed: int,
        dense: bool,
        target_dtype: torch.dtype,
        ignore_index: int,
        memory_format: torch.memory_format,
    ) -> None:
        self.family = family
        self.classes = shape[1]
        self.ignore_index = ignore_index
        generator = torch.Generator(device).manual_seed(seed)
        position_shape = (shape[0], *shape[2:])
        if family == "sigmoid":
            self.labels = _detection_labels(position_shape, self.classes, generator)
            logits = _detection_logits(self.labels, shape, dtype, generator)
        else:
            self.labels = _mask_labels(position_shape, self.classes, generator)
            logits = _softmax_logits(self.labels, shape, dtype, generator)
        self.logits = logits.contiguous(memory_format=memory_format).requires_grad_()
        if dense:
            self.targets = self.dense_targets.masked_fill((self.labels == IGNORED).unsqueeze(1), ignore_index)
        else:
            self.targets = self.labels.masked_fill(self.labels == IGNORED, ignore_index).to(target_dtype)

    @property
    def positions(self) -> int:
        return self.labels.numel()

    @cached_property
    def counted_positions(self) -> int:
        return int((self.labels != IGNORED).sum())

    @cached_property
    def filled_labels(self) -> Tensor:
        """int64 labels for losses that cannot ignore: background in detection, class 0 in segmentation."""
        return self.labels.masked_fill(self.labels == IGNORED, self.classes if self.family == "sigmoid" else 0)

    @cached_property
    def dense_targets(self) -> Tensor:
        """One-hot targets in the logits' dtype and shape; background and ignored rows are all zero."""
        labels = self.filled_labels.unsqueeze(1)
        dense = torch.zeros(self.logits.shape, dtype=self.logits.dtype, device=labels.device)
        positive = labels < self.classes
        return dense.scatter_(1, labels.masked_fill(~positive, 0), positive.to(dense.dtype))

    @cached_property
    def working_logits(self) -> Tensor:
        """A copy of the logits to overwrite, no leaf and no view; `restore` makes it new again."""
        return self.logits.clone()

    def restore(self) -> None:
        with torch.no_grad():
            self.working_logits.detach().copy_(self.logits)


def _detection_labels(shape: tuple[int, ...], classes: int, generator: torch.Generator) -> Tensor:
    draw = torch.rand(shape, generator=generator, device=generator.device)
    labels = torch.randint(0, classes, shape, generator=generator, device=generator.device)
    labels.masked_fill_(draw >= POSITIVE_SHARE, classes)
    return labels.masked_fill_(draw >= 1 - IGNORED_SHARE, IGNORED)


def _detection_logits(labels: Tensor, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    logits = torch.randn(shape, generator=generator, device=generator.device).mul_(2).sub_(4)
    return _raise_target_logit(logits, labels, by=5.0).to(dtype)


def _mask_labels(shape: tuple[int, ...], classes: int, generator: torch.Generator) -> Tensor:
    """Labels that are constant over blobs of the spatial dimensions; rows [N] have one label each."""
    coarse = (shape[0], *(-(-size // BLOB) for size in shape[1:]))
    labels = torch.randint(0, classes, coarse, generator=generator, device=generator.device)
    ignored = torch.rand(coarse, generator=generator, device=generator.device) < IGNORED_SHARE
    labels.masked_fill_(ignored, IGNORED)
    for dim, size in enumerate(shape[1:], start=1):
        labels = labels.repeat_interleave(BLOB, dim).narrow(dim, 0, size)
    return labels.contiguous()


def _softmax_logits(labels: Tensor, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    logits = torch.randn(shape, generator=generator, device=generator.device)
    # Sure of the right class in most places: about log(C) more than it takes to win against C - 1 others.
    by = 3.0 + math.log(shape[1])
    return _raise_target_logit(logits, labels, by).to(dtype)


def _raise_target_logit(logits: Tensor, labels: Tensor, by: float) -> Tensor:
    has_target = (labels >= 0) & (labels < logits.shape[1])
    index = labels.masked_fill(~has_target, 0).unsqueeze(1)
    return logits.scatter_add_(1, index, has_target.unsqueeze(1).to(logits.dtype) * by)
