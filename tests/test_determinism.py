"""The same bits from every run, for any number of threads, in any order of threads and in any order of the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Shape, dtypes, make_dense, make_index, make_trained_logits
from compare import Result, assert_agree, assert_bitwise, random_upstream, run
from torch import Tensor

import focal_cuda

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
# Enough for several chunks per thread: rows of classes, strided classes, and no two equal chunks.
LARGE = [Shape((20_011, 19)), Shape((3, 19, 61, 67)), Shape((3, 70_001)), Shape((2, 3, 150, 101), class_dim=1)]
every_shape = pytest.mark.parametrize("shape", LARGE, ids=str)
reductions = pytest.mark.parametrize("reduction", ["none", "mean", "sum", "positives"])


def once(op: str, logits: Tensor, targets: Tensor, reduction: str, upstream: Tensor) -> Result:
    kwargs = {"reduction": reduction}
    if reduction == "positives":
        kwargs = {"reduction": "sum", "normalizer": "positives", "background_index": 0}
    if reduction != "none":
        upstream = upstream.reshape(-1)[0]
    return run(op, logits, targets, upstream=upstream, **kwargs)


def batch(op: str, shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    targets = make_index(shape, device=device)
    logits = make_trained_logits(shape, targets, dtype)
    size = shape.size if op.startswith("sigmoid") else shape.positions
    return logits, targets, random_upstream(size, logits)


@ops
@every_shape
@reductions
@dtypes([torch.float32, torch.bfloat16])
def test_ten_runs(op: str, shape: Shape, reduction: str, dtype: torch.dtype, device: str, reorder: Callable) -> None:
    arguments = batch(op, shape, dtype, device)
    logits, targets, upstream = arguments
    first = once(op, logits, targets, reduction, upstream)
    for number in range(9):
        reorder(number)
        assert_bitwise(once(op, logits, targets, reduction, upstream), first)


@pytest.mark.usefixtures("threads")
@ops
@every_shape
@reductions
@dtypes([torch.float32, torch.float64, torch.bfloat16])
def test_any_number_of_threads(op: str, shape: Shape, reduction: str, dtype: torch.dtype) -> None:
    logits, targets, upstream = batch(op, shape, dtype, "cpu")
    torch.set_num_threads(1)
    first = once(op, logits, targets, reduction, upstream)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert_bitwise(once(op, logits, targets, reduction, upstream), first)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_any_number_of_threads_with_dense_targets(soft: bool) -> None:
    size = (20_011, 19)
    targets, logits = make_dense(size, soft=soft), torch.randn(size)
    torch.set_num_threads(1)
    first = run("sigmoid_focal_loss", logits, targets)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert_bitwise(run("sigmoid_focal_loss", logits, targets), first)


@ops
@every_shape
def test_a_permuted_batch_gives_permuted_results(op: str, shape: Shape, device: str) -> None:
    logits, targets, upstream = batch(op, shape, torch.float32, device)
    order = torch.randperm(shape.size[0], device=device)
    plain = run(op, logits, targets, reduction="none", upstream=upstream)
    permuted = run(op, logits[order], targets[order], reduction="none", upstream=upstream[order])
    assert_bitwise(permuted, Result(plain.loss[order], plain.grad[order]))


@ops
def test_a_row_does_not_depend_on_its_neighbours(op: str, device: str, backend: str) -> None:
    logits, targets, upstream = batch(op, Shape((259, 19)), torch.float32, device)
    whole = run(op, logits, targets, reduction="none", upstream=upstream)
    for part in (slice(0, 1), slice(7, 8), slice(100, 133), slice(255, 259)):
        alone = run(op, logits[part], targets[part], reduction="none", upstream=upstream[part])
        assert_agree(alone, Result(whole.loss[part], whole.grad[part]), backend, upstream.abs().max().item())


@ops
def test_under_deterministic_algorithms(op: str, device: str) -> None:
    """torch's own segmentation losses raise here on a GPU; uninitialised memory is filled with NaN besides."""
    logits, targets, upstream = batch(op, Shape((3, 19, 61, 67)), torch.float32, device)
    plain = [once(op, logits, targets, r, upstream) for r in ("none", "mean")]
    torch.use_deterministic_algorithms(True)
    try:
        again = [once(op, logits, targets, r, upstream) for r in ("none", "mean")]
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(plain, again, strict=True):
        assert_bitwise(a, b)


@ops
def test_every_element_is_written(op: str, device: str) -> None:
    """Ignored rows too. Deterministic mode fills fresh memory with NaN, which a missed store would leave."""
    shape = Shape((2, 19, 13, 17))
    targets = make_index(shape, device=device)
    logits = make_trained_logits(shape, targets)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(4).isnan().all()
        for kwargs in ({"gradient": "forward"}, {"gradient": "backward"}, {"reduction": "none"}):
            x = logits.clone().requires_grad_()
            loss = getattr(focal_cuda, op)(x, targets, **kwargs)
            loss.sum().backward()
            assert loss.isfinite().all() and x.grad.isfinite().all()
            assert (x.grad[(targets == -100).unsqueeze(1).expand_as(x)] == 0).all()
    finally:
        torch.use_deterministic_algorithms(False)
