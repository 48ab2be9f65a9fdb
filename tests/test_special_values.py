"""NaN, infinities and the ends of the number ranges: where they must stay out, and where come through."""

from __future__ import annotations

import pytest
import torch
from cases import GAMMAS, Shape, dtypes, make_index, make_trained_logits
from compare import check, run
from tolerance import assert_close, loss_bound

import focal_cuda

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
gammas = pytest.mark.parametrize("gamma", GAMMAS)
strided = pytest.mark.parametrize("size", [(40, 19), (2, 19, 4, 5)], ids=["rows", "columns"])
INF, NAN = torch.inf, torch.nan


@ops
@strided
@dtypes()
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
def test_ignored_positions_keep_everything_out(
    op: str, size: tuple, dtype: torch.dtype, poison: float, gradient: str, device: str
) -> None:
    shape = Shape(size)
    targets = make_index(shape, device=device)
    clean = make_trained_logits(shape, targets, dtype)
    ignored = (targets == -100).unsqueeze(1).expand_as(clean)
    poisoned = torch.where(ignored, poison, clean)
    for reduction in ("mean", "sum"):
        result = run(op, poisoned, targets, None, 2.0, reduction, gradient=gradient)
        expected = run(op, clean, targets, None, 2.0, reduction, gradient=gradient)
        assert torch.equal(result.loss, expected.loss) and torch.equal(result.grad, expected.grad)
        assert (result.grad[ignored] == 0).all() and result.loss.isfinite()
    none = check(op, poisoned, targets, None, 2.0, "none")
    assert none.loss.isfinite().all()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_ignored_elements_of_dense_targets_keep_everything_out(poison: float, device: str) -> None:
    targets = (torch.rand(33, 19, device=device) < 0.3).float()
    targets[::3, ::2] = -1
    logits = torch.randn(33, 19, device=device)
    poisoned = torch.where(targets == -1, poison, logits)
    for reduction in ("none", "mean", "sum"):
        result = check("sigmoid_focal_loss", poisoned, targets, 0.3, 2.0, reduction, ignore_index=-1)
        assert result.loss.isfinite().all() and (result.grad[targets == -1] == 0).all()


@ops
@strided
@gammas
@dtypes()
def test_nan_in_a_used_logit_comes_through(op: str, size: tuple, gamma: float, dtype: torch.dtype, device: str) -> None:
    """In its own row alone, and in every reduction: a NaN that vanishes hides a broken model."""
    targets = torch.zeros(size[:1] + size[2:], dtype=torch.int64, device=device)
    logits = torch.randn(size, device=device).to(dtype)
    for place in (0, 7, size[1] - 1):
        poisoned = logits.clone()
        poisoned[1, place] = NAN
        assert check(op, poisoned, targets, None, gamma, "none").loss.isnan().any()
        for gradient in ("forward", "backward"):
            result = run(op, poisoned, targets, None, gamma, "mean", gradient=gradient)
            assert result.loss.isnan() and result.grad[1].isnan().any()
            assert result.grad[0].isfinite().all()


@gammas
@strided
@dtypes()
def test_a_class_at_minus_infinity_takes_no_part(gamma: float, size: tuple, dtype: torch.dtype, device: str) -> None:
    """Masked classes are made so; losses that multiply a one-hot with log p turn them into NaN."""
    logits = torch.randn(size, device=device).to(dtype)
    logits[:, 3] = -INF
    logits[:, 11:] = -INF
    targets = torch.randint(4, 11, size[:1] + size[2:], device=device)
    for reduction in ("none", "mean"):
        result = check("softmax_focal_loss", logits, targets, None, gamma, reduction)
        assert (result.grad[:, 3] == 0).all() and result.grad.isfinite().all()


@gammas
@strided
def test_the_only_class_left_has_no_loss(gamma: float, size: tuple, device: str) -> None:
    logits = torch.full(size, -INF, device=device)
    logits[:, 5] = 0.3
    targets = torch.full(size[:1] + size[2:], 5, device=device)
    result = check("softmax_focal_loss", logits, targets, None, gamma, "none")
    assert (result.loss == 0).all() and (result.grad == 0).all()


@pytest.mark.parametrize("classes", [2, 3, 19, 40, 100, 600, 5000])
def test_a_target_whose_others_are_all_masked_is_certain(classes: int, device: str) -> None:
    """By every engine: -inf - -inf arises nowhere."""
    for size, class_dim in (((3, classes), 1), ((1, classes, 20), 1), ((classes, 3), 0)):
        x = torch.full(size, -INF, device=device)
        x.select(class_dim, 1).fill_(0.3)
        targets = torch.ones(x.select(class_dim, 1).shape, dtype=torch.int64, device=device)
        result = run("softmax_focal_loss", x, targets, class_dim=class_dim)
        assert result.loss == 0 and (result.grad == 0).all(), size


@gammas
@strided
def test_an_impossible_target_has_an_infinite_loss(gamma: float, size: tuple, device: str) -> None:
    logits = torch.randn(size, device=device)
    logits[1, 5] = -INF
    targets = torch.full(size[:1] + size[2:], 5, device=device)
    loss = check("softmax_focal_loss", logits, targets, None, gamma, "none").loss
    assert (loss[1] == INF).all() and loss[0].isfinite().all()


