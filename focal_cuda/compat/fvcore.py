"""fvcore.nn.sigmoid_focal_loss and sigmoid_focal_loss_star, as detectron2 and others import them."""

from __future__ import annotations

from torch import Tensor

from .. import _arguments, _values, functional
from ._common import NOTHING, alpha_or_none, check_dense, constant, filled

__all__ = ["sigmoid_focal_loss", "sigmoid_focal_loss_jit", "sigmoid_focal_loss_star", "sigmoid_focal_loss_star_jit"]


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """As ``fvcore.nn.sigmoid_focal_loss``; see :func:`focal_cuda.sigmoid_focal_loss` for the formula.

    Args:
        inputs: logits of any shape.
        targets: of the same shape and any dtype, in [0, 1].
        alpha: in [0, 1]; negative for none.
        gamma: >= 0.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.

    Returns:
        float32: a scalar or the inputs' shape.

    Raises:
        TypeError, ValueError: as :func:`focal_cuda.sigmoid_focal_loss`; also for an unknown reduction, which the
            original takes for ``"none"``.
    """
    check_dense("fvcore.sigmoid_focal_loss", inputs, targets)
    return functional.sigmoid_focal_loss(
        inputs, targets, alpha_or_none(alpha), gamma, reduction, ignore_index=NOTHING
    ).float()


def sigmoid_focal_loss_star(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 1, reduction: str = "none"
) -> Tensor:
    r"""As ``fvcore.nn.sigmoid_focal_loss_star``: cross entropy of logits made gamma times as steep, over gamma.

    .. math:: L = -\alpha_t \log \mathrm{sigmoid}(\gamma z) / \gamma, \quad z = \pm x

    Args:
        inputs: logits of any shape.
        targets: of the same shape and any dtype, 0 or 1. The original gives soft ones another meaning than cross
            entropy has, without saying so; here they are those of cross entropy.
        alpha: in [0, 1]; negative for none.
        gamma: > 0. Other than 1 it multiplies the logits first: a pass forward and one backward, which add 20 us to
            the smallest call.
        reduction: ``"none"``, ``"mean"`` over all elements, or ``"sum"``.

    Returns:
        float32: a scalar or the inputs' shape.

    Raises:
        TypeError, ValueError: as :func:`focal_cuda.sigmoid_focal_loss`; also for an unknown reduction and gamma = 0,
            for which the original returns the unreduced loss and infinity.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, appendix.
    """
    op = "fvcore.sigmoid_focal_loss_star"
    check_dense(op, inputs, targets)
    gamma = _arguments.check_number(op, "gamma", gamma, 0.0, float("inf"), "1 is cross entropy")
    if gamma == 0:
        raise ValueError(f"{op}: expected gamma > 0, by which the loss is divided, got 0; 1 is cross entropy.")
    steep = inputs
    if gamma != 1:  # by a tensor that is there, which the CPU has sooner than one of a number
        steep = inputs * (constant(inputs, filled, (), gamma) if _values.on_cpu(inputs) else gamma)
    kinds = {"reduction": reduction}
    if reduction in ("mean", "sum"):
        kinds = {"reduction": "sum", "normalizer": gamma * (max(inputs.numel(), 1) if reduction == "mean" else 1)}
    loss = functional.sigmoid_focal_loss(steep, targets, alpha_or_none(alpha), 0.0, ignore_index=NOTHING, **kinds)
    return (loss / gamma if reduction == "none" else loss).float()


# The originals are scripted; these need it as little as the others.
sigmoid_focal_loss_jit = sigmoid_focal_loss
sigmoid_focal_loss_star_jit = sigmoid_focal_loss_star
