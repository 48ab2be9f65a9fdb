"""Inputs like a network's in training: mostly sure, mostly right, with rare positives and blobby masks.

Uniform random logits and labels would make easy positions rare and every class lookup a cache miss, which
flatters whoever is bound by arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

IGNORED_SHARE = 0.05
POSITIVE_SHARE = 1e-3  # of the anchors in detection, of an image's possible labels
BLOB = 16  # edge of the blobs of a mask, in positions
PEAK = 4  # radius of an object in a heat map, in positions
RAISED = 5.0  # the logit of a positive in detection
IGNORED = -100  # in `labels`, whatever the scenario's own ignore_index is

# Class indices; or dense: one-hot, a teacher's probabilities, an object's position and what is near it, many labels.
Targets = Literal["index", "dense", "soft", "heat map", "many-hot"]

# The value of an option that is a tensor, which the inputs make.
TENSOR = "tensor"
# How, from numbers in [0, 1) for each class or for each position.
_PER_CLASS = {
    "alpha": lambda uniform: uniform,
    "gamma": lambda uniform: 1.5 + uniform,
    "pos_weight": lambda uniform: 0.5 + uniform,
}
_PER_POSITION = {
    "sample_weight": lambda uniform: 0.5 + uniform,
    "mask": lambda uniform: uniform >= IGNORED_SHARE,
    "scores": lambda uniform: 0.3 + 0.7 * uniform,
}
PER_POSITION = tuple(_PER_POSITION)
_MAKE = {**_PER_CLASS, **_PER_POSITION}


def option_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What the losses compute in, so that nothing has to be converted."""
    return torch.bool if name == "mask" else torch.float64 if dtype == torch.float64 else torch.float32


class Inputs:
    """One set of logits and targets, and the forms of the targets that other implementations want.

    Those forms are made once, outside every timed region, to the advantage of whoever needs them.
    """

    def __init__(
        self,
        family: str,
        shape: tuple[int, ...],
        *,
        kind: Targets = "index",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        seed: int = 0,
        target_dtype: torch.dtype = torch.int64,
        ignore_index: int = IGNORED,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.family = family
        self.shape = shape
        self.dtype = dtype
        self.seed = seed
        self.kind = kind
        self.classes = shape[1]
        self.ignore_index = ignore_index
        self._options: dict[str, Tensor] = {}
        generator = torch.Generator(device).manual_seed(seed)
        position_shape = (shape[0], *shape[2:])
        if family == "sigmoid":
            positives = 0.0 if kind == "many-hot" else POSITIVE_SHARE
            self.labels = _detection_labels(position_shape, self.classes, positives, generator)
            logits = _detection_logits(self.labels, shape, dtype, generator)
            if kind == "many-hot":
                logits += self.dense_targets * RAISED
        else:
            self.labels = _mask_labels(position_shape, self.classes, generator)
            logits = _softmax_logits(self.labels, shape, dtype, generator)
        self.logits = logits.contiguous(memory_format=memory_format).requires_grad_()
        if kind == "index":
            self.targets = self.labels.masked_fill(self.labels == IGNORED, ignore_index).to(target_dtype)
        else:
            self.targets = self.dense_targets.masked_fill((self.labels == IGNORED).unsqueeze(1), ignore_index)

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
        """Targets in the logits' dtype and shape, without ignored ones: those of class indices are one-hot, where
        background and ignored rows are all zero."""
        generator = self._generator(1)
        if self.kind == "soft":
            # As sure as the student, and not of the same everywhere.
            return _softmax_logits(self.filled_labels, self.shape, torch.float32, generator).softmax(1).to(self.dtype)
        if self.kind == "many-hot":
            uniform = torch.rand(self.shape, generator=generator, device=generator.device)
            return (uniform < POSITIVE_SHARE).to(self.dtype)
        if self.kind == "heat map":
            return _heat_map(self.filled_labels, self.shape).to(self.dtype)
        return self._at_label(torch.ones((), device=self.labels.device))

    @cached_property
    def scored_targets(self) -> Tensor:
        """The same of class indices with the scores in place of ones."""
        return self._at_label(self.option("scores"))

    def option(self, name: str) -> Tensor:
        """The tensor that an option of this name takes."""
        if name not in self._options:
            generator = self._generator(2 + list(_MAKE).index(name))
            shape = self.labels.shape if name in PER_POSITION else (self.classes,)
            made = _MAKE[name](torch.rand(shape, generator=generator, device=generator.device))
            self._options[name] = made.to(option_dtype(name, self.dtype))
        return self._options[name]

    def keywords(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with their tensors."""
        return {name: self.option(name) if value == TENSOR else value for name, value in options.items()}

    def _at_label(self, value: Tensor) -> Tensor:
        labels = self.filled_labels
        positive = labels < self.classes
        index = labels.masked_fill(~positive, 0).unsqueeze(1)
        dense = torch.zeros(self.shape, dtype=self.dtype, device=labels.device)
        return dense.scatter_(1, index, (positive * value).to(self.dtype).unsqueeze(1))

    def _generator(self, which: int) -> torch.Generator:
        """For what is made on demand, which must not depend on the order."""
        return torch.Generator(self.labels.device).manual_seed(self.seed + (which << 20))

    @cached_property
    def working_logits(self) -> Tensor:
        """A copy of the logits to overwrite, no leaf and no view; `restore` makes it new again."""
        return self.logits.clone()

    def restore(self) -> None:
        with torch.no_grad():
            self.working_logits.detach().copy_(self.logits)


def _detection_labels(shape: tuple[int, ...], classes: int, positives: float, generator: torch.Generator) -> Tensor:
    draw = torch.rand(shape, generator=generator, device=generator.device)
    labels = torch.randint(0, classes, shape, generator=generator, device=generator.device)
    labels.masked_fill_(draw >= positives, classes)
    return labels.masked_fill_(draw >= 1 - IGNORED_SHARE, IGNORED)


def _detection_logits(labels: Tensor, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    logits = torch.randn(shape, generator=generator, device=generator.device).mul_(2).sub_(4)
    return _raise_target_logit(logits, labels, by=RAISED).to(dtype)


def _heat_map(labels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """1 at each labelled position of [N, H, W] in the plane of its class, falling off around it as a Gaussian; the
    largest where objects are near each other. CornerNet's sigma is a third of the radius."""
    image, row, column = (labels < shape[1]).nonzero(as_tuple=True)
    plane = labels[image, row, column]
    heat = torch.zeros(shape, device=labels.device)
    reach = range(-PEAK, PEAK + 1)
    for down in reach:
        for right in reach:
            y, x = row + down, column + right
            inside = (y >= 0) & (y < shape[2]) & (x >= 0) & (x < shape[3])
            at = ((image * shape[1] + plane) * shape[2] + y) * shape[3] + x
            value = math.exp(-(down**2 + right**2) / (2 * (PEAK / 3) ** 2))
            flat, at = heat.view(-1), at[inside]
            flat[at] = flat[at].clamp(min=value)
    return heat


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
