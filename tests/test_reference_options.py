"""The options of the two losses in the oracle, each against the formula it stands for."""

from __future__ import annotations

import itertools

import exact
import mpmath
import pytest
import torch
import torch.nn.functional as F
from cases import GAMMAS, MARGINS
from exact import F64, assert_follows, close, second_derivative, value_and_grad
from tolerance import ORACLE
from torch import Tensor
from torch._subclasses import FakeTensorMode

from focal_cuda import reference

SIGMOID, SOFTMAX = "sigmoid_focal_loss", "softmax_focal_loss"
gammas = pytest.mark.parametrize("gamma", GAMMAS)
both = pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Threads of torch would wait for each other at every one of these small tensors."""
    torch.set_num_threads(1)


def same(op: str, x: Tensor, targets: Tensor, formula, *args, **kwargs) -> None:
    """Value and gradient of the unreduced loss are those of a formula of the logits."""
    loss, grad = value_and_grad(op, x, targets, *args, reduction="none", **kwargs)
    leaf = x.detach().clone().requires_grad_()
    expected = formula(leaf)
    close(loss, expected.detach())
    expected_grad = torch.autograd.grad(expected.sum(), leaf)[0]
    close(grad, expected_grad, atol=ORACLE * expected_grad.abs().max().item())


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    """Moderate logits, at which a formula may be written as it is found, and labels."""
    return torch.randn(shape, dtype=F64), torch.randint(0, shape[1], shape[:1] + shape[2:])


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).movedim(-1, 1).double()


def soft_targets(*shape: int) -> Tensor:
    """Of any sum, some of them 0."""
    return torch.rand(shape, dtype=F64) * (torch.rand(shape) < 0.7)


@gammas
def test_soft_targets_of_a_softmax(gamma: float) -> None:
    x, labels = batch(20, 5, 3)
    y, alpha = soft_targets(20, 5, 3), torch.rand(5).double()

    def formula(x: Tensor) -> Tensor:
        log_p = F.log_softmax(x, 1)
        return -(y * alpha[:, None] * (1 - log_p.exp()) ** gamma * log_p).sum(1)

    same(SOFTMAX, x, y, formula, alpha, gamma)
    for of_label, of_one_hot in zip(
        value_and_grad(SOFTMAX, x, labels, alpha, gamma, "none"),
        value_and_grad(SOFTMAX, x, one_hot(labels, 5), alpha, gamma, "none"),
        strict=True,
    ):
        close(of_one_hot, of_label)
    y[3, 0, 1] = -100
    ignored = torch.zeros(20, 3, dtype=torch.bool)
    ignored[3, 1] = True
    loss, grad = value_and_grad(SOFTMAX, x, y, alpha, gamma, "none")
    assert torch.equal(loss == 0, ignored | (y == 0).all(1)) and (grad.movedim(1, -1)[ignored] == 0).all()
    close(reference.softmax_focal_loss(x, y, alpha, gamma), loss.sum() / 59)


def test_positives_are_counted_before_smoothing() -> None:
    x, labels = batch(40, 4)
    y = torch.rand(40, 4)
    y[0], y[1], y[2] = torch.tensor([1.0, 2.0, 2.0, 0.0]), torch.tensor([3.0, 3.0, 0.0, 0.0]), -100
    mask = torch.rand(40) < 0.8
    dense = (torch.rand(40, 4) < 0.3).double()
    for smoothing in (0.0, 0.1):
        for op, targets, background, expected in (
            (SOFTMAX, labels, 1, mask & (labels != 1)),
            (SOFTMAX, y, 0, mask & (y[:, 0] != -100) & (y[:, 0] < y[:, 1:].amax(1))),
            (SIGMOID, labels, 1, mask & (labels != 1)),
            (SIGMOID, dense, None, mask[:, None] & (dense > 0)),
        ):
            kwargs = {"mask": mask, "label_smoothing": smoothing, "background_index": background, "reduction": "sum"}
            f = getattr(reference, op)
            close(f(x, targets, normalizer="positives", **kwargs) * expected.sum(), f(x, targets, **kwargs))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing(smoothing: float) -> None:
    x, labels = batch(20, 5, 3)
    y, weight = soft_targets(20, 5, 3), torch.rand(5).double()
    for targets in (labels, y):
        same(
            SOFTMAX,
            x,
            targets,
            lambda x, t=targets: F.cross_entropy(x, t, weight, label_smoothing=smoothing, reduction="none"),
            weight,
            0.0,
            label_smoothing=smoothing,
        )
        mean = F.cross_entropy(x, targets, label_smoothing=smoothing)
        close(reference.softmax_focal_loss(x, targets, None, 0.0, label_smoothing=smoothing), mean)
    smoothed = one_hot(labels, 5) * (1 - smoothing) + smoothing / 2
    for targets in (labels, one_hot(labels, 5), one_hot(labels, 5).bool()):
        same(
            SIGMOID,
            x,
            targets,
            lambda x: F.binary_cross_entropy_with_logits(x, smoothed, reduction="none"),
            None,
            0.0,
            label_smoothing=smoothing,
        )
    for gamma in (0.5, 2.0):
        close(
            reference.sigmoid_focal_loss(x, labels, 0.3, gamma, label_smoothing=smoothing),
            reference.sigmoid_focal_loss(x, smoothed, 0.3, gamma),
        )
        close(
            reference.softmax_focal_loss(x, labels, weight, gamma, label_smoothing=smoothing),
            reference.softmax_focal_loss(x, one_hot(labels, 5) * (1 - smoothing) + smoothing / 5, weight, gamma),
        )


@gammas
def test_probability_smoothing(gamma: float) -> None:
    x, labels = batch(20, 5)
    t, s = one_hot(labels, 5), 0.2

    def sigmoid(x: Tensor) -> Tensor:
        p = torch.sigmoid(x) * (1 - s) + s / 2
        p_t = p * t + (1 - p) * (1 - t)
        return (1 - p_t) ** gamma * F.binary_cross_entropy_with_logits(x, t, reduction="none")

    def softmax(x: Tensor) -> Tensor:
        ce = F.cross_entropy(x, labels, reduction="none")
        return (1 - (torch.exp(-ce) * (1 - s) + s / 5)) ** gamma * ce

    same(SIGMOID, x, labels, sigmoid, None, gamma, probability_smoothing=s)
    same(SOFTMAX, x, labels, softmax, None, gamma, probability_smoothing=s)
    p = torch.softmax(x, 1)
    from_p = reference.softmax_focal_loss(p, labels, None, gamma, from_probabilities=True, probability_smoothing=s)
    close(from_p, softmax(x).mean())
    from_p = reference.sigmoid_focal_loss(
        x.sigmoid(), labels, None, gamma, from_probabilities=True, probability_smoothing=s
    )
    close(from_p, sigmoid(x).mean())


@gammas
def test_probability_smoothing_equals_mpmath(gamma: float) -> None:
    s = 0.001
    x = torch.tensor([sign * margin for margin in MARGINS for sign in (1, -1)], dtype=F64)
    two = torch.stack([x, torch.zeros_like(x)], 1)  # whose softmax is a sigmoid, and C = 2
    options = {"alpha": None, "gamma": gamma, "reduction": "none", "probability_smoothing": s}
    results = [value_and_grad(SIGMOID, x, torch.ones_like(x), **options)]
    loss, grad = value_and_grad(SOFTMAX, two, torch.zeros(len(x), dtype=torch.int64), **options)
    results.append((loss, grad[:, 0]))
    for loss, grad in results:
        for i, at in enumerate(x.tolist()):
            assert_follows(
                lambda v: (exact.p(-v) * (1 - s) + mpmath.mpf(s) / 2) ** gamma * exact.cross_entropy(v, 1),
                at,
                loss[i],
                grad[i],
                cancels=False,
            )


def test_pos_weight() -> None:
    """As in BCE for hard targets; of soft ones it weighs, as alpha does, the whole cross entropy."""
    x, hard, soft = torch.randn(20, 5, dtype=F64), (torch.rand(20, 5) < 0.3).double(), torch.rand(20, 5).double()
    for weight in (2.5, torch.rand(5).double() * 3, 0.0):
        tensor = torch.as_tensor(weight, dtype=F64)

        def bce(x: Tensor, w: Tensor = tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(x, hard, pos_weight=w, reduction="none")

        same(SIGMOID, x, hard, bce, None, 0.0, pos_weight=weight)
        for t in (hard, soft):
            plain = reference.sigmoid_focal_loss(x, t, None, 1.5, "none")
            for alpha, factor in ((0.3, 0.3 * tensor * t + 0.7 * (1 - t)), (None, tensor * t + 1 - t)):
                close(reference.sigmoid_focal_loss(x, t, alpha, 1.5, "none", pos_weight=weight), plain * factor)


@gammas
def test_probabilities(gamma: float) -> None:
    p, labels = torch.rand(20, 5, dtype=F64) * 0.98 + 0.01, torch.randint(0, 5, (20,))
    t, y = torch.rand(20, 5, dtype=F64), soft_targets(20, 5)

    def binary(p: Tensor) -> Tensor:
        p_t = p * t + (1 - p) * (1 - t)
        weight = 0.3 * t + 0.7 * (1 - t)
        return -weight * (1 - p_t) ** gamma * (t * p.log() + (1 - t) * (1 - p).log())

    same(SIGMOID, p, t, binary, 0.3, gamma, from_probabilities=True)
    same(SOFTMAX, p, y, lambda p: -(y * (1 - p) ** gamma * p.log()).sum(1), None, gamma, from_probabilities=True)
    same(
        SOFTMAX,
        p,
        labels,
        lambda p: -((1 - p) ** gamma * p.log()).gather(1, labels[:, None])[:, 0],
        None,
        gamma,
        from_probabilities=True,
    )


def test_probabilities_at_the_ends() -> None:
    """F.binary_cross_entropy's values, and its slopes but for its own artefact: 0 instead of 1 at p = t."""
    p, t = (
        torch.tensor([0.0, 1.0, 0.0, 1.0, 1e-20, 1e-13, 1e-8]).double(),
        torch.tensor([1.0, 0, 0, 1, 1, 1, 1]).double(),
    )
    loss, grad = value_and_grad(SIGMOID, p, t, None, 0.0, "none", from_probabilities=True)
    leaf = p.clone().requires_grad_()
    theirs = F.binary_cross_entropy(leaf, t, reduction="none")
    close(loss, theirs.detach())
    slopes = torch.autograd.grad(theirs.sum(), leaf)[0]
    wrong = p == t
    torch.testing.assert_close(grad[~wrong], slopes[~wrong])  # its 1e-12 is a float32
    assert grad[wrong].tolist() == [1, -1] and slopes[wrong].tolist() == [0, 0]
    for gamma in GAMMAS[1:]:
        _, grad = value_and_grad(SIGMOID, p, t, None, gamma, "none", from_probabilities=True)
        assert (grad[p == t] == 0).all() and (grad[(p - t).abs() == 1].abs() >= 1e12).all()


