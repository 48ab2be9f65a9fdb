"""The relatives of the focal loss against their oracles, with every option, engine, type and reduction."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import MARGINS, Shape, dtypes, make_dense, make_logits
from combinations import (
    ALL,
    ASYMMETRIC,
    BY_ACTIVATION,
    COMMON,
    FEW_SHAPES,
    GAUSSIAN,
    NORMALIZED,
    ON_DEVICE,
    POLY,
    QUALITY,
    REDUCED,
    VARIFOCAL,
    by_class,
    call_of,
    computing_dtype,
    labels_and_logits,
    make_logits_for,
    make_targets,
    name_of,
    of_row,
    pairwise,
)
from compare import assert_bitwise, hold, run
from tolerance import assert_close, loss_bound
from torch import Tensor

import focal_cuda

HARD = ["uint8", "bool", "int64", "dense", "dense bool"]
SCORED = ["scored uint8", "scored int64", "uint8", "soft", "dense", "dense bool"]

# What each has of its own: all defaults, 0 and 0.5 for exponents, the ends of ranges.
OWN: dict[str, list[dict[str, Any]]] = {
    QUALITY: [{}, {"beta": 0.0}, {"beta": 0.5}, {"beta": 3.0}],
    VARIFOCAL: [{}, {"gamma": 0.0, "alpha": 0.3}, {"gamma": 0.5, "iou_weighted": False}, {"gamma": 3.0, "alpha": 1.5}],
    GAUSSIAN: [
        {},
        {"alpha": 0.0, "gamma": 2.0},
        {"alpha": 0.5, "gamma": 0.0, "pos_weight": 2.5},
        {"alpha": 3.0, "neg_weight": 0.3},
    ],
    ASYMMETRIC: [
        {},
        {"gamma_negative": 0.0, "gamma_positive": 0.0},
        {"gamma_negative": 2.0, "gamma_positive": 0.5, "margin": 0.0},
        {"gamma_negative": 0.5, "gamma_positive": 3.0, "margin": 0.2},
    ],
    POLY: [{}, {"epsilon": -1.0, "gamma": 0.0}, {"epsilon": 2.5, "gamma": 0.5}, {"epsilon": -0.5, "gamma": 3.0}],
    REDUCED: [
        {},
        {"threshold": 0.25, "gamma": 0.5},
        {"threshold": 0.8, "gamma": 3.0},
        {"threshold": 1.0, "gamma": 0.0},
    ],
    NORMALIZED: [{}, {"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 3.0}],
}


def axes_of(op: str) -> dict[str, list]:
    axes = COMMON | {"own": OWN[op], "on the device": [False, True]}
    if op == NORMALIZED:
        axes = axes | {"reduction": ["mean"], "gradient": ["auto", "forward", "backward"]}
    if op in BY_ACTIVATION:
        return axes | {"targets": HARD, "activation": ["sigmoid", "softmax"], "alpha": [None, 0.3, "classes"]}
    kinds = {GAUSSIAN: ["soft", "dense", "dense bool"], ASYMMETRIC: HARD}
    return axes | {"targets": kinds.get(op, SCORED)}


def go_together(row: dict[str, Any]) -> bool:
    softmax = row.get("activation") == "softmax"
    return not (
        (row["reduction"] == "none" and row["gradient"] in ("forward", "inplace"))
        or (softmax and ("dense" in row["targets"] or row["mask"] == "element"))
        # As dense targets, which a mask of elements makes of them, positives with a score of 0 are none.
        or ("scored" in row["targets"] and row["mask"] == "element" and row["reduction"] == "positives")
    )


def arguments(op: str, row: dict[str, Any], device: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    shape, softmax, kind = row["shape"], row.get("activation") == "softmax", row["targets"]
    targets, ignore = make_targets(softmax, kind.removeprefix("scored "), shape, computing_dtype(row), device)
    logits, laid, options = of_row(row, make_logits_for(targets, shape), targets, softmax)
    options |= row["own"] | {"ignore_index": ignore}
    if kind.startswith("scored"):
        options["scores"] = torch.rand(targets.shape, device=device)
        options["scores"].view(-1)[::5] = 1.0
        options["scores"].view(-1)[3::7] = 0.0
    for name in ("activation", "alpha"):
        if name in row:
            options[name] = by_class(row[name], row, device)
    if row["on the device"]:
        name = ON_DEVICE.get(op, "gamma")
        options[name] = torch.tensor(float(options.get(name, 1.7)), device=device, dtype=computing_dtype(row))
    if op == NORMALIZED:
        del options["reduction"]
    return logits, laid, options


ROWS = [(op, row) for op in ALL for row in pairwise(axes_of(op), go_together)]
each = pytest.mark.parametrize("op", ALL)


@pytest.fixture(autouse=True)
def _one_thread(threads: None) -> None:
    """Several would wait for each other at every small tensor of the oracle."""
    torch.set_num_threads(1)


@pytest.mark.parametrize(("op", "row"), ROWS, ids=name_of)
def test_together(op: str, row: dict[str, Any], device: str) -> None:
    """Any two of everything that a call is made of."""
    logits, targets, options = arguments(op, row, device)
    hold(op, logits, targets, **options)


def test_any_two_choices_meet() -> None:
    """But those that go with nothing."""
    for op in ALL:
        rows, axes = [row for name, row in ROWS if name == op], axes_of(op)
        some = {"reduction": "mean", "gradient": "auto", "mask": None, "targets": axes["targets"][0]}
        for a, b in itertools.combinations(axes, 2):
            met = [(row[a], row[b]) for row in rows]
            for i, j in itertools.product(axes[a], axes[b]):
                assert (i, j) in met or not go_together(some | {a: i, b: j})


@pytest.mark.parametrize(("op", "own"), [(op, own) for op in ALL for own in OWN[op]], ids=str)
@dtypes([torch.float32, torch.float64, torch.bfloat16])
def test_every_margin(op: str, own: dict, dtype: torch.dtype, device: str) -> None:
    """+-1e4 included."""
    margins = torch.tensor([s * m for m in MARGINS for s in (1, -1)], dtype=torch.float64)
    if op == REDUCED:
        # At 0 p_t is the default threshold. The power of a base whose logarithm is not at hand carries the rounding of
        # that as well: beyond 100 in float64 the error is one per cent more than allowed.
        margins = margins[(margins != 0) & (margins.abs() <= (100 if dtype == torch.float64 else 1e4))]
    x = margins[:, None].to(dtype).to(device)
    if op == NORMALIZED:
        # In a half type a large margin's share of the gradient is rounded away beside a small one's.
        for margin in margins.tolist():
            pair = torch.tensor([[margin], [0.3]], device=device).to(dtype)
            hold(op, pair, torch.ones(2, 1, device=device), **own)
        return
    soft = [] if op in (ASYMMETRIC, *BY_ACTIVATION) else [0.3, 1e-3, 0.999]
    for target in (0.0, 1.0, *soft):
        hold(op, x, torch.full(x.shape, target, device=device), **own, reduction="none")
    if op in BY_ACTIVATION:
        for classes in (2, 19, 70):
            others = -2 * torch.rand(len(margins), classes - 1, dtype=torch.float64)
            rows = torch.cat([margins[:, None] + others.logsumexp(1, keepdim=True), others], 1).to(dtype).to(device)
            for logits in (rows, rows.t()[None].contiguous()):
                targets = torch.zeros(logits[:, 0].shape, dtype=torch.int64, device=device)
                hold(op, logits, targets, **own, activation="softmax", reduction="none")


@pytest.mark.parametrize(("op", "own"), [(op, own) for op in ALL for own in OWN[op]], ids=str)
def test_infinite_logits(op: str, own: dict, device: str) -> None:
    """Sure and right costs nothing, sure and wrong everything; nothing is NaN."""
    x = torch.tensor([[torch.inf], [-torch.inf], [torch.inf], [-torch.inf]], device=device)
    t = torch.tensor([[1.0], [0.0], [0.0], [1.0]], device=device)
    if op == NORMALIZED:
        x, t = torch.cat([x[:2], torch.zeros(1, 1, device=device)]), t[:3]
        result = run(op, x, t, **own)
        assert result.loss.isfinite() and result.grad.isfinite().all() and (result.grad[:2] == 0).all()
        return
    result = run(op, x, t, **own, reduction="none", upstream=torch.ones_like(x))
    assert (result.loss[:2] == 0).all() and (result.grad[:2] == 0).all()
    assert (result.loss[2:] > 1).all() and result.grad.isfinite().all()


# --- equal to what is known ------------------------------------------------------------------------------------------


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert_close(ours, theirs.double(), 2 * loss_bound(theirs.double(), torch.float32), "loss")


@pytest.mark.parametrize("shape", FEW_SHAPES, ids=str)
def test_what_hard_targets_make_of_them(shape: Shape, device: str) -> None:
    """The focal loss, mostly."""
    targets, x = labels_and_logits(shape, device)
    focal = focal_cuda.sigmoid_focal_loss(x, targets, None, 1.5, "none")
    assert_same(focal_cuda.quality_focal_loss(x, targets, None, 1.5, "none"), focal)
    assert_same(focal_cuda.asymmetric_loss(x, targets, 1.5, 1.5, 0.0, "none"), focal)
    dense = make_dense(shape.size, device=device)
    of_dense = focal_cuda.sigmoid_focal_loss(x, dense, None, 1.5, "none")
    assert_same(focal_cuda.gaussian_focal_loss(x, dense, 1.5, 4.0, "none"), of_dense)
    of_varifocal = focal_cuda.varifocal_loss(x, dense, None, 1.0, 1.5, "none")
    assert_same(of_varifocal, torch.where(dense == 0, of_dense, F.softplus(-x.double())))
    for activation, op in (("sigmoid", "sigmoid_focal_loss"), ("softmax", "softmax_focal_loss")):
        focal = getattr(focal_cuda, op)(x, targets, None, 1.5, "none")
        poly = focal_cuda.poly_focal_loss(x, targets, 0.0, None, 1.5, "none", activation=activation)
        assert_same(poly, focal)
        entropy = getattr(focal_cuda, op)(x, targets, None, 0.0, "none")
        assert_same(focal_cuda.reduced_focal_loss(x, targets, 0.3, None, 0.0, "none", activation=activation), entropy)
        mean = getattr(focal_cuda, op)(x, targets, None, 0.0)
        assert_same(focal_cuda.normalized_focal_loss(x, targets, None, 0.0, activation=activation), mean)


@pytest.mark.parametrize("shape", FEW_SHAPES, ids=str)
@pytest.mark.parametrize("op", [QUALITY, VARIFOCAL])
def test_scores_are_dense_targets(op: str, shape: Shape, device: str) -> None:
    targets, x = labels_and_logits(shape, device)
    scores = torch.rand(targets.shape, device=device)
    hit = F.one_hot(targets.clamp(min=0), shape.classes).movedim(-1, 1) * scores.unsqueeze(1)
    dense = torch.where((targets == -100).unsqueeze(1), -100.0, hit)
    for reduction in ("none", "mean"):
        upstream = torch.full(shape.size if reduction == "none" else (), 0.7, device=device)
        by_label = run(op, x, targets, scores, reduction=reduction, upstream=upstream)
        by_element = run(op, x, dense, reduction=reduction, upstream=upstream)
        for ours, theirs in ((by_label.loss, by_element.loss), (by_label.grad, by_element.grad)):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-30)


def test_scores_of_no_class_are_not_looked_at(device: str) -> None:
    x, labels = torch.randn(5, 3, device=device), torch.tensor([0, 2, -100, 3, 1], device=device)
    scores = torch.tensor([0.2, 0.9, torch.nan, -7.0, 1.0], device=device)
    clean = torch.tensor([0.2, 0.9, 0.0, 0.0, 1.0], device=device)
    for op in (QUALITY, VARIFOCAL):
        result = hold(op, x, labels, scores=scores, reduction="sum", normalizer="positives")
        expected = run(op, x, labels, clean, reduction="sum", normalizer="positives")
        assert torch.equal(result.loss, expected.loss) and result.grad.isfinite().all()
        background = labels.where(labels != 3, -1)
        assert torch.equal(run(op, x, background, scores, background_index=-1).loss, run(op, x, labels, clean).loss)


def test_a_prediction_that_hits_its_soft_target_has_no_quality_loss(device: str) -> None:
    """And no gradient, for every beta: |t - p|^(beta - 1) is not formed."""
    x = torch.tensor([[-2.0, 0.0, 1.5]], dtype=torch.float64, device=device)
    for beta in (0.5, 1.0, 2.0):
        result = run(QUALITY, x, x.sigmoid(), beta=beta, reduction="none", upstream=torch.ones_like(x))
        assert (result.loss.abs() < 1e-7).all() and result.grad.isfinite().all()


def test_easy_negatives_of_the_asymmetric_loss_are_left_out(device: str) -> None:
    x = torch.tensor([[-20.0, -3.0, -2.94]], device=device)
    t = torch.zeros_like(x)
    for gamma in (0.0, 0.5, 4.0):
        result = hold(ASYMMETRIC, x, t, gamma_negative=gamma, reduction="none")
        assert (result.loss[0, :2] == 0).all() and (result.grad[0, :2] == 0).all() and result.loss[0, 2] > 0


# --- what is left out ------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_ignored_and_weightless_keep_everything_out(op: str, activation: str, device: str) -> None:
    if activation == "softmax" and op not in BY_ACTIVATION:
        return
    for shape in FEW_SHAPES:
        x, targets, options = call_of(op, shape, device)
        options |= {"activation": activation} if op in BY_ACTIVATION else {}
        weight = options["sample_weight"] * (torch.rand_like(options["sample_weight"]) < 0.7)
        out = weight if weight.dim() == x.dim() else weight.unsqueeze(1)
        out = (out == 0).expand_as(x)
        if targets.dim() < x.dim():
            out = out | (targets == -100).unsqueeze(1)
        clean = run(op, x, targets, **options | {"sample_weight": weight})
        for poison in (torch.nan, torch.inf):
            result = run(op, torch.where(out, poison, x), targets, **options | {"sample_weight": weight})
            assert_bitwise(result, clean)
        assert out.any() and (clean.grad[out] == 0).all() and clean.loss.isfinite()


@each
@dtypes()
def test_nothing_counted(op: str, dtype: torch.dtype, device: str) -> None:
    """A loss of 0 with a gradient of 0, also of no elements at all."""
    for rows in (4, 0):
        x = torch.randn(rows, 3, device=device).to(dtype)
        targets = torch.full((rows, 3) if op == GAUSSIAN else (rows,), -100, device=device)
        result = run(op, x, targets)
        assert result.loss == 0 and (result.grad == 0).all()


@each
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_nan_in_a_used_logit_comes_through(op: str, activation: str, device: str) -> None:
    if activation == "softmax" and op not in BY_ACTIVATION:
        return
    options = {"activation": activation} if op in BY_ACTIVATION else {}
    for shape in (Shape((3, 19)), Shape((3, 70)), Shape((3, 19, 4))):
        for target in (0, 1):
            targets = torch.full(shape.size if op == GAUSSIAN else shape.positions, target, device=device)
            x = make_logits(shape.size, device=device)
            x[1, 1] = torch.nan
            result = run(op, x, targets, **options)
            assert result.loss.isnan() and result.grad[1].isnan().any()
