"""What a loss is divided by, and what is left when there is nothing to count."""

from __future__ import annotations

import pytest
import torch
from cases import Shape, dtypes, make_dense, make_index, make_logits, make_trained_logits
from compare import check, run
from tolerance import assert_close, loss_bound
from torch import Tensor

import focal_cuda

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
strided = pytest.mark.parametrize("shape", [Shape((129, 19)), Shape((2, 19, 13, 17))], ids=str)


def batch(op: str, shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    targets = make_index(shape, device=device, background=shape.classes if op.startswith("sigmoid") else None)
    return make_trained_logits(shape, targets, dtype), targets


@ops
@strided
@dtypes()
def test_sum_and_mean_of_the_elements(op: str, shape: Shape, dtype: torch.dtype, device: str) -> None:
    logits, targets = batch(op, shape, device, dtype)
    none = run(op, logits, targets, None, 2.0, "none", upstream=ones(op, logits, targets)).loss
    assert none.shape == (logits.shape if op.startswith("sigmoid") else targets.shape)
    total = none.double().sum()
    counted = int((targets != -100).sum()) * (shape.classes if op.startswith("sigmoid") else 1)
    assert 0 < counted < none.numel()
    for reduction, expected in (("sum", total), ("mean", total / counted)):
        loss = run(op, logits, targets, None, 2.0, reduction).loss
        assert loss.shape == ()
        assert_close(loss, expected, loss_bound(expected, dtype), reduction)


def ones(op: str, logits: Tensor, targets: Tensor) -> Tensor:
    like = logits if op.startswith("sigmoid") else targets
    return torch.ones(like.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("ignore_index", [-1, 255])
def test_mean_of_dense_targets_counts_elements(ignore_index: int, device: str) -> None:
    targets = make_dense((33, 19), device=device, soft=True)
    targets[::2, ::3] = ignore_index
    logits = make_logits((33, 19), device=device)
    loss = check("sigmoid_focal_loss", logits, targets, 0.3, 2.0, "mean", ignore_index=ignore_index).loss
    none = focal_cuda.sigmoid_focal_loss(logits, targets, 0.3, 2.0, "none", ignore_index=ignore_index)
    expected = none.double().sum() / (targets != ignore_index).sum()
    assert_close(loss, expected, loss_bound(expected, torch.float32), "mean")


def normalizers(device: str) -> dict[str, float | Tensor | str]:
    return {
        "number": 123.4,
        "int": 7,
        "float32": torch.tensor(98.7, device=device),
        "float64": torch.tensor(0.031, dtype=torch.float64, device=device),
        "bfloat16": torch.tensor(300.0, dtype=torch.bfloat16, device=device),
        "int64": torch.tensor(42, device=device),
        "one element": torch.tensor([17.0], device=device),
        "a view": torch.arange(6.0, device=device).view(2, 3)[1:, 1:2],
    }


@ops
@strided
@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
@pytest.mark.parametrize("kind", list(normalizers("cpu")))
def test_normalizer_divides_the_sum(op: str, shape: Shape, gradient: str, kind: str, device: str) -> None:
    logits, targets = batch(op, shape, device)
    check(op, logits, targets, None, 2.0, "sum", normalizer=normalizers(device)[kind], gradient=gradient)


@ops
@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
def test_a_normalizer_of_zero_gives_zero(op: str, gradient: str, device: str) -> None:
    """A batch without positives, counted on the device: it must not end a training."""
    logits, targets = batch(op, Shape((129, 19)), device)
    for zero in (torch.zeros((), device=device), torch.zeros(1, dtype=torch.int64, device=device)):
        result = check(op, logits, targets, None, 2.0, "sum", normalizer=zero, gradient=gradient)
        assert result.loss == 0 and (result.grad == 0).all()


@ops
@strided
@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
@dtypes()
def test_normalized_by_positives(op: str, shape: Shape, gradient: str, dtype: torch.dtype, device: str) -> None:
    logits, targets = batch(op, shape, device, dtype)
    background = 0 if op.startswith("softmax") else None
    kwargs = {"background_index": background, "gradient": gradient}
    loss = check(op, logits, targets, None, 2.0, "sum", normalizer="positives", **kwargs).loss
    positives = (targets >= 0) & (targets < shape.classes) & (targets != (-1 if background is None else background))
    total = run(op, logits, targets, None, 2.0, "sum", background_index=background).loss.double()
    expected = total / positives.sum()
    assert 0 < positives.sum() < targets.numel()
    assert_close(loss, expected, loss_bound(expected, dtype), "loss")


def test_positives_of_dense_targets_are_those_above_zero(device: str) -> None:
    targets = make_dense((33, 19), device=device, soft=True)
    targets[::2, ::3] = 255
    logits = make_logits((33, 19), device=device)
    for t in (targets, (targets > 0.5).to(torch.uint8), targets == 1):
        kwargs = {"normalizer": "positives", "ignore_index": 255}
        loss = check("sigmoid_focal_loss", logits, t, 0.3, 2.0, "sum", **kwargs).loss
        total = run("sigmoid_focal_loss", logits, t, 0.3, 2.0, "sum", ignore_index=255).loss.double()
        expected = total / ((t > 0) & (t != 255)).sum()
        assert_close(loss, expected, loss_bound(expected, torch.float32), "loss")


@ops
def test_no_positives_count_as_one(op: str, device: str) -> None:
    logits = make_logits((8, 5), device=device)
    background = 5 if op.startswith("sigmoid") else 2
    targets = torch.full((8,), background, device=device)
    kwargs = {"background_index": background}
    loss = check(op, logits, targets, None, 2.0, "sum", normalizer="positives", **kwargs).loss
    assert loss > 0
    assert torch.equal(loss, run(op, logits, targets, None, 2.0, "sum", **kwargs).loss)


REDUCTIONS = [
    {"reduction": "mean"},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"reduction": "sum", "normalizer": "positives", "background_index": 1},
    {"reduction": "sum", "normalizer": 3.0},
    {"reduction": "mean", "gradient": "backward"},
]
reductions = pytest.mark.parametrize("kwargs", REDUCTIONS, ids=lambda k: "-".join(map(str, k.values())))


def assert_zero_and_connected(op: str, logits: Tensor, targets: Tensor, **kwargs) -> None:
    x = logits.clone().requires_grad_()
    loss = getattr(focal_cuda, op)(x, targets, **kwargs)
    assert loss.requires_grad and (loss == 0).all()
    loss.sum().backward()
    assert x.grad.shape == x.shape and (x.grad == 0).all()
    with torch.no_grad():
        assert torch.equal(getattr(focal_cuda, op)(x, targets, **kwargs), loss)


@ops
@reductions
@dtypes()
def test_all_ignored(op: str, kwargs: dict, dtype: torch.dtype, device: str) -> None:
    """No 0 / 0: the loss is 0, its gradient too, and distributed training finds every parameter used."""
    for size in ((8, 5), (2, 5, 3, 4)):
        targets = torch.full(size[:1] + size[2:], -100, device=device)
        assert_zero_and_connected(op, make_logits(size, dtype, device), targets, **kwargs)


@ops
@reductions
@pytest.mark.parametrize("size", [(0, 5), (3, 5, 0), (0, 5, 4, 4)], ids=str)
def test_empty_batches(op: str, kwargs: dict, size: tuple, device: str) -> None:
    targets = torch.zeros(size[:1] + size[2:], dtype=torch.int64, device=device)
    assert_zero_and_connected(op, torch.zeros(size, device=device), targets, **kwargs)


@reductions
@pytest.mark.parametrize("size", [(0,), (0, 5), (3, 0), (2, 0, 4)], ids=str)
def test_empty_dense_batches(kwargs: dict, size: tuple, device: str) -> None:
    x = torch.zeros(size, device=device)
    assert_zero_and_connected("sigmoid_focal_loss", x, torch.zeros_like(x), **{**kwargs, "background_index": None})


@reductions
@pytest.mark.parametrize("size", [(3, 0), (2, 0, 4)], ids=str)
def test_no_class(kwargs: dict, size: tuple, device: str) -> None:
    """A sigmoid without a class has nothing but background."""
    background = {**kwargs, "background_index": 0}
    x = torch.zeros(size, device=device)
    labels = torch.zeros(size[:1] + size[2:], dtype=torch.int64, device=device)
    assert_zero_and_connected("sigmoid_focal_loss", x, labels, **background)
    for of_class in ({"alpha": torch.zeros(0, device=device)}, {"gamma": torch.zeros(0, device=device)}):
        assert_zero_and_connected("sigmoid_focal_loss", x, torch.zeros_like(x), **background, **of_class)


@reductions
def test_all_dense_elements_ignored(kwargs: dict, device: str) -> None:
    logits = make_logits((8, 5), device=device)
    kwargs = {**kwargs, "background_index": None, "ignore_index": -1}
    assert_zero_and_connected("sigmoid_focal_loss", logits, torch.full_like(logits, -1), **kwargs)


@ops
@pytest.mark.parametrize("size", [(1, 5), (1, 5, 1, 1), (4, 5)], ids=str)
def test_one_counted_position_keeps_its_shape(op: str, size: tuple, device: str) -> None:
    targets = torch.full(size[:1] + size[2:], -100, device=device)
    targets[0] = 3
    logits = make_logits(size, device=device)
    none = check(op, logits, targets, None, 2.0, "none").loss
    assert none.shape == (logits.shape if op.startswith("sigmoid") else targets.shape)
    for reduction in ("mean", "sum"):
        assert check(op, logits, targets, None, 2.0, reduction).loss.shape == ()


@ops
def test_a_loss_in_a_larger_expression(op: str, device: str) -> None:
    """Scaled, added and averaged after the fact: the upstream gradient is not 1."""
    logits, targets = batch(op, Shape((129, 19)), device)
    x = logits.clone().requires_grad_()
    loss = getattr(focal_cuda, op)(x, targets)
    (0.25 * loss + (loss * 3).sin()).backward()
    upstream = 0.25 + 3 * torch.cos(3 * loss.detach())
    check(op, logits, targets, 0.25 if op.startswith("sigmoid") else None, upstream=upstream)
    expected = run(op, logits, targets, upstream=upstream).grad
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=0)
