"""apex.contrib.focal_loss.focal_loss."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ._common import check_indices

__all__ = ["focal_loss"]

_BACKGROUND, _IGNORED = -1, -2


def focal_loss(
    cls_output: Tensor,
    cls_targets_at_level: Tensor,
    num_positive_sum: Tensor,
    num_real_classes: int,
    alpha: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """As ``apex.contrib.focal_loss.focal_loss``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        cls_output: logits ``[..., C]``, the classes padded or not.
        cls_targets_at_level: class index ``[...]``; -1 is background, -2 is ignored.
        num_positive_sum: divides the sum; a tensor with one element, read on its device. 0 gives 0, where the original
            gives infinity.
        num_real_classes: the classes before the padding.
        alpha: in [0, 1].
        gamma: >= 0.
        label_smoothing: s in [0, 1): in the cross entropy alone, ``t (1 - s) + s / 2``; alpha and the modulating factor
            keep the hard label. It takes three unreduced losses.

    Returns:
        float32, a scalar.

    Raises:
        TypeError, ValueError, IndexError: as :func:`focal_cuda.sigmoid_focal_loss`.

    Here any number of classes and any strides will do, and a second backward pass is right.
    """
    check_indices("apex.focal_loss", cls_output, cls_targets_at_level)
    if cls_output.dim() < 1 or not 0 < num_real_classes <= cls_output.shape[-1]:
        raise ValueError(
            f"apex.focal_loss: expected num_real_classes in [1, C] for logits [..., C], got {num_real_classes} with "
            f"{list(cls_output.shape)}; pass the number of classes without padding."
        )
    logits = cls_output if num_real_classes == cls_output.shape[-1] else cls_output[..., :num_real_classes]
    common = {"class_dim": -1, "ignore_index": _IGNORED, "background_index": _BACKGROUND}
    if not label_smoothing:
        return functional.sigmoid_focal_loss(
            logits, cls_targets_at_level, alpha, gamma, "sum", normalizer=num_positive_sum, **common
        ).float()

    def unreduced(alpha: float | None, gamma: float, smoothing: float = 0.0) -> Tensor:
        return functional.sigmoid_focal_loss(
            logits, cls_targets_at_level, alpha, gamma, "none", label_smoothing=smoothing, **common
        )

    cross_entropy = unreduced(None, 0.0)
    factor = unreduced(alpha, gamma) / cross_entropy.clamp(min=torch.finfo(cross_entropy.dtype).tiny)
    total = (factor * unreduced(None, 0.0, label_smoothing)).sum()
    return torch.where(num_positive_sum.reshape(()) > 0, total / num_positive_sum.reshape(()), 0.0 * total).float()