def test_gamma_of_each_class() -> None:
    x, labels = batch(20, 5, 3)
    gamma, y = torch.tensor([0.0, 0.5, 1, 2, 5]), soft_targets(20, 5, 3)
    for from_probabilities in (False, True):
        for op, targets, activation in ((SIGMOID, labels, torch.sigmoid), (SOFTMAX, labels, F.softmax)):
            v = (activation(x) if op == SIGMOID else activation(x, 1)) if from_probabilities else x
            f = getattr(reference, op)
            kwargs = {"reduction": "none", "from_probabilities": from_probabilities}
            each = torch.stack([f(v, targets, gamma=g, **kwargs) for g in gamma.tolist()])
            if op == SIGMOID:
                expected = torch.stack([each[c, :, c] for c in range(5)], 1)
            else:
                expected = each.gather(0, labels[None])[0]
            close(f(v, targets, gamma=gamma, **kwargs), expected)
            close(f(v, targets, gamma=gamma[3], **kwargs), each[3])
        each = [
            reference.softmax_focal_loss(
                v, y * (torch.arange(5) == c)[:, None], gamma=g, reduction="none", from_probabilities=from_probabilities
            )
            for c, g in enumerate(gamma.tolist())
        ]
        total = reference.softmax_focal_loss(v, y, gamma=gamma, reduction="none", from_probabilities=from_probabilities)
        close(total, sum(each))


