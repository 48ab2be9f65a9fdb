"""Every adapter of focal_cuda.compat, with every argument, gives what its library documents, and, where that is
installed, what it computes: value, gradient, shape, dtype and signature.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from compare import random_upstream
from compat_cases import CASES, Case
from originals import original
from tolerance import PEER, assert_close, grad_bound, loss_bound
from torch import Tensor

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def moved(inputs: object, to: torch.device | torch.dtype | str) -> object:
    """Tensors to a device, or floating ones to a dtype."""
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(moved(part, to) for part in inputs)
    if not isinstance(inputs, Tensor) or (isinstance(to, torch.dtype) and not inputs.is_floating_point()):
        return inputs
    return inputs.to(to)


def on(case: Case, device: str) -> tuple[Case, tuple]:
    options = {name: moved(value, device) for name, value in case.options.items()}
    of_call = {name: moved(value, device) for name, value in case.of_call.items()}
    return case._replace(options=options, of_call=of_call), moved(case.inputs(), device)


@pytest.mark.native  # adapters are Python; what they call is tested in the emulation elsewhere
@every_case
def test_gives_what_the_library_documents(case: Case, device: str) -> None:
    case, (x, *rest) = on(case, device)
    loss_of = case.build()
    leaf, leaf64 = x.clone().requires_grad_(), x.double().requires_grad_()
    loss = loss_of(leaf, *rest)
    options = {name: moved(value, torch.float64) for name, value in case.options.items()}
    of_call = {name: moved(value, torch.float64) for name, value in case.of_call.items()}
    expected = case._replace(options=options, of_call=of_call).expected(leaf64, *moved(tuple(rest), torch.float64))
    upstream = random_upstream(loss.shape, x)
    (grad,) = torch.autograd.grad(loss, leaf, upstream)
    (expected_grad,) = torch.autograd.grad(expected, leaf64, upstream.double())
    assert loss.dtype == torch.float32
    size = None if case.exact else expected_grad.abs().amax().expand_as(expected_grad)
    assert_close(loss.detach(), expected.detach(), loss_bound(expected.detach(), x.dtype), "loss")
    bound = grad_bound(expected_grad, x.dtype, upstream.abs().max().item(), roundings=2, size=size)
    assert_close(grad, expected_grad, bound, "gradient")


with_original = pytest.mark.parametrize("case", [c for c in CASES if c.original], ids=lambda case: case.name)


@pytest.mark.filterwarnings("ignore")
@with_original
def test_gives_what_the_library_computes(case: Case) -> None:
    theirs = case.build(original(case.original))
    x, *rest = case.inputs()
    results = []
    for loss_of in (case.build(), theirs):
        leaf = x.clone().requires_grad_()
        loss = loss_of(leaf, *rest)
        torch.manual_seed(0)
        results.append((loss, torch.autograd.grad(loss, leaf, random_upstream(loss.shape, x))[0]))
    (loss, grad), (their_loss, their_grad) = results
    assert loss.shape == their_loss.shape and loss.dtype == their_loss.dtype
    torch.testing.assert_close(loss, their_loss, **PEER)
    torch.testing.assert_close(grad, their_grad, rtol=PEER["rtol"], atol=PEER["rtol"] * their_grad.abs().max().item())


FIRST = list({case.adapter: case for case in reversed(CASES) if case.original}.values())
first_cases = pytest.mark.parametrize("case", FIRST, ids=lambda case: case.adapter)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@first_cases
def test_the_loss_has_the_dtype_of_the_library(case: Case, dtype: torch.dtype) -> None:
    theirs = case.build(original(case.original))
    x, *rest = case.inputs()
    for targets in (rest, moved(rest, dtype)):
        try:
            expected = theirs(x.to(dtype), *targets).dtype
        except RuntimeError:  # it multiplies in place, and not all dtypes together
            continue
        assert case.build()(x.to(dtype), *targets).dtype == expected


@first_cases
def test_autocast_gives_float32(case: Case) -> None:
    """As the libraries' losses are on a GPU, where autocast has their exponentials, powers and cross entropies so."""
    x, *rest = case.inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert case.build()(x.bfloat16(), *rest).dtype == torch.float32


@first_cases
def test_has_the_signature_of_the_library(case: Case) -> None:
    """Names, order and defaults of every parameter; and of a class those of its call."""
    ours, theirs = case.given, original(case.original)
    pairs = [(ours, theirs)]
    if isinstance(ours, type):
        assert isinstance(theirs, type)
        call = "call" if case.adapter.startswith("keras") else "forward"
        pairs.append((ours.forward, getattr(theirs, call)))
    for mine, other in pairs:
        expected = inspect.signature(other).parameters
        given = inspect.signature(mine).parameters
        assert list(given)[: len(expected)] == list(expected)
        assert {n: p.default for n, p in expected.items()} == {n: given[n].default for n in expected}
