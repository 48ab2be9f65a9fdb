"""The oracle itself: against mpmath, against torch's own losses, and against the formulas people paste."""

from __future__ import annotations

import exact
import mpmath
import pytest
import torch
import torch.nn.functional as F
from cases import GAMMAS, MARGINS, Shape, make_dense, make_index, make_logits, make_trained_logits
from exact import F64, assert_follows, close, second_derivative, value_and_grad
from tolerance import assert_close, grad_bound, loss_bound
from torch import Tensor

from focal_cuda import reference


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Threads of torch would wait for each other at every one of these small tensors."""
    torch.set_num_threads(1)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3, 1e-6])
def test_sigmoid_equals_mpmath(gamma: float, target: float) -> None:
    x = torch.tensor([sign * margin for margin in MARGINS for sign in (1, -1)], dtype=F64)
    loss, grad = value_and_grad("sigmoid_focal_loss", x, torch.full_like(x, target), 0.3, gamma, "none")
    for i, at in enumerate(x.tolist()):
        assert_follows(
            lambda v: exact.sigmoid_focal(v, target, 0.3, gamma), at, loss[i], grad[i], cancels=0 < target < 1
        )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("y", [(1.0, 0.0, 0.0, 0.0), (0.5, 0.2, 0.0, 0.3), (1e-6, 1.0, 2.0, 0.1)], ids=str)
def test_softmax_equals_mpmath(gamma: float, y: tuple[float, ...]) -> None:
    """Of labels and of soft targets, whose classes are at both ends of every gap."""
    hard = y[1:] == (0.0, 0.0, 0.0)
    rows = torch.tensor([[sign * margin, 0.0, -3.0, 0.25] for margin in MARGINS for sign in (1, -1)], dtype=F64)
    results = [value_and_grad("softmax_focal_loss", rows, torch.tensor(y).expand_as(rows), None, gamma, "none")]
    if hard:
        labels = torch.zeros(len(rows), dtype=torch.int64)
        results.append(value_and_grad("softmax_focal_loss", rows, labels, None, gamma, "none"))
    y = torch.tensor(y).double().tolist()
    for loss, grad in results:
        for i, row in enumerate(rows.tolist()):
            for j, at in enumerate(row):
                with mpmath.workdps(exact.DIGITS):
                    x = [mpmath.mpf(v) for v in row]

                def f(v: mpmath.mpf, x: list = x, j: int = j) -> mpmath.mpf:
                    return exact.softmax_focal([*x[:j], v, *x[j + 1 :]], y, gamma)

                assert_follows(f, at, loss[i], grad[i, j], cancels=not hard)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("compute", [torch.float32, F64], ids=["fp32", "fp64"])
def test_all_derivatives_are_finite(gamma: float, compute: torch.dtype) -> None:
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=compute)
    rows = torch.stack([margins, torch.zeros_like(margins), -margins / 3], 1)
    soft = torch.tensor([0.0, 1.0, 0.5, 1e-3]).repeat(len(margins), 1)
    batches = [
        ("softmax_focal_loss", rows, torch.zeros(len(rows), dtype=torch.int64)),
        ("sigmoid_focal_loss", rows, torch.zeros(len(rows), dtype=torch.int64)),
        ("sigmoid_focal_loss", margins[:, None].repeat(1, 4), soft),
    ]
    for op, logits, targets in batches:
        x = logits.clone().requires_grad_()
        loss = getattr(reference, op)(x, targets, None, gamma, "sum", dtype=None)
        grad, second = second_derivative(loss, x)
        assert loss.isfinite() and grad.isfinite().all() and second.isfinite().all()


def test_infinite_logits_have_their_limits() -> None:
    inf = torch.inf
    for gamma in GAMMAS:
        loss, grad = value_and_grad(
            "sigmoid_focal_loss", torch.tensor([inf, -inf]).double(), torch.ones(2), None, gamma, "none"
        )
        assert loss.tolist() == [0, inf] and grad.tolist() == [0, -1]
        rows = torch.tensor([[3.0, -inf, -inf], [-inf, 3.0, -inf], [1.0, 1.0, -inf]], dtype=F64)
        loss, grad = value_and_grad("softmax_focal_loss", rows, torch.tensor([0, 0, 0]), None, gamma, "none")
        assert loss[0] == 0 and loss[1] == inf and loss[2].isfinite()
        assert grad[0].tolist() == [0, 0, 0] and grad[1].tolist() == [-1, 1, 0] and grad[2, 2] == 0


def test_gamma_0_is_cross_entropy() -> None:
    shape = Shape((4, 7, 5))
    targets = make_index(shape)
    logits = make_trained_logits(shape, targets).double()
    for reduction in ("none", "mean", "sum"):
        close(
            reference.softmax_focal_loss(logits, targets, None, 0.0, reduction),
            F.cross_entropy(logits, targets, reduction=reduction),
            atol=1e-15,  # cross_entropy's own error on confident rows
        )
    weight = torch.rand(7).double()
    close(
        reference.softmax_focal_loss(logits, targets, weight, 0.0, "sum"),
        F.cross_entropy(logits, targets, weight, reduction="sum"),
    )
    dense = torch.rand(4, 7, 5).double()
    for reduction in ("none", "mean", "sum"):
        close(
            reference.sigmoid_focal_loss(logits, dense, None, 0.0, reduction),
            F.binary_cross_entropy_with_logits(logits, dense, reduction=reduction),
        )


def torchvision_formula(x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    p = torch.sigmoid(x)
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    return (alpha * t + (1 - alpha) * (1 - t)) * ce * (1 - p_t) ** gamma


def test_equals_the_usual_sigmoid_composition_at_moderate_logits() -> None:
    x = torch.randn(50, 8, dtype=F64)
    for soft in (False, True):
        t = make_dense((50, 8), F64, soft=soft)
        close(reference.sigmoid_focal_loss(x, t, 0.3, 1.7, "none"), torchvision_formula(x, t, 0.3, 1.7))
    index = torch.randint(0, 9, (50,))
    one_hot = F.one_hot(index, 9)[:, :8].double()
    close(reference.sigmoid_focal_loss(x, index, 0.3, 1.7, "none"), torchvision_formula(x, one_hot, 0.3, 1.7))


def test_equals_the_usual_softmax_composition_at_moderate_logits() -> None:
    x, t, alpha = torch.randn(50, 8, dtype=F64), torch.randint(0, 8, (50,)), torch.rand(8).double()
    log_p = F.log_softmax(x, 1).gather(1, t[:, None])[:, 0]
    expected = -alpha[t] * (1 - log_p.exp()) ** 2.5 * log_p
    close(reference.softmax_focal_loss(x, t, alpha, 2.5, "none"), expected)
    close(reference.softmax_focal_loss(x, t, alpha, 2.5), expected.mean())


def test_two_class_softmax_is_the_sigmoid_of_the_difference() -> None:
    x, t = torch.randn(50, 2, dtype=F64) * 20, torch.randint(0, 2, (50,))
    close(
        reference.softmax_focal_loss(x, t, None, 2.0, "none"),
        reference.sigmoid_focal_loss(x[:, 1] - x[:, 0], t, None, 2.0, "none"),
    )


def test_the_class_dimension_is_any() -> None:
    x, t = torch.randn(3, 5, 4, dtype=F64), torch.randint(0, 5, (3, 4))
    alpha = torch.rand(5).double()
    for op in (reference.sigmoid_focal_loss, reference.softmax_focal_loss):
        expected = op(x, t, alpha)
        close(op(x.movedim(1, -1), t, alpha, class_dim=-1), expected)
        close(op(x.movedim(1, 0), t, alpha, class_dim=0), expected)


def test_small_integer_targets_do_not_wrap() -> None:
    """-100 as a uint8 is 156, which is an ordinary class."""
    x, t = torch.randn(4, 200, dtype=F64), torch.tensor([156, 0, 199, 156])
    for op in (reference.sigmoid_focal_loss, reference.softmax_focal_loss):
        close(op(x, t.to(torch.uint8)), op(x, t))


def test_it_computes_in_the_asked_type() -> None:
    x, t = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for op in (reference.sigmoid_focal_loss, reference.softmax_focal_loss):
        assert op(x, t).dtype == F64
        assert op(x.bfloat16(), t, dtype=None).dtype == torch.float32
        assert op(x.double(), t, dtype=None).dtype == F64


@pytest.mark.parametrize("op", ["sigmoid_focal_loss", "softmax_focal_loss"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_in_float32_it_is_a_fit_stand_in_for_the_kernels(op: str, gamma: float) -> None:
    """torch.func and double backward use it so, under the same promise of accuracy."""
    shape = Shape((300, 11))
    targets = make_index(shape)
    logits = make_trained_logits(shape, targets)
    loss, grad = value_and_grad(op, logits, targets, 0.3, gamma, "none", dtype=None)
    true_loss, true_grad = value_and_grad(op, logits.double(), targets, 0.3, gamma, "none")
    assert_close(loss, true_loss, loss_bound(true_loss, torch.float32), "loss")
    assert_close(grad, true_grad, grad_bound(true_grad, torch.float32), "gradient")


@pytest.mark.parametrize("op", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_it_passes_gradgradcheck_and_can_be_traced(op: str) -> None:
    f = getattr(reference, op)
    x, t = make_logits((4, 3), F64).requires_grad_(), torch.tensor([0, 2, -100, 1])
    for gamma in (0.0, 0.5, 2.0):
        assert torch.autograd.gradgradcheck(lambda v, g=gamma: f(v, t, 0.4, g, "none"), x, fast_mode=True)
    compiled = torch.compile(lambda v: f(v, t, 0.4, 2.0), fullgraph=True, backend="aot_eager")
    close(compiled(x).detach(), f(x, t, 0.4, 2.0).detach())
    per_row = torch.func.vmap(torch.func.grad(lambda v, i: f(v[None], i[None], 0.4, 2.0, "sum")))(x.detach(), t)
    close(per_row, value_and_grad(op, x, t, 0.4, 2.0, "sum")[1])
