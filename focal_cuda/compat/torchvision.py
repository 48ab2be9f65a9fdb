"""torchvision.ops.sigmoid_focal_loss."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ._common import NOTHING, check_dense, in_dtype, number

__all__ = ["sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """As ``torchvision.ops.sigmoid_focal_loss``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        inputs: logits of any shape.
        targets: floating, of the same shape, in [0, 1].
        alpha: in [0, 1], or -1 for none.
        gamma: >= 0.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.

    Returns:
        A scalar or the inputs' shape, in the dtype of inputs and targets promoted.

    Raises:
        TypeError, ValueError: as :func:`focal_cuda.sigmoid_focal_loss`.

    Better than the original: no loss of 0 beyond logits of 17, a finite gradient for gamma < 1, no flushing of half of
    the bfloat16 losses.
    """
    check_dense("torchvision.sigmoid_focal_loss", inputs, targets, floating=True)
    alpha = number(alpha)
    loss = functional.sigmoid_focal_loss(
        inputs, targets, None if alpha == -1 else alpha, gamma, reduction, ignore_index=NOTHING
    )
    return in_dtype(loss, inputs, targets)
