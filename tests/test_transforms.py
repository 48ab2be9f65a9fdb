"""Every loss and option under what rewrites a program: the compiler, export, compiled autograd, torch.func."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from calls import CALLS, FOCAL, UPSTREAM, call, calls, value_and_grad
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map_only

import focal_cuda

pytestmark = [
    # torch's compiler uses what torch itself calls deprecated.
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    # The compiler sees the same operators, under another name.
    pytest.mark.native,
]


@pytest.fixture(autouse=True)
def _fresh_compiler(threads: None) -> None:
    torch.compiler.reset()
    torch.set_num_threads(1)


def assert_same(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-8, check_stride=False)


@calls()
def test_fake_tensors(name: str, device: str) -> None:
    """Of shapes alone, as tools for memory and shapes run a model: nothing asks for a value."""
    problem = call(name, device, size=(6, 5))
    policies = ["auto", "backward"]
    policies += [] if "hardest" in name else ["forward"]
    of_all = not any(kind in name for kind in ("hardest", "normalized", "softmax_focal_loss, probabilities"))
    policies += ["inplace"] if of_all else []
    with FakeTensorMode() as mode:
        logits, targets, options = tree_map_only(Tensor, mode.from_tensor, problem.arguments())
        for gradient in policies:
            f = partial(getattr(focal_cuda, problem.op), targets=targets, **options, gradient=gradient)
            value, grad = value_and_grad(lambda x, f=f: f(x * 0.9), logits)
            assert (value.shape, value.dtype) == ((), torch.float32)
            assert (grad.shape, grad.dtype) == (logits.shape, logits.dtype)


@calls()
def test_compile_without_a_graph_break(name: str, device: str) -> None:
    """Once for any batch size."""
    function = getattr(focal_cuda, CALLS[name][0])

    def f(x: Tensor, targets: Tensor, options: dict[str, Any]) -> Tensor:
        return function(x * 0.9, targets, **options) * 3

    def of(g: Callable, *told: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: g(x, *told)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, backend=counter, dynamic=True)
    compilations = set()
    for rows in (6, 9, 11):
        logits, *told = call(name, device, size=(rows, 5)).arguments()
        assert_same(value_and_grad(of(compiled, *told), logits), value_and_grad(of(f, *told), logits))
        compilations.add(counter.frame_count)
    assert len(compilations) == 1, "another batch size compiled again"


def test_every_loss_in_one_graph_of_the_real_compiler(device: str) -> None:
    """Made for speed ("reduce-overhead"), with shapes that are constants."""
    problems = [call(name, device) for name in CALLS]

    def losses(x: Tensor) -> Tensor:
        parts = [p.loss(x.sigmoid() if p.options.get("from_probabilities") else x * 0.9) for p in problems]
        return torch.stack(parts)

    logits = problems[0].logits
    compiled = torch.compile(losses, fullgraph=True, mode="reduce-overhead", dynamic=False)
    assert_same(value_and_grad(compiled, logits), value_and_grad(losses, logits))


@calls()
@pytest.mark.parametrize("strict", [False, True])
def test_export(name: str, strict: bool, device: str) -> None:
    """A program for any batch size, in which the loss is the operator."""
    function = getattr(focal_cuda, CALLS[name][0])

    class Step(nn.Module):
        def forward(self, x: Tensor, targets: Tensor, options: dict[str, Any]) -> Tensor:
            return function(x, targets, **options)

    rows = torch.export.Dim("rows", min=2, max=64)

    def shapes(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shapes(item) for key, item in value.items()}
        by_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == 6
        return {0: rows} if by_row else None

    problem = call(name, device)
    dynamic = tuple(shapes(argument) for argument in problem.arguments())
    program = torch.export.export(Step(), problem.arguments(), dynamic_shapes=dynamic, strict=strict)
    assert any("focal_loss" in str(node.target) for node in program.graph.nodes)
    for other in (problem, call(name, device, size=(9, 5))):
        assert torch.equal(program.module()(*other.arguments()), other.loss(other.logits))


@pytest.mark.parametrize(
    ("name", "gradient"), [(name, "auto") for name in CALLS] + [(name, "inplace") for name in FOCAL if "plain" in name]
)
def test_compiled_autograd(name: str, gradient: str, device: str) -> None:
    """The backward is traced where the forward was not."""
    problem = call(name, device)
    x = problem.logits.clone().requires_grad_()
    loss = problem.loss(x * 1, gradient=gradient)
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        (loss * UPSTREAM).sum().backward()
    assert_same((loss.detach(), x.grad), problem.value_and_grad())


@calls()
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode(name: str, requires_grad: bool, device: str) -> None:
    """Never silently without a tangent."""
    problem = call(name, device)
    _, grad = problem.value_and_grad()
    direction = torch.randn_like(problem.logits)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(problem.logits.clone().requires_grad_(requires_grad), direction)
        tangent = forward_ad.unpack_dual(problem.loss(dual)).tangent
    torch.testing.assert_close(tangent.detach(), (grad / UPSTREAM * direction).sum(), rtol=1e-4, atol=1e-6)


# Losses that look at the values of what vmap has one of for each sample.
OF_SAMPLES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "probabilities": lambda x, labels, _: focal_cuda.softmax_focal_loss(x.softmax(-1), labels, from_probabilities=True),
    "hardest": lambda x, labels, w: focal_cuda.softmax_focal_loss(x, labels, sample_weight=w, ohem_keep_ratio=0.5),
    "scores": lambda x, labels, scores: focal_cuda.quality_focal_loss(x, labels, scores),
}


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_vmap_over_labels_and_weights(name: str, device: str) -> None:
    labels, numbers = torch.randint(0, 5, (3, 8), device=device), torch.rand(3, 8, device=device)
    samples = torch.randn(3, 8, 5, device=device), labels, numbers
    each = torch.stack([OF_SAMPLES[name](*sample) for sample in zip(*samples, strict=True)])
    assert_same((torch.func.vmap(OF_SAMPLES[name])(*samples),), (each,))


@calls()
def test_functional_transforms(name: str, device: str) -> None:
    """Also compiled, where torch drops the gradient of a custom Function without a word: pytorch/pytorch#193279."""
    problem = call(name, device)
    batch = torch.stack([problem.logits, problem.logits.flip(0)])
    each = [value_and_grad(problem.loss, x) for x in batch]
    losses, grads = (torch.stack(results) for results in zip(*each, strict=True))
    assert losses.isfinite().all() and (grads != 0).any(1).any(1).all()

    def loss(x: Tensor) -> Tensor:
        return problem.loss(x)

    both = torch.func.vmap(torch.func.grad_and_value(loss))
    assert_same((torch.func.grad(loss)(batch[0]) * UPSTREAM,), (grads[0],))
    assert_same((torch.func.vmap(loss)(batch),), (losses,))
    for f in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
        slopes, values = f(batch)
        assert_same((values, slopes * UPSTREAM), (losses, grads))
