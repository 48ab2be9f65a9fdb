"""From the arguments of a public function to a call of the operators: what every loss has in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import _arguments, _ohem, _ops, _values, _weights
from ._arguments import SIGMOID

# The losses of csrc/math/relatives.h, by their numbers there.
LOSSES = (
    "focal", "shaped", "modulator", "normalized", "quality", "varifocal", "gaussian", "asymmetric", "probability",
)  # fmt: skip
# Of hard targets alone.
HARD = ("shaped", "modulator", "normalized", "asymmetric")
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
    gamma_by_class: bool = False,
    gamma_name: str = "gamma",
    fused: bool = True,
    ohem: _ohem.Rule = (None, None),
    route: Callable[[Tensor, Tensor, _ops.Parts, Tensor | None, _ops.Call], Tensor] | None = None,
) -> Tensor:
    """The loss, after logits, targets, class_dim and alpha are understood.

    weights and vector: of positives and negatives, as numbers or by class. options: what the composite, `oracle` in
    reference, is called with. gamma_by_class: whether gamma may be a tensor [C]. gamma_name: the caller's. fused:
    by the kernels, as far as they have such a loss; else by the composite. ohem: what the mean is over, if not all.
    route: to the operators, where it is another than _ops.focal_loss.
    """
    gammas = None
    if type(gamma) is not float or not 0.0 <= gamma < math.inf:
        if isinstance(gamma, Tensor):
            gamma, gammas = 0.0, _weights.check_gamma_tensor(op, gamma_name, logits, gamma, class_dim, gamma_by_class)
            if _values.due(validate, gammas):
                _values.check_numbers(op, gamma_name, gammas, remedy="0 is cross entropy")
            fused = fused and (loss == "focal" or gammas.dim() == 0)
        else:
            gamma = _arguments.check_number(op, gamma_name, gamma, 0.0, math.inf, "0 is cross entropy")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(
            f'{op}: expected reduction to be "none", "mean" or "sum", got {reduction!r}; choose one of them.'
        )
    mined = ohem != (None, None)
    if mined:
        _arguments.check_ohem(op, *ohem, reduction, normalizer)
        reduction, options = "none", {**options, "reduction": "none"}
    scale, divisor, kind = 1.0, None, reduction
    if normalizer is not None:
        scale, divisor, kind = _arguments.check_normalizer(op, logits, normalizer, reduction)
    if gradient == "auto":
        policy = "backward" if reduction == "none" or logits.dtype == torch.float16 else "forward"
    else:
        policy = _arguments.check_gradient(op, logits, gradient, reduction)
    wanted = _values.wanted(validate)
    if sample_weight is not None:
        given = sample_weight
        sample_weight = _weights.check_sample_weight(op, family, logits, given, class_dim)
        # The hardest are sought by their bits, which order losses >= 0 alone.
        if wanted or (mined and _values.on_cpu(given)):
            _values.check_numbers(op, "sample_weight", given, 0.0 if mined else -math.inf)
    if wanted or not (fused or not _values.on_cpu(targets)):
        _check_targets(op, family, logits, targets, class_dim, ignore_index, background_index, loss in HARD)
    if wanted:
        _values.check_numbers(op, "normalizer", divisor)
    parts = _ops.NO_PARTS
    if not (vector is None and gammas is None and sample_weight is None and scores is None):
        parts = _ops.Parts(vector, gammas, sample_weight, scores)
    background = _ops.NO_BACKGROUND if background_index is None else background_index
    numbers = _ops.Numbers(
        *weights, gamma, smoothing, LOSSES.index(loss), *parameters, *_NO_PARAMETERS[len(parameters) :],
        class_dim, ignore_index, background, _ops.REDUCTIONS[kind],
    )  # fmt: skip
    call = _ops.Call(op, family, oracle or op, policy, scale, numbers, options)
    if not fused:
        losses = call.composite_loss(logits, targets)
        return _ohem.hardest_mean(losses, _ohem.count(logits, targets, call), *ohem) if mined else losses
    if mined:
        route = partial(_ohem.hardest_focal_loss, ohem)
    elif route is None:
        route = _ops.focal_loss
    if torch.compiler.is_compiling():
        return route(logits, targets, parts, divisor, call)
    try:
        return route(logits, targets, parts, divisor, call)
    except (IndexError, ValueError, RuntimeError) as error:
        text = str(error)
        if not text.startswith(f"{family}: expected"):
            raise
        # Of a bad target: the kernels know the operators alone, and torch 2.15 makes a RuntimeError of a ValueError.
        kind = IndexError if isinstance(error, IndexError) else ValueError
        raise kind(text.replace(family, op, 1)) from None


def _check_targets(
    op: str,
    family: str,
    logits: Tensor,
    targets: Tensor,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    binary: bool,
) -> None:
    if targets.dim() != logits.dim():
        classes, background = logits.shape[class_dim], None
        if family == SIGMOID:
            background = classes if background_index is None else background_index
        _values.check_labels(op, targets, classes, ignore_index, background)
    elif family == SIGMOID:
        _values.check_dense(op, targets, _values.equals(targets, ignore_index), ignore_index, 1.0, binary)
    else:
        ignored = targets.select(class_dim, 0).unsqueeze(class_dim) == ignore_index
        _values.check_dense(op, targets, ignored, ignore_index, math.inf, binary)


def positives_of_soft(targets: Tensor, class_dim: int, ignore_index: int, background_index: int) -> Tensor:
    """How many positions of soft targets are neither ignored nor mostly background, at least 1, on the device."""
    counted = targets.select(class_dim, 0) != ignore_index
    return (counted & (targets.argmax(class_dim) != background_index)).sum().clamp(min=1)
