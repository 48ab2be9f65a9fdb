"""kornia.losses.focal_loss and binary_focal_loss_with_logits, and their modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _values, functional
from ._common import (
    NOTHING,
    along_classes,
    background_alpha,
    check_class_weight,
    check_dense,
    check_indices,
    in_dtype,
    keep,
    number,
    over,
    product,
    spread,
)

__all__ = ["BinaryFocalLossWithLogits", "FocalLoss", "binary_focal_loss_with_logits", "focal_loss"]


def focal_loss(
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """As ``kornia.losses.focal_loss``; see :func:`focal_cuda.softmax_focal_loss` for the formula.

    Args:
        pred: logits ``[N, C, ...]``, C >= 2.
        target: class index ``[N, ...]``.
        alpha: of every class but the first, which is background and weighs 1 - alpha; None for none.
        gamma: >= 0.
        reduction: ``"none"``, ``"mean"`` over all N * C * ... elements, ignored ones included, or ``"sum"``. The map of
            ``"none"`` is filled after the loss, and read in the backward: which adds 60 us to the smallest call.
        weight: ``[C]``, of the positions with this label.
        ignore_index: a label that gives 0; None for none.

    Returns:
        The dtype of pred: a scalar, or a map of pred's shape that is 0 but at the target classes.

    Raises:
        TypeError, ValueError, IndexError: as :func:`focal_cuda.softmax_focal_loss`.
    """
    check_indices("kornia.focal_loss", pred, target)
    check_class_weight("kornia.focal_loss", "weight", weight, pred.shape[1] if pred.dim() > 1 else 0)
    loss = functional.softmax_focal_loss(
        pred, target, background_alpha(number(alpha), pred, weight), gamma,
        ignore_index=NOTHING if ignore_index is None else ignore_index, **over(reduction, pred.numel()),
    )  # fmt: skip
    return in_dtype(spread(loss, target, pred) if reduction == "none" else loss, pred, weight)


def binary_focal_loss_with_logits(
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    r"""As ``kornia.losses.binary_focal_loss_with_logits``.

    .. math:: L = -\alpha\, t (1 - p)^\gamma \log p - (1 - \alpha)(1 - t)\, p^\gamma \log(1 - p)

    Args:
        pred: logits ``[N, C, ...]``.
        target: of the same shape, in [0, 1]. Soft ones take a pass for each term; and so do floating ones on a GPU,
            where nobody looks whether they are soft (on the CPU that adds 10 us to the smallest call): pass bool or
            integers if you can.
        alpha: of positives, in [0, 1]; None for none.
        gamma: >= 0.
        reduction: ``"none"``, ``"mean"`` over all elements, ignored ones included, or ``"sum"``.
        pos_weight: ``[C]``, of positives.
        weight: ``[C]``, of both.
        ignore_index: a target that gives 0; None for none.

    Returns:
        The dtype of pred, promoted with those of target and weights: a scalar or pred's shape.

    Raises:
        TypeError, ValueError: as :func:`focal_cuda.sigmoid_focal_loss`.
    """
    op = "kornia.binary_focal_loss_with_logits"
    check_dense(op, pred, target, rank=2)
    for name, vector in (("pos_weight", pos_weight), ("weight", weight)):
        check_class_weight(op, name, vector, pred.shape[1])
    ignore_index = NOTHING if ignore_index is None else ignore_index
    of_class = along_classes(weight, pred)
    common = {"pos_weight": pos_weight, "ignore_index": ignore_index, **over(reduction, pred.numel())}
    alpha = number(alpha)
    if not target.is_floating_point() or _known_as_hard(target):
        loss = functional.sigmoid_focal_loss(pred, target, alpha, gamma, sample_weight=of_class, **common)
    else:

        def term(outcome: bool, share: Tensor) -> Tensor:
            outcomes = torch.full((), outcome, device=pred.device).expand(pred.shape)
            return functional.sigmoid_focal_loss(
                pred, outcomes, alpha, gamma, sample_weight=product(share, of_class), **common
            )

        counted = target != ignore_index
        loss = term(True, torch.where(counted, target, 0.0)) + term(False, torch.where(counted, 1 - target, 0.0))
    return in_dtype(loss, pred, target, pos_weight, weight)


def _known_as_hard(target: Tensor) -> bool:
    """Whether a look at floating targets, free on the CPU, finds 0, 1 and an ignored label alone."""
    return _values.on_cpu(target) and torch.equal(target, target.round())


class FocalLoss(nn.Module):
    """:func:`focal_loss` with its options kept."""

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return focal_loss(pred, target, self.alpha, self.gamma, self.reduction, self.weight, self.ignore_index)


class BinaryFocalLossWithLogits(nn.Module):
    """:func:`binary_focal_loss_with_logits` with its options kept."""

    def __init__(
        self,
        alpha: float | None,
        gamma: float = 2.0,
        reduction: str = "none",
        pos_weight: Tensor | None = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        keep(self, "pos_weight", pos_weight)
        keep(self, "weight", weight)
        self.ignore_index = ignore_index

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        return binary_focal_loss_with_logits(
            pred, target, self.alpha, self.gamma, self.reduction, self.pos_weight, self.weight, self.ignore_index
        )
