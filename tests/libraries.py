"""The focal losses of other libraries in float64, from what each of them documents, with its arguments and its means.

Plain formulas, for moderate logits: they know nothing of the kernels, nor of how the adapters map arguments to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# --- what they have in common -----------------------------------------------------------------------------------------


def bce(x: Tensor, t: Tensor) -> Tensor:
    return -(t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x))


def binary(x: Tensor, t: Tensor, gamma: float, alpha: float | Tensor | None = None) -> Tensor:
    """The loss of each element: one factor, of p_t = t p + (1 - t)(1 - p)."""
    p, t = torch.sigmoid(x), t.to(x.dtype)
    loss = (1 - (t * p + (1 - t) * (1 - p))) ** gamma * bce(x, t)
    return loss if alpha is None else loss * (alpha * t + (1 - alpha) * (1 - t))


def of_each_class(x: Tensor, gamma: float, dim: int = 1) -> Tensor:
    """Of softmax: what the loss would be if the class were the target."""
    log_p = x.log_softmax(dim)
    return -((1 - log_p.exp()) ** gamma) * log_p


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """With the classes in dim 1; a label that is no class has none."""
    known = (labels >= 0) & (labels < classes)
    table = F.one_hot(torch.where(known, labels, 0).long(), classes).movedim(-1, 1).double()
    return table * known.unsqueeze(1)


def by_class(weight: Tensor | Sequence[float], x: Tensor) -> Tensor:
    return torch.as_tensor(weight, dtype=x.dtype, device=x.device).view(1, -1, *(1,) * (x.dim() - 2))


def reduced(loss: Tensor, reduction: str | None, count: float | None = None) -> Tensor:
    if reduction == "mean":
        return loss.sum() / (loss.numel() if count is None else count)
    return loss.sum() if reduction == "sum" else loss


def class_0_is_background(alpha: float, classes: int) -> list[float]:
    return [1 - alpha] + [alpha] * (classes - 1)


# --- torchvision, fvcore, DETR, mmcv, apex ----------------------------------------------------------------------------


def dense(x, t, alpha, gamma=2.0, reduction="none"):
    return reduced(binary(x, t, gamma, alpha if alpha >= 0 else None), reduction)


def star(x, t, alpha=-1, gamma=1.0, reduction="none"):
    loss = -F.logsigmoid(gamma * x * (2 * t - 1)) / gamma
    return reduced(loss if alpha < 0 else loss * (alpha * t + (1 - alpha) * (1 - t)), reduction)


def detr(x, t, num_boxes, alpha=0.25, gamma=2.0):
    return binary(x, t, gamma, alpha if alpha >= 0 else None).mean(1).sum() / num_boxes


def mmcv_sigmoid(x, labels, gamma=2.0, alpha=0.25, weight=None, reduction="mean"):
    loss = binary(x, one_hot(labels, x.shape[1]), gamma, alpha)
    if weight is not None:
        loss = loss * torch.cat((weight, weight.new_ones(1)))[labels].unsqueeze(1)
    return reduced(loss, reduction, len(x))


def mmcv_softmax(x, labels, gamma=2.0, alpha=0.25, weight=None, reduction="mean"):
    chosen = one_hot(labels, x.shape[1]) * (1 if weight is None else weight)
    return reduced(alpha * (chosen * of_each_class(x, gamma)).sum(1), reduction, len(x))


def apex(x, labels, num_positives, classes, alpha, gamma, label_smoothing=0.0):
    x, t = x[..., :classes], F.one_hot(labels.clamp(min=-1) + 1, classes + 1)[..., 1:].double()
    p = torch.sigmoid(x)
    factor = (t * (1 - p) + (1 - t) * p) ** gamma * (alpha * t + (1 - alpha) * (1 - t))
    smoothed = bce(x, t * (1 - label_smoothing) + label_smoothing / 2)
    return (factor * smoothed * (labels != -2).unsqueeze(-1)).sum() / num_positives.squeeze()


# --- kornia, MONAI, segmentation_models.pytorch -----------------------------------------------------------------------


def kornia_focal(x, labels, alpha, gamma=2.0, reduction="none", weight=None, ignore_index=-100):
    loss = of_each_class(x, gamma) * one_hot(labels, x.shape[1]) * (labels != ignore_index).unsqueeze(1)
    for factor in (None if alpha is None else class_0_is_background(alpha, x.shape[1]), weight):
        loss = loss if factor is None else loss * by_class(factor, x)
    return reduced(loss, reduction)


def kornia_binary(x, t, alpha=0.25, gamma=2.0, reduction="none", pos_weight=None, weight=None, ignore_index=-100):
    counted, t, p = t != ignore_index, t.to(x.dtype), torch.sigmoid(x)
    positive = t * (1 - p) ** gamma * -F.logsigmoid(x) * (1 if pos_weight is None else by_class(pos_weight, x))
    negative = (1 - t) * p**gamma * -F.logsigmoid(-x)
    if alpha is not None:
        positive, negative = alpha * positive, (1 - alpha) * negative
    loss = torch.where(counted, positive + negative, 0.0)
    return reduced(loss if weight is None else loss * by_class(weight, x), reduction)


def monai(
    x, target, include_background=True, to_onehot_y=False, gamma=2.0, alpha=None, weight=None, reduction="mean",
    use_softmax=False, ignore_index=None,
):  # fmt: skip
    valid = torch.ones_like(target[:, :1], dtype=torch.bool)
    if ignore_index is not None:
        if target.shape[1] == 1:
            valid = target != ignore_index
        elif 0 <= ignore_index < target.shape[1]:
            valid = target[:, ignore_index : ignore_index + 1] == 0
        else:
            valid = target.sum(1, keepdim=True) > 0
    t = one_hot(target.squeeze(1), x.shape[1]) if to_onehot_y else target.double()
    if not include_background:
        x, t = x[:, 1:], t[:, 1:]
    if use_softmax:
        loss = of_each_class(x, gamma) * t
        if isinstance(alpha, float):
            alpha = class_0_is_background(alpha, x.shape[1]) if include_background else None
        loss = loss if alpha is None else loss * by_class(alpha, x)
    elif isinstance(alpha, list):
        loss = binary(x, t, gamma) * torch.where(t == 1, by_class(alpha, x), 1.0)
    else:
        loss = binary(x, t, gamma, alpha)
    if weight is not None:
        loss = loss * (by_class(weight, x) if isinstance(weight, list) else weight)
    loss = loss * valid
    if reduction == "none":
        return loss
    spatial = tuple(range(2, x.dim()))
    if reduction == "mean":
        return loss.mean() if ignore_index is None else loss.sum() / valid.sum()
    if not spatial:
        return loss.sum()
    return (loss.sum(spatial, keepdim=True) / valid.sum(spatial, keepdim=True)).sum()


def smp(
    x, target, mode, alpha=None, gamma=2.0, ignore_index=None, from_logits=True, reduction="mean", normalized=False,
    reduced_threshold=None, class_weights=None,
):  # fmt: skip
    """By class, over the elements that count, and then the mean of the classes."""
    shape = x.shape
    x = x if from_logits else torch.logit(x)
    if mode == "binary":
        x, target = x.reshape(-1, 1), target.reshape(-1, 1)
    t = one_hot(target, x.shape[1]) if mode == "multiclass" else target.double()
    counted = torch.ones_like(t) if ignore_index is None else (target != ignore_index).double()
    counted = (counted.unsqueeze(1) if counted.dim() < x.dim() else counted).expand(x.shape)
    t = t * counted
    p_t = torch.sigmoid(torch.where(t == 1, x, -x))
    factor = (1 - p_t) ** gamma
    if reduced_threshold is not None:
        factor = torch.where(p_t < reduced_threshold, 1.0, ((1 - p_t) / reduced_threshold) ** gamma)
    loss = factor * -p_t.log() * counted
    if alpha is not None:
        loss = loss * (alpha * t + (1 - alpha) * (1 - t))
    dims = tuple(d for d in range(x.dim()) if d != 1)
    if normalized:
        loss = loss / (factor * counted).sum(dims, keepdim=True)
    if reduction == "none":
        shares = (
            1.0 if class_weights is None else by_class(class_weights, x) / (sum(class_weights) / len(class_weights))
        )
        return (loss * shares).view(shape)
    losses = loss.sum(dims)
    if reduction == "mean":
        # Where elements of several labels are ignored, which the original cannot do, a mean is over all that are left.
        over_all = mode == "multilabel" and not normalized
        losses = losses / (counted.sum() / len(losses) if over_all else counted.sum(dims))
    elif reduction == "batchwise_mean" and mode != "binary" and ignore_index is None:
        losses = losses / x[0, 0].numel()
    weights = torch.ones_like(losses) if class_weights is None else torch.tensor(class_weights).to(losses)
    return (losses * weights).sum() / weights.sum()


# --- Keras, timm, ultralytics -----------------------------------------------------------------------------------------


def _samples(values: Tensor, sample_weight: Tensor | None, reduction: str | None) -> Tensor:
    weights = torch.ones_like(values) if sample_weight is None else sample_weight.expand(values.shape)
    values = values * weights
    if reduction in (None, "none"):
        return values
    return values.sum() / {"sum": 1, "mean_with_sample_weight": weights.sum()}.get(reduction, values.numel())


def keras_binary(
    x, y, sample_weight=None, apply_class_balancing=False, alpha=0.25, gamma=2.0, from_logits=False,
    label_smoothing=0.0, axis=-1, reduction="sum_over_batch_size",
):  # fmt: skip
    y = y.double().reshape(x.shape) * (1 - label_smoothing) + label_smoothing / 2
    loss = binary(x if from_logits else torch.logit(x), y, gamma, alpha if apply_class_balancing else None)
    return _samples(loss.mean(axis), sample_weight, reduction)


def keras_categorical(
    x, y, sample_weight=None, alpha=0.25, gamma=2.0, from_logits=False, label_smoothing=0.0, axis=-1,
    reduction="sum_over_batch_size",
):  # fmt: skip
    y = y.double() * (1 - label_smoothing) + label_smoothing / x.shape[axis]
    logits = (x if from_logits else x.log()).movedim(axis, -1)
    alpha = torch.as_tensor(alpha, dtype=x.dtype, device=x.device)
    return _samples((y.movedim(axis, -1) * alpha * of_each_class(logits, gamma, -1)).sum(-1), sample_weight, reduction)


def timm_multi(
    x, y, gamma_neg=4.0, gamma_pos=1.0, clip=0.05, disable_torch_grad_focal_loss=False, smoothing=0.0,
    reduction="batchmean", weight=None, pos_weight=None,
):  # fmt: skip
    y = y.double() * (1 - smoothing) + smoothing / 2
    p = torch.sigmoid(x)
    p_m = (p - (clip or 0.0)).clamp(min=0)
    missed = y * (1 - p) + (1 - y) * p_m
    factor = missed ** (gamma_pos * y + gamma_neg * (1 - y))
    factor = factor.detach() if disable_torch_grad_focal_loss else factor
    loss = factor * (y * -F.logsigmoid(x) * (1.0 if pos_weight is None else pos_weight) - (1 - y) * (1 - p_m).log())
    loss = loss if weight is None else loss * weight
    return loss.sum() / len(x) if reduction == "batchmean" else reduced(loss, reduction)


def timm_single(x, labels, gamma_pos=1.0, gamma_neg=4.0, eps=0.1, reduction="mean"):
    log_p, t = x.log_softmax(1), one_hot(labels, x.shape[1])
    p = log_p.exp()
    y = t * (1 - eps) + eps / x.shape[1]
    return reduced(-(y * torch.where(t == 1, (1 - p) ** gamma_pos, p**gamma_neg) * log_p).sum(1), reduction)


def ultralytics_focal(x, t, gamma=1.5, alpha=0.25):
    alpha = torch.as_tensor(alpha, dtype=x.dtype, device=x.device)
    return binary(x, t, gamma, alpha if (alpha > 0).any() else None).mean(1).sum()


def ultralytics_varifocal(x, scores, labels, gamma=2.0, alpha=0.75):
    weight = alpha * torch.sigmoid(x) ** gamma * (1 - labels) + scores * labels
    return (weight * bce(x, scores)).mean(1).sum()


# --- mmdetection, mmsegmentation --------------------------------------------------------------------------------------


def _openmmlab(loss, weight, reduction, override, avg_factor, loss_weight):
    reduction = override or reduction
    loss = loss if weight is None else loss * weight
    return loss_weight * reduced(loss, reduction, None if avg_factor is None else avg_factor)


def mmdet_focal(
    x, target, weight=None, avg_factor=None, reduction_override=None, gamma=2.0, alpha=0.25, reduction="mean",
    loss_weight=1.0, activated=False,
):  # fmt: skip
    t = one_hot(target, x.shape[1]) if target.dim() < x.dim() else target
    loss = binary(torch.logit(x) if activated else x, t, gamma, alpha)
    if weight is not None:
        weight = weight.view(len(x), -1)
    return _openmmlab(loss, weight, reduction, reduction_override, avg_factor, loss_weight)


def mmdet_quality(
    x, target, weight=None, avg_factor=None, reduction_override=None, beta=2.0, reduction="mean", loss_weight=1.0,
    activated=False,
):  # fmt: skip
    if isinstance(target, tuple):
        labels, scores = target
        target = one_hot(labels, x.shape[1]) * scores.double().unsqueeze(1)
    x = torch.logit(x) if activated else x
    loss = ((target - torch.sigmoid(x)).abs() ** beta * bce(x, target.double())).sum(1)
    return _openmmlab(loss, weight, reduction, reduction_override, avg_factor, loss_weight)


def mmdet_varifocal(
    x, t, weight=None, avg_factor=None, reduction_override=None, alpha=0.75, gamma=2.0, iou_weighted=True,
    reduction="mean", loss_weight=1.0,
):  # fmt: skip
    loss = torch.where(t > 0, t if iou_weighted else 1.0, alpha * torch.sigmoid(x) ** gamma) * bce(x, t.double())
    return _openmmlab(loss, weight, reduction, reduction_override, avg_factor, loss_weight)


def mmdet_gaussian(
    p, t, pos_inds=None, pos_labels=None, weight=None, avg_factor=None, reduction_override=None, alpha=2.0, gamma=4.0,
    reduction="mean", loss_weight=1.0, pos_weight=1.0, neg_weight=1.0,
):  # fmt: skip
    positive = pos_weight * -p.log() * (1 - p) ** alpha
    negative = neg_weight * -(1 - p).log() * p**alpha * (1 - t.double()) ** gamma
    rest = (reduction, reduction_override, avg_factor, loss_weight)
    if pos_inds is None:
        return _openmmlab(torch.where(t == 1, positive, negative), weight, *rest)
    return _openmmlab(positive[pos_inds, pos_labels], None, *rest) + _openmmlab(negative, None, *rest)


def mmseg(
    x, target, weight=None, avg_factor=None, reduction_override=None, ignore_index=255, gamma=2.0, alpha=0.5,
    reduction="mean", class_weight=None, loss_weight=1.0,
):  # fmt: skip
    if target.dim() == x.dim():
        t, valid = target.double(), target.argmax(1) != ignore_index
    else:
        t = one_hot(target, x.shape[1]) if x.shape[1] > 1 else (target == 1).double().unsqueeze(1)
        valid = target != ignore_index
    loss = binary(x, t, gamma, by_class(alpha, x) if isinstance(alpha, list) else alpha) * valid.unsqueeze(1)
    loss = loss if class_weight is None else loss * by_class(class_weight, x)
    if weight is not None:
        rows = weight.view(*valid.shape, -1).movedim(-1, 1)
        loss = loss * rows
    return _openmmlab(loss, None, reduction, reduction_override, avg_factor, loss_weight)
