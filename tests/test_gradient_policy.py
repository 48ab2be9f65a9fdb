"""When the gradient is made, whose memory it takes, and how often it can be had."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from cases import Shape, dtypes, make_index, make_logits, make_trained_logits
from compare import bits, run
from torch import Tensor

import focal_cuda

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
kept = pytest.mark.parametrize("gradient", ["auto", "forward", "backward"])


def batch(device: str, size: tuple[int, ...] = (2, 19, 13, 17)) -> tuple[Tensor, Tensor]:
    targets = make_index(Shape(size), device=device)
    return make_trained_logits(Shape(size), targets), targets


def loss_of(op: str, x: Tensor, targets: Tensor, **kwargs) -> Tensor:
    return getattr(focal_cuda, op)(x, targets, **kwargs)


@ops
@dtypes()
def test_all_policies_agree(op: str, dtype: torch.dtype, device: str) -> None:
    logits, targets = batch(device)
    logits = logits.to(dtype)
    results = [run(op, logits, targets, gradient=g) for g in ("auto", "forward", "backward", "inplace")]
    for result in results[1:]:
        assert torch.equal(result.loss, results[0].loss)
        assert torch.equal(bits(result.grad), bits(results[0].grad))


@ops
@kept
def test_backward_as_often_as_one_likes(op: str, gradient: str, device: str) -> None:
    """With any upstream gradients in any order, and without touching what an earlier one returned."""
    logits, targets = batch(device)
    x = logits.requires_grad_()
    loss = loss_of(op, x, targets, gradient=gradient)
    first, copies, upstreams = [], [], (1.0, 3.0, 1.0, 0.0, -0.5)
    for upstream in upstreams:
        (g,) = torch.autograd.grad(loss, x, torch.tensor(upstream, device=device), retain_graph=True)
        first.append(g)
        copies.append(g.clone())
    assert len({g.data_ptr() for g in first}) == len(first)
    for upstream, g, copy in zip(upstreams, first, copies, strict=True):
        assert torch.equal(g, copy)
        torch.testing.assert_close(g, first[0] * upstream, rtol=1e-5, atol=torch.finfo(g.dtype).tiny)
    assert torch.equal(first[0], first[2])


@ops
@kept
def test_an_unretained_graph_is_gone(op: str, gradient: str, device: str) -> None:
    logits, targets = batch(device)
    loss = loss_of(op, logits.requires_grad_(), targets, gradient=gradient)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@kept
def test_two_losses_on_the_same_logits(gradient: str, device: str) -> None:
    logits, targets = batch(device)
    separate = sum(run(op, logits, targets, gradient=gradient).grad for op in OPS)
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    total = sum(loss_of(op, x, targets, gradient=gradient) for op in OPS)
    total.backward()
    assert torch.equal(x.detach(), logits)
    torch.testing.assert_close(leaf.grad, separate, rtol=1e-6, atol=1e-12)


@ops
@kept
def test_gradients_accumulate(op: str, gradient: str, device: str) -> None:
    logits, targets = batch(device)
    x = logits.requires_grad_()
    loss_of(op, x, targets, gradient=gradient).backward()
    once = x.grad.clone()
    loss_of(op, x, targets, gradient=gradient).backward()
    assert torch.equal(x.grad, 2 * once)


@ops
@kept
def test_logits_are_left_alone(op: str, gradient: str, device: str) -> None:
    logits, targets = batch(device)
    before, version = logits.clone(), logits._version
    x = logits.requires_grad_()
    loss = loss_of(op, x, targets, gradient=gradient)
    torch.autograd.grad(loss, x, torch.tensor(0.3, device=device))
    assert torch.equal(bits(x), bits(before)) and x._version == version


@ops
@kept
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_logits_overwritten_before_the_backward_do_no_harm(
    op: str, gradient: str, upstream: float, device: str, backend: str
) -> None:
    """The gradient is that of the logits as they were, or the change is noticed; never that of other logits. On a GPU
    only a kernel could see that the upstream is 1, after the check."""
    logits, targets = batch(device)
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    loss = loss_of(op, x, targets, gradient=gradient)
    with torch.no_grad():
        x.mul_(2)
    g = torch.tensor(upstream, device=device)
    if gradient != "backward" and upstream == 1 and backend != "cuda":
        (grad,) = torch.autograd.grad(loss, x, g)
        assert torch.equal(grad, run(op, logits, targets, upstream=g).grad)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x, g)


@ops
def test_float16_recomputes(op: str, device: str) -> None:
    """A gradient stored before the loss scale is known would underflow: 2^-24 is float16's smallest number."""
    shape = Shape((4096, 5))
    targets = make_index(shape, device=device)
    logits = make_trained_logits(shape, targets, torch.float16)
    scale = torch.tensor(65536.0, device=device)
    scaled = run(op, logits, targets, upstream=scale).grad.double() / 65536
    exact = run(op, logits.double(), targets).grad
    visible = exact.abs() > 2**-30
    assert visible.any() and (exact[visible].abs() < 2**-25).any()
    assert ((scaled - exact).abs()[visible] <= exact.abs()[visible] * 2**-10 + 2**-41).all()


