"""keras.losses.BinaryFocalCrossentropy and CategoricalFocalCrossentropy, for tensors of PyTorch.

They are called in Keras's order: ``loss(y_true, y_pred, sample_weight=None)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import functional
from ._common import NOTHING, check_choice, check_dense, keep

__all__ = ["BinaryFocalCrossentropy", "CategoricalFocalCrossentropy"]

_REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None)


class _Loss(nn.Module):
    def __init__(
        self,
        gamma: float,
        from_logits: bool,
        label_smoothing: float,
        axis: int,
        reduction: str | None,
        name: str,
        dtype: str | torch.dtype | None,
    ) -> None:
        super().__init__()
        self._op = f"keras.{type(self).__name__}"
        check_choice(self._op, "reduction", reduction, _REDUCTIONS)
        self.gamma = gamma
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.axis = axis
        self.reduction = reduction
        self.name = name
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32

    def forward(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if not (isinstance(y_pred, Tensor) and isinstance(y_true, Tensor)):  # arrays will do
            y_pred = torch.as_tensor(y_pred)
            y_true = torch.as_tensor(y_true, device=y_pred.device)
        if y_true.dim() == y_pred.dim() - 1 and y_pred.shape[-1] == 1:
            y_true = y_true.unsqueeze(-1)
        elif y_pred.dim() == y_true.dim() - 1 and y_true.shape[-1] == 1:
            y_true = y_true.squeeze(-1)
        check_dense(self._op, y_pred, y_true, rank=1)
        weights = None if sample_weight is None else self._of_samples(sample_weight, y_pred)
        if self.reduction in (None, "none"):
            kinds = {"reduction": "none"}
        else:
            count = 1 if self.reduction == "sum" else max(y_pred.numel() // max(y_pred.shape[self.axis], 1), 1)
            if self.reduction == "mean_with_sample_weight" and weights is not None:
                count = weights.sum() * (count / max(weights.numel(), 1))
            kinds = {"reduction": "sum", "normalizer": count}
        loss = self.losses(y_true, y_pred, weights, **kinds)
        return loss if loss.dtype == self.dtype else loss.to(self.dtype)

    def _of_samples(self, sample_weight: Tensor, y_pred: Tensor) -> Tensor:
        """With the dimension of the classes: a weight for each sample, which may have a last dimension of 1."""
        weight = torch.as_tensor(sample_weight, device=y_pred.device)
        weight = weight if weight.is_floating_point() else weight.float()
        if weight.dim() == y_pred.dim() and weight.shape[-1] == 1:
            weight = weight.squeeze(-1)
        while weight.dim() < y_pred.dim() - 1:  # as NumPy broadcasts: missing dimensions come first
            weight = weight.unsqueeze(0)
        return weight.unsqueeze(self.axis)


class BinaryFocalCrossentropy(_Loss):
    """As ``keras.losses.BinaryFocalCrossentropy``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        apply_class_balancing: whether alpha weighs.
        alpha: in [0, 1], of positives.
        gamma: >= 0.
        from_logits: False: y_pred holds probabilities.
        label_smoothing: s in [0, 1): ``t (1 - s) + s / 2`` in everything.
        axis: what a sample's loss is the mean over.
        reduction: ``"sum_over_batch_size"`` or ``"mean"`` over the samples, ``"sum"`` of them,
            ``"mean_with_sample_weight"`` (over the sum of the weights), or ``"none"`` or None: one for each sample.
        name: kept.
        dtype: of the result; float32 by default.

    y_true: of y_pred's shape, or without its last dimension of 1. sample_weight: a number for each sample.

    The original clips probabilities at 1e-7, also those that it makes of logits, and with them loses the gradient of
    what is most wrong; nothing is clipped here.
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: str | torch.dtype | None = None,
    ) -> None:
        super().__init__(gamma, from_logits, label_smoothing, axis, reduction, name, dtype)
        self.apply_class_balancing = apply_class_balancing
        self.alpha = alpha

    def losses(
        self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None, reduction: str, normalizer: object = None
    ) -> Tensor:
        classes = max(y_pred.shape[self.axis], 1)
        loss = functional.sigmoid_focal_loss(
            y_pred, y_true, self.alpha if self.apply_class_balancing else None, self.gamma, reduction,
            ignore_index=NOTHING, sample_weight=weights, label_smoothing=self.label_smoothing,
            from_probabilities=not self.from_logits, normalizer=None if normalizer is None else normalizer * classes,
        )  # fmt: skip
        return loss.mean(self.axis) if reduction == "none" else loss


class CategoricalFocalCrossentropy(_Loss):
    """As ``keras.losses.CategoricalFocalCrossentropy``; see :func:`focal_cuda.softmax_focal_loss` for the formula.

    Args:
        alpha: a number, or a list with one for each class.
        gamma: >= 0.
        from_logits: False: y_pred holds probabilities, which are divided by their sum over the axis.
        label_smoothing: s in [0, 1): ``y (1 - s) + s / C``.
        axis: of the classes.
        reduction, name, dtype: as of :class:`BinaryFocalCrossentropy`.

    y_true: one-hot or soft, of y_pred's shape. sample_weight: a number for each sample. Nothing is clipped.
    """

    def __init__(
        self,
        alpha: float | Sequence[float] = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: str | torch.dtype | None = None,
    ) -> None:
        super().__init__(gamma, from_logits, label_smoothing, axis, reduction, name, dtype)
        is_number = isinstance(alpha, (int, float))
        keep(self, "alpha", alpha if is_number else torch.as_tensor(alpha, dtype=torch.float32))

    def losses(
        self, y_true: Tensor, y_pred: Tensor, weights: Tensor | None, reduction: str, normalizer: object = None
    ) -> Tensor:
        if not self.from_logits:
            y_pred = y_pred / y_pred.sum(self.axis, keepdim=True)
        return functional.softmax_focal_loss(
            y_pred, y_true.to(y_pred.dtype), self.alpha, self.gamma, reduction, class_dim=self.axis,
            ignore_index=NOTHING, sample_weight=None if weights is None else weights.squeeze(self.axis),
            label_smoothing=self.label_smoothing, from_probabilities=not self.from_logits, normalizer=normalizer,
        )  # fmt: skip