@both
def test_weights_and_masks(op: str) -> None:
    f = getattr(reference, op)
    x, labels = batch(20, 5, 3)
    labels[::7] = -100
    values = f(x, labels, reduction="none")
    rows = torch.rand(20, 3, dtype=F64)
    rows[3] = 0
    counted = (labels != -100).sum() * (5 if op == SIGMOID else 1)
    spread = rows[:, None] if op == SIGMOID else rows
    close(f(x, labels, reduction="none", sample_weight=rows), values * spread)
    close(f(x, labels, sample_weight=rows), (values * spread).sum() / counted)
    broadcast = torch.rand((20, 1, 1) if op == SIGMOID else (20, 1), dtype=F64)
    close(f(x, labels, reduction="none", sample_weight=broadcast), values * broadcast)
    mask = torch.rand(20, 3) < 0.6
    close(f(x, labels, mask=mask), f(x, torch.where(mask, labels, -100)))
    # What has no part in the loss may be anything.
    broken = x.clone()
    broken.movedim(1, -1)[(rows == 0) | ~mask] = torch.nan
    for reduction in ("none", "mean", "sum"):
        a = value_and_grad(op, broken, labels, reduction=reduction, sample_weight=rows, mask=mask)
        b = value_and_grad(op, x, labels, reduction=reduction, sample_weight=rows, mask=mask)
        assert all(map(torch.equal, a, b))
        assert (a[1].movedim(1, -1)[(rows == 0) | ~mask] == 0).all()
    nothing = value_and_grad(op, broken * torch.nan, labels, mask=torch.zeros(20, 3, dtype=torch.bool))
    assert nothing[0] == 0 and (nothing[1] == 0).all()