@ops
def test_in_place_bumps_the_version_so_that_others_notice(op: str, device: str) -> None:
    logits, targets = batch(device)
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    other = (x * x).sum()  # needs x again in its backward
    loss = loss_of(op, x, targets, gradient="inplace")
    assert x._version > 0
    assert not torch.equal(x.detach(), logits)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


@ops
def test_in_place_after_a_layer_that_does_not_need_its_output(op: str, device: str) -> None:
    features, targets = torch.randn(40, 8, device=device), make_index(Shape((40, 19)), device=device)
    grads = []
    for gradient in ("backward", "inplace"):
        layer = torch.nn.Linear(8, 19, device=device)
        torch.nn.init.constant_(layer.bias, -2)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 19 * 8).view(19, 8))
        loss_of(op, layer(features), targets, gradient=gradient).mul(0.7).backward()
        grads.append((layer.weight.grad, layer.bias.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@ops
def test_in_place_writes_nothing_where_no_gradient_is_wanted(op: str, device: str) -> None:
    """A loss made for training is called in validation, too."""
    logits, targets = batch(device)
    before = logits.clone()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            loss = loss_of(op, logits, targets, gradient="inplace")
        assert torch.equal(loss, loss_of(op, logits, targets)) and torch.equal(logits, before)


@ops
def test_in_place_takes_no_memory_of_its_own(op: str, device: str) -> None:
    logits, targets = batch(device)
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    loss = loss_of(op, x, targets, gradient="inplace")
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.data_ptr() == x.data_ptr() and grad.stride() == x.stride()


@ops
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_in_place_has_one_backward(op: str, upstream: float, device: str) -> None:
    logits, targets = batch(device)
    x = logits.clone().requires_grad_() * 1
    loss = loss_of(op, x, targets, gradient="inplace")
    g = torch.tensor(upstream, device=device)
    torch.autograd.grad(loss, x, g, retain_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: .*second.*retain_graph"):
        torch.autograd.grad(loss, x, g, retain_graph=True)


@ops
def test_in_place_has_no_second_derivative(op: str, device: str) -> None:
    logits, targets = batch(device)
    x = logits.clone().requires_grad_() * 1
    loss = loss_of(op, x, targets, gradient="inplace")
    with pytest.raises(RuntimeError, match=f"{op}: .*create_graph"):
        torch.autograd.grad(loss, x, create_graph=True)


@ops
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_value_does_not_depend_on_who_is_watching(op: str, reduction: str, device: str) -> None:
    logits, targets = batch(device)
    watched = loss_of(op, logits.clone().requires_grad_(), targets, reduction=reduction)
    plain = loss_of(op, logits, targets, reduction=reduction)
    with torch.no_grad():
        off = loss_of(op, logits.clone().requires_grad_(), targets, reduction=reduction)
    with torch.inference_mode():
        inference = loss_of(op, logits, targets, reduction=reduction)
    assert watched.requires_grad
    for loss in (plain, off, inference):
        assert not loss.requires_grad and torch.equal(loss, watched.detach())


@ops
def test_grad_mode_is_left_as_it_was(op: str, device: str) -> None:
    logits, targets = batch(device)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            loss_of(op, logits.clone().requires_grad_(), targets)
            assert torch.is_grad_enabled() is mode


@ops
def test_tensors_made_in_inference_mode(op: str, device: str) -> None:
    with torch.inference_mode():
        logits, targets = batch(device)
        assert loss_of(op, logits, targets).isfinite()


@ops
@kept
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_only_references_are_saved(op: str, gradient: str, reduction: str, device: str) -> None:
    """The logits, the targets and a scalar: no softmax, no one-hot, no copy in another type."""
    if reduction == "none" and gradient == "forward":
        gradient = "auto"
    logits, targets = batch(device)
    x = logits.requires_grad_()
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss_of(op, x, targets, reduction=reduction, gradient=gradient)
    known = {x.data_ptr(), targets.data_ptr()}
    assert known <= {t.data_ptr() for t in saved}
    assert all(t.numel() <= 1 for t in saved if t.data_ptr() not in known)


@ops
@kept
def test_nothing_outlives_the_loss(op: str, gradient: str, device: str) -> None:
    logits, targets = batch(device)
    x = logits.requires_grad_()
    gc.disable()  # a reference cycle would live until the collector happens to run
    try:
        for backward in (False, True):
            y = x * 1
            alive = weakref.ref(y)
            loss = loss_of(op, y, targets, gradient=gradient)
            if backward:
                loss.backward()
            del y, loss
            assert alive() is None
    finally:
        gc.enable()


@ops
def test_checkpointing(op: str, device: str) -> None:
    logits, targets = batch(device)

    def f(v: Tensor) -> Tensor:
        return loss_of(op, v * 2, targets)

    grads = []
    for call in (f, lambda v: torch.utils.checkpoint.checkpoint(f, v, use_reentrant=False)):
        v = logits.clone().requires_grad_()
        call(v).backward()
        grads.append(v.grad)
    assert torch.equal(*grads)


@ops
def test_gradient_hooks_see_the_gradient(op: str, device: str) -> None:
    logits, targets = batch(device)
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    seen = []
    x.register_hook(lambda g: seen.append(g.clone()))
    x.retain_grad()
    loss_of(op, x, targets).backward()
    expected = run(op, logits, targets).grad
    assert torch.equal(seen[0], expected) and torch.equal(x.grad, expected)


def test_logits_that_arrive_twice(device: str) -> None:
    """The same tensor as logits and as targets: dense targets made from a model's own output."""
    x = torch.rand(5, 4, device=device)
    leaf = x.clone().requires_grad_()
    focal_cuda.sigmoid_focal_loss(leaf, leaf.detach()).backward()
    expected = run("sigmoid_focal_loss", x, make_logits((5, 4), device=device).copy_(x), 0.25).grad
    assert torch.equal(leaf.grad, expected)


@ops
def test_in_place_logits_may_be_a_view(op: str) -> None:
    """As they are after a permute and reshape of a head's output: the gradient reaches what the view is of."""
    weights = torch.randn(24)
    labels = torch.tensor([0, 3, 1, 2, 2, 0])
    gradients = []
    for gradient in ("inplace", "auto"):
        w = weights.clone().requires_grad_()
        logits = (w * 2).view(6, 4)
        getattr(focal_cuda, op)(logits, labels, gradient=gradient).backward()
        gradients.append(w.grad)
    assert torch.equal(*gradients)
