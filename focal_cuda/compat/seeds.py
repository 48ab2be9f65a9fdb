"""The recipes this project started from, as the classes they were, with the arguments they had.

Their names are those of what they compute, since three of the four were called FocalLoss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional, weighting
from ._common import NOTHING, check_dense, check_indices, check_rows, in_dtype, keep

__all__ = ["BinaryFocalLoss", "MultiClassFocalLoss", "OneVsAllFocalLoss", "SoftmaxFocalLoss"]


class MultiClassFocalLoss(nn.Module):
    """Softmax focal loss, ``alpha[t] (1 - p_t)^gamma (-log p_t)``: :func:`focal_cuda.softmax_focal_loss`.

    gamma: >= 0. alpha: None or ``[C]``, here a buffer. reduction: ``"mean"`` over what is not ignored, ``"sum"``, or
    ``"none"``, which here keeps the targets' shape. ``loss(logits, targets)``: ``[B, C, ...]`` and ``[B, ...]``. Where
    all is ignored the loss is 0 and has a gradient.
    """

    def __init__(
        self, gamma: float = 2.0, alpha: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.gamma = gamma
        keep(self, "alpha", alpha)
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        check_indices("seeds.MultiClassFocalLoss", logits, targets)
        loss = functional.softmax_focal_loss(
            logits, targets, self.alpha, self.gamma, self.reduction, ignore_index=self.ignore_index
        )
        return in_dtype(loss, logits)

    compute_class_weights = staticmethod(weighting.class_weights)


class OneVsAllFocalLoss(nn.Module):
    """Sigmoid focal loss of class indices, each class for itself: :func:`focal_cuda.sigmoid_focal_loss`.

    alpha: of positives, a number or ``[C]``; None or <= 0 for none. The probability is smoothed by 0.001 in the
    modulating factor, as the recipe has it; gradients would be finite without. ``loss(inputs, targets)``: ``[B, C]``
    and ``[B]``, here with further dimensions as well; a mean is over all classes of what is not ignored.
    """

    smooth_factor = 0.001

    def __init__(
        self,
        alpha: float | Tensor | None = 0.25,
        gamma: float = 2,
        reduction: str = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        is_number = alpha is not None and not (isinstance(alpha, Tensor) and alpha.dim() > 0)
        keep(self, "alpha", float(alpha) if is_number else alpha)
        self.gamma = gamma
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        check_indices("seeds.OneVsAllFocalLoss", inputs, targets)
        alpha = None if isinstance(self.alpha, float) and self.alpha <= 0 else self.alpha
        loss = functional.sigmoid_focal_loss(
            inputs, targets, alpha, self.gamma, self.reduction, ignore_index=self.ignore_index,
            probability_smoothing=self.smooth_factor,
        )  # fmt: skip
        return in_dtype(loss, inputs)


class BinaryFocalLoss(nn.Module):
    """Binary focal loss with one alpha for both outcomes, of hard targets: :func:`focal_cuda.sigmoid_focal_loss`.

    alpha: a factor. gamma: >= 0. logits: False: inputs are probabilities. reduce: False: one loss for each element.
    ``loss(inputs, targets)``: of one shape, targets floating.
    """

    def __init__(self, alpha: float = 1, gamma: float = 2, logits: bool = False, reduce: bool = True) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.logits = logits
        self.reduce = reduce

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        check_dense("seeds.BinaryFocalLoss", inputs, targets, floating=True)
        loss = functional.sigmoid_focal_loss(
            inputs, targets, None, self.gamma, "mean" if self.reduce else "none", ignore_index=NOTHING,
            from_probabilities=not self.logits,
        )  # fmt: skip
        return in_dtype(loss if self.alpha == 1 else loss * self.alpha, inputs, targets)


class SoftmaxFocalLoss(nn.Module):
    """Softmax focal loss with a weight for each class: :func:`focal_cuda.softmax_focal_loss`.

    class_num: C. alpha: ``[C]`` or ``[C, 1]``, ones by default, here a buffer. gamma: >= 0. size_average: a mean over
    the samples, else a sum. ``loss(inputs, targets)``: ``[N, C]`` and ``[N]``, or ``[N, 1]``.
    """

    def __init__(
        self, class_num: int, alpha: Tensor | None = None, gamma: float = 2, size_average: bool = True
    ) -> None:
        super().__init__()
        alpha = torch.ones(class_num) if alpha is None else torch.as_tensor(alpha).detach().flatten()
        keep(self, "alpha", alpha)
        self.class_num = class_num
        self.gamma = gamma
        self.size_average = size_average

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        targets = targets.flatten()
        check_rows("seeds.SoftmaxFocalLoss", inputs, targets)
        loss = functional.softmax_focal_loss(
            inputs, targets, self.alpha, self.gamma, "mean" if self.size_average else "sum", ignore_index=NOTHING
        )
        return in_dtype(loss, inputs)
