"""The seven relatives in the oracle: against 50 digits, against the focal loss they contain, and with options."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import pytest
import torch
import torch.nn.functional as F
from cases import GAMMAS, MARGINS
from exact import DIGITS, F64, Number, assert_follows, close, cross_entropy, p, second_derivative, value_and_grad
from tolerance import ORACLE
from torch import Tensor
from torch._subclasses import FakeTensorMode

from focal_cuda import reference

gammas = pytest.mark.parametrize("gamma", GAMMAS)
activations = pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
DENSE = ["quality_focal_loss", "varifocal_loss", "gaussian_focal_loss"]
SCORED = ["quality_focal_loss", "varifocal_loss"]
HARD = ["asymmetric_loss", "poly_focal_loss", "reduced_focal_loss"]


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Threads of torch would wait for each other at every one of these small tensors."""
    torch.set_num_threads(1)


def quality(x: Number, t: float, beta: float) -> Number:
    distance = p(-x) - (1 - mpmath.mpf(t)) if t > 0.5 else p(x) - t
    return abs(distance) ** beta * cross_entropy(x, t)


def varifocal(x: Number, t: float, alpha: float, gamma: float, iou_weighted: bool) -> Number:
    if t > 0:
        return (t if iou_weighted else 1) * cross_entropy(x, t)
    return alpha * p(x) ** gamma * cross_entropy(x, 0)


def gaussian(x: Number, t: float, alpha: float, gamma: float, pos_weight: float, neg_weight: float) -> Number:
    if t == 1:
        return pos_weight * p(-x) ** alpha * cross_entropy(x, 1)
    return neg_weight * (1 - mpmath.mpf(t)) ** gamma * p(x) ** alpha * cross_entropy(x, 0)


def asymmetric(x: Number, t: float, gamma_negative: float, gamma_positive: float, margin: float) -> Number:
    if t:
        return p(-x) ** gamma_positive * cross_entropy(x, 1)
    above = p(x) - margin if margin else p(x)
    if above <= 0:
        return mpmath.mpf(0)
    return above**gamma_negative * (-mpmath.log(p(-x) + margin) if margin else cross_entropy(x, 0))


def poly(x: Number, t: float, epsilon: float, alpha: float, gamma: float) -> Number:
    z = x if t else -x
    value = p(-z) ** gamma * cross_entropy(z, 1) + epsilon * p(-z) ** (gamma + 1)
    return (alpha if t else 1 - alpha) * value


def reduced(x: Number, t: float, threshold: float, alpha: float, gamma: float) -> Number:
    z = x if t else -x
    factor = 1 if p(z) < threshold else (p(-z) / threshold) ** gamma
    return (alpha if t else 1 - alpha) * factor * cross_entropy(z, 1)


FORMULAS: dict[str, tuple[str, Callable, Callable[[float], dict], tuple[float, ...]]] = {
    "quality": ("quality_focal_loss", quality, lambda g: {"beta": g}, (0.0, 1.0, 0.3, 0.9, 1e-6)),
    "varifocal": (
        "varifocal_loss", varifocal, lambda g: {"alpha": 0.6, "gamma": g, "iou_weighted": True}, (0.0, 1.0, 0.3, 1e-6)
    ),
    "varifocal unweighted": (
        "varifocal_loss", varifocal, lambda g: {"alpha": 0.6, "gamma": g, "iou_weighted": False}, (0.0, 0.3)
    ),
    "gaussian": (
        "gaussian_focal_loss",
        gaussian,
        lambda g: {"alpha": g, "gamma": 1.5 * g, "pos_weight": 0.7, "neg_weight": 1.3},
        (0.0, 1.0, 0.3, 0.999),
    ),
    "asymmetric": (
        "asymmetric_loss",
        asymmetric,
        lambda g: {"gamma_negative": g, "gamma_positive": g / 2, "margin": 0.05},
        (0.0, 1.0),
    ),
    "asymmetric, tiny margin": (
        "asymmetric_loss",
        asymmetric,
        lambda g: {"gamma_negative": g, "gamma_positive": g, "margin": 1e-10},
        (0.0,),
    ),
    "asymmetric, no margin": (
        "asymmetric_loss",
        asymmetric,
        lambda g: {"gamma_negative": g, "gamma_positive": g, "margin": 0.0},
        (0.0,),
    ),
    "poly": ("poly_focal_loss", poly, lambda g: {"epsilon": 1.5, "alpha": 0.3, "gamma": g}, (0.0, 1.0)),
    "poly, negative": ("poly_focal_loss", poly, lambda g: {"epsilon": -0.5, "alpha": 0.3, "gamma": g}, (1.0,)),
    "reduced": ("reduced_focal_loss", reduced, lambda g: {"threshold": 0.2, "alpha": 0.3, "gamma": g}, (0.0, 1.0)),
}  # fmt: skip


