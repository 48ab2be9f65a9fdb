"""Softmax focal loss of probabilities: no softmax is left to compute, and for class index targets the loss is that
of a binary problem whose probability is the target's, so that nothing else is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _arguments, _calls, reference
from ._arguments import SIGMOID, SOFTMAX


def softmax(
    probabilities: Tensor,
    targets: Tensor,
    vector: Tensor | None,
    weight: float,
    *,
    gamma: float | Tensor,
    sample_weight: Tensor | None,
    reduction: str,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    normalizer: float | Tensor | str | None,
    gradient: str,
    validate: bool | None,
    options: dict,
) -> Tensor:
    """The loss of index targets by the kernels, of soft and smoothed ones by torch operations."""
    if options["label_smoothing"] or targets.dim() == probabilities.dim():
        return reference.softmax_focal_loss(probabilities, targets, **options, dtype=None)
    if gradient == "inplace":
        raise ValueError(
            f'{SOFTMAX}: expected gradient "auto", "forward" or "backward" with from_probabilities, got {gradient!r}: '
            'the gradient reaches the targets\' probabilities alone; use "auto".'
        )
    if targets.is_cpu:
        _arguments.check_labels(SOFTMAX, SOFTMAX, probabilities, targets, class_dim, ignore_index, background_index)
    counted = targets != ignore_index
    labels = torch.where(counted, targets, 0).long()
    picked = probabilities.gather(class_dim, labels.unsqueeze(class_dim)).squeeze(class_dim)
    if vector is not None:
        weights = vector[labels]
        sample_weight = weights if sample_weight is None else weights * sample_weight
    if isinstance(gamma, Tensor) and gamma.dim() > 0:
        raise ValueError(
            f"{SOFTMAX}: expected gamma to be one number with from_probabilities, got a tensor of shape "
            f"{list(gamma.shape)}; pass logits."
        )
    if isinstance(normalizer, str):
        normalizer = (counted & (targets != background_index)).sum().clamp(min=1)
    ignored = -1
    binary = torch.where(counted, 1, ignored).to(torch.int8)
    common = {"gamma": gamma, "reduction": reduction, "class_dim": class_dim, "ignore_index": ignored,
              "background_index": None, "normalizer": normalizer, "sample_weight": sample_weight}  # fmt: skip
    inner = {**common, "alpha": None, "pos_weight": weight, "from_probabilities": True}
    return _calls.compute(
        SOFTMAX, SIGMOID, picked, binary, weights=(weight, 1.0), loss="probability", gradient=gradient,
        validate=validate, oracle=SIGMOID, options=inner, **common,
    )  # fmt: skip
