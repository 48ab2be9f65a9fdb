"""What torch expects of options and relatives: higher derivatives, transforms, compilation, gradient policies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Shape, make_index, make_logits, make_soft, make_trained_logits, of_each_class
from combinations import ALL, BY_ACTIVATION, FEW_SHAPES, NORMALIZED, SIGMOID, SOFTMAX, call_of, make_targets
from compare import bits, run
from tolerance import assert_close, loss_bound
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import focal_cuda
from focal_cuda import reference

# torch's compiler uses what torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

ops = pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])
each = pytest.mark.parametrize("op", ALL)


def everything(op: str, shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Many options at once."""
    positions = shape.positions
    options: dict[str, Any] = {
        "alpha": of_each_class(shape, dtype, device),
        "gamma": of_each_class(shape, dtype, device, 3.0),
        "sample_weight": torch.rand(positions, dtype=dtype, device=device) + 0.5,
        "mask": torch.rand(positions, device=device) < 0.8,
        "label_smoothing": 0.1,
        "reduction": "sum",
        "normalizer": torch.tensor(3.0, device=device),
    }
    return options | ({"pos_weight": of_each_class(shape, dtype, device, 3.0)} if op == SIGMOID else {})


SETS: dict[str, dict[str, Any]] = {
    "smoothed probability": {"probability_smoothing": 0.1, "gamma": 0.5},
    "smoothed labels": {"label_smoothing": 0.1, "reduction": "none"},
    "probabilities": {"from_probabilities": True, "gamma": 1.5},
}


@ops
@pytest.mark.parametrize("kind", ["everything", *SETS])
def test_gradgradcheck(op: str, kind: str, device: str) -> None:
    for shape in (Shape((4, 3)), Shape((1, 3, 2, 2))):
        targets = make_index(shape, device=device)
        options = SETS.get(kind) or everything(op, shape, torch.float64, device)
        x = make_logits(shape.size, torch.float64, device).clamp(-3, 3)
        x = (x.sigmoid() if "from_probabilities" in options else x).requires_grad_()

        def f(v: Tensor, targets: Tensor = targets, options: dict = options) -> Tensor:
            return getattr(focal_cuda, op)(v, targets, **options)

        assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)


def test_gradgradcheck_of_soft_targets(device: str) -> None:
    shape = Shape((4, 3))
    x, y = make_logits(shape.size, torch.float64, device).clamp(-3, 3).requires_grad_(), make_soft(shape, device=device)
    for options in ({}, {"label_smoothing": 0.1, "gamma": 0.5}, {"reduction": "none"}):

        def f(v: Tensor, options: dict = options) -> Tensor:
            return focal_cuda.softmax_focal_loss(v, y, **options)

        assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)


@ops
@pytest.mark.parametrize("kind", ["everything", *SETS])
def test_functional_gradients(op: str, kind: str, device: str) -> None:
    shape = Shape((6, 5))
    targets = make_index(shape, device=device)
    options = (SETS.get(kind) or everything(op, shape, torch.float64, device)) | {"reduction": "sum"}
    x = make_logits(shape.size, torch.float64, device)
    x = x.sigmoid() if "from_probabilities" in options else x
    grad = torch.func.grad(lambda v: getattr(focal_cuda, op)(v, targets, **options))(x)
    plain = run(op, x, targets, **options).grad
    torch.testing.assert_close(grad, plain, rtol=1e-9, atol=1e-15)


@ops
@pytest.mark.parametrize("kind", ["everything", "soft", *SETS])
def test_compile_without_a_graph_break(op: str, kind: str, device: str) -> None:
    torch.compiler.reset()
    counter, compilations = CompileCounterWithBackend("aot_eager"), set()

    def f(x: Tensor, targets: Tensor, options: dict) -> Tensor:
        x = x * 0.9
        return getattr(focal_cuda, op)(x.sigmoid() if kind == "probabilities" else x, targets, **options).sum()

    compiled = torch.compile(f, fullgraph=True, backend=counter, dynamic=True)
    for rows in (6, 9, 11):
        shape = Shape((rows, 5))
        options = SETS.get(kind) or everything(op, shape, torch.float32, device)
        targets = make_index(shape, torch.uint8, device, ignore_index=None)
        if kind == "soft":
            targets, _ = make_targets(op == SOFTMAX, "soft", shape, torch.float32, device)
        x = make_logits(shape.size, device=device).requires_grad_()
        results = [torch.autograd.grad(g(x, targets, options), x)[0] for g in (f, compiled)]
        torch.testing.assert_close(*results, rtol=2e-5, atol=1e-30)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1, "another batch size compiled again"


