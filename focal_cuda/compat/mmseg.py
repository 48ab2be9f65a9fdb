"""mmseg.models.losses.FocalLoss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional
from ._common import NOTHING, along_classes, check_choice, check_dense, check_sigmoid, keep, product
from ._openmmlab import REDUCTIONS, finish, reduction_of

__all__ = ["FocalLoss"]


class FocalLoss(nn.Module):
    """As ``mmseg.models.losses.FocalLoss``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        use_sigmoid: True.
        gamma: >= 0.
        alpha: in [0, 1], or a list with one for each class, of the binary problem of that class.
        reduction: ``"none"``, ``"mean"`` over all elements, ignored ones included, or ``"sum"``.
        class_weight: a list with a number for each class, of its elements.
        loss_weight: of the result.
        loss_name: kept as ``loss_name``.

    ``loss(pred, target, weight=None, avg_factor=None, reduction_override=None, ignore_index=255)``, with pred
    ``[N, C]`` or ``[N, C, ...]``; target class index without C, where label C is background and with C = 1 label 1 is
    the positive, or dense; weight a number for each position (of the targets' shape or flattened) or for each element.

    Returns:
        A scalar or pred's shape, in the dtype of pred and weight promoted.

    Where the original has no CUDA it takes the background's column for the targets, and fails; here it means what it
    documents on every device.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float | Sequence[float] = 0.5,
        reduction: str = "mean",
        class_weight: Sequence[float] | None = None,
        loss_weight: float = 1.0,
        loss_name: str = "loss_focal",
    ) -> None:
        super().__init__()
        check_sigmoid("mmseg.FocalLoss", use_sigmoid)
        check_choice("mmseg.FocalLoss", "reduction", reduction, REDUCTIONS)
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.reduction = reduction
        self.loss_weight = loss_weight
        self._loss_name = loss_name
        for name, value in (("alpha", alpha), ("class_weight", class_weight)):  # lists in the original: not saved
            keep(self, name, torch.tensor(value) if isinstance(value, Sequence) else value)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int = 255,
        **kwargs: object,
    ) -> Tensor:
        mask = None
        if target.dim() == pred.dim():
            check_dense("mmseg.FocalLoss", pred, target)
            if 0 <= ignore_index < pred.shape[1]:
                mask = target.argmax(1) != ignore_index
            ignore_index = NOTHING
        elif pred.dim() > 1 and pred.shape[1] == 1:
            target = target.unsqueeze(1)
        weights = _weight_of_elements(weight, pred)
        if self.class_weight is not None:
            weights = product(along_classes(self.class_weight, pred), weights)
        loss = functional.sigmoid_focal_loss(
            pred, target, self.alpha, self.gamma, ignore_index=ignore_index, mask=mask, sample_weight=weights,
            **reduction_of("mmseg.FocalLoss", self.reduction, reduction_override, avg_factor, pred.numel()),
        )  # fmt: skip
        return finish(loss, self.loss_weight, pred, weight, avg_factor)

    @property
    def loss_name(self) -> str:
        return self._loss_name


def _weight_of_elements(weight: Tensor | None, pred: Tensor) -> Tensor | None:
    """Of a number for each position, flattened or not, or for each of the positions' classes."""
    if weight is None or weight.shape == pred.shape:
        return weight
    positions, classes = (pred.shape[0], *pred.shape[2:]), pred.shape[1]
    if weight.numel() == pred.numel() // max(classes, 1):
        return weight.reshape(positions).unsqueeze(1)
    if weight.dim() == 2 and weight.numel() == pred.numel():
        return weight.view(*positions, classes).movedim(-1, 1)
    return weight
