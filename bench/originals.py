"""The relatives of the focal loss in PyTorch, each from its formula, as its authors and the usual libraries write it.

As in losses.py all return the mean over what they count, and those that have no notion of ignored rows compute them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def quality(logits: Tensor, labels: Tensor, scores: Tensor, beta: float = 2.0) -> Tensor:
    """As in mmdet: all as negatives, then the labelled class of each positive row anew."""
    probability = torch.sigmoid(logits)
    loss = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none") * probability**beta
    row = (labels < logits.shape[1]).nonzero().squeeze(1)
    at = row, labels[row]
    score = scores[row].to(logits.dtype)
    ce = F.binary_cross_entropy_with_logits(logits[at], score, reduction="none")
    loss[at] = ce * (score - probability[at]).abs() ** beta
    return loss.mean()


def quality_of_scored(logits: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """The same without indices, which is what torch.compile can take whole: dense targets."""
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((targets - torch.sigmoid(logits)).abs() ** beta * ce).mean()


def varifocal(logits: Tensor, targets: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """As in VarifocalNet: dense targets, both weights everywhere, one of them 0."""
    positive = (targets > 0).to(logits.dtype)
    weight = targets * positive + alpha * (torch.sigmoid(logits) - targets).abs() ** gamma * (1 - positive)
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight).mean()


def gaussian(logits: Tensor, targets: Tensor, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """As in CornerNet and CenterNet: of probabilities that are kept off 0 and 1."""
    probability = torch.sigmoid(logits).clamp(min=1e-4, max=1 - 1e-4)
    at_object = targets.eq(1).to(logits.dtype)
    positive = torch.log(probability) * (1 - probability) ** alpha * at_object
    negative = torch.log(1 - probability) * probability**alpha * (1 - targets) ** gamma * (1 - at_object)
    return -(positive + negative).mean()


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    margin: float = 0.05,
) -> Tensor:
    """As published, with the gradient of the weights."""
    positive = torch.sigmoid(logits)
    negative = (1 - positive + margin).clamp(max=1)
    log_p_t = targets * torch.log(positive.clamp(min=1e-8)) + (1 - targets) * torch.log(negative.clamp(min=1e-8))
    p_t = positive * targets + negative * (1 - targets)
    exponent = gamma_positive * targets + gamma_negative * (1 - targets)
    return -(torch.pow(1 - p_t, exponent) * log_p_t).mean()


def poly(logits: Tensor, targets: Tensor, epsilon: float = 1.0, gamma: float = 2.0) -> Tensor:
    """As in the paper's appendix: a focal loss, and one term."""
    probability = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = targets * probability + (1 - targets) * (1 - probability)
    return (ce * (1 - p_t) ** gamma + epsilon * (1 - p_t) ** (gamma + 1)).mean()


def reduced(logits: Tensor, targets: Tensor, threshold: float = 0.5, gamma: float = 2.0) -> Tensor:
    """As in segmentation_models.pytorch: a modulating factor that is 1 for what is hard."""
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = torch.exp(-ce)
    modulator = torch.where(p_t < threshold, 1.0, ((1 - p_t) / threshold) ** gamma)
    return (modulator * ce).mean()


def normalized(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """As in segmentation_models.pytorch: by the sum of the modulating factors."""
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    modulator = (1 - torch.exp(-ce)) ** gamma
    return (modulator * ce).sum() / modulator.sum().clamp(min=1e-6)
