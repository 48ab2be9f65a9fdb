"""mmdet.models.losses: FocalLoss, QualityFocalLoss, VarifocalLoss and GaussianFocalLoss.

Their calls are ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None)``. A mean is over all
elements (rows, of QualityFocalLoss), or the sum over avg_factor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional, variants
from ._common import NOTHING, check_choice, check_dense, check_rows, check_sigmoid, logits_of, where_refused
from ._openmmlab import REDUCTIONS, as_rows, broadcast, finish, reduction_of

__all__ = ["FocalLoss", "GaussianFocalLoss", "QualityFocalLoss", "VarifocalLoss"]


class _Loss(nn.Module):
    def __init__(self, reduction: str, loss_weight: float) -> None:
        super().__init__()
        check_choice(f"mmdet.{type(self).__name__}", "reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.loss_weight = loss_weight

    def finish(self, loss: Tensor, *operands: object) -> Tensor:
        return finish(loss, self.loss_weight, *operands)


class FocalLoss(_Loss):
    """As ``mmdet.models.losses.FocalLoss``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    pred: logits ``[N, C]`` (``activated``: probabilities). target: class index ``[N]``, label C is background; or
    dense, of pred's shape. weight: ``[N]``, ``[N, C]`` or that flattened.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_sigmoid("mmdet.FocalLoss", use_sigmoid)
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        op = "mmdet.FocalLoss"
        (check_dense if pred.dim() == target.dim() else check_rows)(op, pred, target)
        loss = functional.sigmoid_focal_loss(
            pred, target, self.alpha, self.gamma, ignore_index=NOTHING, from_probabilities=self.activated,
            sample_weight=as_rows(weight, pred),
            **reduction_of(op, self.reduction, reduction_override, avg_factor, pred.numel()),
        )  # fmt: skip
        return self.finish(loss, pred, weight, avg_factor)


class QualityFocalLoss(_Loss):
    """As ``mmdet.models.losses.QualityFocalLoss``; see :func:`focal_cuda.quality_focal_loss` for the formula.

    pred: logits ``[N, C]`` (``activated``: probabilities, which are turned into logits first). target: (class index
    ``[N]``, scores ``[N]``), label C and negative ones are background; or dense scores, of pred's shape. weight:
    ``[N]``. ``reduction="none"`` gives ``[N]``, summed over the classes.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_sigmoid("mmdet.QualityFocalLoss", use_sigmoid)
        self.use_sigmoid = use_sigmoid
        self.beta = beta
        self.activated = activated

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor] | Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        op = "mmdet.QualityFocalLoss"
        if isinstance(target, Tensor):
            check_dense(op, pred, target, rank=2)
            scores = None
        else:
            if len(target) != 2:
                raise ValueError(f"{op}: expected target (labels, scores), got {len(target)} items; pass the two.")
            target, scores = target
            check_rows(op, pred, target)
        kinds = reduction_of(op, self.reduction, reduction_override, avg_factor, pred.shape[0])
        logits = logits_of(pred) if self.activated else pred

        def of(target: Tensor) -> Tensor:
            return variants.quality_focal_loss(
                logits, target, scores, self.beta, ignore_index=NOTHING, sample_weight=weight, **kinds
            )

        if scores is None:
            loss = of(target)
        else:
            loss = where_refused(of, target, lambda labels: labels.masked_fill(labels < 0, pred.shape[1]))
        return self.finish(loss.sum(1) if kinds["reduction"] == "none" else loss, pred, weight, avg_factor)


class VarifocalLoss(_Loss):
    """As ``mmdet.models.losses.VarifocalLoss``; see :func:`focal_cuda.varifocal_loss` for the formula.

    pred: logits. target: scores of pred's shape. weight: anything that broadcasts to it.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        check_sigmoid("mmdet.VarifocalLoss", use_sigmoid)
        self.use_sigmoid = use_sigmoid
        self.alpha = alpha
        self.gamma = gamma
        self.iou_weighted = iou_weighted

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        op = "mmdet.VarifocalLoss"
        check_dense(op, pred, target)
        loss = variants.varifocal_loss(
            pred, target, None, self.alpha, self.gamma, iou_weighted=self.iou_weighted, ignore_index=NOTHING,
            sample_weight=broadcast(weight, pred),
            **reduction_of(op, self.reduction, reduction_override, avg_factor, pred.numel()),
        )  # fmt: skip
        return self.finish(loss, loss, weight, avg_factor)


class GaussianFocalLoss(_Loss):
    """As ``mmdet.models.losses.GaussianFocalLoss``; :func:`focal_cuda.gaussian_focal_loss` states the formula, and
    takes logits, which is faster and keeps its digits near 0 and 1.

    pred: **probabilities**. target: heat maps of pred's shape, 1 at peaks. weight: anything that broadcasts to it.
    pos_inds, pos_labels: rows and classes of the positives, where peaks do not tell them (pred ``[N, C]``); each of the
    two terms then is reduced by itself. The weights of negatives, four operations, add 50 us to the smallest call.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        gamma: float = 4.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        pos_weight: float = 1.0,
        neg_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.alpha = alpha
        self.gamma = gamma
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        pos_inds: Tensor | None = None,
        pos_labels: Tensor | None = None,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        op = "mmdet.GaussianFocalLoss"
        check_dense(op, pred, target)

        def binary(pred: Tensor, positive: Tensor, weight: Tensor | None) -> Tensor:
            """The focal loss of hard targets, which this is but for its weights."""
            return functional.sigmoid_focal_loss(
                pred, positive, None, self.alpha, from_probabilities=True, sample_weight=weight,
                **reduction_of(op, self.reduction, reduction_override, avg_factor, pred.numel()),
            )  # fmt: skip

        of_negatives = (1 - target) ** self.gamma
        of_negatives = of_negatives if self.neg_weight == 1 else of_negatives * self.neg_weight
        if pos_inds is None:
            peak = target == 1
            weights = torch.where(peak, self.pos_weight, of_negatives)
            weights = weights if weight is None else weights * broadcast(weight, pred)
            return self.finish(binary(pred, peak, weights), pred, target, weight, avg_factor)
        if pos_labels is None:
            raise ValueError(f"{op}: expected pos_labels with pos_inds, got None; pass the class of each positive.")
        at_positives = pred[pos_inds].gather(1, pos_labels.unsqueeze(1))
        positives = self.pos_weight * binary(at_positives, torch.ones_like(at_positives), None)
        return self.finish(positives + binary(pred, torch.zeros_like(pred), of_negatives), pred, target, avg_factor)
