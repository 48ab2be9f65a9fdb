"""The sigmoid_focal_loss of DETR's successors, as it stands in their repositories and in transformers."""

from __future__ import annotations

from torch import Tensor

from .. import functional
from ._common import NOTHING, alpha_or_none, check_dense, in_dtype

__all__ = ["sigmoid_focal_loss"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, num_boxes: float | Tensor, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """As DETR's: ``loss.mean(1).sum() / num_boxes``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        inputs: logits ``[N, M, ...]``.
        targets: floating, of the same shape, in [0, 1].
        num_boxes: > 0, a number or a tensor of one, which is read on its device.
        alpha: in [0, 1]; negative for none.
        gamma: >= 0.

    Returns:
        A scalar, in the dtype of inputs, targets and a tensor num_boxes promoted.

    Raises:
        TypeError, ValueError: as :func:`focal_cuda.sigmoid_focal_loss`.
    """
    check_dense("detr.sigmoid_focal_loss", inputs, targets, floating=True, rank=2)
    loss = functional.sigmoid_focal_loss(
        inputs, targets, alpha_or_none(alpha), gamma, "sum", ignore_index=NOTHING,
        normalizer=num_boxes * max(inputs.shape[1], 1),
    )  # fmt: skip
    return in_dtype(loss, inputs, targets, num_boxes)
