"""The mean of the hardest losses of logits: its gradient, in every order of backwards and at every derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Shape, make_index, make_logits
from combinations import LAYOUTS
from torch import Tensor

import focal_cuda

# What torch calls deprecated its compiler uses.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


def mined(op: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Logits, and the mean of their hardest losses."""
    shape = Shape((6, 4, 5))
    targets = make_index(shape, device=device)

    def loss(x: Tensor) -> Tensor:
        return getattr(focal_cuda, op)(x, targets, gamma=1.5, ohem_keep_ratio=0.3, ohem_threshold=0.5)

    return make_logits(shape.size, dtype, device).clamp(-3, 3).requires_grad_(), loss


both_losses = pytest.mark.parametrize("op", ["sigmoid_focal_loss", "softmax_focal_loss"])


@both_losses
def test_backward_as_often_as_one_likes(op: str, device: str) -> None:
    """The first one takes the memory of the losses."""
    x, f = mined(op, device)
    loss, upstreams = f(x), torch.randn(3, device=device)
    first, second, third = (torch.autograd.grad(loss, x, u, retain_graph=True)[0] for u in upstreams)
    for got, u in zip((first, second, third), upstreams, strict=True):
        assert torch.equal(got, torch.autograd.grad(f(x), x, u)[0])
    (together,) = torch.autograd.grad(loss, x, upstreams, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(together, torch.stack([first, second, third]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss = f(y := x.clone())
        y.add_(1.0)
        loss.backward()


@both_losses
@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_equal_losses_the_first_have_a_gradient(op: str, layout: str, device: str) -> None:
    for shape in (Shape((30, 7)), Shape((3, 5, 11)), Shape((2, 40, 3))):
        x = LAYOUTS[layout](torch.zeros(shape.size, device=device)).requires_grad_()
        targets = torch.zeros(shape.positions, dtype=torch.int64, device=device)
        n = (x if op == "sigmoid_focal_loss" else targets).numel()
        for k in (1, n // 3, n - 1, n):
            getattr(focal_cuda, op)(x, targets, None, ohem_keep_ratio=(k + 0.5) / n if k < n else 1.0).backward()
            grad = x.grad if op == "sigmoid_focal_loss" else x.grad[:, 0]
            x.grad = None
            assert (grad != 0).flatten().tolist() == [True] * k + [False] * (n - k)


@both_losses
@pytest.mark.parametrize("layout", ["contiguous", "second dimension last"])
def test_the_gradient_lies_as_the_logits_do(op: str, layout: str, device: str) -> None:
    """Autograd would copy it else."""
    x, f = mined(op, device)
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    assert torch.autograd.grad(f(x), x)[0].stride() == x.stride()


@both_losses
def test_derivatives_by_the_logits(op: str, device: str) -> None:
    x, f = mined(op, device, torch.float64)
    assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)
    (grad,) = torch.autograd.grad(f(x), x)
    torch.testing.assert_close(torch.func.grad(f)(x.detach()), grad)


@both_losses
def test_compile_without_a_graph_break(op: str) -> None:
    torch.compiler.reset()
    x, f = mined(op, "cpu")
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    (expected,), (got,) = (torch.autograd.grad(loss(x), x) for loss in (f, compiled))
    torch.testing.assert_close(got, expected)