@both
@pytest.mark.parametrize("ratio", [1e-9, 0.1, 0.3, 0.7, 1.0])
def test_hardest_examples(op: str, ratio: float) -> None:
    x, labels = batch(30, 4)
    labels[::7] = -100
    f = getattr(reference, op)
    values = f(x, labels, reduction="none")
    counted = values[labels != -100].flatten()
    k = max(1, int(counted.numel() * ratio))
    hardest = counted.topk(k).values
    close(f(x, labels, ohem_keep_ratio=ratio), hardest.mean())
    threshold = float(hardest[-1])
    above = counted[counted > threshold]
    close(f(x, labels, ohem_threshold=threshold), above.sum() / max(1, above.numel()))
    for other in (0.0, threshold, 1e3):
        larger = counted.topk(max(k, int((counted > other).sum()))).values
        close(f(x, labels, ohem_keep_ratio=ratio, ohem_threshold=other), larger.mean())
    _, grad = value_and_grad(op, x, labels, ohem_keep_ratio=ratio)
    kept = (values >= threshold) & (values > 0)
    assert torch.equal((grad != 0).any(1), kept.any(1) if op == SIGMOID else kept)
    _, of_sum = value_and_grad(op, x, labels, reduction="sum")
    close(grad, torch.where(kept if op == SIGMOID else kept[:, None], of_sum / k, 0.0))


def test_hardest_of_equals_is_the_first() -> None:
    x, labels = torch.zeros(2, 3, 4, dtype=F64), torch.zeros(2, 4, dtype=torch.int64)
    labels[0, 0] = -100
    _, grad = value_and_grad(SOFTMAX, x, labels, ohem_keep_ratio=0.5)  # 7 counted, 3 kept
    assert (grad[:, 0] != 0).tolist() == [[False, True, True, True], [False] * 4]
    x[1, 0, 3] = -1.0
    _, grad = value_and_grad(SOFTMAX, x, labels, ohem_keep_ratio=0.5)
    assert (grad[:, 0] != 0).tolist() == [[False, True, True, False], [False, False, False, True]]
    loss, grad = value_and_grad(SOFTMAX, x, labels, ohem_threshold=9.0)
    assert loss == 0 and (grad == 0).all()
    loss, grad = value_and_grad(SOFTMAX, x, labels.fill_(-100), ohem_keep_ratio=0.5, ohem_threshold=0.0)
    assert loss == 0 and (grad == 0).all()
    x[0, 0, 2] = torch.nan
    assert value_and_grad(SOFTMAX, x, labels.fill_(1), ohem_threshold=0.1)[0].isnan()


CALLS = [
    (op, targets, options)
    for op, kinds in ((SIGMOID, ("labels", "hard", "soft")), (SOFTMAX, ("labels", "soft")))
    for targets in kinds
    for options in (
        {},
        {"alpha": "vector", "sample_weight": "rows", "mask": "rows"},
        {"label_smoothing": 0.1},
        {"probability_smoothing": 0.001},
        {"pos_weight": "vector"},
        {"ohem_keep_ratio": 0.3, "ohem_threshold": 0.1, "reduction": "mean"},
    )
    if not (targets == "soft" and "probability_smoothing" in options)
    and not (op == SOFTMAX and "pos_weight" in options)
]
calls = pytest.mark.parametrize(
    ("op", "kind", "options"), CALLS, ids=["-".join([op[:7], kind, *options]) for op, kind, options in CALLS]
)


