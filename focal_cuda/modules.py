"""The losses as modules: their options once, alpha as a buffer that moves and saves with the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import functional

__all__ = ["SigmoidFocalLoss", "SoftmaxFocalLoss"]

Alpha = float | Tensor | Sequence[float] | None


class _FocalLoss(nn.Module):
    _function = None

    def __init__(
        self,
        alpha: Alpha,
        gamma: float,
        reduction: str,
        *,
        class_dim: int = 1,
        ignore_index: int = -100,
        background_index: int | None = None,
        normalizer: float | str | None = None,
        gradient: str = "auto",
        validate: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(alpha, Sequence) and not isinstance(alpha, str):
            alpha = torch.tensor(alpha, dtype=torch.get_default_dtype())
        if isinstance(alpha, Tensor):
            self.register_buffer("alpha", alpha.detach().clone())
        else:
            self.alpha = alpha
        self.gamma = gamma
        self.reduction = reduction
        self.class_dim = class_dim
        self.ignore_index = ignore_index
        self.background_index = background_index
        self.normalizer = normalizer
        self.gradient = gradient
        self.validate = validate

    def forward(self, logits: Tensor, targets: Tensor, *, normalizer: float | Tensor | str | None = None) -> Tensor:
        """The loss of logits; ``normalizer`` takes the place of the module's for this call."""
        return type(self)._function(
            logits,
            targets,
            self.alpha,
            self.gamma,
            self.reduction,
            class_dim=self.class_dim,
            ignore_index=self.ignore_index,
            background_index=self.background_index,
            normalizer=self.normalizer if normalizer is None else normalizer,
            gradient=self.gradient,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        alpha = f"tensor({list(self.alpha.shape)})" if isinstance(self.alpha, Tensor) else self.alpha
        shown = {"alpha": alpha, "gamma": self.gamma, "reduction": self.reduction}
        unless = {
            "class_dim": 1,
            "ignore_index": -100,
            "background_index": None,
            "normalizer": None,
            "gradient": "auto",
        }
        shown |= {name: getattr(self, name) for name, default in unless.items() if getattr(self, name) != default}
        return ", ".join(
            f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in shown.items()
        )


class SigmoidFocalLoss(_FocalLoss):
    """:func:`focal_cuda.sigmoid_focal_loss` with its options kept; alpha may also be a sequence of floats.

    ``SigmoidFocalLoss(reduction="sum", normalizer="positives")(logits, targets)`` is the loss of RetinaNet.
    """

    _function = staticmethod(functional.sigmoid_focal_loss)

    def __init__(self, alpha: Alpha = 0.25, gamma: float = 2.0, reduction: str = "mean", **options) -> None:
        super().__init__(alpha, gamma, reduction, **options)


class SoftmaxFocalLoss(_FocalLoss):
    """:func:`focal_cuda.softmax_focal_loss` with its options kept; alpha may also be a sequence of floats.

    ``SoftmaxFocalLoss(ignore_index=255)(logits, masks)`` takes the place of ``nn.CrossEntropyLoss(ignore_index=255)``.
    """

    _function = staticmethod(functional.softmax_focal_loss)

    def __init__(self, alpha: Alpha = None, gamma: float = 2.0, reduction: str = "mean", **options) -> None:
        super().__init__(alpha, gamma, reduction, **options)