@gammas
@pytest.mark.parametrize("name", FORMULAS)
def test_equals_mpmath(name: str, gamma: float) -> None:
    op, formula, options, targets = FORMULAS[name]
    kwargs = options(gamma)
    x = torch.tensor([sign * margin for margin in MARGINS for sign in (1, -1)], dtype=F64)
    for t in targets:
        cancels = name == "poly, negative" or (op in SCORED and 0 < t < 1)
        loss, grad = value_and_grad(op, x, torch.full_like(x, t), reduction="none", **kwargs)
        for i, at in enumerate(x.tolist()):
            assert_follows(lambda v, t=t: formula(v, t, **kwargs), at, loss[i], grad[i], cancels=cancels)


def test_quality_where_the_target_is_met() -> None:
    """|0|**beta: 1 for beta = 0, else 0 with a slope of 0, where that of beta < 1 has no limit."""
    x, t = torch.zeros(1, dtype=F64), torch.full((1,), 0.5)
    for beta in GAMMAS:
        loss, grad = value_and_grad("quality_focal_loss", x, t, beta=beta)
        assert grad == 0 and (loss == 0 if beta else loss > 0.6)


@activations
@gammas
def test_two_classes_are_one_logit(activation: str, gamma: float) -> None:
    """Softmax activation is the sigmoid of the margin, whose derivatives were compared with mpmath."""
    x, labels = torch.randn(50, 2, dtype=F64) * 20, torch.randint(0, 2, (50,))
    z = x[:, 1] - x[:, 0]
    for op, kwargs in (
        ("poly_focal_loss", {"epsilon": 1.5, "reduction": "none"}),
        ("reduced_focal_loss", {"threshold": 0.2, "reduction": "none"}),
        ("normalized_focal_loss", {}),
    ):
        f = getattr(reference, op)
        close(f(x, labels, gamma=gamma, activation="softmax", **kwargs), f(z, labels, gamma=gamma, **kwargs))