def make(op: str, kind: str, options: dict, rows: int, classes: int) -> tuple[Tensor, dict]:
    labels = torch.randint(0, classes, (rows,))
    labels[rows // 2] = -100
    targets = labels
    if kind == "hard":
        targets = (torch.rand(rows, classes) < 0.4).double()
    elif kind == "soft":
        targets = torch.tensor([0.0, 1.0, 0.5, 1e-3, 1e-7, 1.0, 0.9])[:classes].repeat(rows, 1)
    tensors = {"vector": torch.rand(classes).double() + 0.1, "rows": torch.rand(rows).double() + 0.1}
    tensors["rows"][0] = 0
    options = {k: tensors[v] if isinstance(v, str) and v in tensors else v for k, v in options.items()}
    if "mask" in options:
        options["mask"] = options["mask"] > 0.3
    return targets, options


@calls
@pytest.mark.parametrize("compute", [torch.float32, F64], ids=["fp32", "fp64"])
def test_all_derivatives_are_finite(op: str, kind: str, options: dict, compute: torch.dtype) -> None:
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=compute)
    rows = torch.stack([margins, torch.zeros_like(margins), -margins / 3, *[margins] * 4], 1)
    targets, options = make(op, kind, options, len(rows), len(GAMMAS))
    p = rows.sigmoid() if op == SIGMOID else rows.softmax(1)
    for gamma, from_probabilities in itertools.product([0.5, torch.tensor(0.0), torch.tensor(GAMMAS)], (False, True)):
        x = (p if from_probabilities else rows).clone().requires_grad_()
        kwargs = {"reduction": "sum", "from_probabilities": from_probabilities, "dtype": None} | options
        loss = getattr(reference, op)(x, targets, gamma=gamma, **kwargs)
        grad, second = second_derivative(loss, x)
        assert loss.isfinite() and grad.isfinite().all() and second.isfinite().all(), (gamma, from_probabilities)


@calls
def test_it_can_be_differentiated_twice_and_transformed(op: str, kind: str, options: dict) -> None:
    f = getattr(reference, op)
    targets, options = make(op, kind, options, 3, 3)
    x = torch.randn(3, 3, dtype=F64)
    for from_probabilities in (False, True):
        v = (x.sigmoid() if from_probabilities else x).requires_grad_()
        kwargs = {"gamma": 1.5, "reduction": "sum", "from_probabilities": from_probabilities} | options

        def loss(v: Tensor, kwargs: dict = kwargs) -> Tensor:
            return f(v, targets, **kwargs)

        assert torch.autograd.gradcheck(loss, v, fast_mode=True)
        assert torch.autograd.gradgradcheck(loss, v, fast_mode=True)
        stack = torch.stack([v.detach(), v.detach() / 2])
        close(torch.func.vmap(torch.func.grad(loss))(stack)[1], torch.func.grad(loss)(stack[1]))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # raises where a value decides
            fake = mode.from_tensor(v.detach()).requires_grad_()
            assert torch.autograd.grad(loss(fake), fake)[0].shape == v.shape


def test_it_agrees_with_kornia() -> None:
    kornia = pytest.importorskip("kornia.losses")
    x, labels = batch(20, 5, 3)
    t, weight = one_hot(labels, 5), torch.rand(5).double()
    labels[0, 0] = -100
    for gamma in (0.5, 2.0):
        ours = reference.sigmoid_focal_loss(x, t, 0.3, gamma, "none", pos_weight=weight)
        close(ours, kornia.binary_focal_loss_with_logits(x, t, 0.3, gamma, "none", pos_weight=weight))
        alpha = torch.tensor([0.7, 0.3, 0.3, 0.3, 0.3], dtype=F64)  # class 0 is background there
        ours = reference.softmax_focal_loss(x, labels, alpha, gamma, "none")
        close(ours, kornia.focal_loss(x, labels, 0.3, gamma, "none").sum(1))


def test_it_agrees_with_monai() -> None:
    monai = pytest.importorskip("monai.losses.focal_loss")
    x, labels = batch(20, 5, 3)
    y, alpha = soft_targets(20, 5, 3), torch.rand(5).double()
    for gamma in (0.5, 2.0):
        ours = reference.sigmoid_focal_loss(x, labels, 0.3, gamma, "none")
        close(ours, monai.sigmoid_focal_loss(x, one_hot(labels, 5), gamma, 0.3))
        ours = reference.softmax_focal_loss(x, y, alpha, gamma, "none")
        close(ours, monai.softmax_focal_loss(x, y, gamma, alpha).sum(1))
