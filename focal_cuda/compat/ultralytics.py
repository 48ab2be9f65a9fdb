"""ultralytics.utils.loss.FocalLoss and VarifocalLoss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional, variants
from ._common import NOTHING, check_dense, in_dtype, keep

__all__ = ["FocalLoss", "VarifocalLoss"]


class FocalLoss(nn.Module):
    """As ``ultralytics.utils.loss.FocalLoss``: ``loss.mean(1).sum()``; see :func:`focal_cuda.sigmoid_focal_loss`.

    alpha: <= 0 for none; a list has one number for each class, which is the last dimension. ``loss(pred, label)``:
    logits ``[N, M, ...]``, and floating targets of their shape. Returns a scalar in the dtype of label.
    """

    def __init__(self, gamma: float = 1.5, alpha: float | Sequence[float] = 0.25) -> None:
        super().__init__()
        self.gamma = gamma
        if not isinstance(alpha, (int, float)):
            alpha = torch.as_tensor(alpha)
        keep(self, "alpha", alpha if bool((torch.as_tensor(alpha) > 0).any()) else None)

    def forward(self, pred: Tensor, label: Tensor) -> Tensor:
        check_dense("ultralytics.FocalLoss", pred, label, floating=True, rank=2)
        loss = functional.sigmoid_focal_loss(
            pred, label, self.alpha, self.gamma, "sum", class_dim=-1, ignore_index=NOTHING,
            normalizer=max(pred.shape[1], 1),
        )  # fmt: skip
        return in_dtype(loss, label)


class VarifocalLoss(nn.Module):
    """As ``ultralytics.utils.loss.VarifocalLoss``: ``loss.mean(1).sum()``; see :func:`focal_cuda.varifocal_loss`.

    ``loss(pred_score, gt_score, label)``: logits ``[N, M, ...]``, and scores and one-hot labels of their shape.
    Positives with a score of 0 have no loss, neither as positives nor as negatives; scores where the label is 0 are out
    of place. To find them takes two operations, which add 25 us to the smallest call. Returns a scalar,
    float32 unless one of the three is float64.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.75) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, pred_score: Tensor, gt_score: Tensor, label: Tensor) -> Tensor:
        op = "ultralytics.VarifocalLoss"
        check_dense(op, pred_score, gt_score, rank=2)
        check_dense(op, pred_score, label)
        ignored = -1
        targets = gt_score.masked_fill(label.logical_xor(gt_score), ignored)
        loss = variants.varifocal_loss(
            pred_score, targets, None, self.alpha, self.gamma, "sum", ignore_index=ignored,
            normalizer=max(pred_score.shape[1], 1),
        )  # fmt: skip
        return in_dtype(loss, loss, gt_score, label)
