"""Every way to compute the losses that the benchmark knows, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

import focal_cuda
from bench import losses
from bench.inputs import IGNORED, Inputs
from bench.losses import ALPHA, GAMMA


@dataclass(frozen=True)
class Meaning:
    """What a candidate computes, so that the reference can compute the same: errors are then rounding."""

    alpha: float | None = None
    gamma: float = GAMMA
    ignores: bool = True


@dataclass(frozen=True)
class Candidate:
    """``loss(logits, *arguments(inputs))`` returns a scalar; ``arguments`` runs once, outside the timing."""

    name: str
    loss: Callable[..., Tensor]
    arguments: Callable[[Inputs], tuple[Any, ...]]
    meaning: Meaning = Meaning()
    # "read" is the ceiling of a loss without its gradient, "graph" a CUDA graph of loss and gradient.
    kind: Literal["loss", "inplace", "graph", "clone", "copy", "read"] = "loss"
    compiled: bool = False
    mode: str | None = None  # of torch.compile
    requires: str | None = None

    @property
    def available(self) -> bool:
        return self.requires is None or importlib.util.find_spec(self.requires) is not None

    @property
    def is_loss(self) -> bool:
        return self.kind in ("loss", "inplace", "graph")

    def at(self, gamma: float) -> Candidate:
        """The same with another gamma; cross entropies stay what they are, and so does what is no loss."""
        if gamma == GAMMA or not self.is_loss or self.meaning.gamma == 0:
            return self
        base = self.loss

        def loss(*arguments: Any) -> Tensor:
            return base(*arguments, gamma=gamma)

        return replace(self, loss=loss, meaning=replace(self.meaning, gamma=gamma))

    def build(self) -> Callable[..., Tensor]:
        """The callable to time. torch.compile specialises on the shapes, which is its fastest form."""
        return torch.compile(self.loss, dynamic=False, fullgraph=True, mode=self.mode) if self.compiled else self.loss


def _own_sigmoid(gradient: str) -> Callable[..., Tensor]:
    def loss(logits: Tensor, targets: Tensor, ignore_index: int, gamma: float = GAMMA) -> Tensor:
        return focal_cuda.sigmoid_focal_loss(
            logits, targets, ALPHA, gamma, "mean", ignore_index=ignore_index, gradient=gradient
        )

    return loss


def _own_softmax(gradient: str) -> Callable[..., Tensor]:
    def loss(logits: Tensor, targets: Tensor, ignore_index: int, gamma: float = GAMMA) -> Tensor:
        return focal_cuda.softmax_focal_loss(
            logits, targets, None, gamma, "mean", ignore_index=ignore_index, gradient=gradient
        )

    return loss


def _own_targets(inputs: Inputs) -> tuple[Any, ...]:
    return inputs.targets, inputs.ignore_index


def _dense(inputs: Inputs) -> tuple[Any, ...]:
    return (inputs.dense_targets,)


def _labels(inputs: Inputs) -> tuple[Any, ...]:
    return (inputs.labels,)


def _filled_labels(inputs: Inputs) -> tuple[Any, ...]:
    return (inputs.filled_labels,)


def _apex_arguments(inputs: Inputs) -> tuple[Any, ...]:
    labels = inputs.labels.masked_fill(inputs.labels == inputs.classes, -1).masked_fill_(inputs.labels == IGNORED, -2)
    counted = inputs.counted_positions * inputs.classes
    return labels, torch.tensor([counted], dtype=torch.float32, device=labels.device)


def _copy_buffer(inputs: Inputs) -> tuple[Any, ...]:
    return (inputs.working_logits.detach(),)


def _clone(logits: Tensor) -> Tensor:
    return logits.detach().clone()


def _copy(logits: Tensor, into: Tensor) -> Tensor:
    return into.copy_(logits.detach())


def _read(logits: Tensor) -> Tensor:
    return logits.detach().sum(dtype=torch.float32)


_SIGMOID = Meaning(ALPHA)
_DENSE_SIGMOID = Meaning(ALPHA, ignores=False)

_COPIES = (
    Candidate("clone", _clone, lambda inputs: (), kind="clone"),
    Candidate("copy_", _copy, _copy_buffer, kind="copy"),
    Candidate("sum", _read, lambda inputs: (), kind="read"),
)

SIGMOID = (
    Candidate("focal_cuda", _own_sigmoid("auto"), _own_targets, _SIGMOID),
    Candidate("focal_cuda recompute", _own_sigmoid("backward"), _own_targets, _SIGMOID),
    Candidate("focal_cuda inplace", _own_sigmoid("inplace"), _own_targets, _SIGMOID, kind="inplace"),
    Candidate("Python torchvision formula", losses.torchvision_formula, _dense, _DENSE_SIGMOID),
    Candidate("Python from labels", losses.from_labels, _labels, _SIGMOID),
    Candidate("Python exp(-BCE)", losses.exp_of_bce, _dense, Meaning(ignores=False)),
    Candidate("Python one-vs-all", losses.one_vs_all, _labels, _SIGMOID),
    Candidate("compile torchvision formula", losses.torchvision_formula, _dense, _DENSE_SIGMOID, compiled=True),
    Candidate("compile from labels", losses.from_labels, _labels, _SIGMOID, compiled=True),
    Candidate(
        "autotuned from labels",
        losses.from_labels,
        _labels,
        _SIGMOID,
        compiled=True,
        mode="max-autotune-no-cudagraphs",
    ),
    Candidate("torchvision", losses.torchvision_sigmoid, _dense, _DENSE_SIGMOID, requires="torchvision"),
    Candidate("apex", losses.apex_sigmoid, _apex_arguments, _SIGMOID, requires="apex"),
    Candidate("mmcv", losses.mmcv_sigmoid, _filled_labels, _DENSE_SIGMOID, requires="mmcv"),
    Candidate("kornia", losses.kornia_sigmoid, _dense, _DENSE_SIGMOID, requires="kornia"),
    Candidate("MONAI", losses.monai_sigmoid, _dense, _DENSE_SIGMOID, requires="monai"),
    Candidate("focal_cuda, CUDA graph", _own_sigmoid("auto"), _own_targets, _SIGMOID, kind="graph"),
    Candidate("F.binary_cross_entropy", losses.binary_cross_entropy, _dense, Meaning(gamma=0, ignores=False)),
    *_COPIES,
)

SOFTMAX = (
    Candidate("focal_cuda", _own_softmax("auto"), _own_targets),
    Candidate("focal_cuda recompute", _own_softmax("backward"), _own_targets),
    Candidate("focal_cuda inplace", _own_softmax("inplace"), _own_targets, kind="inplace"),
    Candidate("Python MultiClassFocalLoss", losses.multi_class_focal_loss, _labels),
    Candidate("Python cross-entropy based", losses.cross_entropy_based, _labels),
    Candidate(
        "Python scattered one-hot",
        losses.scattered_one_hot,
        _filled_labels,
        Meaning(ignores=False),
    ),
    Candidate("compile cross-entropy based", losses.cross_entropy_based, _labels, compiled=True),
    Candidate(
        "autotuned cross-entropy based",
        losses.cross_entropy_based,
        _labels,
        compiled=True,
        mode="max-autotune-no-cudagraphs",
    ),
    Candidate("kornia", losses.kornia_softmax, lambda i: (i.labels, i.counted_positions), requires="kornia"),
    Candidate("MONAI", losses.monai_softmax, lambda i: (i.labels.unsqueeze(1),), requires="monai"),
    Candidate("F.cross_entropy", losses.cross_entropy, _labels, Meaning(gamma=0)),
    Candidate("Liger CE", losses.liger_cross_entropy, _labels, Meaning(gamma=0), "inplace", requires="liger_kernel"),
    Candidate("QuACK CE", losses.quack_cross_entropy, _labels, Meaning(gamma=0), requires="quack"),
    Candidate("focal_cuda, CUDA graph", _own_softmax("auto"), _own_targets, kind="graph"),
    Candidate("F.cross_entropy, CUDA graph", losses.cross_entropy, _labels, Meaning(gamma=0), kind="graph"),
    *_COPIES,
)


def candidates_of(family: str) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in (SIGMOID if family == "sigmoid" else SOFTMAX)}