# By how many lanes a GPU shares a position, and whether these hold all of its classes.
several = pytest.mark.parametrize("size", [(40, 19), (3, 19, 4, 5), (30, 130), (5, 1030)], ids=str)


@gammas
@several
@dtypes()
def test_equal_logits_with_soft_targets(gamma: float, size: tuple, dtype: torch.dtype, device: str) -> None:
    """One of those on top, wherever they stand, is set apart; the others count in full."""
    logits = torch.randint(0, 2, size, device=device).to(dtype)
    logits[0] = 0
    targets = torch.rand(size, device=device).softmax(1)
    check("softmax_focal_loss", logits, targets, None, gamma, "none")
    labels = targets.argmax(1)
    check("softmax_focal_loss", logits, labels, None, gamma, "mean", label_smoothing=0.1)


@gammas
@several
@dtypes()
def test_a_masked_class_without_a_target(gamma: float, size: tuple, dtype: torch.dtype, device: str) -> None:
    """At -inf it is no part of the others, and neither its loss nor its gradient is anything but 0."""
    logits = torch.randn(size, device=device).to(dtype)
    targets = torch.rand(size, device=device)
    masked = torch.zeros(size, dtype=torch.bool, device=device)
    masked[:, 3], masked[:, 11:] = True, True
    masked[1, 1:] = True  # one class is left
    result = check(
        "softmax_focal_loss", logits.masked_fill(masked, -INF), targets.masked_fill(masked, 0), None, gamma, "none"
    )
    assert result.loss.isfinite().all() and (result.grad[masked] == 0).all()


@several
@dtypes()
def test_nan_comes_through_soft_targets(size: tuple, dtype: torch.dtype, device: str) -> None:
    logits, targets = torch.randn(size, device=device).to(dtype), torch.rand(size, device=device)
    logits[1, 7] = NAN
    result = run("softmax_focal_loss", logits, targets, None, 2.0, "sum")
    assert result.loss.isnan() and result.grad[1].isnan().any()
    assert result.grad[0].isfinite().all()


@gammas
@dtypes()
def test_infinite_logits_of_the_sigmoid(gamma: float, dtype: torch.dtype, device: str) -> None:
    """Sure and right costs nothing, sure and wrong everything; the gradient has its limit, 0 or 1."""
    logits = torch.tensor([[INF, -INF], [-INF, INF]], device=device).to(dtype)
    for targets in (
        torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=device),
        torch.tensor([0, 0], device=device),
    ):
        result = check("sigmoid_focal_loss", logits, targets, None, gamma, "none")
        assert result.loss.tolist() == [[0, 0], [INF, INF]]


@ops
@dtypes()
def test_the_ends_of_the_number_range(op: str, dtype: torch.dtype, device: str) -> None:
    """The largest, the smallest normal and subnormal, and both zeros."""
    info = torch.finfo(dtype)
    # A quarter of the largest number: differences of two logits stay finite, as they do in the oracle.
    values = [info.max / 4, -info.max / 4, info.tiny, -info.tiny, info.tiny / 4, 0.0, -0.0]
    logits = torch.tensor([[v, w] for v in values for w in values], dtype=torch.float64).to(dtype).to(device)
    for target in (0, 1):
        targets = torch.full((len(logits),), target, device=device)
        for gamma in (0.0, 0.5, 2.0):
            check(op, logits, targets, None, gamma, "none")


@ops
@strided
@gammas
def test_all_logits_equal(op: str, size: tuple, gamma: float, device: str) -> None:
    targets = torch.randint(0, size[1], size[:1] + size[2:], device=device)
    for value in (0.0, 7.5, -1e4):
        check(op, torch.full(size, value, device=device), targets, None, gamma, "none")


def test_the_signs_of_zero_do_not_matter(device: str) -> None:
    zero, minus = torch.zeros(4, 3, device=device), -torch.zeros(4, 3, device=device)
    targets = torch.tensor([0, 1, 2, 0], device=device)
    for op in OPS:
        a, b = run(op, zero, targets), run(op, minus, targets)
        assert torch.equal(a.loss, b.loss) and torch.equal(a.grad, b.grad)


@ops
def test_half_precision_sums_do_not_overflow(op: str, device: str) -> None:
    """65504 is soon passed by the sum over an image; the loss is float32 whatever the logits are."""
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.zeros(1, 2, 256, 512, device=device, dtype=dtype)
        logits[:, 1] = 12
        targets = torch.zeros(1, 256, 512, dtype=torch.uint8, device=device)
        for reduction in ("sum", "mean"):
            assert check(op, logits, targets, None, 0.0, reduction).loss.isfinite()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sums_of_many_terms_stay_exact(reduction: str, device: str) -> None:
    """Ten million small terms and a large one, of one value each: a running sum in float32 would stall."""
    logits = torch.full((10_000_000, 1), -6.0, device=device)
    targets = torch.ones(10_000_000, dtype=torch.uint8, device=device)
    targets[0] = 0
    few = focal_cuda.sigmoid_focal_loss(logits[:2], targets[:2], None, 0.0, "none").double()
    expected = few[0] + few[1] * (len(targets) - 1)
    expected = expected / len(targets) if reduction == "mean" else expected
    loss = focal_cuda.sigmoid_focal_loss(logits, targets, None, 0.0, reduction)
    assert_close(loss, expected.squeeze(), loss_bound(expected.squeeze(), torch.float32), reduction)
