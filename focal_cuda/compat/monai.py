"""monai.losses.FocalLoss."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _values, functional
from ._common import NOTHING, along_classes, background_alpha, check_choice, check_dense, keep, product, spread

__all__ = ["FocalLoss"]


class FocalLoss(nn.Module):
    """As ``monai.losses.FocalLoss``; see :func:`focal_cuda.sigmoid_focal_loss` and
    :func:`focal_cuda.softmax_focal_loss` for the formulas.

    Args:
        include_background: False leaves out class 0.
        to_onehot_y: whether targets are class indices ``[B, 1, ...]``; they are not made one-hot.
        gamma: >= 0.
        alpha: None; a number: sigmoid alpha and 1 - alpha, softmax 1 - alpha for class 0 and alpha for the others (none
            with include_background=False); or one for each class: sigmoid of positives alone, negatives weigh 1.
        weight: >= 0, a number or one for each class that is included.
        reduction: ``"none"`` (the input's shape), ``"mean"`` over all elements, or ``"sum"``: of the means over each
        map. use_softmax: softmax instead of sigmoid.
        ignore_index: a label, or for dense targets a class, whose positions give 0; another value there: those without
            any class. A mean is then over the positions, not the elements, that are left.

    ``loss(input, target)``: logits ``[B, N, ...]``; target ``[B, 1, ...]`` or, in [0, 1], of the input's shape.

    Returns:
        float32.

    The original's sum of ``[B, N]`` is a mean, by an oversight; here it is the sum. Soft targets of sigmoid, which it
    does not speak of, are those of :func:`focal_cuda.sigmoid_focal_loss`. Nothing is written to the module in a call.
    Unreduced softmax losses of dense targets take a pass for each class. Taking the dimension of 1 off class indices
    is half of the 14 us that this adds to the smallest call.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Sequence[float] | float | Tensor | None = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        reduction = getattr(reduction, "value", reduction)  # MONAI's own enumeration
        check_choice("monai.FocalLoss", "reduction", reduction, ("none", "mean", "sum"))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.gamma = gamma
        self.weight = weight
        self.reduction = reduction
        self.use_softmax = use_softmax
        self.ignore_index = ignore_index
        keep(self, "alpha", alpha if alpha is None or isinstance(alpha, (int, float)) else torch.as_tensor(alpha))
        weight = None if weight is None else torch.as_tensor(weight)
        _values.check_numbers("monai.FocalLoss", "weight", weight)
        keep(self, "class_weight", weight, persistent=True)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        op = "monai.FocalLoss"
        several = input.dim() > 1 and input.shape[1] > 1
        labelled, drops = self.to_onehot_y and several, several and not self.include_background
        if not several and (self.to_onehot_y or not self.include_background):
            option = "to_onehot_y=True" if self.to_onehot_y else "include_background=False"
            warnings.warn(f"single channel prediction, `{option}` ignored.", stacklevel=2)
        valid = None if self.ignore_index is None else self._valid(target)
        background = NOTHING
        if labelled:
            if target.dim() != input.dim() or target.shape[1] != 1:
                raise ValueError(
                    f"{op}: expected targets [B, 1, ...] with to_onehot_y=True, got {list(target.shape)}; add the "
                    "dimension of the classes: target.unsqueeze(1)."
                )
            target = target.squeeze(1)
            target = target.long() if target.is_floating_point() else target
        if drops:
            input = input[:, 1:]
            if labelled:  # the class that is left out is no class
                background = -1
                target = target.long() - 1
            else:
                target = target[:, 1:]
        if not labelled:
            check_dense(op, input, target)
        return (self._softmax if self.use_softmax else self._sigmoid)(input, target, valid, background).float()

    def _valid(self, target: Tensor) -> Tensor:
        """[B, 1, ...]: whether a position is not ignored."""
        if target.shape[1] == 1:
            return ~_values.equals(target, self.ignore_index)
        if 0 <= self.ignore_index < target.shape[1]:
            return target[:, self.ignore_index].unsqueeze(1) == 0
        return target.sum(1, keepdim=True) > 0

    def _reduction(self, input: Tensor, valid: Tensor | None) -> tuple[dict[str, object], Tensor | None]:
        """The reduction with its normalizer, and a weight of positions where a sum is one of means."""
        if self.reduction == "none":
            return {"reduction": "none"}, None
        if self.reduction == "mean":
            count = max(input.numel(), 1) if valid is None else valid.sum().clamp(min=1)
            return {"reduction": "sum", "normalizer": count}, None
        spatial = tuple(range(2, input.dim()))
        if valid is None or not spatial:
            return {"reduction": "sum", "normalizer": max(input[0, 0].numel() if len(input) else 1, 1)}, None
        return {"reduction": "sum"}, valid / valid.sum(spatial, keepdim=True).clamp(min=1)

    def _class_weight(self, classes: int) -> Tensor | float | None:
        weight = self.class_weight
        if weight is not None and weight.dim() > 0 and (classes == 1 or weight.shape != (classes,)):
            raise ValueError(
                f"monai.FocalLoss: expected weight with one number for each of {classes} classes, got "
                f"{list(weight.shape)}; of a single class pass a number."
            )
        return weight

    def _sigmoid(self, input: Tensor, target: Tensor, valid: Tensor | None, background: int) -> Tensor:
        by_class = isinstance(self.alpha, Tensor)
        reduction, of_positions = self._reduction(input, valid)
        weight = self._class_weight(input.shape[1])
        if weight is not None:
            weight = weight.to(torch.float32).expand(input.shape[1])
            of_positions = product(along_classes(weight, input), of_positions)
        return functional.sigmoid_focal_loss(
            input, target, None if by_class else self.alpha, self.gamma, ignore_index=NOTHING, mask=valid,
            background_index=None if background == NOTHING else background, sample_weight=of_positions,
            pos_weight=self.alpha.to(input) if by_class else None, **reduction,
        )  # fmt: skip

    def _softmax(self, input: Tensor, target: Tensor, valid: Tensor | None, background: int) -> Tensor:
        weight = self._class_weight(input.shape[1])
        if isinstance(self.alpha, Tensor):
            alpha = product(self.alpha, weight)
        elif self.alpha is not None and not self.include_background:
            warnings.warn("`include_background=False`, scalar `alpha` ignored when using softmax.", stacklevel=3)
            alpha = weight
        else:
            alpha = background_alpha(self.alpha, input, weight)
        if isinstance(alpha, Tensor):
            alpha = alpha.to(torch.float32).expand(input.shape[1])
        reduction, of_positions = self._reduction(input, valid)
        options = {
            "alpha": alpha, "gamma": self.gamma, "ignore_index": background,
            "mask": None if valid is None else valid.squeeze(1),
            "sample_weight": None if of_positions is None else of_positions.squeeze(1), **reduction,
        }  # fmt: skip
        if target.dim() < input.dim():
            losses = functional.softmax_focal_loss(input, target, **options)
            return spread(losses, target, input) if self.reduction == "none" else losses
        target = target if target.is_floating_point() else target.float()
        if self.reduction != "none":
            return functional.softmax_focal_loss(input, target, **options)
        classes = torch.arange(input.shape[1], device=input.device)
        positions = input.shape[:1] + input.shape[2:]
        each = [functional.softmax_focal_loss(input, c.expand(positions), **options) for c in classes]
        return torch.stack(each, 1) * target