def batch(activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, and what formulas have of p_t and alpha_t."""
    x, labels, alpha = torch.randn(40, 5, dtype=F64), torch.randint(0, 5, (40,)), torch.rand(5, dtype=F64)
    if activation == "softmax":
        return x, labels, F.softmax(x, 1).gather(1, labels[:, None])[:, 0], alpha[labels], alpha
    t = F.one_hot(labels, 5).double()
    p = torch.sigmoid(x)
    return x, labels, p * t + (1 - p) * (1 - t), alpha * t + (1 - alpha) * (1 - t), alpha


@activations
@gammas
def test_usual_compositions_at_moderate_logits(activation: str, gamma: float) -> None:
    x, labels, p_t, alpha_t, alpha = batch(activation)
    ce, q = -p_t.log(), 1 - p_t
    kwargs = {"alpha": alpha, "gamma": gamma, "activation": activation}
    close(
        reference.poly_focal_loss(x, labels, 0.7, reduction="none", **kwargs),
        alpha_t * (q**gamma * ce + 0.7 * q ** (gamma + 1)),
    )
    factor = torch.where(p_t < 0.4, 1.0, (q / 0.4) ** gamma)
    close(reference.reduced_focal_loss(x, labels, 0.4, reduction="none", **kwargs), alpha_t * factor * ce)
    close(reference.normalized_focal_loss(x, labels, **kwargs), (alpha_t * q**gamma * ce).sum() / (q**gamma).sum())


@activations
@gammas
def test_gradient_of_the_normalized_loss_goes_through_both_sums(activation: str, gamma: float) -> None:
    x, labels, *_ = batch(activation)
    _, grad = value_and_grad("normalized_focal_loss", x, labels, None, gamma, activation=activation)
    leaf = x.clone().requires_grad_()
    if activation == "softmax":
        ce = F.cross_entropy(leaf, labels, reduction="none")
    else:
        ce = F.binary_cross_entropy_with_logits(leaf, F.one_hot(labels, 5).double(), reduction="none")
    m = (1 - torch.exp(-ce)) ** gamma
    (expected,) = torch.autograd.grad((m * ce).sum() / m.sum(), leaf)
    close(grad, expected, atol=ORACLE * expected.abs().max().item())


def test_normalized_loss_where_every_factor_underflows() -> None:
    x = torch.tensor([300.0, 301.0, 310.0], dtype=F64)
    loss, grad = value_and_grad("normalized_focal_loss", x, torch.ones(3), gamma=5.0)
    with mpmath.workdps(DIGITS):

        def f(*v: Number) -> Number:
            m = [p(-z) ** 5 for z in v]
            return mpmath.fsum(a * cross_entropy(z, 1) for a, z in zip(m, v, strict=True)) / mpmath.fsum(m)

        at = [mpmath.mpf(v) for v in x.tolist()]
        slopes = [float(mpmath.diff(f, at, tuple(int(i == j) for j in range(3)))) for i in range(3)]
        close(loss, torch.tensor(float(f(*at)), dtype=F64))
    close(grad, torch.tensor(slopes, dtype=F64))


@gammas
def test_they_contain_the_focal_loss(gamma: float) -> None:
    """Also where labels are ignored or background, and of every kind of target."""
    x, labels = torch.randn(40, 5, dtype=F64) * 9, torch.randint(0, 6, (40,))
    labels[::7] = -100
    t = F.one_hot(labels.clamp(min=0), 6)[:, :5]
    for targets in (labels, t, t.double()):
        focal = reference.sigmoid_focal_loss(x, targets, None, gamma)
        close(reference.quality_focal_loss(x, targets, beta=gamma), focal)
        close(reference.gaussian_focal_loss(x, targets, gamma, 4.0), focal)
        close(reference.asymmetric_loss(x, targets, gamma, gamma, 0.0), focal)
        close(reference.poly_focal_loss(x, targets, 0.0, gamma=gamma), focal)
        moderate = reference.sigmoid_focal_loss(x / 5, targets, None, gamma)
        close(reference.reduced_focal_loss(x / 5, targets, 1e-9, gamma=gamma), moderate * 1e9**gamma)
        close(
            reference.varifocal_loss(x, targets, alpha=1.0, gamma=0.0),
            reference.sigmoid_focal_loss(x, targets, None, 0),
        )


@pytest.mark.parametrize("op", SCORED)
def test_scores_stand_at_the_labels(op: str) -> None:
    x, labels, scores = torch.randn(40, 5, dtype=F64), torch.randint(0, 6, (40,)), torch.rand(40)
    labels[::7] = -100
    scores[1] = 0.0
    scores[labels < 0] = torch.nan
    t = F.one_hot(labels.clamp(min=0), 6)[:, :5] * scores.nan_to_num()[:, None]
    t = torch.where((labels < 0)[:, None], -100, t)
    f = getattr(reference, op)
    for reduction in ("none", "mean", "sum"):
        close(f(x, labels, scores, reduction=reduction), f(x, t, reduction=reduction))
    objects = (labels >= 0) & (labels < 5)
    close(f(x, labels, scores, reduction="sum", normalizer="positives") * objects.sum(), f(x, t, reduction="sum"))


def test_objects_are_the_positives_of_a_heat_map() -> None:
    x, t = torch.randn(4, 1, 6, 6, dtype=F64), torch.rand(4, 1, 6, 6)
    t[0, 0, 1, 2] = t[2, 0, 3, 3] = t[3, 0, 0, 0] = 1.0
    total = reference.gaussian_focal_loss(x, t, reduction="sum")
    close(reference.gaussian_focal_loss(x, t, reduction="sum", normalizer="positives"), total / 3)


ALL = [*((op, {}) for op in (*DENSE, *HARD)), *((op, {"activation": "softmax"}) for op in HARD[1:])]
NORMALIZED = [("normalized_focal_loss", {"activation": a}) for a in ("sigmoid", "softmax")]
ids = [f"{op}-{kwargs.get('activation', 'sigmoid')}" for op, kwargs in ALL + NORMALIZED]


@pytest.mark.parametrize(("op", "kwargs"), ALL, ids=ids[: len(ALL)])
def test_weights_masks_and_ignored_labels(op: str, kwargs: dict) -> None:
    f = getattr(reference, op)
    x, labels, rows = torch.randn(40, 5, dtype=F64), torch.randint(0, 5, (40,)), torch.rand(40, dtype=F64)
    labels[::7], rows[:3], mask = -100, 0.0, torch.rand(40) < 0.7
    values = f(x, labels, reduction="none", **kwargs)
    spread = rows if values.dim() == 1 else rows[:, None]
    counted = mask & (labels >= 0)
    n = counted.sum() * (1 if values.dim() == 1 else 5)
    broken = torch.where((counted & (rows > 0))[:, None], x, torch.nan)
    loss, grad = value_and_grad(op, broken, labels, sample_weight=rows, mask=mask, **kwargs)
    close(loss, (values * spread)[counted].sum() / n)
    assert grad.isfinite().all() and (grad[~counted | (rows == 0)] == 0).all()
    total = f(x, labels, reduction="sum", sample_weight=rows, mask=mask, normalizer=7.0, **kwargs)
    close(total, loss * n / 7)


@activations
def test_weights_of_the_normalized_loss_are_repetitions(activation: str) -> None:
    x, labels, *_ = batch(activation)
    times = torch.randint(0, 4, (40,))
    labels[::7] = -100
    repeated = reference.normalized_focal_loss(
        x.repeat_interleave(times, 0), labels.repeat_interleave(times), 0.3, activation=activation
    )
    broken = torch.where(((times > 0) & (labels >= 0))[:, None], x, torch.nan)
    kwargs = {"alpha": 0.3, "activation": activation, "sample_weight": times.double()}
    loss, grad = value_and_grad("normalized_focal_loss", broken, labels, **kwargs)
    close(loss, repeated)
    assert grad.isfinite().all() and (grad[times == 0] == 0).all()
    for rows in (x, x[:0]):
        nothing = torch.full((len(rows),), -100)
        loss, grad = value_and_grad("normalized_focal_loss", rows, nothing, activation=activation)
        assert loss == 0 and (grad == 0).all()


def targets_of(op: str, rows: int, classes: int) -> Tensor:
    if op in DENSE:
        return torch.tensor([0.0, 1.0, 0.4, 1e-3, 1 - 1e-6])[:classes].repeat(rows, 1)
    labels = torch.randint(0, classes, (rows,))
    labels[1] = -100
    return labels


@pytest.mark.parametrize(("op", "kwargs"), ALL + NORMALIZED, ids=ids)
@pytest.mark.parametrize("compute", [torch.float32, F64], ids=["fp32", "fp64"])
def test_all_derivatives_are_finite(op: str, kwargs: dict, compute: torch.dtype) -> None:
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=compute)
    rows = torch.stack([margins, margins, margins, torch.zeros_like(margins), margins], 1)
    targets = targets_of(op, len(rows), 5)
    names = {"quality_focal_loss": ("beta",), "asymmetric_loss": ("gamma_negative", "gamma_positive")}
    for gamma in GAMMAS:
        x = rows.clone().requires_grad_()
        exponents = dict.fromkeys(names.get(op, ("gamma",)), gamma)
        loss = getattr(reference, op)(x, targets, dtype=None, **exponents, **kwargs)
        grad, second = second_derivative(loss, x)
        assert loss.isfinite() and grad.isfinite().all() and second.isfinite().all(), gamma


@pytest.mark.parametrize(("op", "kwargs"), ALL + NORMALIZED, ids=ids)
def test_it_can_be_differentiated_twice_and_transformed(op: str, kwargs: dict) -> None:
    targets = targets_of(op, 3, 3)
    x = torch.randn(3, 3, dtype=F64).requires_grad_()
    weight = torch.rand(3, 3 if kwargs.get("activation", "sigmoid") == "sigmoid" else 1)[:, 0]

    def loss(v: Tensor) -> Tensor:
        return getattr(reference, op)(v, targets, sample_weight=weight, **kwargs)

    assert torch.autograd.gradcheck(loss, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, x, fast_mode=True)
    stack = torch.stack([x.detach(), x.detach() / 2])
    close(torch.func.vmap(torch.func.grad(loss))(stack)[1], torch.func.grad(loss)(stack[1]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # raises where a value decides
        fake = mode.from_tensor(x.detach()).requires_grad_()
        assert torch.autograd.grad(loss(fake), fake)[0].shape == x.shape


def test_gamma_and_alpha_of_each_class() -> None:
    x, labels = torch.randn(20, 5, dtype=F64), torch.randint(0, 5, (20,))
    gamma, alpha = torch.tensor([0.0, 0.5, 1, 2, 5]), torch.rand(5)
    for f in (reference.poly_focal_loss, reference.reduced_focal_loss):
        for activation in ("sigmoid", "softmax"):
            kwargs = {"reduction": "none", "activation": activation}
            each = torch.stack(
                [f(x, labels, alpha=a, gamma=g, **kwargs) for a, g in zip(alpha.tolist(), gamma.tolist(), strict=True)]
            )
            expected = each.gather(0, labels[None])[0] if activation == "softmax" else each.diagonal(dim1=0, dim2=2)
            close(f(x, labels, alpha=alpha, gamma=gamma, **kwargs), expected)


def test_a_wrong_name_is_an_error() -> None:
    x, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="smoothing"):
        reference.poly_focal_loss(x, labels, smoothing=0.1)
    with pytest.raises(TypeError, match="normalizer"):
        reference.normalized_focal_loss(x, labels, normalizer=2.0)
    with pytest.raises(ValueError, match="activation"):
        reference.poly_focal_loss(x, labels, activation="tanh")
