"""How far a candidate's loss and gradient are from the float64 reference, on the tensors it is timed on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.candidates import Meaning
from bench.inputs import IGNORED, Inputs
from focal_cuda import reference

# The gradient is compared on the first positions only: float64 autograd of all would take most of the run.
GRADIENT_ELEMENTS = 1_000_000
CHUNK_ELEMENTS = {"cpu": 4_000_000, "cuda": 64_000_000}


class Oracle:
    """The reference's loss and gradient of one set of inputs, for each meaning asked for, computed once."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.known: dict[Meaning, tuple[float, Tensor]] = {}

    def errors(self, meaning: Meaning, loss: Tensor, gradient: Tensor) -> dict[str, float]:
        """Relative error of the loss; largest error of the gradient in units of its row's largest element."""
        if meaning not in self.known:
            self.known[meaning] = self._compute(meaning)
        expected_loss, expected = self.known[meaning]
        actual = _rows(gradient[: expected.shape[0]].double())
        expected = _rows(expected)
        scale = expected.abs().amax(1)
        difference = (actual - expected).abs().amax(1)
        # An ignored row has gradient 0, and anything else there is all wrong.
        relative = torch.where(scale > 0, difference / scale, (difference > 0).double())
        return {
            "loss_error": abs(float(loss) - expected_loss) / abs(expected_loss),
            "gradient_error": float(relative.max()),
        }

    def _compute(self, meaning: Meaning) -> tuple[float, Tensor]:
        logits, labels = self.inputs.logits.detach(), self._labels(meaning)
        per_row = logits[0].numel()
        counted = int((labels != IGNORED).sum())
        if self.inputs.family == "sigmoid":
            counted *= self.inputs.classes
        total = 0.0
        step = max(CHUNK_ELEMENTS[logits.device.type] // per_row, 1)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            total += float(self._sum(meaning)(logits[part], labels[part]))
        first = slice(0, max(GRADIENT_ELEMENTS // per_row, 1))
        leaf = logits[first].double().requires_grad_()
        (gradient,) = torch.autograd.grad(self._sum(meaning)(leaf, labels[first]), leaf)
        return total / counted, gradient / counted

    def _labels(self, meaning: Meaning) -> Tensor:
        return self.inputs.labels if meaning.ignores else self.inputs.filled_labels

    def _sum(self, meaning: Meaning) -> Callable[[Tensor, Tensor], Tensor]:
        function = reference.sigmoid_focal_loss if self.inputs.family == "sigmoid" else reference.softmax_focal_loss
        return lambda x, t: function(x, t, meaning.alpha, meaning.gamma, "sum", ignore_index=IGNORED)


def _rows(gradient: Tensor) -> Tensor:
    """[positions, classes]"""
    return gradient.movedim(1, -1).flatten(0, -2)
