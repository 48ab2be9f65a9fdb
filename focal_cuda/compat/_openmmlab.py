"""What mmdetection and mmsegmentation share: how they weigh and reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from ._common import check_choice, in_dtype, over

REDUCTIONS = ("none", "mean", "sum")
# What they add to avg_factor, so that none is 0.
_EPS = torch.finfo(torch.float32).eps


def reduction_of(
    op: str, reduction: str, override: str | None, avg_factor: float | Tensor | None, count: int
) -> dict[str, object]:
    """The reduction and normalizer of a call: a mean is over `count`, or over avg_factor where it is given."""
    check_choice(op, "reduction_override", override, (None, *REDUCTIONS))
    reduction = override or reduction
    if avg_factor is None or reduction == "none":
        return over(reduction, count)
    if reduction != "mean":
        raise ValueError(
            f'{op}: expected reduction="mean" or "none" with avg_factor, got {reduction!r}; drop avg_factor.'
        )
    return {"reduction": "sum", "normalizer": avg_factor + _EPS}


def as_rows(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """A weight for each row, or for each element, perhaps flattened."""
    if weight is None or weight.shape == logits.shape or weight.shape[:1] == logits.shape[:1]:
        return weight
    return weight.view(logits.shape) if weight.numel() == logits.numel() else weight


def broadcast(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """As PyTorch broadcasts: missing dimensions come first."""
    return None if weight is None else weight[(None,) * (logits.dim() - weight.dim())]


def finish(loss: Tensor, loss_weight: float, *operands: object) -> Tensor:
    """The loss with its weight, in the dtype of the operands."""
    return in_dtype(loss if loss_weight == 1 else loss * loss_weight, *operands)
