"""Any strides, without a copy: logits, targets, alpha and upstream gradients as views of all kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Shape, dtypes, make_dense, make_index, make_trained_logits
from compare import assert_agree, check, run
from torch import Tensor

import focal_cuda

SHAPES = [Shape((37, 19)), Shape((4, 19, 6, 11))]
DTYPES = [torch.float32, torch.bfloat16]


def classes_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def first_dim_innermost(x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def reversed_dims(x: Tensor) -> Tensor:
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def unaligned(x: Tensor) -> Tensor:
    """One element into its storage: no vector load is aligned."""
    storage = torch.full((x.numel() + 1,), torch.nan if x.is_floating_point() else 1, dtype=x.dtype, device=x.device)
    view = storage[1:].view(x.shape)
    view.copy_(x)
    return view


def inside(x: Tensor, dim: int, step: int = 1) -> Tensor:
    """A part of a larger tensor, whose other elements must not be read."""
    size = list(x.shape)
    size[dim] = size[dim] * step + 3
    fill = torch.nan if x.is_floating_point() else 1
    part = torch.full(size, fill, dtype=x.dtype, device=x.device).narrow(dim, 2, x.shape[dim] * step)
    view = part[(slice(None),) * (dim % x.dim()) + (slice(None, None, step),)]
    view.copy_(x)
    return view


def padded_rows(x: Tensor) -> Tensor:
    return inside(x, -1)


def every_second(x: Tensor) -> Tensor:
    return inside(x, -1, 2)


def some_channels(x: Tensor) -> Tensor:
    return inside(x, 1)


def every_third_image(x: Tensor) -> Tensor:
    return inside(x, 0, 3)


LAYOUTS = [
    classes_last,
    first_dim_innermost,
    reversed_dims,
    unaligned,
    padded_rows,
    every_second,
    some_channels,
    every_third_image,
]
# These leave every row and every tile what it was: the arithmetic is the same.
SAME_ARITHMETIC = [unaligned, padded_rows, some_channels, every_third_image]

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
ops = pytest.mark.parametrize("op", ["softmax_focal_loss", "sigmoid_focal_loss"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@layouts
@ops
@every_shape
@dtypes(DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_logits(layout: Callable, op: str, shape: Shape, dtype: torch.dtype, reduction: str, device: str) -> None:
    targets = make_index(shape, device=device)
    logits = layout(make_trained_logits(shape, targets, dtype))
    result = check(op, logits, targets, None, 2.0, reduction)
    assert result.grad.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("layout", SAME_ARITHMETIC, ids=lambda f: f.__name__)
@ops
@every_shape
def test_the_same_numbers_as_contiguous(layout: Callable, op: str, shape: Shape, device: str, backend: str) -> None:
    targets = make_index(shape, device=device)
    logits = make_trained_logits(shape, targets)
    plain = focal_cuda.softmax_focal_loss(logits, targets, reduction="none")
    upstream = torch.randn(logits.shape if op == "sigmoid_focal_loss" else plain.shape, device=device)
    kwargs = {"reduction": "none", "upstream": upstream}
    assert_agree(run(op, layout(logits), targets, **kwargs), run(op, logits, targets, **kwargs), backend)


@layouts
@every_shape
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_dense_targets(layout: Callable, shape: Shape, soft: bool, device: str) -> None:
    """Logits and targets in different layouts, and in the same one."""
    targets = make_dense(shape.size, device=device, soft=soft)
    logits = torch.randn(shape.size, device=device)
    for x, t in [(logits, layout(targets)), (layout(logits), targets), (layout(logits), layout(targets))]:
        for reduction in ("none", "sum"):
            check("sigmoid_focal_loss", x, t, 0.3, 2.0, reduction)


@ops
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8], ids=["int64", "uint8"])
def test_index_targets(op: str, index_dtype: torch.dtype, device: str, backend: str) -> None:
    shape = Shape((4, 19, 6, 11))
    targets = make_index(shape, index_dtype, device, ignore_index=None)
    logits = make_trained_logits(shape, targets)
    plain = run(op, logits, targets)
    for layout in (reversed_dims, unaligned, padded_rows, every_second, some_channels, every_third_image):
        assert_agree(run(op, logits, layout(targets)), plain, backend)
    # One row of labels for all images, and one label for all positions.
    for expanded in (targets[:1].expand(4, 6, 11), targets[:1, :1, :1].expand(4, 6, 11)):
        assert_agree(run(op, logits, expanded), run(op, logits, expanded.contiguous()), backend)
        check(op, logits, expanded)


@ops
@dtypes(DTYPES)
def test_expanded_logits(op: str, dtype: torch.dtype, device: str) -> None:
    """Every position counts, although the storage holds but one image, or one class."""
    targets = make_index(Shape((4, 19, 6, 11)), device=device)
    for size in ((1, 19, 6, 11), (4, 1, 6, 11), (4, 19, 1, 1), (1, 1, 1, 1)):
        logits = torch.randn(size, device=device).to(dtype).expand(4, 19, 6, 11)
        for reduction in ("none", "mean"):
            check(op, logits, targets, None, 2.0, reduction)


@ops
def test_classes_anywhere(op: str, device: str) -> None:
    targets = make_index(Shape((4, 19, 6, 11)), device=device)
    logits = make_trained_logits(Shape((4, 19, 6, 11)), targets)
    for class_dim in (0, 2, -1, -2):
        moved = logits.movedim(1, class_dim)
        check(op, moved, targets, class_dim=class_dim)
        check(op, moved.contiguous(), targets, class_dim=class_dim)
        # A view is the same tensor to the kernel.
        assert torch.equal(run(op, moved, targets, class_dim=class_dim).loss, run(op, logits, targets).loss)


@ops
def test_alpha(op: str, device: str) -> None:
    targets = make_index(Shape((37, 19)), device=device)
    logits = make_trained_logits(Shape((37, 19)), targets)
    alpha = torch.rand(19, device=device)
    for view in (
        every_second(alpha),
        unaligned(alpha),
        alpha[:1].expand(19),
        alpha.double(),
        alpha.bfloat16(),
    ):
        check(op, logits, targets, view)


def upstream_views(plain: Tensor) -> dict[str, Tensor]:
    return {
        "reversed": reversed_dims(plain),
        "every second": every_second(plain),
        "unaligned": unaligned(plain),
        "expanded scalar": torch.tensor(0.7, device=plain.device).expand(plain.shape),
        "expanded first": plain[:1].expand(plain.shape),
        "zero": torch.zeros_like(plain),
    }


@ops
@every_shape
@dtypes(DTYPES)
def test_upstream_gradients(op: str, shape: Shape, dtype: torch.dtype, device: str, backend: str) -> None:
    """What follows the loss decides the strides of its gradient; a plain .sum() sends an expanded scalar."""
    targets = make_index(shape, device=device)
    logits = make_trained_logits(shape, targets, dtype)
    size = shape.size if op == "sigmoid_focal_loss" else shape.positions
    for upstream in upstream_views(torch.randn(size, device=device)).values():
        kwargs = {"reduction": "none"}
        check(op, logits, targets, upstream=upstream, **kwargs)
        assert_agree(
            run(op, logits, targets, upstream=upstream, **kwargs),
            run(op, logits, targets, upstream=upstream.contiguous(), **kwargs),
            backend,
            factor=upstream.abs().max().item(),
        )
    summed = logits.clone().requires_grad_()
    getattr(focal_cuda, op)(summed, targets, None, 2.0, "none").sum().backward()
    ones = torch.ones(size, device=device)
    assert torch.equal(summed.grad, run(op, logits, targets, None, 2.0, "none", upstream=ones).grad)


# More than 16 MiB of gradient each, which the CPU writes in another way than what is soon read again. No size is even.
LARGE = {
    "masks": lambda: torch.randn(3, 19, 301, 307),
    "two classes": lambda: torch.randn(3, 2, 901, 907),
    "classes last": lambda: torch.randn(3, 301, 307, 19).movedim(-1, 1),
    "rows": lambda: torch.randn(70_001, 67),
    "short rows": lambda: torch.randn(500_003, 9),
    "long rows": lambda: torch.randn(45, 100_003),
}


@pytest.mark.native
@ops
@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("gradient", ["forward", "backward"])
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_large_gradients(op: str, kind: str, gradient: str, upstream: float, device: str) -> None:
    """Every element has the bits it has in a small batch."""
    logits = LARGE[kind]().to(device)
    targets = make_index(Shape(tuple(logits.shape)), device=device)
    kwargs = {"gradient": gradient, "upstream": torch.tensor(upstream, device=device)}
    whole = run(op, logits, targets, None, 2.0, "sum", **kwargs).grad
    assert whole.numel() * 4 > 16 * 2**20 and whole.stride() == torch.empty_like(logits).stride()
    parts = torch.linspace(0, len(logits), 4).long().tolist()
    for start, stop in zip(parts, parts[1:], strict=False):
        # A copy of the part, laid out as the whole is.
        part = torch.empty_like(logits[start:stop]).copy_(logits[start:stop])
        small = run(op, part, targets[start:stop], None, 2.0, "sum", **kwargs).grad
        assert torch.equal(whole[start:stop], small)


# How a layer might hand its result on: each is a view of what the layer computed.
VIEWS = {
    "classes last": ((4, 6, 11, 19), lambda y: y.movedim(-1, 1)),
    "padded rows": ((4, 19, 6, 14), lambda y: y[..., 2:-1]),
    "every second": ((4, 19, 6, 22), lambda y: y[..., ::2]),
    "some channels": ((4, 22, 6, 11), lambda y: y[:, 2:-1]),
    "unaligned": ((4 * 19 * 66 + 1,), lambda y: y[1:].view(4, 19, 6, 11)),
}


@ops
@pytest.mark.parametrize("view", VIEWS)
def test_in_place(op: str, view: str, device: str) -> None:
    """The gradient lands in the elements of the view, and the others keep their values."""
    size, take = VIEWS[view]
    leaf = torch.randn(size, device=device, requires_grad=True)
    targets = make_index(Shape((4, 19, 6, 11)), device=device)
    layer = leaf * 1
    loss = getattr(focal_cuda, op)(take(layer), targets, gradient="inplace")
    (grad,) = torch.autograd.grad(loss, leaf)
    expected = run(op, take(leaf.detach()), targets, gradient="backward")
    assert torch.equal(loss.detach(), expected.loss)
    assert torch.equal(take(grad), expected.grad)
    inside = take(torch.ones(size, device=device).requires_grad_())
    untouched = torch.autograd.grad(inside.sum(), inside._base)[0] == 0
    assert torch.equal(layer.detach()[untouched], leaf.detach()[untouched])
    assert torch.equal(take(layer.detach()), expected.grad)
