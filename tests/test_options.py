"""The options of the two losses, alone and together, on every engine, type, reduction and gradient policy."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    MARGINS,
    Shape,
    dtypes,
    make_dense,
    make_index,
    make_logits,
    make_soft,
    make_trained_logits,
    of_each_class,
)
from combinations import (
    COMMON,
    FEW_SHAPES,
    SIGMOID,
    SOFTMAX,
    by_class,
    computing_dtype,
    make_logits_for,
    make_targets,
    name_of,
    of_row,
    pairwise,
)
from compare import Result, assert_agree, assert_bitwise, check, loss_dtype, run
from tolerance import assert_close, grad_bound, loss_bound
from torch import Tensor

import focal_cuda

OF_BOTH = {
    "gamma": [0.0, 0.5, 2.0, 3.0, "0-d", "classes"],
    "extra": [None, "smoothed", "half smoothed", "0.001", "0.3", "probabilities"],
    "hardest": [
        {},
        {"ohem_keep_ratio": 0.3},
        {"ohem_threshold": 0.2},
        {"ohem_keep_ratio": 0.01, "ohem_threshold": 0.5},
    ],
}
SIGMOID_AXES = (
    COMMON
    | OF_BOTH
    | {
        "targets": ["uint8", "bool", "int64", "dense", "dense bool", "soft"],
        "alpha": [None, 0.3, "classes"],
        "pos_weight": [None, 2.5, "classes"],
    }
)
SOFTMAX_AXES = (
    COMMON
    | OF_BOTH
    | {
        "targets": ["uint8", "bool", "int64", "one-hot", "soft", "soft of any sum"],
        "alpha": [None, 1.7, "classes"],
    }
)
AXES = {SIGMOID: SIGMOID_AXES, SOFTMAX: SOFTMAX_AXES}
EXTRAS: dict[str | None, dict[str, Any]] = {
    None: {},
    "smoothed": {"label_smoothing": 0.1},
    "half smoothed": {"label_smoothing": 0.5},
    "0.001": {"probability_smoothing": 0.001},
    "0.3": {"probability_smoothing": 0.3},
    "probabilities": {"from_probabilities": True},
}


def go_together(op: str, row: dict[str, Any]) -> bool:
    extra, soft = row["extra"], "soft" in row["targets"] or row["targets"] == "one-hot"
    one_pass = row["gradient"] in ("forward", "inplace")
    return not (
        (row["reduction"] == "none" and one_pass)
        or (extra in ("0.001", "0.3") and soft)
        or (op == SOFTMAX and extra == "probabilities" and row["gradient"] == "inplace")
        or (op == SOFTMAX and row["mask"] == "element")
        or (row["hardest"] and (row["reduction"] != "mean" or one_pass))
    )


def of_probabilities(logits: Tensor, dim: int, softmax: bool, dtype: torch.dtype, by_torch: bool) -> Tensor:
    """Probabilities, of which some are 0 and 1."""
    p = logits.softmax(dim) if softmax else logits.sigmoid()
    p.view(-1)[::17] = 1.0
    p.view(-1)[5::17] = 0.0
    # float16 has no larger derivatives, and autograd no smaller intermediates.
    least = 1e-3 if dtype == torch.float16 else 1e-6 if by_torch else 0.0
    return p.clamp(least, 1 - least)


def arguments(op: str, row: dict[str, Any], device: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, targets and options of a combination."""
    shape, softmax, extra = row["shape"], op == SOFTMAX, row["extra"]
    compute = computing_dtype(row)
    targets, ignore = make_targets(softmax, row["targets"], shape, compute, device)
    logits = make_logits_for(targets, shape)
    if extra == "probabilities":
        by_torch = row["gamma"] == "classes" or (softmax and targets.dim() == logits.dim())
        logits = of_probabilities(logits, shape.class_dim, softmax, row["dtype"], by_torch)
    logits, targets, options = of_row(row, logits, targets, softmax)
    options |= EXTRAS[extra] | row["hardest"] | {"ignore_index": ignore, "alpha": by_class(row["alpha"], row, device)}
    options["gamma"] = by_class(row["gamma"], row, device, 4.0)
    if row["gamma"] == "0-d":
        options["gamma"] = torch.tensor(1.5, dtype=compute, device=device)
    if not softmax:
        options["pos_weight"] = by_class(row["pos_weight"], row, device, 3.0)
    return logits, targets, options


