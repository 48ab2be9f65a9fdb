"""segmentation_models_pytorch.losses.FocalLoss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _arguments, _values, functional, variants
from ._common import NOTHING, along_classes, check_choice, check_dense, check_indices, in_dtype, keep

__all__ = ["FocalLoss"]


class FocalLoss(nn.Module):
    """As ``segmentation_models_pytorch.losses.FocalLoss``, which is one-vs-all in every mode; for the formulas see
    :func:`focal_cuda.sigmoid_focal_loss`, :func:`focal_cuda.reduced_focal_loss` and
    :func:`focal_cuda.normalized_focal_loss`.

    Args:
        mode: ``"binary"`` (targets with as many elements as the logits), ``"multiclass"`` (class index ``[N, ...]``) or
            ``"multilabel"`` (dense).
        alpha: None or in [0, 1].
        gamma: >= 0.
        ignore_index: a target that gives 0 and does not count in a mean; None for none.
        from_logits: False: probabilities, of each class by itself. The original takes the sigmoid of the logarithm of
            those of "multiclass".
        eps: probabilities are kept this far from 0 and 1.
        reduction: ``"mean"`` over what is not ignored; ``"sum"``, over the number of classes; ``"none"``, the logits'
            shape, where the original flattens, or takes a mean all the same; ``"batchwise_mean"``, which here too is
            the sum over the batch, averaged over the rest, or the sum (binary).
        normalized: each class is divided by the sum of its modulating factors, and then reduced.
        reduced_threshold: the threshold of the reduced focal loss.
        class_weights: a number for each class, in a weighted mean of the classes' losses.

    Returns:
        The logits' dtype, promoted with that of the class weights (float32).

    Here labels out of range are errors, multilabel has an ignore_index, and nothing left to count gives 0. normalized
    with reduced_threshold or ``reduction="none"`` is not fused: a dozen torch operations for each class. Not here: soft
    targets with normalized or reduced_threshold.
    """

    def __init__(
        self,
        mode: str,
        alpha: float | None = None,
        gamma: float | None = 2.0,
        ignore_index: int | None = None,
        from_logits: bool = True,
        eps: float = 1e-7,
        reduction: str | None = "mean",
        normalized: bool = False,
        reduced_threshold: float | None = None,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        op = "smp.FocalLoss"
        check_choice(op, "mode", mode, ("binary", "multiclass", "multilabel"))
        check_choice(op, "reduction", reduction, ("none", "mean", "sum", "batchwise_mean"))
        if class_weights is not None and mode == "binary":
            raise ValueError(f'{op}: expected class_weights with several classes, got them with "binary"; drop them.')
        self.mode = mode
        self.alpha = alpha
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.from_logits = from_logits
        self.eps = eps
        self.reduction = reduction
        self.normalized = normalized
        self.reduced_threshold = reduced_threshold
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        keep(self, "class_weights", weights)

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        op = "smp.FocalLoss"
        logits = y_pred if self.from_logits else torch.logit(y_pred, self.eps)
        if self.mode == "binary":
            if y_true.numel() != logits.numel():
                raise ValueError(
                    f"{op}: expected as many targets as logits {list(logits.shape)}, got {list(y_true.shape)}; "
                    "reshape them."
                )
            y_true = y_true if y_true.shape == logits.shape else y_true.reshape(logits.shape)
        elif self.mode == "multilabel":
            check_dense(op, logits, y_true, rank=2)
        else:
            check_indices(op, logits, y_true)
        loss = (self._normalized if self.normalized else self._loss)(logits, y_true)
        return in_dtype(loss, y_pred, self.class_weights)

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        classes = 1 if self.mode == "binary" else max(logits.shape[1], 1)
        ignored = NOTHING if self.ignore_index is None else self.ignore_index
        options = {
            "alpha": self.alpha, "gamma": self.gamma, "ignore_index": ignored, "reduction": "sum", "normalizer": classes
        }  # fmt: skip
        if self.reduction in ("mean", "none"):
            options |= {"reduction": self.reduction, "normalizer": None}
        elif self.reduction == "batchwise_mean" and self.mode != "binary" and self.ignore_index is None:
            options["normalizer"] = max(logits[:1].numel(), 1)
        if self.class_weights is not None:
            options["sample_weight"] = along_classes(self._shares(), logits)
        if self.reduced_threshold is None:
            return functional.sigmoid_focal_loss(logits, targets, **options)
        return variants.reduced_focal_loss(logits, targets, self.reduced_threshold, **options)

    def _normalized(self, logits: Tensor, targets: Tensor) -> Tensor:
        """By class, each over its own sum of factors. A mean divides by the number of elements once more."""
        if self.mode == "multiclass" and _values.on_cpu(targets):
            ignored = NOTHING if self.ignore_index is None else self.ignore_index
            _values.check_labels("smp.FocalLoss", targets, logits.shape[1], ignored, None)
        unreduced = self.reduction == "none"
        losses = []
        for x, t, counted in self._classes(logits, targets):
            mask = None if self.ignore_index is None else ~_values.equals(counted, self.ignore_index)
            if unreduced or self.reduced_threshold is not None:
                loss = self._normalized_elements(x, t, mask)
                loss = loss if unreduced else loss.sum()
            else:
                loss = variants.normalized_focal_loss(
                    x, t, self.alpha, self.gamma, class_dim=0, ignore_index=NOTHING, mask=mask
                )
            if self.reduction == "mean":
                loss = loss / (max(t.numel(), 1) if mask is None else mask.sum().clamp(min=1))
            elif self.reduction == "batchwise_mean" and mask is None and self.mode != "binary":
                loss = loss / max(t[:1].numel(), 1)
            losses.append(loss)
        if unreduced:
            losses = losses[0] if self.mode == "binary" else torch.stack(losses, 1)
            return losses if self.class_weights is None else losses * along_classes(self._shares(), logits)
        losses = torch.stack(losses)
        return losses.mean() if self.class_weights is None else (losses * self._shares()).mean()

    def _shares(self) -> Tensor:
        """The class weights with a mean of 1."""
        return self.class_weights / self.class_weights.mean()

    def _normalized_elements(self, x: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
        """The elements of one class. A factor over the sum of factors is a softmax of their logarithms, which neither
        underflows nor overflows."""
        if _values.on_cpu(t):
            ignored = NOTHING if self.ignore_index is None else self.ignore_index
            _values.check_dense("smp.FocalLoss", t, _values.equals(t, ignored), ignored, 1.0, binary=True)
        x = x.to(_arguments.computing_dtype(x))
        x = x if mask is None else torch.where(mask, x, 0.0)
        margin = torch.where(t == 1, x, -x)
        log_factor = self.gamma * F.logsigmoid(-margin)
        if self.reduced_threshold is not None:
            hard = torch.sigmoid(margin) < self.reduced_threshold
            log_factor = torch.where(hard, 0.0, log_factor - self.gamma * math.log(self.reduced_threshold))
        if mask is not None:
            log_factor = torch.where(mask, log_factor, torch.finfo(x.dtype).min)
        losses = log_factor.flatten().softmax(0).view_as(x) * -F.logsigmoid(margin)
        if self.alpha is not None:
            losses = losses * torch.where(t == 1, self.alpha, 1 - self.alpha)
        return losses if mask is None else torch.where(mask, losses, 0.0)

    def _classes(self, logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each class the logits, the binary targets, and what may hold the ignored label."""
        if self.mode == "binary":
            yield logits, targets, targets
        else:
            for c in range(logits.shape[1]):
                of_class = _values.equals(targets, c) if self.mode == "multiclass" else targets[:, c]
                yield logits[:, c], of_class, targets if self.mode == "multiclass" else of_class
