"""Every way to compute the losses that the benchmark knows, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import focal_cuda
from bench import losses, originals
from bench.inputs import IGNORED, TENSOR, Inputs
from bench.losses import ALPHA, GAMMA


@dataclass(frozen=True)
class Meaning:
    """What a candidate computes, so that the reference can compute the same: errors are then rounding."""

    loss: str  # its name in focal_cuda.reference
    options: tuple[tuple[str, Any], ...] = ()
    ignores: bool = True

    def given(self, options: Mapping[str, Any]) -> Meaning:
        return replace(self, options=tuple({**dict(self.options), **options}.items()))


@dataclass(frozen=True)
class Candidate:
    """``loss(logits, *arguments(inputs))`` returns a scalar; ``arguments`` runs once, outside the timing."""

    name: str
    loss: Callable[..., Tensor]
    arguments: Callable[[Inputs], tuple[Any, ...]]
    meaning: Meaning | None = None  # of a loss
    # "read" is the ceiling of a loss without its gradient, "graph" a CUDA graph of loss and gradient.
    kind: Literal["loss", "inplace", "graph", "clone", "copy", "read"] = "loss"
    compiled: bool = False
    mode: str | None = None  # of torch.compile
    requires: str | None = None
    takes_options: bool = True

    @property
    def available(self) -> bool:
        return self.requires is None or importlib.util.find_spec(self.requires) is not None

    @property
    def is_loss(self) -> bool:
        return self.kind in ("loss", "inplace", "graph")

    def given(self, options: Mapping[str, Any]) -> Candidate:
        """The same with a scenario's options; cross entropies stay what they are, and so does what is no loss."""
        if not options or not self.takes_options or self.meaning is None:
            return self
        base, base_arguments = self.loss, self.arguments
        numbers = {name: value for name, value in options.items() if value != TENSOR}
        tensors = [name for name, value in options.items() if value == TENSOR]

        def loss(*arguments: Any) -> Tensor:
            given = len(arguments) - len(tensors)
            return base(*arguments[:given], **numbers, **dict(zip(tensors, arguments[given:], strict=True)))

        def arguments(inputs: Inputs) -> tuple[Any, ...]:
            return (*base_arguments(inputs), *map(inputs.option, tensors))

        return replace(self, loss=loss, arguments=arguments, meaning=self.meaning.given(options))

    def build(self) -> Callable[..., Tensor]:
        """The callable to time. torch.compile specialises on the shapes, which is its fastest form."""
        return torch.compile(self.loss, dynamic=False, fullgraph=True, mode=self.mode) if self.compiled else self.loss


def _own(function: Callable[..., Tensor], alpha: float | None, gradient: str) -> Callable[..., Tensor]:
    def loss(
        logits: Tensor,
        targets: Tensor,
        ignore_index: int,
        gamma: float | Tensor = GAMMA,
        alpha: float | Tensor | None = alpha,
        **options: Any,
    ) -> Tensor:
        return function(logits, targets, alpha, gamma, "mean", ignore_index=ignore_index, gradient=gradient, **options)

    return loss


def _own_unreduced(function: Callable[..., Tensor], alpha: float | None) -> Callable[..., Tensor]:
    """What is made of a loss for each position, or element, outside: here the mean of those that count."""

    def loss(logits: Tensor, targets: Tensor, ignore_index: int, count: int, gamma: float = GAMMA) -> Tensor:
        return function(logits, targets, alpha, gamma, "none", ignore_index=ignore_index).sum() / count

    return loss


_own_sigmoid = partial(_own, focal_cuda.sigmoid_focal_loss, ALPHA)
_own_softmax = partial(_own, focal_cuda.softmax_focal_loss, None)


def _own_targets(inputs: Inputs) -> tuple[Any, ...]:
    return inputs.targets, inputs.ignore_index


def _counted_targets(inputs: Inputs) -> tuple[Any, ...]:
    """And how many losses there are of those that count."""
    of_each = inputs.classes if inputs.family == "sigmoid" else 1
    return inputs.targets, inputs.ignore_index, inputs.counted_positions * of_each


def _dense(inputs: Inputs) -> tuple[Any, ...]:
    return (inputs.dense_targets,)


def _scored(inputs: Inputs) -> tuple[Any, ...]:
    return (inputs.scored_targets,)


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


_SIGMOID = Meaning("sigmoid_focal_loss", (("alpha", ALPHA), ("gamma", GAMMA)))
_DENSE_SIGMOID = replace(_SIGMOID, ignores=False)
_SOFTMAX = Meaning("softmax_focal_loss", (("gamma", GAMMA),))
_DENSE_SOFTMAX = replace(_SOFTMAX, ignores=False)
_CROSS_ENTROPY = _SOFTMAX.given({"gamma": 0.0})

_COPIES = (
    Candidate("clone", _clone, lambda inputs: (), kind="clone"),
    Candidate("copy_", _copy, _copy_buffer, kind="copy"),
    Candidate("sum", _read, lambda inputs: (), kind="read"),
)

