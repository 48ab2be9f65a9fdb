"""The two focal losses in plain torch operations, written from the paper (Lin et al., 2017).

This is the oracle the kernels are tested against and the composite behind double backward and ``torch.func``.
It must not share code with the kernels, raise on labels (callers check those) or branch on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["sigmoid_focal_loss", "softmax_focal_loss"]

# Below this margin sigmoid(z) is exactly 0 in float64, so the modulating factor is exactly 1 with slope 0.
_HOPELESS_MARGIN = -800.0


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    normalizer: float | Tensor | str | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Tensor:
    """Sigmoid (one-vs-all) focal loss, differentiable any number of times.

    With ``p = sigmoid(x)``, ``p_t = p t + (1 - p)(1 - t)`` and ``alpha_t = alpha t + (1 - alpha)(1 - t)``::

        loss = alpha_t * (1 - p_t)**gamma * -(t log p + (1 - t) log(1 - p))

    Args:
        logits: any shape with dense targets; ``class_dim`` holds the C classes with index targets.
        targets: logits' shape (values in [0, 1]), or logits' shape without ``class_dim`` (class index).
        alpha: None, one float, or a tensor [C].
        gamma: a number >= 0.
        reduction: "none", "mean" (over what is not ignored) or "sum".
        class_dim: the dimension of the classes.
        ignore_index: index targets with this value leave their whole row out, dense ones their element.
        background_index: the label that is negative for every class; C when None.
        normalizer: divides a "sum": a number, a one-element tensor (0 gives 0), or "positives".
        dtype: what to compute in and return; None means float64 for float64 logits, float32 for all others.

    Returns:
        The loss in ``dtype``: a scalar, or logits' shape with ``reduction="none"``.

    Numerics: log space throughout; values and derivatives are finite for every finite logit and gamma >= 0.
    """
    x = logits.to(_compute_dtype(logits, dtype))
    if targets.dim() == logits.dim():
        counted = targets.to(x.dtype) != ignore_index
        t = torch.where(counted, targets.to(x.dtype), 0.0)
        positives = (t > 0).sum()
        soft = targets.is_floating_point()
    else:
        labels = targets.long().unsqueeze(class_dim)
        counted = (labels != ignore_index).expand_as(x)
        classes = _along(torch.arange(x.shape[class_dim], device=x.device), x, class_dim)
        t = ((labels == classes) & (labels != ignore_index)).to(x.dtype)
        if background_index is not None:
            t = torch.where(labels == background_index, 0.0, t)
        positives = t.sum()
        soft = False

    # Ignored logits are replaced before any arithmetic: a NaN would survive a later mask in the gradient.
    x = torch.where(counted, x, 0.0)
    loss = _focal_of_margin(torch.where(t == 1, x, -x), gamma)
    if soft:
        loss = torch.where((t > 0) & (t < 1), _focal_of_soft_target(x, t, gamma), loss)
    if alpha is not None:
        a = _along(alpha.to(x.dtype), x, class_dim) if isinstance(alpha, Tensor) else alpha
        loss = loss * (a * t + (1 - a) * (1 - t))
    return _reduce(torch.where(counted, loss, 0.0), reduction, counted.sum(), normalizer, positives)


def softmax_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    class_dim: int = 1,
    ignore_index: int = -100,
    background_index: int | None = None,
    normalizer: float | Tensor | str | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Tensor:
    """Softmax (multi-class) focal loss, differentiable any number of times.

    With ``p = softmax(logits)`` over the classes and t the target::

        loss = alpha[t] * (1 - p[t])**gamma * -log p[t]

    Args:
        logits: ``class_dim`` holds the C >= 2 classes.
        targets: class index, logits' shape without ``class_dim``.
        alpha: None, one factor for all, or a tensor [C].
        gamma: a number >= 0.
        reduction: "none", "mean" (over what is not ignored) or "sum".
        class_dim: the dimension of the classes.
        ignore_index: positions with this target are left out.
        background_index: the label that normalizer="positives" does not count.
        normalizer: divides a "sum": a number, a one-element tensor (0 gives 0), or "positives".
        dtype: what to compute in and return; None means float64 for float64 logits, float32 for all others.

    Returns:
        The loss in ``dtype``: a scalar, or targets' shape with ``reduction="none"``.

    Numerics: ``1 - p[t]`` comes from the log-sum-exp of the other classes, so it keeps its precision however
    sure the prediction is. A logit of -inf takes its class out; as the target's it gives an infinite loss.
    """
    x = logits.to(_compute_dtype(logits, dtype))
    labels = targets.long()
    counted = labels != ignore_index
    x = torch.where(counted.unsqueeze(class_dim), x, 0.0)
    # Only differences matter, so they are formed first: float32 would lose digits of a large common offset.
    largest = x.detach().amax(class_dim, keepdim=True)
    x = x - torch.where(largest.isfinite(), largest, 0.0)
    t = torch.where(counted, labels, 0).unsqueeze(class_dim)

    is_target = t == _along(torch.arange(x.shape[class_dim], device=x.device), x, class_dim)
    # logsumexp has no gradient where every other class is at -inf, so the margin there is set by hand.
    others = torch.where(is_target, -torch.inf, x)
    unopposed = (others == -torch.inf).all(class_dim)
    others = torch.where(unopposed.unsqueeze(class_dim), 0.0, others)
    target_logit = x.gather(class_dim, t).squeeze(class_dim)
    margin = target_logit + torch.where(unopposed, torch.inf, -torch.logsumexp(others, class_dim))
    loss = _focal_of_margin(margin, gamma)
    if isinstance(alpha, Tensor):
        loss = loss * alpha.to(x.dtype)[t.squeeze(class_dim)]
    elif alpha is not None:
        loss = loss * alpha
    positives = counted.sum() if background_index is None else (counted & (labels != background_index)).sum()
    return _reduce(torch.where(counted, loss, 0.0), reduction, counted.sum(), normalizer, positives)


def _compute_dtype(logits: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if dtype is not None:
        return dtype
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _along(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """The vector shaped to broadcast along one dimension of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return vector.reshape(shape)


