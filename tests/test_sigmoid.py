"""sigmoid_focal_loss: values and gradients against the oracle, for index and for dense targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DENSE_SIZES,
    GAMMAS,
    INDEX_DTYPES,
    MARGINS,
    REPRESENTATIVE,
    SIGMOID_SHAPES,
    Shape,
    dtypes,
    make_dense,
    make_index,
    make_logits,
    shapes,
)
from compare import assert_agree, assert_bitwise, check, loss_dtype, run
from tolerance import assert_close, loss_bound

import focal_cuda

OP = "sigmoid_focal_loss"
DENSE_DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.uint8,
    torch.int64,
]


@shapes(SIGMOID_SHAPES)
@dtypes()
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_every_shape_and_type(shape: Shape, dtype: torch.dtype, reduction: str, device: str) -> None:
    targets = make_index(shape, device=device, background=shape.classes)
    check(OP, make_logits(shape.size, dtype, device), targets, reduction=reduction, class_dim=shape.class_dim)


@shapes(DENSE_SIZES)
@dtypes()
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_every_dense_shape_and_type(shape: Shape, dtype: torch.dtype, reduction: str, soft: bool, device: str) -> None:
    targets = make_dense(shape.size, device=device, soft=soft)
    kwargs = {"class_dim": shape.class_dim} if len(shape.size) else {}
    check(OP, make_logits(shape.size, dtype, device), targets, reduction=reduction, **kwargs)


def alpha_of(kind: str, shape: Shape, device: str) -> float | torch.Tensor | None:
    if kind == "vector":
        return torch.rand(shape.classes, device=device)
    return {"none": None, "0.3": 0.3}[kind]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", ["none", "0.3", "vector"])
@pytest.mark.parametrize("targets", ["index", "hard", "soft"])
@dtypes()
def test_gamma_and_alpha(gamma: float, alpha: str, targets: str, dtype: torch.dtype, device: str) -> None:
    for shape, reduction in zip(REPRESENTATIVE, ("none", "sum", "mean"), strict=True):
        if targets == "index":
            t = make_index(shape, device=device, background=shape.classes)
        else:
            t = make_dense(shape.size, device=device, soft=targets == "soft")
        logits = make_logits(shape.size, dtype, device)
        check(OP, logits, t, alpha_of(alpha, shape, device), gamma, reduction, class_dim=shape.class_dim)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("targets", ["index", "hard", "soft"])
def test_the_ends_of_alpha(alpha: float, targets: str, device: str) -> None:
    """0 is a weight, not a word for "none"."""
    shape = Shape((129, 19))
    index = make_index(shape, device=device, background=19)
    t = index if targets == "index" else make_dense(shape.size, device=device, soft=targets == "soft")
    for reduction in ("none", "mean"):
        check(OP, make_logits(shape.size, device=device), t, alpha, 2.0, reduction)


@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
@pytest.mark.parametrize("targets", ["index", "hard", "soft"])
@dtypes()
def test_gradient_modes(gradient: str, targets: str, dtype: torch.dtype, device: str) -> None:
    for shape, reduction in zip(REPRESENTATIVE, ("sum", "mean", "sum"), strict=True):
        if targets == "index":
            t = make_index(shape, device=device, background=shape.classes)
        else:
            t = make_dense(shape.size, device=device, soft=targets == "soft")
        logits = make_logits(shape.size, dtype, device)
        for upstream in (None, torch.ones((), device=device, dtype=loss_dtype(logits))):
            kwargs = {"class_dim": shape.class_dim, "gradient": gradient, "upstream": upstream}
            check(OP, logits, t, 0.3, 2.0, reduction, **kwargs)


@pytest.mark.parametrize("gamma", GAMMAS)
@dtypes()
def test_every_margin(gamma: float, dtype: torch.dtype, device: str) -> None:
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=torch.float64).to(dtype).to(device)
    for target in (0.0, 1.0):
        check(OP, margins, torch.full_like(margins, target), 0.3, gamma, "none")
    index = torch.arange(2, device=device).repeat(len(margins))
    check(OP, margins[:, None].repeat(2, 1), index, 0.3, gamma, "none")


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("soft", [0.5, 0.1, 1e-3, 1 - 1e-3])
@dtypes()
def test_every_margin_of_soft_targets(gamma: float, soft: float, dtype: torch.dtype, device: str) -> None:
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=torch.float64).to(dtype).to(device)
    # Pairs, so that the gradient that vanishes at p = t has a companion to be measured by.
    rows = torch.stack([margins, margins + 1], 1)
    targets = torch.tensor([[soft, 1.0 if soft > 0.5 else 0.0]], device=device).expand_as(rows)
    check(OP, rows, targets, 0.3, gamma, "none")


@dtypes(DENSE_DTYPES, "target_dtype")
@dtypes([torch.float32, torch.float64, torch.bfloat16])
def test_dense_target_types(target_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    soft = target_dtype.is_floating_point
    for size in ((33, 80), (2, 3, 4, 5)):
        targets = make_dense(size, target_dtype, device, soft=soft)
        check(OP, make_logits(size, dtype, device), targets, 0.3, 2.0, "none")


def test_hard_targets_of_every_type_agree(device: str) -> None:
    """0 and 1 are 0 and 1, whatever the type they are stored in."""
    for size in ((33, 80), (2, 3, 4, 5)):
        logits, hard = make_logits(size, device=device), make_dense(size, torch.bool, device)
        expected = run(OP, logits, hard.float(), 0.3)
        for dtype in DENSE_DTYPES:
            assert_bitwise(run(OP, logits, hard.to(dtype), 0.3), expected)


@dtypes(INDEX_DTYPES, "index_dtype")
@shapes(REPRESENTATIVE)
def test_index_types(shape: Shape, index_dtype: torch.dtype, device: str) -> None:
    logits = make_logits(shape.size, device=device)
    ignore = -100 if index_dtype == torch.bool else 3
    targets = make_index(shape, index_dtype, device, ignore_index=None if index_dtype == torch.bool else ignore)
    kwargs = {"class_dim": shape.class_dim, "ignore_index": ignore}
    check(OP, logits, targets, **kwargs)
    # The same numbers whatever the type they are stored in.
    assert_bitwise(run(OP, logits, targets, **kwargs), run(OP, logits, targets.long(), **kwargs))


@pytest.mark.parametrize("background", [None, -1, 0, 255])
@shapes(REPRESENTATIVE)
def test_background_index(shape: Shape, background: int | None, device: str) -> None:
    label = shape.classes if background is None else background
    targets = make_index(shape, device=device, background=label)
    logits = make_logits(shape.size, device=device)
    kwargs = {"class_dim": shape.class_dim, "background_index": background}
    result = check(OP, logits, targets, None, 2.0, "none", **kwargs)
    # Negative for all classes: what dense targets of zero give.
    rows = (targets == label).unsqueeze(shape.class_dim).expand_as(logits)
    negative = focal_cuda.sigmoid_focal_loss(logits, torch.zeros_like(logits), None, 2.0, "none")
    assert rows.any() and torch.equal(result.loss[rows], negative[rows])


@pytest.mark.parametrize("ignore_index", [-100, -1, 255, 0, 2])
@shapes(REPRESENTATIVE)
def test_ignore_index(shape: Shape, ignore_index: int, device: str) -> None:
    targets = make_index(shape, device=device, background=shape.classes, ignore_index=ignore_index)
    logits = make_logits(shape.size, device=device)
    ignored = (targets == ignore_index).unsqueeze(shape.class_dim).expand_as(logits)
    alpha = torch.rand(shape.classes, device=device)
    for reduction in ("none", "mean"):
        result = check(OP, logits, targets, alpha, 1.5, reduction, class_dim=shape.class_dim, ignore_index=ignore_index)
        assert ignored.any() and (result.grad[ignored] == 0).all()


@dtypes([torch.float32, torch.bfloat16, torch.int64, torch.uint8], "target_dtype")
def test_ignore_index_of_dense_targets(target_dtype: torch.dtype, device: str) -> None:
    """Element by element, for values that cannot be targets."""
    ignore = 255 if target_dtype == torch.uint8 else -1
    for size in ((33, 80), (2, 3, 4, 5)):
        targets = make_dense(size, target_dtype, device, soft=target_dtype.is_floating_point)
        targets[torch.rand(size, device=device) < 0.2] = ignore
        logits = make_logits(size, device=device)
        for reduction in ("none", "mean", "sum"):
            result = check(OP, logits, targets, 0.3, 1.5, reduction, ignore_index=ignore)
            assert (result.grad[targets == ignore] == 0).all()


def test_the_gradient_of_a_mean_whose_ignored_elements_come_late(device: str) -> None:
    """All are taken to count until one turns up that does not, and the gradient is made again. With an upstream of 1,
    since any other has the backward make it anyway."""
    targets = make_dense((900, 80), device=device)  # more than a chunk of the CPU's
    targets[-1] = -100
    check(OP, make_logits((900, 80), device=device), targets, upstream=torch.ones((), device=device))


def test_weights_of_rows(device: str) -> None:
    targets = make_index(Shape((33, 80)), device=device)
    logits = make_logits((33, 80), device=device)
    weight = torch.rand(33, device=device) + 0.5
    for reduction in ("none", "mean"):
        check(OP, logits, targets, 0.3, 1.5, reduction, sample_weight=weight)


def test_uint8_255_is_ignored_and_uint8_156_is_not_minus_100(device: str) -> None:
    targets = torch.tensor([156, 3, 255, 199, 156, 255], dtype=torch.uint8, device=device)
    logits = torch.randn(6, 200, device=device)
    result = check(OP, logits, targets, reduction="none", ignore_index=255)
    assert (result.loss[[2, 5]] == 0).all() and (result.loss[[0, 4]] > 0).all()
    assert (check(OP, logits, targets.clamp(max=200), reduction="none").loss > 0).all()


def test_index_and_dense_targets_agree(device: str, backend: str) -> None:
    """The same numbers, whichever way the target was written down."""
    for shape in (Shape((129, 19)), Shape((2, 19, 13, 17))):
        index = make_index(shape, device=device, background=19, ignore_index=None)
        dense = F.one_hot(index, 20).movedim(-1, 1)[:, :19].float()
        logits = make_logits(shape.size, device=device)
        upstream = torch.randn(shape.size, device=device)
        kwargs = {"reduction": "none", "upstream": upstream}
        assert_agree(run(OP, logits, index, **kwargs), run(OP, logits, dense, **kwargs), backend)


def test_gamma_0_is_binary_cross_entropy(device: str) -> None:
    logits = make_logits((33, 80), device=device)
    for soft in (False, True):
        targets = make_dense((33, 80), device=device, soft=soft)
        for reduction in ("none", "mean", "sum"):
            ours = focal_cuda.sigmoid_focal_loss(logits, targets, None, 0.0, reduction)
            torchs = F.binary_cross_entropy_with_logits(logits.double(), targets.double(), reduction=reduction)
            assert_close(ours, torchs, loss_bound(torchs, torch.float32) + 1e-14, reduction)


def test_no_less_exact_than_the_usual_composition(device: str) -> None:
    """And much more so for easy negatives, of which detection has all but a few."""
    logits = make_logits((4096, 8), device=device) - 8
    targets = (torch.rand(4096, 8, device=device) < 1e-3).float()
    truth = focal_cuda.reference.sigmoid_focal_loss(logits.double(), targets, 0.25, 2.0, "none")
    ours = focal_cuda.sigmoid_focal_loss(logits, targets, 0.25, 2.0, "none")
    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    usual = (0.25 * targets + 0.75 * (1 - targets)) * (1 - p_t) ** 2 * ce

    def worst(loss: torch.Tensor) -> float:
        return ((loss.double() - truth).abs() / (truth + 1e-30)).max().item()

    assert worst(ours) < 1e-5 < 0.5 < worst(usual)