ROWS = [(op, row) for op, axes in AXES.items() for row in pairwise(axes, lambda row, op=op: go_together(op, row))]
ops = pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])


@pytest.mark.parametrize(("op", "row"), ROWS, ids=name_of)
def test_together(op: str, row: dict[str, Any], device: str) -> None:
    """Any two of everything that a call is made of."""
    logits, targets, options = arguments(op, row, device)
    check(op, logits, targets, **options)


def test_any_two_choices_meet() -> None:
    """But those that go with nothing."""
    for op, axes in AXES.items():
        rows = [row for name, row in ROWS if name == op]
        for a, b in itertools.combinations(axes, 2):
            met = [(row[a], row[b]) for row in rows]
            for pair in itertools.product(axes[a], axes[b]):
                some = {
                    "reduction": "mean",
                    "gradient": "auto",
                    "mask": None,
                    "gamma": 2.0,
                    "extra": None,
                    "hardest": {},
                }
                possible = go_together(op, some | {"targets": "int64", a: pair[0], b: pair[1]})
                assert pair in met or not possible


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Several would wait for each other at every small tensor of the oracle."""
    torch.set_num_threads(1)


# --- every margin ----------------------------------------------------------------------------------------------------

FAR = [s * m for m in MARGINS for s in (1, -1)]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("extra", [e for e in EXTRAS if e and e != "probabilities"])
@dtypes([torch.float32, torch.float64, torch.bfloat16])
def test_every_margin(gamma: float, extra: str, dtype: torch.dtype, device: str) -> None:
    margins = torch.tensor(FAR, dtype=torch.float64)
    x = margins[:, None].to(dtype).to(device)
    for target in (0.0, 1.0):
        targets = torch.full(x.shape, target, device=device)
        check(SIGMOID, x, targets, 0.3, gamma, "none", **EXTRAS[extra])
    for classes in (2, 19):
        others = -2 * torch.rand(len(margins), classes - 1, dtype=torch.float64)
        rows = torch.cat([margins[:, None] + others.logsumexp(1, keepdim=True), others], 1).to(dtype).to(device)
        for logits in (rows, rows.t()[None].contiguous()):
            targets = torch.zeros(logits[:, 0].shape, dtype=torch.int64, device=device)
            check(SOFTMAX, logits, targets, None, gamma, "none", **EXTRAS[extra])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("classes", [2, 19, 70])
@dtypes([torch.float32, torch.float64, torch.bfloat16])
def test_soft_targets_of_sure_predictions(gamma: float, classes: int, dtype: torch.dtype, device: str) -> None:
    """One class is nearly certain, with a target or without: neither 1 - p nor the gradient may cancel."""
    margins = torch.tensor(FAR, dtype=torch.float64)
    others = -2 * torch.rand(len(margins), classes - 1, dtype=torch.float64)
    rows = torch.cat([margins[:, None] + others.logsumexp(1, keepdim=True), others], 1).to(dtype).to(device)
    shape = Shape(tuple(rows.shape))
    one_hot, other = (F.one_hot(torch.full((len(rows),), k), classes).to(device, torch.float32) for k in (0, 1))
    for targets in (one_hot, other, 1e-6 * other + one_hot, make_soft(shape, device=device)):
        for x, t in ((rows, targets), (rows.t()[None].contiguous(), targets.t()[None].contiguous())):
            check(SOFTMAX, x, t, None, gamma, "none")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@dtypes([torch.float32, torch.float64, torch.bfloat16])
def test_probabilities_near_the_ends(gamma: float, dtype: torch.dtype, device: str) -> None:
    ends = [0.0, 1e-37, 1e-20, 1e-13, 1e-11, 1e-6, 1e-3, 0.1, 0.4999, 0.5]
    p = torch.tensor(ends + [1 - e for e in ends], dtype=torch.float64)[:, None].to(dtype).to(device)
    for target in (0.0, 1.0, 0.25):
        check(SIGMOID, p, torch.full(p.shape, target, device=device), 0.3, gamma, "none", from_probabilities=True)
    both = torch.cat([p, 1 - p], 1)
    for label in (0, 1):
        targets = torch.full((len(p),), label, device=device)
        check(SOFTMAX, both, targets, None, gamma, "none", from_probabilities=True)


# --- equal to what is known ------------------------------------------------------------------------------------------


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs.double(), loss_bound(theirs.double(), torch.float32) + 1e-14, "loss")


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("s", [0.05, 0.5])
def test_smoothed_cross_entropy(s: float, reduction: str, device: str) -> None:
    for shape in FEW_SHAPES:
        targets = make_index(shape, device=device)
        logits = make_trained_logits(shape, targets)
        options = {"reduction": reduction, "label_smoothing": s}
        ours = focal_cuda.softmax_focal_loss(logits, targets, None, 0.0, **options)
        assert_same(ours, F.cross_entropy(logits.double(), targets, **options))
        if reduction != "mean":
            weight = torch.rand(shape.classes, device=device)
            ours = focal_cuda.softmax_focal_loss(logits, targets, weight, 0.0, **options)
            assert_same(ours, F.cross_entropy(logits.double(), targets, weight.double(), **options))
        soft = make_soft(shape, device=device)
        ours = focal_cuda.softmax_focal_loss(logits, soft, None, 0.0, **options)
        assert_same(ours, F.cross_entropy(logits.double(), soft.double(), **options))


def test_binary_cross_entropy(device: str) -> None:
    x, t = make_logits((33, 19), device=device), make_dense((33, 19), device=device, soft=True)
    weight = torch.rand(19, device=device) * 3
    hard = (t > 0.5).float()
    with_logits = F.binary_cross_entropy_with_logits
    ours = focal_cuda.sigmoid_focal_loss(x, hard, None, 0.0, "none", pos_weight=weight)
    assert_same(ours, with_logits(x.double(), hard.double(), pos_weight=weight.double(), reduction="none"))
    ours = focal_cuda.sigmoid_focal_loss(x, hard, None, 0.0, label_smoothing=0.2)
    assert_same(ours, with_logits(x.double(), hard.double() * 0.8 + 0.1))
    p = x.sigmoid()
    p[0, :4] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    for targets in (hard, t):
        p_ = p.double().requires_grad_()
        inside = p_.detach() * (1 - p_.detach()) > 1e-12  # elsewhere torch's denominator is this
        theirs = F.binary_cross_entropy(p_, targets.double(), reduction="none")
        ours = run(SIGMOID, p, targets, None, 0.0, "none", from_probabilities=True, upstream=torch.ones_like(p))
        assert_same(ours.loss, theirs.detach())
        (grad,) = torch.autograd.grad(theirs.sum(), p_)
        size = (t / p.clamp(min=1e-12) + (1 - t) / (1 - p).clamp(min=1e-12)).double()
        assert_close(ours.grad[inside], grad[inside], grad_bound(grad, torch.float32, size=size)[inside], "gradient")


@dtypes()
def test_one_hot_targets_are_labels(dtype: torch.dtype, device: str) -> None:
    for shape in FEW_SHAPES:
        labels = make_index(shape, device=device, ignore_index=None)
        logits = make_trained_logits(shape, labels, dtype)
        one_hot = F.one_hot(labels, shape.classes).movedim(-1, 1).float()
        for options in ({}, {"reduction": "none"}, {"label_smoothing": 0.1}):
            alpha, upstream = of_each_class(shape, loss_dtype(logits), device), None
            if options.get("reduction"):
                upstream = torch.rand(shape.positions, device=device, dtype=loss_dtype(logits))
            soft, hard = (run(SOFTMAX, logits, t, alpha, upstream=upstream, **options) for t in (one_hot, labels))
            expected = hard.loss.double()
            assert_close(soft.loss, expected, 2 * loss_bound(expected, dtype), "loss")
            check(SOFTMAX, logits, one_hot, alpha, upstream=upstream, **options)


@ops
def test_options_that_are_off_change_no_bit(op: str, device: str) -> None:
    for shape in (Shape((129, 19)), Shape((2, 19, 7, 9))):
        targets = make_index(shape, device=device)
        logits = make_trained_logits(shape, targets)
        plain = run(op, logits, targets)
        off = {"label_smoothing": 0.0, "probability_smoothing": 0.0, "from_probabilities": False}
        nothing = {"sample_weight": None, "mask": None}
        for options in (off, nothing, {"label_smoothing": 0}):
            assert_bitwise(run(op, logits, targets, **options), plain)


@ops
def test_a_mask_is_an_ignored_label(op: str, device: str) -> None:
    """Of any type, also of those that cannot hold it."""
    for shape in (Shape((129, 19)), Shape((2, 19, 7, 9)), Shape((7, 40), class_dim=0)):
        mask = torch.rand(shape.positions, device=device) < 0.7
        for dtype in (torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64):
            targets = make_index(shape, dtype, device, ignore_index=None)
            logits = make_trained_logits(shape, targets)
            poisoned = torch.where(mask.unsqueeze(shape.class_dim), logits, torch.nan)
            for ignore in (-100, 255, 2**40):
                options = {"class_dim": shape.class_dim, "ignore_index": ignore}
                masked = run(op, poisoned, targets, mask=mask, **options)
                assert_bitwise(masked, run(op, logits, torch.where(mask, targets.long(), ignore), **options))


@ops
@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
def test_a_weight_of_0_keeps_everything_out(op: str, gradient: str, device: str) -> None:
    """Loss and gradient are those of a batch without it but for the number a mean divides by."""
    for shape in (Shape((40, 19)), Shape((2, 19, 7, 9)), Shape((21, 65))):
        targets = make_index(shape, device=device)
        logits = make_trained_logits(shape, targets)
        weight = (torch.rand(shape.positions, device=device) < 0.6).float()
        out = (weight == 0).unsqueeze(1).expand_as(logits)
        for options in ({}, {"label_smoothing": 0.1}):
            options = options | {"gradient": gradient, "sample_weight": weight}
            clean = run(op, logits, targets, **options)
            for poison in (torch.nan, torch.inf, -torch.inf):
                result = run(op, torch.where(out, poison, logits), targets, **options)
                assert_bitwise(result, clean)
                assert result.loss.isfinite() and (result.grad[out] == 0).all()


@ops
def test_weights_scale(op: str, device: str, backend: str) -> None:
    """By a power of two, to the bit; a GPU computes in other units, which subnormal numbers show."""
    shape = Shape((2, 19, 7, 9))
    targets = make_index(shape, device=device)
    logits = make_trained_logits(shape, targets)
    plain = check(op, logits, targets, reduction="none", sample_weight=torch.ones(1, 1, 1, device=device))
    like = plain.loss
    doubled = run(op, logits, targets, None, reduction="none", sample_weight=torch.full((1, 1, 1), 4.0, device=device),
                  upstream=torch.ones_like(like))  # fmt: skip
    once = run(op, logits, targets, None, reduction="none", sample_weight=torch.full((1, 1, 1), 1.0, device=device),
               upstream=torch.ones_like(like))  # fmt: skip
    assert_agree(doubled, Result(4 * once.loss, 4 * once.grad), backend)


@dtypes()
def test_classes_at_minus_infinity_without_a_target(dtype: torch.dtype, device: str) -> None:
    for shape in (Shape((40, 19)), Shape((2, 19, 7, 9)), Shape((21, 65))):
        logits, targets = make_logits(shape.size, dtype, device), make_soft(shape, device=device)
        logits = torch.where((targets == 0) & (torch.rand(shape.size, device=device) < 0.5), -torch.inf, logits)
        for gamma in (0.0, 0.5, 2.0):
            result = check(SOFTMAX, logits, targets, None, gamma, "none")
            assert result.loss.isfinite().all() and (result.grad[logits == -torch.inf] == 0).all()


def test_an_impossible_class_with_a_target_has_an_infinite_loss(device: str) -> None:
    for shape in (Shape((3, 19)), Shape((3, 70))):
        logits = make_logits(shape.size, device=device)
        logits[1, 5] = -torch.inf
        labels = torch.zeros(3, dtype=torch.int64, device=device)
        loss = focal_cuda.softmax_focal_loss(logits, labels, reduction="none", label_smoothing=0.1)
        assert loss[1] == torch.inf and loss[[0, 2]].isfinite().all()


@ops
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_a_nan_in_a_used_logit_comes_through(op: str, gamma: float, device: str) -> None:
    for shape in (Shape((3, 19)), Shape((3, 70)), Shape((3, 19, 4))):
        targets = torch.zeros(shape.positions, dtype=torch.int64, device=device)
        for place in (0, 7, shape.classes - 1):
            logits = make_logits(shape.size, device=device)
            logits[1, place] = torch.nan
            result = run(op, logits, targets, None, gamma, label_smoothing=0.1)
            assert result.loss.isnan() and result.grad[1].isnan().any() and result.grad[0].isfinite().all()
