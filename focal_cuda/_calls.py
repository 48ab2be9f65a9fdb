"""From the arguments of a public function to a call of the operators: what every loss has in common."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from . import _arguments, _ops

# The losses of csrc/math/relatives.h, by their numbers there.
LOSSES = (
    "focal", "shaped", "modulator", "quality", "varifocal", "gaussian", "asymmetric", "probability",
)  # fmt: skip
_VALIDATE = os.environ.get("FOCAL_CUDA_VALIDATE", "0") not in ("", "0")
_NO_PARAMETERS = (0.0, 0.0, 0.0, 0.0)


def compute(
    op: str,
    family: str,
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float | Tensor,
    reduction: str,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    normalizer: float | Tensor | str | None,
    gradient: str,
    validate: bool | None,
    options: dict,
    weights: tuple[float, float] = (1.0, 1.0),
    vector: Tensor | None = None,
    sample_weight: Tensor | None = None,
    scores: Tensor | None = None,
    smoothing: float = 0.0,
    loss: str = "focal",
    parameters: tuple[float, ...] = (),
    oracle: str | None = None,
) -> Tensor:
    """The loss, after logits, targets, class_dim and alpha are understood.

    weights and vector: of positives and negatives, as numbers or by class. options: what the composite, `oracle` in
    reference.py, is called with.
    """
    gammas = None
    if type(gamma) is not float or not 0.0 <= gamma < math.inf:
        if isinstance(gamma, Tensor):
            gamma, gammas = 0.0, _arguments.check_gamma_tensor(op, logits, gamma, class_dim, loss)
        else:
            gamma = _arguments.check_number(op, "gamma", gamma, 0.0, math.inf, "gamma = 0 is cross entropy")
    if type(ignore_index) is not int:
        _arguments.check_integer(op, "ignore_index", ignore_index)
    if background_index is not None and type(background_index) is not int:
        _arguments.check_integer(op, "background_index", background_index)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f'{op}: expected reduction to be "none", "mean" or "sum", got {reduction!r}; choose one of them.'
        )
    scale, divisor, kind = 1.0, None, reduction
    if normalizer is not None:
        scale, divisor, kind = _arguments.check_normalizer(op, logits, normalizer, reduction)
    if gradient == "auto":
        policy = "backward" if reduction == "none" or logits.dtype == torch.float16 else "forward"
    else:
        policy = _arguments.check_gradient(op, logits, gradient, reduction)
    if sample_weight is not None:
        sample_weight = _arguments.check_sample_weight(op, family, logits, sample_weight, class_dim)
    if validate or (validate is None and _VALIDATE):
        _arguments.check_values(op, family, logits, targets, vector, divisor, class_dim, ignore_index, background_index)
        _arguments.check_values_of_parts(op, gammas, sample_weight, scores)
    parts = _ops.NO_PARTS
    if not (vector is None and gammas is None and sample_weight is None and scores is None):
        parts = _ops.Parts(vector, gammas, sample_weight, scores)
    background = _ops.NO_BACKGROUND if background_index is None else background_index
    numbers = _ops.Numbers(
        *weights, gamma, smoothing, LOSSES.index(loss), *parameters, *_NO_PARAMETERS[len(parameters) :],
        class_dim, ignore_index, background, _ops.REDUCTIONS[kind],
    )  # fmt: skip
    return _ops.focal_loss(
        logits, targets, parts, divisor, _ops.Call(op, family, oracle or op, policy, scale, numbers, options)
    )


def count(logits: Tensor, targets: Tensor, family: str, class_dim: int, ignore_index: int) -> Tensor:
    """How many elements of the unreduced loss are not ignored, on the device."""
    if targets.dim() != logits.dim():
        elements = logits.shape[class_dim] if family == _arguments.SIGMOID else 1
        return (targets != ignore_index).sum() * elements
    if family == _arguments.SOFTMAX:
        targets = targets.select(class_dim, 0)
    return (targets != ignore_index).sum()
