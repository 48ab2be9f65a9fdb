"""The focal losses people write in PyTorch, each from its formula, and the libraries' under one signature.

All return the mean over what they count, so that one reference serves all. Where a formula has no notion of
an ignored position it is given filled targets and computes those positions too: less work than ignoring them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import vision
from bench.inputs import IGNORED
from focal_cuda import compat

ALPHA = 0.25
GAMMA = 2.0
PROBABILITY_SMOOTHING = 0.001


def torchvision_formula(
    logits: Tensor, targets: Tensor, gamma: float = GAMMA, ohem_keep_ratio: float | None = None
) -> Tensor:
    """Sigmoid focal loss with dense targets, as torchvision and fvcore define it."""
    return _mean(_elements(logits, targets, gamma), targets.numel(), ohem_keep_ratio=ohem_keep_ratio)


def from_labels(
    logits: Tensor,
    labels: Tensor,
    gamma: float = GAMMA,
    alpha: float | Tensor = ALPHA,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    ohem_keep_ratio: float | None = None,
) -> Tensor:
    """The same from class indices: the one-hot targets and the mask are made on the way."""
    counted = (labels != IGNORED).unsqueeze(1)
    targets = _one_hot(labels, logits, label_smoothing)
    losses = _elements(logits, targets, gamma, alpha) * counted
    return _mean(losses, counted.sum() * logits.shape[1], sample_weight, ohem_keep_ratio)


def exp_of_bce(logits: Tensor, targets: Tensor, gamma: float = GAMMA) -> Tensor:
    """Binary focal loss whose p_t is read back from the cross entropy; no class balance."""
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((1 - torch.exp(-ce)) ** gamma * ce).mean()


def one_vs_all(logits: Tensor, labels: Tensor, gamma: float = GAMMA) -> Tensor:
    """Multi-class as many binary problems: filters, one-hot, and p smoothed in the modulating factor.

    One more class than the logits have makes room for the background label.
    """
    counted = labels != IGNORED
    labels, logits = labels[counted], logits[counted]
    classes = logits.shape[1]
    targets = F.one_hot(labels, classes + 1)[:, :classes].to(logits.dtype)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = torch.sigmoid(logits) * (1 - PROBABILITY_SMOOTHING) + PROBABILITY_SMOOTHING / 2
    p_t = probability * targets + (1 - probability) * (1 - targets)
    alpha_t = ALPHA * targets + (1 - ALPHA) * (1 - targets)
    return (alpha_t * (ce * (1 - p_t) ** gamma)).mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets)


def multi_class_focal_loss(logits: Tensor, labels: Tensor, gamma: float = GAMMA) -> Tensor:
    """Softmax focal loss over flattened rows: transpose, filter, log_softmax, gather."""
    logits = _as_rows(logits)
    labels = labels.reshape(-1)
    counted = labels != IGNORED
    labels, logits = labels[counted], logits[counted]
    ce = -F.log_softmax(logits, dim=-1).gather(1, labels.view(-1, 1)).squeeze(1)
    return ((1 - torch.exp(-ce)) ** gamma * ce).mean()


def scattered_one_hot(logits: Tensor, labels: Tensor, gamma: float = GAMMA) -> Tensor:
    """Softmax focal loss over rows: the target's probability picked by a one-hot mask, then its log."""
    logits = _as_rows(logits)
    probabilities = F.softmax(logits, dim=1)
    mask = torch.zeros_like(logits).scatter_(1, labels.reshape(-1, 1), 1.0)
    p_t = (probabilities * mask).sum(1)
    return (-((1 - p_t) ** gamma) * p_t.log()).mean()


def cross_entropy_based(
    logits: Tensor,
    labels: Tensor,
    gamma: float = GAMMA,
    alpha: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ohem_keep_ratio: float | None = None,
) -> Tensor:
    """Softmax focal loss on top of F.cross_entropy: the best short Python there is."""
    ce = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    losses = (1 - torch.exp(-ce)) ** gamma * ce
    if alpha is not None:
        losses = alpha[labels.clamp(min=0)] * losses
    return _mean(losses, (labels != IGNORED).sum(), sample_weight, ohem_keep_ratio)


def soft_composition(logits: Tensor, targets: Tensor, gamma: float = GAMMA) -> Tensor:
    """Softmax focal loss of soft targets, as Keras defines it."""
    return _soft_positions(logits, targets, gamma).mean()