def _focal_of_margin(z: Tensor, gamma: float) -> Tensor:
    """(1 - p)**gamma * -log p with p = sigmoid(z), the probability of what really happened."""
    ce = -logsigmoid(z)
    if gamma == 0:
        return ce
    # The chain rule would form inf * 0 at z = -inf, so the factor is a constant where it no longer changes.
    hopeless = z < _HOPELESS_MARGIN
    return torch.where(hopeless, 1.0, torch.exp(gamma * logsigmoid(-torch.where(hopeless, 0.0, z)))) * ce


def _focal_of_soft_target(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """The unweighted loss for 0 < t < 1; elsewhere a constant, so its gradient is 0 at infinite x too."""
    soft = (t > 0) & (t < 1)
    x, t = torch.where(soft, x, 0.0), torch.where(soft, t, 0.5)
    ce = -(t * logsigmoid(x) + (1 - t) * logsigmoid(-x))
    # 1 - p_t as a sum of two positive products: nothing cancels.
    return (torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t) ** gamma * ce


def _reduce(
    loss: Tensor, reduction: str, counted: Tensor, normalizer: float | Tensor | str | None, positives: Tensor
) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.sum() / counted.clamp(min=1)
    if reduction != "sum":
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}.")
    if normalizer is None:
        return loss.sum()
    if isinstance(normalizer, str):
        return loss.sum() / positives.clamp(min=1)
    if isinstance(normalizer, Tensor):
        n = normalizer.reshape(()).to(loss.dtype)
        return torch.where(n == 0, 0.0, loss.sum() / torch.where(n == 0, 1.0, n))
    return loss.sum() / normalizer
