"""What autograd expects of every loss and option: second derivatives, gradient policies, a gamma that changes."""

from __future__ import annotations

import pytest
import torch
from calls import CALLS, call, calls
from cases import Shape, make_index, make_trained_logits
from combinations import SIGMOID, SOFTMAX
from compare import bits, run
from tolerance import assert_close, loss_bound
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import focal_cuda
from focal_cuda import reference

# Scalars that are no sum of losses.
SCALARS = [name for name in CALLS if "hardest" in name or "normalized" in name]
# Whose gradient is scattered from that of fewer elements, or added up from two.
INDIRECT = [*SCALARS, f"{SOFTMAX}, probabilities"]


@calls()
def test_gradgradcheck(name: str, device: str) -> None:
    for size in ((4, 3), (1, 3, 2, 2)):
        problem = call(name, device, torch.float64, size)
        x = problem.logits.clone().requires_grad_()
        for more in ({},) if name in SCALARS else ({}, {"reduction": "none", "normalizer": None}):

            def f(v: Tensor, problem=problem, more: dict = more) -> Tensor:
                return problem.loss(v, **more)

            assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in INDIRECT])
@pytest.mark.parametrize("gradient", ["backward", "inplace"])
def test_all_policies_agree(name: str, gradient: str, device: str) -> None:
    for size in ((129, 19), (2, 19, 7, 9), (21, 65)):
        problem = call(name, device, size=size)
        logits, targets, options = problem.arguments()
        first, other = (run(problem.op, logits, targets, gradient=g, **options) for g in ("forward", gradient))
        assert torch.equal(bits(other.grad), bits(first.grad))
        if "plain" in name or "everything" in name:
            assert torch.equal(other.loss, first.loss)
        torch.testing.assert_close(other.loss, first.loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])
@pytest.mark.native
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
