"""mmcv.ops.sigmoid_focal_loss and softmax_focal_loss, and their modules; on the CPU as well, where mmcv has none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ._common import (
    NOTHING,
    check_class_weight,
    check_rows,
    constant,
    filled,
    in_dtype,
    keep,
    over,
    product,
    where_refused,
)

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss", "sigmoid_focal_loss", "softmax_focal_loss"]


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """As ``mmcv.ops.sigmoid_focal_loss``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        input: logits ``[N, C]``.
        target: class index ``[N]``; label C is background.
        gamma: >= 0.
        alpha: in [0, 1].
        weight: ``[C]``, of every element of the rows with this label; rows of background weigh 1, where the original
            reads beyond the weights. They are gathered first, which adds 25 us to the smallest call.
        reduction: ``"none"``, ``"mean"`` over the N rows, or ``"sum"``.

    Returns:
        The input's dtype: a scalar or ``[N, C]``.

    Raises:
        TypeError, ValueError, IndexError: as :func:`focal_cuda.sigmoid_focal_loss`.
    """
    op = "mmcv.sigmoid_focal_loss"
    check_rows(op, input, target)
    check_class_weight(op, "weight", weight, input.shape[1])
    rows = None if weight is None else _of_rows(weight, target)
    loss = functional.sigmoid_focal_loss(
        input, target, alpha, gamma, ignore_index=NOTHING, sample_weight=rows, **over(reduction, len(input))
    )
    return in_dtype(loss, input)


def _of_rows(weight: Tensor, labels: Tensor) -> Tensor | None:
    """Of each row's label; 1 of background, the label after the last."""
    try:
        return torch.cat((weight, constant(weight, filled, (1,), 1.0))).take(labels.long())
    except IndexError:  # the loss itself will say so better
        return None


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """As ``mmcv.ops.softmax_focal_loss``; see :func:`focal_cuda.softmax_focal_loss` for the formula.

    Args:
        input: logits ``[N, C]``.
        target: class index ``[N]``; negative labels are ignored.
        gamma: >= 0.
        alpha: one factor for all classes.
        weight: ``[C]``, of the rows with this label.
        reduction: ``"none"``, ``"mean"`` over the N rows, ignored ones included, or ``"sum"``.

    Returns:
        The input's dtype: a scalar or ``[N]``.

    Raises:
        TypeError, ValueError, IndexError: as :func:`focal_cuda.softmax_focal_loss`; also for label C, for which the
            original reads the next row.
    """
    op = "mmcv.softmax_focal_loss"
    check_rows(op, input, target)
    check_class_weight(op, "weight", weight, input.shape[1])
    ignored = -1

    def loss(target: Tensor) -> Tensor:
        return functional.softmax_focal_loss(
            input, target, product(weight, alpha), gamma, ignore_index=ignored, **over(reduction, len(input))
        )

    return in_dtype(where_refused(loss, target, lambda labels: labels.masked_fill(labels < 0, ignored)), input)


class _FocalLoss(nn.Module):
    function = None

    def __init__(self, gamma: float, alpha: float, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        keep(self, "weight", weight, persistent=True)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return type(self).function(input, target, self.gamma, self.alpha, self.weight, self.reduction)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}, reduction={self.reduction}"


class SigmoidFocalLoss(_FocalLoss):
    """:func:`sigmoid_focal_loss` with its options kept."""

    function = staticmethod(sigmoid_focal_loss)


class SoftmaxFocalLoss(_FocalLoss):
    """:func:`softmax_focal_loss` with its options kept."""

    function = staticmethod(softmax_focal_loss)