SIGMOID = (
    Candidate("focal_cuda", _own_sigmoid("auto"), _own_targets, _SIGMOID),
    Candidate("focal_cuda plain", _own_sigmoid("auto"), _own_targets, _SIGMOID, takes_options=False),
    Candidate("focal_cuda recompute", _own_sigmoid("backward"), _own_targets, _SIGMOID),
    Candidate("focal_cuda unreduced", _own_unreduced(focal_cuda.sigmoid_focal_loss, ALPHA), _counted_targets, _SIGMOID),
    Candidate("focal_cuda inplace", _own_sigmoid("inplace"), _own_targets, _SIGMOID, kind="inplace"),
    Candidate("focal_cuda.compat", losses.compat_sigmoid, _dense, _DENSE_SIGMOID, takes_options=False),
    Candidate("Python torchvision formula", losses.torchvision_formula, _dense, _DENSE_SIGMOID),
    Candidate("Python from labels", losses.from_labels, _labels, _SIGMOID),
    Candidate("Python exp(-BCE)", losses.exp_of_bce, _dense, _DENSE_SIGMOID.given({"alpha": None})),
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
    Candidate(
        "F.binary_cross_entropy",
        losses.binary_cross_entropy,
        _dense,
        _DENSE_SIGMOID.given({"alpha": None, "gamma": 0.0}),
        takes_options=False,
    ),
    *_COPIES,
)

SOFTMAX = (
    Candidate("focal_cuda", _own_softmax("auto"), _own_targets, _SOFTMAX),
    Candidate("focal_cuda plain", _own_softmax("auto"), _own_targets, _SOFTMAX, takes_options=False),
    Candidate("focal_cuda recompute", _own_softmax("backward"), _own_targets, _SOFTMAX),
    Candidate("focal_cuda unreduced", _own_unreduced(focal_cuda.softmax_focal_loss, None), _counted_targets, _SOFTMAX),
    Candidate("focal_cuda inplace", _own_softmax("inplace"), _own_targets, _SOFTMAX, kind="inplace"),
    Candidate("focal_cuda.compat", losses.compat_softmax, _labels, _SOFTMAX, takes_options=False),
    Candidate("Python MultiClassFocalLoss", losses.multi_class_focal_loss, _labels, _SOFTMAX),
    Candidate("Python cross-entropy based", losses.cross_entropy_based, _labels, _SOFTMAX),
    Candidate("Python scattered one-hot", losses.scattered_one_hot, _filled_labels, _DENSE_SOFTMAX),
    Candidate("Python soft composition", losses.soft_composition, _dense, _DENSE_SOFTMAX),
    Candidate("Python smoothed labels", losses.smoothed_labels, _labels, _SOFTMAX),
    Candidate("compile cross-entropy based", losses.cross_entropy_based, _labels, _SOFTMAX, compiled=True),
    Candidate("compile soft composition", losses.soft_composition, _dense, _DENSE_SOFTMAX, compiled=True),
    Candidate("compile smoothed labels", losses.smoothed_labels, _labels, _SOFTMAX, compiled=True),
    Candidate(
        "autotuned cross-entropy based",
        losses.cross_entropy_based,
        _labels,
        _SOFTMAX,
        compiled=True,
        mode="max-autotune-no-cudagraphs",
    ),
    Candidate("kornia", losses.kornia_softmax, lambda i: (i.labels, i.counted_positions), _SOFTMAX, requires="kornia"),
    Candidate("MONAI", losses.monai_softmax, lambda i: (i.labels.unsqueeze(1),), _SOFTMAX, requires="monai"),
    Candidate("F.cross_entropy", losses.cross_entropy, _labels, _CROSS_ENTROPY, takes_options=False),
    Candidate(
        "Liger CE",
        losses.liger_cross_entropy,
        _labels,
        _CROSS_ENTROPY,
        "inplace",
        requires="liger_kernel",
        takes_options=False,
    ),
    Candidate("QuACK CE", losses.quack_cross_entropy, _labels, _CROSS_ENTROPY, requires="quack", takes_options=False),
    Candidate("focal_cuda, CUDA graph", _own_softmax("auto"), _own_targets, _SOFTMAX, kind="graph"),
    Candidate(
        "F.cross_entropy, CUDA graph", losses.cross_entropy, _labels, _CROSS_ENTROPY, kind="graph", takes_options=False
    ),
    *_COPIES,
)


# Of each relative: the eager original, what that takes, and the form of it that torch.compile takes whole.
_ORIGINALS = {
    "quality_focal_loss": (
        (originals.quality, lambda i: (i.filled_labels, i.option("scores"))),
        (originals.quality_of_scored, _scored),
    ),
    "varifocal_loss": ((originals.varifocal, _scored),),
    "gaussian_focal_loss": ((originals.gaussian, _dense),),
    "asymmetric_loss": ((originals.asymmetric, _dense),),
    "poly_focal_loss": ((originals.poly, _dense),),
    "reduced_focal_loss": ((originals.reduced, _dense),),
    "normalized_focal_loss": ((originals.normalized, _dense),),
}


def _relative(loss: str, options: Mapping[str, Any]) -> tuple[Candidate, ...]:
    def own(logits: Tensor, targets: Tensor, ignore_index: int, **options: Any) -> Tensor:
        return getattr(focal_cuda, loss)(logits, targets, ignore_index=ignore_index, **options)

    meaning = Meaning(loss)
    # Originals are written for the options of their scenario.
    as_written = replace(meaning.given(options), ignores=False)
    eager, compiled = _ORIGINALS[loss][0], _ORIGINALS[loss][-1]
    return (
        Candidate("focal_cuda", own, _own_targets, meaning),
        Candidate("Python original", *eager, as_written, takes_options=False),
        Candidate("compile original", *compiled, as_written, compiled=True, takes_options=False),
        *_COPIES,
    )


def candidates_of(
    family: str, loss: str | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Candidate]:
    """Those of the family's focal loss or of one of its relatives, with the options of a scenario."""
    options = options or {}
    known = _relative(loss, options) if loss else SIGMOID if family == "sigmoid" else SOFTMAX
    return {candidate.name: candidate.given(options) for candidate in known}
