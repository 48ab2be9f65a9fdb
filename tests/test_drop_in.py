"""In the place of what people use: the usual formulas, written as they are found, at logits where they still work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from focal_cuda import SigmoidFocalLoss, SoftmaxFocalLoss

GAMMAS = [0.0, 1.0, 2.0, 3.5]
gammas = pytest.mark.parametrize("gamma", GAMMAS)


def same(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    """Value and gradient, the latter of a loss used at another scale than 1."""
    results = []
    for f in (ours, theirs):
        x = logits.clone().requires_grad_()
        loss = f(x)
        (grad,) = torch.autograd.grad(loss * 1.7, x)
        results.append((loss.detach(), grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * b.abs().max().item())


@gammas
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(64, 7), (2, 7, 6, 5)], ids=["rows", "masks"])
def test_multi_class_focal_loss(gamma: float, weighted: bool, size: tuple, device: str) -> None:
    """Flatten, drop what is ignored, log_softmax, gather, weigh: the loss of many segmentation codes."""
    logits = torch.randn(size, device=device)
    targets = torch.randint(0, 7, size[:1] + size[2:], device=device)
    targets[torch.rand(targets.shape, device=device) < 0.2] = 255
    rates = torch.rand(7, device=device) + 0.1
    alpha = (1 / rates) / (1 / rates).mean() if weighted else None

    def theirs(x: Tensor) -> Tensor:
        rows, labels = x.movedim(1, -1).reshape(-1, 7), targets.reshape(-1)
        rows, labels = rows[labels != 255], labels[labels != 255]
        ce = -F.log_softmax(rows, -1).gather(1, labels[:, None])[:, 0]
        loss = (1 - torch.exp(-ce)) ** gamma * ce
        return (loss if alpha is None else alpha[labels] * loss).mean()

    same(lambda x: SoftmaxFocalLoss(alpha, gamma, ignore_index=255).to(device)(x, targets), theirs, logits)


@gammas
def test_softmax_then_mask(gamma: float, device: str) -> None:
    """softmax, one-hot, sum, log, with a weight per class; and nll_loss of the log at gamma = 0."""
    logits, targets = torch.randn(64, 7, device=device), torch.randint(0, 7, (64,), device=device)
    alpha = torch.rand(7, device=device)

    def theirs(x: Tensor) -> Tensor:
        p = (F.softmax(x, 1) * F.one_hot(targets, 7)).sum(1)
        return (-alpha[targets] * (1 - p) ** gamma * p.log()).sum()

    same(lambda x: SoftmaxFocalLoss(alpha, gamma, "sum").to(device)(x, targets), theirs, logits)
    if gamma == 0:
        nll = F.nll_loss(torch.log(F.softmax(logits, 1)), targets)
        torch.testing.assert_close(SoftmaxFocalLoss(gamma=0.0)(logits, targets), nll, rtol=1e-5, atol=0)


@gammas
@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_one_against_all(gamma: float, alpha: float, device: str) -> None:
    """one_hot, binary cross entropy, sigmoid, weigh: over what is not ignored, of class labels."""
    logits, targets = torch.randn(64, 7, device=device), torch.randint(0, 7, (64,), device=device)
    targets[::9] = -100

    def theirs(x: Tensor) -> Tensor:
        x, labels = x[targets != -100], targets[targets != -100]
        t = F.one_hot(labels, 7).float()
        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        p = torch.sigmoid(x)
        p_t = p * t + (1 - p) * (1 - t)
        return ((alpha * t + (1 - alpha) * (1 - t)) * (1 - p_t) ** gamma * ce).mean()

    same(lambda x: SigmoidFocalLoss(alpha, gamma)(x, targets), theirs, logits)


@gammas
def test_binary_focal_loss_from_binary_cross_entropy(gamma: float, device: str) -> None:
    """pt = exp(-BCE), without weights: for one output per sample, or many."""
    for size in ((64,), (64, 1), (16, 5)):
        logits, targets = torch.randn(size, device=device), (torch.rand(size, device=device) < 0.3).float()

        def theirs(x: Tensor, targets: Tensor = targets) -> Tensor:
            ce = F.binary_cross_entropy_with_logits(x, targets, reduction="none")
            return ((1 - torch.exp(-ce)) ** gamma * ce).mean()

        same(lambda x, targets=targets: SigmoidFocalLoss(None, gamma)(x, targets), theirs, logits)


def test_binary_labels_of_one_logit(device: str) -> None:
    """[N, 1] logits with [N] labels mean class 0 and background; as dense targets they are [N, 1] or both [N]."""
    logits, positive = torch.randn(64, 1, device=device), torch.rand(64, device=device) < 0.3
    as_index = SigmoidFocalLoss()(logits, torch.where(positive, 0, 1))
    as_column = SigmoidFocalLoss()(logits, positive[:, None].float())
    as_vector = SigmoidFocalLoss()(logits[:, 0], positive.float())
    torch.testing.assert_close(as_index, as_column, rtol=1e-6, atol=0)
    torch.testing.assert_close(as_index, as_vector, rtol=1e-6, atol=0)


def test_detr_normalization(device: str) -> None:
    """The mean over classes, summed over queries and divided by the boxes, is a sum with a normalizer."""
    logits = torch.randn(2, 30, 9, device=device)
    t = (torch.rand(2, 30, 9, device=device) < 0.05).float()
    boxes = torch.tensor(7.0, device=device)

    def theirs(x: Tensor) -> Tensor:
        p = torch.sigmoid(x)
        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        p_t = p * t + (1 - p) * (1 - t)
        loss = (0.25 * t + 0.75 * (1 - t)) * (1 - p_t) ** 2 * ce
        return loss.mean(1).sum() / boxes

    def ours(x: Tensor) -> Tensor:
        return SigmoidFocalLoss(reduction="sum")(x, t, normalizer=boxes * 30)

    same(ours, theirs, logits)
