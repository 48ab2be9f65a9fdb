"""softmax_focal_loss: values and gradients against the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    GAMMAS,
    INDEX_DTYPES,
    MARGINS,
    REPRESENTATIVE,
    SOFTMAX_SHAPES,
    Shape,
    dtypes,
    make_index,
    make_trained_logits,
    shapes,
)
from compare import assert_bitwise, check, loss_dtype, run
from tolerance import assert_close, loss_bound

import focal_cuda

OP = "softmax_focal_loss"


def batch(shape: Shape, logits_dtype: torch.dtype, device: str, **targets):
    t = make_index(shape, device=device, **targets)
    return make_trained_logits(shape, t, logits_dtype), t


@shapes(SOFTMAX_SHAPES)
@dtypes()
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_every_shape_and_type(shape: Shape, dtype: torch.dtype, reduction: str, device: str) -> None:
    logits, targets = batch(shape, dtype, device)
    check(OP, logits, targets, reduction=reduction, class_dim=shape.class_dim)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", ["none", "float", "vector"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
@dtypes()
def test_gamma_and_alpha(gamma: float, alpha: str, reduction: str, dtype: torch.dtype, device: str) -> None:
    for shape in REPRESENTATIVE:
        logits, targets = batch(shape, dtype, device)
        value = {"none": None, "float": 1.7, "vector": torch.rand(shape.classes, device=device) * 2}[alpha]
        check(OP, logits, targets, value, gamma, reduction, class_dim=shape.class_dim)


@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@dtypes()
def test_gradient_modes(gradient: str, reduction: str, dtype: torch.dtype, device: str) -> None:
    for shape in REPRESENTATIVE:
        logits, targets = batch(shape, dtype, device)
        for upstream in (None, torch.ones((), device=device, dtype=loss_dtype(logits))):
            kwargs = {"class_dim": shape.class_dim, "gradient": gradient, "upstream": upstream}
            check(OP, logits, targets, None, 2.0, reduction, **kwargs)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", [2, 19])
@pytest.mark.parametrize("strided", [False, True], ids=["rows", "columns"])
@dtypes()
def test_every_margin(gamma: float, classes: int, strided: bool, dtype: torch.dtype, device: str) -> None:
    """One position per margin, the others close together, a little below or far below the best of them."""
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=torch.float64)
    for spread in (0.0, 2.0, 30.0):
        others = -spread * torch.rand(len(margins), classes - 1, dtype=torch.float64)
        others[:, 0] = 0
        rows = torch.cat([margins[:, None] + others.logsumexp(1, keepdim=True), others], 1).to(dtype).to(device)
        logits = rows.t()[None].contiguous() if strided else rows
        targets = torch.zeros((1, len(rows)) if strided else (len(rows),), dtype=torch.int64, device=device)
        check(OP, logits, targets, None, gamma, "none")


def test_margins_far_from_zero(device: str) -> None:
    """Only differences of logits count, also where the logits themselves are large."""
    for offset in (1e4, -1e4):
        logits = (torch.randn(64, 9) * 3 + offset).to(device)
        check(OP, logits, torch.randint(0, 9, (64,), device=device), None, 2.0, "none")


@dtypes(INDEX_DTYPES, "index_dtype")
@shapes(REPRESENTATIVE)
def test_index_types(shape: Shape, index_dtype: torch.dtype, device: str) -> None:
    ignore = 1 if index_dtype == torch.bool else 3
    logits, targets = batch(shape, torch.float32, device, dtype=index_dtype, ignore_index=ignore)
    kwargs = {"class_dim": shape.class_dim, "ignore_index": ignore}
    check(OP, logits, targets, **kwargs)
    # The same numbers whatever the type they are stored in.
    assert_bitwise(run(OP, logits, targets, **kwargs), run(OP, logits, targets.long(), **kwargs))


@pytest.mark.parametrize("ignore_index", [-100, -1, 255, 0, 2])
@shapes(REPRESENTATIVE)
def test_ignore_index(shape: Shape, ignore_index: int, device: str) -> None:
    logits, targets = batch(shape, torch.float32, device, ignore_index=ignore_index)
    alpha = torch.rand(shape.classes, device=device)
    for reduction in ("none", "mean"):
        result = check(OP, logits, targets, alpha, 1.5, reduction, class_dim=shape.class_dim, ignore_index=ignore_index)
        ignored = (targets == ignore_index).unsqueeze(shape.class_dim).expand_as(logits)
        assert ignored.any() and (result.grad[ignored] == 0).all()


def test_uint8_255_is_ignored_and_uint8_156_is_not_minus_100(device: str) -> None:
    shape = Shape((6, 200))
    targets = torch.tensor([156, 3, 255, 199, 156, 255], dtype=torch.uint8, device=device)
    logits = make_trained_logits(shape, targets)
    result = check(OP, logits, targets, None, 2.0, "none", ignore_index=255)
    assert (result.loss[[2, 5]] == 0).all() and (result.loss[[0, 4]] > 0).all()
    targets = targets.clamp(max=199)
    assert (check(OP, logits, targets, None, 2.0, "none").loss > 0).all()


def test_gamma_0_is_cross_entropy(device: str) -> None:
    for shape in (Shape((129, 19)), Shape((2, 19, 13, 17))):
        logits, targets = batch(shape, torch.float32, device)
        for reduction in ("none", "mean", "sum"):
            ours = focal_cuda.softmax_focal_loss(logits, targets, None, 0.0, reduction)
            torchs = F.cross_entropy(logits.double(), targets, reduction=reduction)
            assert_close(ours, torchs, loss_bound(torchs, torch.float32) + 1e-14, reduction)
        weight = torch.rand(19, device=device)
        ours = focal_cuda.softmax_focal_loss(logits, targets, weight, 0.0, "sum")
        torchs = F.cross_entropy(logits.double(), targets, weight.double(), reduction="sum")
        assert_close(ours, torchs, loss_bound(torchs, torch.float32), "weighted sum")


def test_no_less_exact_than_the_usual_composition(device: str) -> None:
    """And much more so for confident rows, which is where a focal loss spends its time."""
    shape = Shape((4096, 19))
    logits, targets = batch(shape, torch.float32, device, ignore_index=None)
    logits.scatter_add_(1, targets[:, None], torch.full((4096, 1), 8.0, device=device))
    truth = focal_cuda.reference.softmax_focal_loss(logits.double(), targets, None, 2.0, "none")
    ours = focal_cuda.softmax_focal_loss(logits, targets, None, 2.0, "none")
    ce = F.cross_entropy(logits, targets, reduction="none")
    usual = (1 - torch.exp(-ce)) ** 2 * ce

    def worst(loss: torch.Tensor) -> float:
        return ((loss.double() - truth).abs() / truth).max().item()

    assert worst(ours) < 1e-5 < 1e-2 < worst(usual)


def test_the_true_class_gradient_of_confident_rows(device: str) -> None:
    """Built in the type of the output it would lose everything at p = 0.999 in bfloat16."""
    for dtype in DTYPES:
        for p in (0.9, 0.99, 0.999, 0.9999):
            row = torch.zeros(1, 50, dtype=torch.float64)
            row[0, 7] = torch.logit(torch.tensor(p, dtype=torch.float64)) + torch.log(torch.tensor(49.0))
            for gamma in (0.0, 2.0):
                check(OP, row.to(dtype).to(device), torch.tensor([7], device=device), None, gamma, "mean")
