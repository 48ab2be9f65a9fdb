"""Softmax focal loss of probabilities: no softmax is left to compute, and for class index targets the loss is that
of a binary problem whose probability is the target's, so that nothing else is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _calls, _values, _weights
from ._arguments import SIGMOID, SOFTMAX


def softmax(
    probabilities: Tensor,
    targets: Tensor,
    vector: Tensor | None,
    weight: float,
    *,
    gamma: float | Tensor,
    sample_weight: Tensor | None,
    class_dim: int,
    ignore_index: int,
    background_index: int | None,
    normalizer: float | Tensor | str | None,
    gradient: str,
    options: dict[str, Any],
    **further: Any,
) -> Tensor:
    """The loss of index targets by the kernels; of soft and smoothed ones, and with a gamma for each class, by torch
    operations."""
    if gradient == "inplace":
        raise ValueError(
            f'{SOFTMAX}: expected gradient "auto", "forward" or "backward" with from_probabilities, got {gradient!r}: '
            'the gradient reaches the targets\' probabilities alone; use "auto".'
        )
    common: dict[str, Any] = {"gamma": gamma, "class_dim": class_dim, "gradient": gradient, **further}
    by_class = isinstance(gamma, Tensor) and gamma.dim() > 0
    if targets.dim() == probabilities.dim() or options["label_smoothing"] or by_class:
        return _calls.compute(
            SOFTMAX, SOFTMAX, probabilities, targets, sample_weight=sample_weight, ignore_index=ignore_index,
            background_index=background_index, normalizer=normalizer, options=options, gamma_by_class=True,
            fused=False, **common,
        )  # fmt: skip
    if _values.on_cpu(targets):
        _values.check_labels(SOFTMAX, targets, probabilities.shape[class_dim], ignore_index, None)
    counted = ~_values.equals(targets, ignore_index)
    labels = torch.where(counted, targets, 0).long()
    picked = probabilities.gather(class_dim, labels.unsqueeze(class_dim)).squeeze(class_dim)
    if sample_weight is not None:
        sample_weight = _weights.check_sample_weight(SOFTMAX, SOFTMAX, probabilities, sample_weight, class_dim)
    if vector is not None:
        weights = vector[labels]
        sample_weight = weights if sample_weight is None else weights * sample_weight
    if isinstance(normalizer, str) and normalizer == "positives":
        normalizer = (counted & ~_values.equals(targets, background_index)).sum().clamp(min=1)
    ignored = -1
    binary = torch.where(counted, 1, ignored).to(torch.int8)
    common |= {"ignore_index": ignored, "background_index": None, "normalizer": normalizer,
               "sample_weight": sample_weight}  # fmt: skip
    inner = {name: value for name, value in common.items() if name not in ("gradient", "validate", "ohem")}
    inner |= {"alpha": None, "pos_weight": weight, "from_probabilities": True}
    return _calls.compute(
        SOFTMAX, SIGMOID, picked, binary, weights=(weight, 1.0), loss="probability", oracle=SIGMOID, options=inner,
        **common,
    )  # fmt: skip
