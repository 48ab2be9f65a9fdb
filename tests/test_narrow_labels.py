"""Labels of 8 bits: torch compares a tensor in its own dtype, where -100 is 156 and 255 is -1. By every route to a loss
they have to give what the same labels in int64 give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerance import assert_close, loss_bound
from torch import Tensor

import focal_cuda

C = 200
SIGMOID, SOFTMAX = focal_cuda.sigmoid_focal_loss, focal_cuda.softmax_focal_loss
Loss = Callable[[Tensor, Tensor], Tensor]

# Labels of each dtype that another one is taken for, and the options that name the other.
LABELS: dict[torch.dtype, tuple[list[int], dict[str, Any]]] = {
    torch.uint8: ([156, 1, 2, 156, 3, 199, 156], {}),
    torch.int8: ([-1, 1, 2, -1, 3, 99, -1], {"ignore_index": 255, "background_index": -1}),
}


def under_vmap(loss: Loss) -> Loss:
    return lambda x, y: torch.func.vmap(lambda one: loss(one, y))(x[None])[0]


def second_derivative(loss: Loss) -> Loss:
    def norm(x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0].norm().detach()

    return norm


ROUTES = {"plain": lambda loss: loss, "vmap": under_vmap, "second derivative": second_derivative}
OPTIONS = {"focal": {}, "hardest": {"ohem_keep_ratio": 0.4}, "probabilities": {"from_probabilities": True}}


def case(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    labels, options = LABELS[dtype]
    logits = torch.randn(len(labels), C, device=device)
    return logits, torch.tensor(labels, dtype=dtype, device=device), options


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("op", [SIGMOID, SOFTMAX], ids=["sigmoid", "softmax"])
@pytest.mark.parametrize("dtype", LABELS, ids=str)
def test_a_label_is_no_other(dtype: torch.dtype, op: Loss, kind: str, route: str, device: str) -> None:
    logits, labels, options = case(dtype, device)
    if op is SOFTMAX and dtype == torch.int8:
        labels, options = labels.clamp(min=0), {"ignore_index": 256}  # 0 in 8 bits
    if kind == "probabilities":
        logits = logits.softmax(1)
    loss = ROUTES[route](lambda x, y: op(x, y, **options, **OPTIONS[kind]))
    expected = loss(logits, labels.long())
    assert_close(loss(logits, labels), expected, loss_bound(expected, torch.float32), f"{kind}, {route}")


def test_positives_of_probabilities(device: str) -> None:
    """Those that are no background: class 156 is none where the background is class -100, which there is not."""
    logits, labels, _ = case(torch.uint8, device)
    told = {"from_probabilities": True, "reduction": "sum", "normalizer": "positives", "background_index": -100}
    expected = SOFTMAX(logits.softmax(1), labels.long(), **told)
    assert_close(SOFTMAX(logits.softmax(1), labels, **told), expected, loss_bound(expected, torch.float32), "loss")


def test_scores_of_every_class_are_looked_at() -> None:
    logits, labels, _ = case(torch.uint8, "cpu")
    scores = torch.where(labels == 156, 2.0, 0.5)
    with pytest.raises(ValueError, match=r"scores in \[0, 1\].*got scores\[0\] = 2"):
        focal_cuda.quality_focal_loss(logits, labels, scores)
    # With 300 classes, which are 44 in 8 bits.
    with pytest.raises(ValueError, match=r"got scores\[0\] = 2"):
        focal_cuda.quality_focal_loss(torch.zeros(len(labels), 300), labels, scores, ignore_index=3)


def test_dense_values_are_looked_at() -> None:
    targets = torch.full((3, 5), 156, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"got targets\[0, 0\] = 156"):
        focal_cuda._calls._check_targets("f", "sigmoid_focal_loss", torch.zeros(3, 5), targets, 1, -100, None, False)


def many_classes() -> list[Loss]:
    monai = focal_cuda.compat.monai.FocalLoss(to_onehot_y=True, use_softmax=True, ignore_index=-100)
    smp = focal_cuda.compat.smp.FocalLoss("multiclass", normalized=True, ignore_index=-100)
    return [
        lambda x, y: monai(x[..., None], y[:, None, None]),
        smp,
        lambda x, y: focal_cuda.compat.kornia.focal_loss(x, y, None, reduction="none"),
    ]


@pytest.mark.parametrize("loss", many_classes(), ids=["monai", "smp", "kornia"])
def test_the_adapters(loss: Loss) -> None:
    logits = torch.randn(7, 300)
    labels = torch.tensor(LABELS[torch.uint8][0], dtype=torch.uint8)
    assert torch.equal(loss(logits, labels), loss(logits, labels.long()))
