"""The checks that read values, and so wait for the device: with validate=True, and on the CPU those of what is small or
no kernel looks at.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from . import _ops

_VALIDATE = os.environ.get("FOCAL_CUDA_VALIDATE", "0") not in ("", "0")


def wanted(validate: bool | None) -> bool:
    return _VALIDATE if validate is None else bool(validate)


def due(validate: bool | None, tensor: Tensor) -> bool:
    """Whether to look at a tensor of few numbers."""
    return wanted(validate) or on_cpu(tensor)


def check_numbers(
    op: str,
    name: str,
    values: Tensor | None,
    least: float = 0.0,
    most: float = math.inf,
    remedy: str = "correct it",
) -> None:
    """Every number of an optional tensor. A NaN is never in range."""
    if values is None or not values.numel():
        return
    low, high = torch.aminmax(values)  # both NaN if one is
    if low.item() >= least and high.item() <= most:
        return
    at = (~((values >= least) & (values <= most))).nonzero()[0].tolist()
    place = f"{name}{at} = " if at else ""
    bounds = f">= {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
    bounds = bounds if least > -math.inf else "without NaN"
    raise ValueError(f"{op}: expected {name} {bounds}, got {place}{values[tuple(at)].item():g}; {remedy}.")


def equals(targets: Tensor, value: int) -> Tensor:
    """Where targets are a label or another integer. torch compares in the targets' dtype, where -100 may be 156."""
    return (targets if targets.is_floating_point() else targets.long()) == value


def check_labels(op: str, targets: Tensor, classes: int, ignore_index: int, background: int | None) -> None:
    """Class index targets: a class, ignore_index or the label of the background, if there is one."""
    labels = targets.long()
    bad = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    allowed = f"class labels in [0, {classes})"
    if background is not None:
        bad &= labels != background
        allowed += f", background_index ({background})"
    _raise_bad_targets(op, IndexError, bad, targets, f"{allowed} or", ignore_index)


def check_dense(op: str, targets: Tensor, ignored: Tensor, ignore_index: int, most: float, binary: bool) -> None:
    """Dense targets in [0, most], or 0 and 1 alone."""
    bad = ~((targets == 0) | (targets == 1)) if binary else ~((targets >= 0) & (targets <= most))
    allowed = "0, 1" if binary else f"in [0, {most:g}]" if most < math.inf else ">= 0"
    _raise_bad_targets(op, ValueError, bad & ~ignored, targets, f"dense targets {allowed} or equal to", ignore_index)


def _raise_bad_targets(
    op: str, error: type[Exception], bad: Tensor, targets: Tensor, allowed: str, ignore_index: int
) -> None:
    if bool(bad.any()):
        at = bad.nonzero()[0].tolist()
        raise error(
            f"{op}: expected {allowed} ignore_index ({ignore_index}), got targets{at} = "
            f"{targets[tuple(at)].item()}; fix the labels or set ignore_index."
        )


def on_cpu(tensor: Tensor) -> bool:
    """Whether it has values, which can be looked at for nothing. Under vmap it has one for each sample."""
    traced = torch.compiler.is_compiling() or _ops.transformed()
    return tensor.is_cpu and not traced and not isinstance(tensor, FakeTensor)