def smoothed_labels(
    logits: Tensor,
    labels: Tensor,
    gamma: float = GAMMA,
    alpha: Tensor | None = None,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The same with targets that are made of labels on the way."""
    targets = _one_hot(labels, logits, label_smoothing, 1 / logits.shape[1])
    if alpha is not None:
        targets = targets * alpha.view(-1, *[1] * (logits.dim() - 2))
    counted = labels != IGNORED
    return _mean(_soft_positions(logits, targets, gamma) * counted, counted.sum(), sample_weight)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def kornia_sigmoid(logits: Tensor, targets: Tensor, gamma: float = GAMMA) -> Tensor:
    from kornia.losses import binary_focal_loss_with_logits

    return binary_focal_loss_with_logits(logits, targets, ALPHA, gamma, "mean", ignore_index=None)


def kornia_softmax(logits: Tensor, labels: Tensor, counted: int, gamma: float = GAMMA) -> Tensor:
    from kornia.losses import focal_loss

    return focal_loss(logits, labels, None, gamma, "sum", ignore_index=IGNORED) / counted


def monai_sigmoid(logits: Tensor, targets: Tensor, gamma: float = GAMMA) -> Tensor:
    from monai.losses import FocalLoss

    return FocalLoss(gamma=gamma, alpha=ALPHA)(logits, targets)


def monai_softmax(logits: Tensor, labels: Tensor, gamma: float = GAMMA) -> Tensor:
    from monai.losses import FocalLoss

    loss = FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True, ignore_index=IGNORED)
    return loss(logits, labels)


def compat_sigmoid(logits: Tensor, targets: Tensor, gamma: float = GAMMA) -> Tensor:
    return compat.torchvision.sigmoid_focal_loss(logits, targets, ALPHA, gamma, "mean")


compat_softmax = compat.seeds.MultiClassFocalLoss(GAMMA, ignore_index=IGNORED)


def torchvision_sigmoid(logits: Tensor, targets: Tensor, gamma: float = GAMMA) -> Tensor:
    sigmoid_focal_loss = vision.load("torchvision.ops").sigmoid_focal_loss
    return sigmoid_focal_loss(logits, targets, ALPHA, gamma, "mean")


def apex_sigmoid(logits: Tensor, labels: Tensor, counted: Tensor, gamma: float = GAMMA) -> Tensor:
    """Its own labels: -1 is background, -2 ignored. It divides by a tensor, which need not count positives."""
    from apex.contrib.focal_loss.focal_loss import focal_loss

    return focal_loss(logits, labels, counted, logits.shape[1], ALPHA, gamma)


def mmcv_sigmoid(logits: Tensor, labels: Tensor, gamma: float = GAMMA) -> Tensor:
    """Label C is background. Its mean is over rows."""
    from mmcv.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, labels, gamma, ALPHA, None, "mean") / logits.shape[1]


def liger_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, its gradient over the logits: what the fastest libraries for long rows do."""
    from liger_kernel.transformers.functional import liger_cross_entropy as function

    loss = function(logits, labels, ignore_index=IGNORED)
    return loss[0] if isinstance(loss, tuple) else loss


def quack_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    from quack.cross_entropy import cross_entropy as function

    return function(logits, labels, ignore_index=IGNORED, reduction="mean")


def _elements(logits: Tensor, targets: Tensor, gamma: float, alpha: float | Tensor = ALPHA) -> Tensor:
    probability = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = probability * targets + (1 - probability) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * (1 - p_t) ** gamma * ce


def _soft_positions(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    log_p = F.log_softmax(logits, 1)
    return -(targets * (1 - log_p.exp()) ** gamma * log_p).sum(1)


def _one_hot(labels: Tensor, logits: Tensor, smoothing: float = 0.0, towards: float = 0.5) -> Tensor:
    """The labels in the logits' shape, part of the way to what every class gets."""
    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.dim() - 2))
    targets = (labels.unsqueeze(1) == classes).to(logits.dtype)
    return targets * (1 - smoothing) + smoothing * towards if smoothing else targets


def _mean(
    losses: Tensor, n: Tensor | int, sample_weight: Tensor | None = None, ohem_keep_ratio: float | None = None
) -> Tensor:
    """Over the n that count, or the largest of them; to know how many these are waits for the device."""
    if sample_weight is not None:
        losses = losses * (sample_weight if sample_weight.dim() == losses.dim() else sample_weight.unsqueeze(1))
    if ohem_keep_ratio is None:
        return losses.sum() / n
    return losses.flatten().topk(max(1, int(int(n) * ohem_keep_ratio)), sorted=False).values.mean()


def _as_rows(logits: Tensor) -> Tensor:
    if logits.dim() == 2:
        return logits
    return logits.flatten(2).transpose(1, 2).reshape(-1, logits.shape[1])
