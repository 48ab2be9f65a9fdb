"""How far a candidate's loss and gradient are from the float64 reference, on the tensors it is timed on."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from bench.candidates import Meaning
from bench.inputs import IGNORED, PER_POSITION, Inputs
from focal_cuda import reference

# The gradient is compared on the first positions only: float64 autograd of all would take most of the run.
GRADIENT_ELEMENTS = 1_000_000
CHUNK_ELEMENTS = {"cpu": 4_000_000, "cuda": 64_000_000}


# How near to the least loss that is kept a loss may be for rounding to decide about it.
UNDECIDED = 1e-4


class Expected(NamedTuple):
    loss: float
    gradient: Tensor  # of the first positions
    undecided: Tensor | None = None  # where the gradient may as well be missing, or be there


class Oracle:
    """The reference's loss and gradient of one set of inputs, for each meaning asked for, computed once."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.known: dict[Meaning, Expected] = {}

    def errors(self, meaning: Meaning, loss: Tensor, gradient: Tensor) -> dict[str, float]:
        """Relative error of the loss; largest error of the gradient in units of its row's largest element."""
        if meaning not in self.known:
            self.known[meaning] = self._compute(meaning)
        known = self.known[meaning]
        difference = (gradient[: known.gradient.shape[0]].double() - known.gradient).abs()
        if known.undecided is not None:
            difference.masked_fill_(known.undecided, 0.0)
        scale, difference = _rows(known.gradient).abs().amax(1), _rows(difference).amax(1)
        # An ignored row has gradient 0, and anything else there is all wrong.
        relative = torch.where(scale > 0, difference / scale, (difference > 0).double())
        return {
            "loss_error": abs(float(loss) - known.loss) / abs(known.loss),
            "gradient_error": float(relative.max()),
        }

    def _compute(self, meaning: Meaning) -> Expected:
        per_row = self.inputs.logits[0].numel()
        first = slice(0, max(GRADIENT_ELEMENTS // per_row, 1))
        if meaning.loss == "normalized_focal_loss":
            return Expected(*self._whole(meaning, first))
        if "ohem_keep_ratio" in dict(meaning.options):
            loss, gradient = self._whole(meaning, first, reduction="mean")
            return Expected(loss, gradient, self._undecided(meaning, first, gradient))
        counted = self._counted(meaning)
        total = 0.0
        step = max(CHUNK_ELEMENTS[self.inputs.logits.device.type] // per_row, 1)
        for start in range(0, self.inputs.logits.shape[0], step):
            part = slice(start, start + step)
            total += float(self._loss(meaning, self.inputs.logits.detach()[part], part, reduction="sum"))
        leaf = self.inputs.logits.detach()[first].double().requires_grad_()
        (gradient,) = torch.autograd.grad(self._loss(meaning, leaf, first, reduction="sum"), leaf)
        return Expected(total / counted, gradient / counted)

    def _whole(self, meaning: Meaning, first: slice, **reduction: str) -> tuple[float, Tensor]:
        """Of a loss that is no sum over positions."""
        leaf = self.inputs.logits.detach().double().requires_grad_()
        loss = self._loss(meaning, leaf, slice(None), **reduction)
        return float(loss.detach()), torch.autograd.grad(loss, leaf)[0][first].clone()

    def _undecided(self, meaning: Meaning, first: slice, gradient: Tensor) -> Tensor:
        unmined = replace(meaning, options=tuple(o for o in meaning.options if o[0] != "ohem_keep_ratio"))
        losses = self._loss(unmined, self.inputs.logits.detach()[first], first, reduction="none")
        if losses.dim() < gradient.dim():
            losses = losses.unsqueeze(1)
            gradient = gradient.abs().amax(1, keepdim=True)
        least = losses[gradient != 0].min()
        return (losses / least - 1).abs() < UNDECIDED

    def _loss(self, meaning: Meaning, logits: Tensor, part: slice, **reduction: str) -> Tensor:
        """Of the logits, which are those of a part of the inputs."""
        options = self.inputs.keywords(dict(meaning.options))
        options.update({name: options[name][part] for name in PER_POSITION if name in options})
        targets = self._targets(meaning)[part]
        return getattr(reference, meaning.loss)(logits, targets, ignore_index=IGNORED, **options, **reduction)

    def _targets(self, meaning: Meaning) -> Tensor:
        """Labels say the same as one-hot targets."""
        if self.inputs.kind in ("index", "dense"):
            return self.inputs.labels if meaning.ignores else self.inputs.filled_labels
        return self.inputs.targets if meaning.ignores else self.inputs.dense_targets

    def _counted(self, meaning: Meaning) -> int:
        labels = self.inputs.labels if meaning.ignores else self.inputs.filled_labels
        counted = labels != IGNORED
        if "mask" in dict(meaning.options):
            counted &= self.inputs.option("mask")
        return int(counted.sum()) * (self.inputs.classes if self.inputs.family == "sigmoid" else 1)


def _rows(gradient: Tensor) -> Tensor:
    """[positions, classes]"""
    return gradient.movedim(1, -1).flatten(0, -2)
