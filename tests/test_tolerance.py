"""The tolerances have teeth: plausible wrong results, made from the oracle's own output, are all rejected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import (
    DENSE_SIZES,
    GAMMAS,
    SIGMOID_SHAPES,
    SOFTMAX_SHAPES,
    Shape,
    make_dense,
    make_index,
    make_logits,
    make_trained_logits,
    shapes,
)
from compare import Result, oracle, random_upstream, sizes
from tolerance import grad_bound, loss_bound, mismatch, ulp
from torch import Tensor

Problem = tuple[str, Tensor, Tensor, dict]


def problem(op: str, shape: Shape, reduction: str = "none", gamma: float = 2.0, dense: bool = False) -> Problem:
    """One batch without ignored rows, so that every mutant has something to get wrong."""
    targets = make_dense(shape.size) if dense else make_index(shape, ignore_index=None)
    logits = make_trained_logits(shape, targets) if op == "softmax_focal_loss" else make_logits(shape.size)
    alpha: Tensor | float = 0.3 if op == "sigmoid_focal_loss" else torch.rand(shape.classes) + 0.1
    kwargs = {"alpha": alpha, "gamma": gamma, "reduction": reduction, "class_dim": shape.class_dim}
    size = () if reduction != "none" else shape.size if op == "sigmoid_focal_loss" else shape.positions
    kwargs["upstream"] = random_upstream(size, logits)
    return op, logits, targets, kwargs


def accepted(result: Result, truth: Problem, dtype: torch.dtype = torch.float32) -> tuple[bool, bool]:
    """Whether loss and gradient pass as results for logits of this type, rounded as such results are."""
    op, logits, targets, kwargs = truth
    expected = oracle(op, logits, targets, **kwargs)
    loss, grad = result.loss.float(), result.grad.to(dtype)
    size = sizes(op, logits, targets, expected=expected, **kwargs)
    bound = grad_bound(expected.grad, dtype, kwargs["upstream"].abs().max().item(), size=size.grad)
    return (
        mismatch(loss, expected.loss, loss_bound(expected.loss, dtype, size.loss)) is None,
        mismatch(grad, expected.grad, bound) is None,
    )


def problems() -> list[pytest.param]:
    index = [("softmax_focal_loss", s) for s in SOFTMAX_SHAPES] + [("sigmoid_focal_loss", s) for s in SIGMOID_SHAPES]
    dense = [("sigmoid_focal_loss", s) for s in DENSE_SIZES]
    return [
        *(pytest.param(op, s, False, id=f"{op.split('_')[0]}-{s}") for op, s in index),
        *(pytest.param(op, s, True, id=f"dense-{s}") for op, s in dense),
    ]


every_problem = pytest.mark.parametrize(("op", "shape", "dense"), problems())


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_the_rounded_truth_passes(op: str, shape: Shape, dense: bool, dtype: torch.dtype) -> None:
    truth = problem(op, shape, dense=dense)
    assert accepted(oracle(*truth[:3], **truth[3]), truth, dtype) == (True, True)


def with_gamma_one_percent_up(truth: Problem) -> Result:
    op, logits, targets, kwargs = truth
    return oracle(op, logits, targets, **{**kwargs, "gamma": kwargs["gamma"] * 1.01})


def without_alpha(truth: Problem) -> Result:
    op, logits, targets, kwargs = truth
    return oracle(op, logits, targets, **{**kwargs, "alpha": None})


def with_bfloat16_logits(truth: Problem) -> Result:
    op, logits, targets, kwargs = truth
    return oracle(op, logits.bfloat16(), targets, **kwargs)


def with_bfloat16_results(truth: Problem) -> Result:
    r = oracle(*truth[:3], **truth[3])
    return Result(r.loss.bfloat16().double(), r.grad.bfloat16().double())


def with_a_result_0_01_percent_off(truth: Problem) -> Result:
    r = oracle(*truth[:3], **truth[3])
    return Result(r.loss * 1.0001, r.grad * 1.0002)


def with_the_sign_flipped(truth: Problem) -> Result:
    r = oracle(*truth[:3], **truth[3])
    return Result(-r.loss, -r.grad)


def with_the_last_element_unwritten(truth: Problem) -> Result:
    r = oracle(*truth[:3], **truth[3])
    loss, grad = r.loss.clone(), r.grad.clone()
    loss.view(-1)[-1:] = 0
    grad.view(-1)[-1:] = 0
    return Result(loss, grad)


def with_the_target_off_by_one(truth: Problem) -> Result:
    op, logits, targets, kwargs = truth
    if targets.dim() == logits.dim():
        return oracle(op, logits, 1 - targets, **kwargs)
    return oracle(op, logits, (targets + 1) % max(2, logits.shape[kwargs["class_dim"]]), **kwargs)


def with_an_upstream_of_one(truth: Problem) -> Result:
    op, logits, targets, kwargs = truth
    r = oracle(op, logits, targets, **{**kwargs, "upstream": torch.ones_like(kwargs["upstream"])})
    return Result(r.loss * 1.1, r.grad)  # only the gradient can tell


MUTANTS = [
    with_gamma_one_percent_up,
    without_alpha,
    with_bfloat16_results,
    with_a_result_0_01_percent_off,
    with_bfloat16_logits,
    with_the_sign_flipped,
    with_the_last_element_unwritten,
    with_the_target_off_by_one,
    with_an_upstream_of_one,
]


@every_problem
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda f: f.__name__.replace("_", " "))
def test_mutants_are_rejected(mutant: Callable, op: str, shape: Shape, dense: bool) -> None:
    truth = problem(op, shape, dense=dense)
    assert accepted(mutant(truth), truth) == (False, False)


@shapes(SOFTMAX_SHAPES)
def test_a_softmax_without_gradient_beside_the_target_is_rejected(shape: Shape) -> None:
    """A bound relative to the largest gradient of a row alone would accept it for large vocabularies."""
    truth = problem("softmax_focal_loss", shape)
    op, logits, targets, kwargs = truth
    result = oracle(op, logits, targets, **kwargs)
    is_target = torch.zeros(shape.size).scatter(shape.class_dim, targets.unsqueeze(shape.class_dim), 1)
    assert not accepted(Result(result.loss, result.grad * is_target), truth)[1]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mutant", MUTANTS[:4], ids=lambda f: f.__name__.replace("_", " "))
@shapes([Shape((129, 19)), Shape((2, 19, 13, 17))])
def test_mutants_do_not_hide_in_a_reduction(shape: Shape, mutant: Callable, reduction: str) -> None:
    for op in ("softmax_focal_loss", "sigmoid_focal_loss"):
        truth = problem(op, shape, reduction)
        assert accepted(mutant(truth), truth) == (False, False)


@pytest.mark.parametrize("gamma", [g for g in GAMMAS if g > 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_gamma_one_percent_up_is_rejected_at_every_gamma(gamma: float, dtype: torch.dtype) -> None:
    truth = problem("softmax_focal_loss", Shape((129, 19)), gamma=gamma)
    assert accepted(with_gamma_one_percent_up(truth), truth, dtype) == (False, False)


def test_nan_and_infinity_must_be_where_the_oracle_has_them() -> None:
    expected = torch.tensor([1.0, torch.nan, torch.inf], dtype=torch.float64)
    bound = torch.full((3,), 1e-3, dtype=torch.float64)
    assert mismatch(expected, expected, bound) is None
    for wrong in ([torch.nan, torch.nan, torch.inf], [1.0, 1.0, torch.inf], [1.0, torch.nan, -torch.inf]):
        assert mismatch(torch.tensor(wrong), expected, bound) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_ulp(dtype: torch.dtype) -> None:
    """Against the distance to the next number of the type, over all exponents, subnormal ones included."""
    info = torch.finfo(dtype)
    x = torch.tensor([0.0, info.tiny / 4, info.tiny, 0.7, 1.0, 1.5, 3.0, 1000.0, info.max / 2], dtype=dtype)
    step = torch.nextafter(x, torch.tensor(torch.inf, dtype=dtype)).double() - x.double()
    assert torch.equal(ulp(x.double(), dtype), step)