@ops
def test_a_gamma_that_is_changed_where_it_lies(op: str, device: str) -> None:
    """Compiled code reads it anew."""
    torch.compiler.reset()
    shape = Shape((6, 5))
    targets, gamma = make_index(shape, device=device), torch.tensor(0.0, device=device)
    logits = make_trained_logits(shape, targets)
    counter = CompileCounterWithBackend("aot_eager")

    def f(x: Tensor) -> Tensor:
        return getattr(focal_cuda, op)(x, targets, gamma=gamma)

    compiled = torch.compile(f, fullgraph=True, backend=counter)
    for value in (0.0, 1.5, 2.0):
        gamma.fill_(value)
        expected = getattr(reference, op)(logits, targets, gamma=value)
        for loss in (compiled(logits), f(logits)):
            assert_close(loss, expected, loss_bound(expected, torch.float32), "loss")
    assert counter.frame_count == 1


@ops
def test_all_policies_agree(op: str, device: str) -> None:
    for shape in FEW_SHAPES:
        targets = make_index(shape, device=device)
        logits = make_trained_logits(shape, targets)
        options = everything(op, shape, torch.float32, device)
        first, *rest = (run(op, logits, targets, gradient=g, **options) for g in ("forward", "backward", "inplace"))
        for result in rest:
            assert torch.equal(result.loss, first.loss) and torch.equal(bits(result.grad), bits(first.grad))


# --- relatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in ALL if op != NORMALIZED])  # whose gradient has its sums as factors
@pytest.mark.parametrize("gradient", ["backward", "inplace"])
def test_all_policies_of_relatives_agree(op: str, gradient: str, device: str) -> None:
    for shape in FEW_SHAPES:
        x, targets, options = call_of(op, shape, device)
        first, other = (run(op, x, targets, gradient=g, **options) for g in ("forward", gradient))
        assert torch.equal(bits(first.grad), bits(other.grad))
        torch.testing.assert_close(first.loss, other.loss, rtol=1e-6, atol=0)


@each
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_gradgradcheck_of_relatives(op: str, activation: str, device: str) -> None:
    if activation == "softmax" and op not in BY_ACTIVATION:
        return
    for shape in (Shape((4, 3)), Shape((1, 3, 2, 2))):
        x, targets, options = call_of(op, shape, device, torch.float64)
        options |= {"activation": activation} if op in BY_ACTIVATION else {}
        for more in ({},) if op == NORMALIZED else ({}, {"reduction": "none"}):
            further = options | more

            def f(v: Tensor, targets: Tensor = targets, further: dict = further) -> Tensor:
                return getattr(focal_cuda, op)(v, targets, **further)

            v = x.clamp(-3, 3).requires_grad_()
            assert torch.autograd.gradcheck(f, v) and torch.autograd.gradgradcheck(f, v)


@each
def test_functional_gradients_of_relatives(op: str, device: str) -> None:
    shape = Shape((6, 5))
    x, targets, options = call_of(op, shape, device, torch.float64)
    grad = torch.func.grad(lambda v: getattr(focal_cuda, op)(v, targets, **options))(x)
    torch.testing.assert_close(grad, run(op, x, targets, **options).grad, rtol=1e-9, atol=1e-15)


@each
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_compile_of_relatives_without_a_graph_break(op: str, activation: str, device: str) -> None:
    if activation == "softmax" and op not in BY_ACTIVATION:
        return
    torch.compiler.reset()
    counter, compilations = CompileCounterWithBackend("aot_eager"), set()

    def f(x: Tensor, targets: Tensor, options: dict) -> Tensor:
        return getattr(focal_cuda, op)(x * 0.9, targets, **options)

    compiled = torch.compile(f, fullgraph=True, backend=counter, dynamic=True)
    for rows in (6, 9, 11):
        x, targets, options = call_of(op, Shape((rows, 5)), device)
        options |= {"activation": activation} if op in BY_ACTIVATION else {}
        options["mask"] = torch.rand(rows, device=device) < 0.8
        x.requires_grad_()
        results = [torch.autograd.grad(g(x, targets, options), x)[0] for g in (f, compiled)]
        torch.testing.assert_close(*results, rtol=2e-5, atol=1e-30)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1, "another batch size compiled again"
