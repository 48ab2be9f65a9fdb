"""timm.loss.AsymmetricLossMultiLabel and AsymmetricLossSingleLabel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _arguments, _ops, _values, functional, variants
from ._common import NOTHING, check_choice, check_dense, check_rows, in_dtype, keep, over, product

__all__ = ["AsymmetricLossMultiLabel", "AsymmetricLossSingleLabel"]

_MULTI = "timm.AsymmetricLossMultiLabel"


class AsymmetricLossMultiLabel(nn.Module):
    r"""As ``timm.loss.AsymmetricLossMultiLabel``; the formula of hard targets is in :func:`focal_cuda.asymmetric_loss`.
    Of soft and smoothed ones it is

    .. math:: L = -(1 - p_t)^{\gamma_+ y + \gamma_- (1 - y)} \bigl(y \log p + (1 - y) \log(1 - p_m)\bigr), \quad
        p_t = y\,p + (1 - y)(1 - p_m), \quad p_m = \max(p - \mathrm{clip}, 0)

    which is not fused: a few dozen torch operations.

    Args:
        gamma_neg, gamma_pos: >= 0, the exponents of negatives and positives.
        clip: the margin of negatives; None or 0 for none.
        eps: not needed: nothing is clamped here, so that hopeless positives keep their gradient.
        disable_torch_grad_focal_loss: no gradient through the modulating factors; takes two unreduced losses.
        smoothing: s in [0, 1): ``y (1 - s) + s / 2`` in everything.
        reduction: ``"batchmean"``, the sum over the size of the batch, ``"sum"``, ``"mean"`` or ``"none"``.
        weight: a number for each class.
        pos_weight: of positives, a number or one for each class.

    ``loss(x, y)``: logits and targets of their shape, in [0, 1], of any dtype; the classes are the last dimension. On a
    GPU floating targets are looked at for soft ones, which waits for the device, or, where that cannot be (in a graph
    that is traced or captured), taken for soft: pass bool or integers if you can.

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
        check_choice(_MULTI, "reduction", reduction, ("batchmean", "sum", "mean", "none"))
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip
        self.eps = eps
        self.disable_torch_grad_focal_loss = disable_torch_grad_focal_loss
        self.smoothing = _arguments.check_smoothing(_MULTI, "smoothing", smoothing)
        self.reduction = reduction
        keep(self, "weight", weight, persistent=True)
        keep(self, "pos_weight", None if pos_weight is None else torch.as_tensor(pos_weight), persistent=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check_dense(_MULTI, x, y)
        if self.smoothing or _may_be_soft(y):
            return self._of_soft(x, y).float()
        try:
            return self._of_hard(x, y).float()
        except ValueError:  # the CPU's kernels have looked at the targets
            if not _values.on_cpu(y) or not y.is_floating_point() or torch.equal(y, y.round()):
                raise
        return self._of_soft(x, y).float()

    def _of_hard(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.weight
        if self.pos_weight is not None:
            weight = product(torch.where(y > 0, self.pos_weight, 1.0), weight)
        if weight is not None:
            weight = weight[(None,) * (x.dim() - weight.dim())]
        kinds = {"reduction": self.reduction}
        if self.reduction == "batchmean":
            kinds = {"reduction": "sum", "normalizer": max(len(x), 1)}
        if not self.disable_torch_grad_focal_loss:
            return self._loss(x, y, self.gamma_neg, self.gamma_pos, sample_weight=weight, **kinds)
        cross_entropy = self._loss(x, y, 0.0, 0.0, reduction="none")
        modulated = self._loss(x.detach(), y, self.gamma_neg, self.gamma_pos, reduction="none")
        factor = modulated / cross_entropy.detach().clamp(min=torch.finfo(modulated.dtype).tiny)
        return self._loss(x, y, 0.0, 0.0, sample_weight=product(factor, weight), **kinds)

    def _loss(self, x: Tensor, y: Tensor, gamma_neg: float, gamma_pos: float, **options: object) -> Tensor:
        clip = self.clip or 0.0
        return variants.asymmetric_loss(x, y, gamma_neg, gamma_pos, clip, ignore_index=NOTHING, **options)

    def _of_soft(self, x: Tensor, y: Tensor) -> Tensor:
        """What the kernels have no term for, without 1 - p: p_m and the logarithms keep their digits at every logit."""
        if _values.on_cpu(y):
            _values.check_dense(_MULTI, y, _values.equals(y, NOTHING), NOTHING, 1.0, binary=False)
        dtype, margin = _arguments.computing_dtype(x), self.clip or 0.0
        x, y = x.to(dtype), y.to(dtype) * (1 - self.smoothing) + self.smoothing / 2
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        p_m = torch.where(x < 0, p - margin, (1 - margin) - q).clamp(min=0)
        log_q = F.logsigmoid(-x)
        if margin:
            small = p_m < 0.5
            log_q = torch.where(small, torch.log1p(-torch.where(small, p_m, 0.0)), torch.log(q + margin))
        positive = -y * F.logsigmoid(x)
        loss = (positive if self.pos_weight is None else positive * self.pos_weight) - (1 - y) * log_q

        missed = y * q + (1 - y) * p_m
        exponent = self.gamma_pos * y + self.gamma_neg * (1 - y)
        none = missed < torch.finfo(dtype).tiny  # and would have an infinite slope
        factor = torch.where(none, (exponent == 0).to(dtype), torch.where(none, 1.0, missed) ** exponent)
        loss = loss * (factor.detach() if self.disable_torch_grad_focal_loss else factor)
        loss = loss if self.weight is None else loss * self.weight
        if self.reduction == "none":
            return loss
        return loss.sum() / {"sum": 1, "batchmean": max(len(x), 1), "mean": max(x.numel(), 1)}[self.reduction]


def _may_be_soft(targets: Tensor) -> bool:
    """Of targets that no kernel looks at in time."""
    if not targets.is_floating_point() or _values.on_cpu(targets):
        return False
    if not targets.is_cuda or torch.compiler.is_compiling() or _ops.transformed():
        return True
    return torch.cuda.is_current_stream_capturing() or not torch.equal(targets, targets.round())


class AsymmetricLossSingleLabel(nn.Module):
    """As ``timm.loss.AsymmetricLossSingleLabel``; see :func:`focal_cuda.softmax_focal_loss` for the target's term.

    .. math:: L = -\\sum_c y_c w_c \\log p_c, \\quad w_t = (1 - p_t)^{\\gamma_+}, \\quad w_c = p_c^{\\gamma_-}

    Args:
        gamma_pos, gamma_neg: >= 0, the exponents of the target and of the other classes.
        eps: label smoothing s: y is ``(1 - s) + s / C`` at the target and ``s / C`` elsewhere. The terms of the other
            classes are six torch operations, which add 130 us to the smallest call; 0 leaves none.
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
            log_p = torch.log_softmax(inputs, 1, dtype=loss.dtype)
            hidden = torch.zeros(log_p.shape, dtype=loss.dtype, device=loss.device)
            hidden.scatter_(1, target.long().unsqueeze(1), -torch.inf)
            others = torch.add(hidden, log_p, alpha=self.gamma_neg).exp() * log_p
            if reduction == "mean":
                loss = torch.sub(loss, others.sum(), alpha=share / max(len(inputs), 1))
            else:
                loss = torch.sub(loss, others.sum(1), alpha=share)
        return in_dtype(loss, inputs)
