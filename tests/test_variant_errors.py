"""Every way to call a relative of the focal loss wrongly: the type of the error, and what its sentence must name."""

from __future__ import annotations

import pytest
import torch
from combinations import (
    ALL,
    ASYMMETRIC,
    BY_ACTIVATION,
    GAUSSIAN,
    NORMALIZED,
    ON_DEVICE,
    POLY,
    QUALITY,
    REDUCED,
    VARIFOCAL,
)
from compare import fails

import focal_cuda

each = pytest.mark.parametrize("op", ALL)
X = torch.zeros(4, 3)
T = torch.tensor([0, 1, 2, 0])
SOFT = torch.full((4, 3), 0.25)

NUMBERS = {
    QUALITY: ["beta"],
    VARIFOCAL: ["alpha", "gamma"],
    GAUSSIAN: ["alpha", "gamma", "pos_weight", "neg_weight"],
    ASYMMETRIC: ["gamma_negative", "gamma_positive"],
    POLY: ["gamma"],
    REDUCED: ["gamma"],
    NORMALIZED: ["gamma"],
}


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in ALL for name in NUMBERS[op]])
def test_exponents_and_weights(op: str, name: str) -> None:
    targets = X if op == GAUSSIAN else T
    for value in (-1.0, -1e-9, float("nan"), float("inf")):
        fails(ValueError, op, X, targets, **{name: value}, names=rf"{name} >= 0.*got {value}")
    for value in ("2", True, [2.0]):
        fails(TypeError, op, X, targets, **{name: value}, names=f"{name} to be a number, got (str|bool|list)")
    if name == ON_DEVICE.get(op, "gamma"):
        fails(ValueError, op, X, targets, **{name: torch.ones(3)}, names=rf"{name} to be one number, got .*\[3\]")
        fails(TypeError, op, X, targets, **{name: torch.tensor(2)}, names=f"{name} of a floating dtype")
        bad = torch.tensor(2.0, device="meta")
        fails(ValueError, op, X, targets, **{name: bad}, names=f"{name} on the logits' device cpu, got meta")


def test_numbers_of_their_own() -> None:
    for value in (1.0, -0.1, 2, float("nan")):
        fails(ValueError, ASYMMETRIC, X, T, margin=value, names=rf"margin in \[0, 1[\])].*got {value}")
    for value in (0.0, -0.5, 1.5, float("nan")):
        fails(ValueError, REDUCED, X, T, threshold=value, names=rf"threshold in [\[(]0, 1\].*got {value}")
    for value in (-1.5, float("nan"), float("inf")):
        fails(ValueError, POLY, X, T, epsilon=value, names=rf"epsilon >= -1.*got {value}")
    for op, name in ((ASYMMETRIC, "margin"), (REDUCED, "threshold"), (POLY, "epsilon")):
        fails(TypeError, op, X, T, **{name: "1"}, names=f"{name} to be a number, got str")
    for value in (1, None, "yes"):
        fails(TypeError, VARIFOCAL, X, T, iou_weighted=value, names="iou_weighted to be True or False")


@pytest.mark.parametrize("op", BY_ACTIVATION)
def test_activations(op: str) -> None:
    for value in ("tanh", None, 1):
        fails(ValueError, op, X, T, activation=value, names='activation.* "sigmoid" or "softmax"')
    one = torch.zeros(4, 1)
    fails(ValueError, op, one, T * 0, activation="softmax", names="at least 2 classes.*sigmoid")
    fails(ValueError, op, X, SOFT, activation="softmax", names=r"targets of shape \[4\].*got \[4, 3\].*argmax")
    fails(ValueError, op, X, T, alpha=1.5, names=r"alpha in \[0, 1\]")
    assert getattr(focal_cuda, op)(X, T, alpha=1.5, activation="softmax") > 0
    if op != NORMALIZED:
        told = {"reduction": "sum", "normalizer": "positives", "activation": "softmax"}
        fails(ValueError, op, X, T, **told, names="background_index.*got None")


@pytest.mark.parametrize("op", [QUALITY, VARIFOCAL])
def test_scores(op: str) -> None:
    good = torch.full((4,), 0.5)
    fails((ValueError), op, X, X, good, names=r"scores of the class index targets' shape.*dense targets and no scores")
    for bad in (torch.ones(3), torch.ones(4, 1), torch.ones(4, 3), torch.ones(())):
        fails(ValueError, op, X, T, bad, names=r"scores of the class index targets' shape")
    fails(ValueError, op, X, T, [0.5] * 4, names="scores.*got list")
    fails(TypeError, op, X, T, good.long(), names="scores of a floating dtype, got torch.int64")
    fails(ValueError, op, X, T, good.to("meta"), names="scores on the logits' device cpu, got meta")
    fails(ValueError, op, X, T, good.clone().requires_grad_(), names="scores without gradient")
    for value in (-0.1, 1.5, float("nan")):
        bad = good.clone()
        bad[2] = value
        fails(ValueError, op, X, T, bad, names=rf"scores in \[0, 1\], got scores\[2\] = {value}")


def test_heat_maps_are_dense() -> None:
    fails(ValueError, GAUSSIAN, X, T, names=r"targets of .*shape.*\[4, 3\].*got \[4\]")


@pytest.mark.usefixtures("raising_backend")
@each
def test_bad_targets_are_named_with_the_name_of_the_loss(op: str) -> None:
    wrong = T.clone()
    wrong[2] = 9
    dense = torch.zeros(4, 3)
    dense[1, 2] = 1.5
    for options in ({}, {"sample_weight": torch.rand(4, 1)}):
        if op != GAUSSIAN:
            fails(IndexError, op, X, wrong, **options, names=r"\[0, 3\).*got targets\[2\] = 9")
        fails(ValueError, op, X, dense, **options, names=r"(in \[0, 1\]|0, 1 ).*got targets\[1, 2\] = 1.5")
        if op in (ASYMMETRIC, *BY_ACTIVATION):
            fails(ValueError, op, X, SOFT, **options, names=r"dense targets 0, 1 .*got targets\[\d, \d\] = 0.25")
            fails(ValueError, op, X, SOFT, **options, validate=True, names="dense targets 0, 1 ")
    if op in BY_ACTIVATION:
        x = torch.zeros(4, 3)
        fails(IndexError, op, x, wrong, activation="softmax", names=r"\[0, 3\).*got targets\[2\] = 9")


@each
def test_what_the_options_say(op: str) -> None:
    """As of the two losses: test_option_errors.py has them all."""
    targets = X if op == GAUSSIAN else T
    fails(TypeError, op, X, targets, sample_weight=1.0, names="sample_weight to be a tensor")
    fails(ValueError, op, X, targets, sample_weight=torch.ones(5), names="sample_weight of shape")
    fails(TypeError, op, X, targets, mask=torch.ones(4), names="mask to be a bool tensor")
    fails(TypeError, op, X, targets, ignore_index=1.0, names="ignore_index to be an int")
    fails(ValueError, op, X, targets, gradient="fast", names="gradient")
    fails(TypeError, op, X, [0, 1], names="targets to be a tensor, got list")
    fails(ValueError, op, X, targets, gradient="inplace", names="gradient|require grad")
    if op != NORMALIZED:
        fails(ValueError, op, X, targets, reduction="avg", names="reduction")
        fails(ValueError, op, X, targets, normalizer=2.0, names='reduction="sum" with a normalizer')
