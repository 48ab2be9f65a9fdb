"""timm.loss.AsymmetricLossMultiLabel and AsymmetricLossSingleLabel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _arguments, functional, variants
from ._common import NOTHING, check_choice, check_dense, check_rows, in_dtype, over, product

__all__ = ["AsymmetricLossMultiLabel", "AsymmetricLossSingleLabel"]


class AsymmetricLossMultiLabel(nn.Module):
    """As ``timm.loss.AsymmetricLossMultiLabel``; see :func:`focal_cuda.asymmetric_loss` for the formula.

    Args:
        gamma_neg, gamma_pos: >= 0, the exponents of negatives and positives.
        clip: the margin of negatives; None or 0 for none.
        eps: not needed: nothing is clamped here, so that hopeless positives keep their gradient.
        disable_torch_grad_focal_loss: no gradient through the modulating factors; takes two unreduced losses.
        smoothing: 0; hard targets have no label smoothing here.
        reduction: ``"batchmean"``, the sum over the size of the batch, ``"sum"``, ``"mean"`` or ``"none"``.
        weight: a number for each class.
        pos_weight: of positives, a number or one for each class.

    ``loss(x, y)``: logits and targets of their shape, 0 or 1, of any dtype; the classes are the last dimension.

    Returns:
        float32: a scalar or the logits' shape.
    """

    def __init__(
        self,
        gamma_neg: float = 4,
        gamma_pos: float = 1,
        clip: float | None = 0.05,
        eps: float = 1e-8,
        disable_torch_grad_focal_loss: bool = False,
        smoothing: float = 0.0,
        reduction: str = "batchmean",
        weight: Tensor | None = None,
        pos_weight: Tensor | float | None = None,
    ) -> None:
        super().__init__()
        op = "timm.AsymmetricLossMultiLabel"
        check_choice(op, "reduction", reduction, ("batchmean", "sum", "mean", "none"))
        if _arguments.check_smoothing(op, "smoothing", smoothing):
            raise NotImplementedError(
                f"{op}: expected smoothing=0, got {smoothing}: there is no asymmetric loss of soft targets here; use "
                "focal_cuda.sigmoid_focal_loss(..., label_smoothing=...) or timm's own."
            )
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip
        self.eps = eps
        self.disable_torch_grad_focal_loss = disable_torch_grad_focal_loss
        self.smoothing = smoothing
        self.reduction = reduction
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check_dense("timm.AsymmetricLossMultiLabel", x, y)
        weight = self.weight
        if self.pos_weight is not None:
            weight = product(torch.where(y > 0, self.pos_weight, 1.0), weight)
        if weight is not None:
            weight = weight[(None,) * (x.dim() - weight.dim())]
        kinds = {"reduction": self.reduction}
        if self.reduction == "batchmean":
            kinds = {"reduction": "sum", "normalizer": max(len(x), 1)}
        if not self.disable_torch_grad_focal_loss:
            return self._loss(x, y, self.gamma_neg, self.gamma_pos, sample_weight=weight, **kinds).float()
        cross_entropy = self._loss(x, y, 0.0, 0.0, reduction="none")
        modulated = self._loss(x.detach(), y, self.gamma_neg, self.gamma_pos, reduction="none")
        factor = modulated / cross_entropy.detach().clamp(min=torch.finfo(modulated.dtype).tiny)
        return self._loss(x, y, 0.0, 0.0, sample_weight=product(factor, weight), **kinds).float()

    def _loss(self, x: Tensor, y: Tensor, gamma_neg: float, gamma_pos: float, **options: object) -> Tensor:
        clip = self.clip or 0.0
        return variants.asymmetric_loss(x, y, gamma_neg, gamma_pos, clip, ignore_index=NOTHING, **options)


class AsymmetricLossSingleLabel(nn.Module):
    """As ``timm.loss.AsymmetricLossSingleLabel``; see :func:`focal_cuda.softmax_focal_loss` for the target's term.

    .. math:: L = -\\sum_c y_c w_c \\log p_c, \\quad w_t = (1 - p_t)^{\\gamma_+}, \\quad w_c = p_c^{\\gamma_-}

    Args:
        gamma_pos, gamma_neg: >= 0, the exponents of the target and of the other classes.
        eps: label smoothing s: y is ``(1 - s) + s / C`` at the target and ``s / C`` elsewhere. The terms of the other
            classes are not fused; 0 leaves none.
        reduction: ``"mean"`` or ``"none"``; another in the call takes its place, where the original forgets it.

    ``loss(inputs, target, reduction=None)``: logits ``[N, C]``, class index ``[N]``.

    Returns:
        A scalar or ``[N]``, in the logits' dtype.
    """

    def __init__(self, gamma_pos: float = 1, gamma_neg: float = 4, eps: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.eps = eps
        self.reduction = reduction

    def forward(self, inputs: Tensor, target: Tensor, reduction: str | None = None) -> Tensor:
        op = "timm.AsymmetricLossSingleLabel"
        reduction = reduction or self.reduction
        check_choice(op, "reduction", reduction, ("mean", "none"))
        check_rows(op, inputs, target)
        share = self.eps / inputs.shape[1] if self.eps > 0 else 0.0
        loss = functional.softmax_focal_loss(
            inputs, target, (1 - self.eps if share else 1.0) + share, self.gamma_pos, ignore_index=NOTHING,
            **over(reduction, len(inputs)),
        )  # fmt: skip
        if share:
            log_p = F.log_softmax(inputs, 1, dtype=loss.dtype)
            others = -(log_p * (self.gamma_neg * log_p).exp()).scatter(1, target.long().unsqueeze(1), 0.0).sum(1)
            loss = loss + share * (others.mean() if reduction == "mean" else others)
        return in_dtype(loss, inputs)
