"""The tolerances have teeth for options and relatives, too: one plausible mistake, made by the oracle, is rejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Shape, make_dense, make_index, make_logits, make_soft, make_trained_logits
from combinations import (
    ASYMMETRIC,
    GAUSSIAN,
    NORMALIZED,
    POLY,
    QUALITY,
    REDUCED,
    SIGMOID,
    SOFTMAX,
    VARIFOCAL,
)
from compare import Result, oracle, random_upstream, shape_of_loss, sizes
from tolerance import grad_bound, loss_bound, mismatch
from torch import Tensor

SHAPES = [Shape((129, 19)), Shape((2, 19, 7, 9))]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SOFTMAXED = {"activation": "softmax"}


def accepted(wrong: Result, expected: Result, size: Result, upstream: Tensor, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether loss and gradient pass as results for logits of this type, rounded as such results are."""
    bound = grad_bound(expected.grad, dtype, upstream.abs().max().item(), size=size.grad)
    return (
        mismatch(wrong.loss.float(), expected.loss, loss_bound(expected.loss, dtype, size.loss)) is None,
        mismatch(wrong.grad.to(dtype), expected.grad, bound) is None,
    )


def rolled(x: Tensor) -> Tensor:
    return x.flatten().roll(1).view_as(x)


# What is right, and what a mistake would make of it: options of both; a function is of what is right.
MISTAKES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "smoothing of labels left out": (SIGMOID, {"label_smoothing": 0.1}, {"label_smoothing": 0.0}),
    "smoothing of labels 1 % up": (SIGMOID, {"label_smoothing": 0.1}, {"label_smoothing": 0.101}),
    "labels smoothed over C + 1 classes": (SOFTMAX, {"label_smoothing": 0.1}, {"label_smoothing": 0.1 * 19 / 20}),
    "smoothing in the modulating factor alone": (
        SIGMOID,
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.0, "probability_smoothing": 0.1},
    ),
    "smoothing in the cross entropy": (
        SOFTMAX,
        {"probability_smoothing": 0.1},
        {"label_smoothing": 0.1, "probability_smoothing": 0.0},
    ),
    "smoothing by s, not s / 2": (SIGMOID, {"probability_smoothing": 0.1}, {"probability_smoothing": 0.2}),
    "a tiny smoothing left out": (SOFTMAX, {"probability_smoothing": 0.001}, {"probability_smoothing": 0.0}),
    "pos_weight left out": (SIGMOID, {"pos_weight": 1.3}, {"pos_weight": None}),
    "pos_weight of another class": (SIGMOID, {"pos_weight": "classes", "gamma": 0.0}, {"pos_weight": rolled}),
    "gamma of another class": (SOFTMAX, {"gamma": "classes"}, {"gamma": rolled}),
    "gamma of another class, one-vs-all": (SIGMOID, {"gamma": "classes"}, {"gamma": rolled}),
    "weights left out": (SOFTMAX, {"sample_weight": "positions"}, {"sample_weight": None}),
    "weights of other positions": (SOFTMAX, {"sample_weight": "positions"}, {"sample_weight": rolled}),
    "weights of other rows": (SIGMOID, {"sample_weight": "positions"}, {"sample_weight": rolled}),
    "a mask left out": (SIGMOID, {"mask": "positions"}, {"mask": None}),
    "a mask of other positions": (SOFTMAX, {"mask": "positions"}, {"mask": rolled}),
    "soft targets made labels": (SOFTMAX, {"targets": "soft"}, {"targets": lambda y: y.argmax(1)}),
    "soft targets that must sum to 1": (
        SOFTMAX,
        {"targets": "sum 1.7"},
        {"targets": lambda y: y / y.sum(1, keepdim=True)},
    ),
    "probabilities clamped": (
        SIGMOID,
        {"from_probabilities": True},
        {"logits": lambda p: p.clamp(1e-2, 1 - 1e-2)},
    ),
    "probabilities normalised": (
        SOFTMAX,
        {"from_probabilities": True},
        {"logits": lambda p: p / p.sum(1, keepdim=True)},
    ),
    "beta 1 % up": (QUALITY, {}, {"beta": 2.02}),
    "scores left out": (QUALITY, {"scores": "positions"}, {"scores": None}),
    "scores in bfloat16": (QUALITY, {"scores": "positions"}, {"scores": lambda s: s.bfloat16().float()}),
    "positives weighed by 1": (VARIFOCAL, {"scores": "positions"}, {"iou_weighted": False}),
    "negatives of weight 1": (VARIFOCAL, {"scores": "positions"}, {"alpha": 1.0}),
    "negatives not focused": (VARIFOCAL, {"scores": "positions"}, {"gamma": 0.0}),
    "exponents swapped": (GAUSSIAN, {"targets": "heat"}, {"alpha": 4.0, "gamma": 2.0}),
    "negatives near a peak as heavy": (GAUSSIAN, {"targets": "heat"}, {"gamma": 0.0}),
    "weights of a heat map swapped": (
        GAUSSIAN,
        {"targets": "heat", "pos_weight": 0.7},
        {"pos_weight": 1.0, "neg_weight": 0.7},
    ),
    "gammas swapped": (ASYMMETRIC, {}, {"gamma_negative": 1.0, "gamma_positive": 4.0}),
    "margin left out": (ASYMMETRIC, {}, {"margin": 0.0}),
    "margin 1 % up": (ASYMMETRIC, {}, {"margin": 0.0505}),
    "epsilon left out": (POLY, {}, {"epsilon": 0.0}),
    "epsilon of the wrong sign": (POLY, SOFTMAXED, {"epsilon": -1.0}),
    "epsilon 1 % up": (POLY, SOFTMAXED, {"epsilon": 1.01}),
    "the threshold somewhere else": (REDUCED, SOFTMAXED, {"threshold": 0.505}),
    "gamma 1 % up": (REDUCED, {}, {"gamma": 2.02}),
    "everything focal": (REDUCED, {}, {"threshold": 1e-9}),
    "normalised with another gamma": (NORMALIZED, {}, {"gamma": 2.02}),
    "normalised without alpha": (NORMALIZED, SOFTMAXED | {"alpha": "classes"}, {"alpha": None}),
}


def batch(op: str, options: dict[str, Any], shape: Shape) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, targets and options of what is right."""
    kind = options.get("targets", "index")
    targets = {
        "index": lambda: make_index(shape, ignore_index=None),
        "soft": lambda: make_soft(shape),
        "sum 1.7": lambda: make_soft(shape, total=1.7),
        "heat": lambda: make_dense(shape.size, soft=True),
    }[kind]()
    logits = make_trained_logits(shape, targets) if kind == "index" else make_logits(shape.size)
    if options.get("from_probabilities"):
        p = logits.sigmoid() if op == SIGMOID else 0.9 * logits.softmax(1)
        logits = p.clamp(1e-3, 1 - 1e-3)  # float16 has no larger gradients
    numbers = {"classes": torch.rand(shape.classes) + 0.5, "positions": torch.rand(shape.positions)}
    made = {name: numbers.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    if "mask" in made:
        made["mask"] = made["mask"] < 0.8
    made.pop("targets", None)
    return logits, targets, made


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_rejected(mistake: str, reduction: str, dtype: torch.dtype) -> None:
    op, options, wrong = MISTAKES[mistake]
    if op == NORMALIZED and reduction == "none":
        return
    if mistake == "scores in bfloat16" and reduction == "mean":
        return  # roundings up and down, of which a mean has little left
    for shape in SHAPES:
        logits, targets, right = batch(op, options, shape)
        if op != NORMALIZED:
            right["reduction"] = reduction
        upstream = random_upstream(shape_of_loss(op, logits, right), logits)
        expected = oracle(op, logits, targets, upstream=upstream, **right)
        size = sizes(op, logits, targets, upstream, expected, **right)
        assert accepted(expected, expected, size, upstream, dtype) == (True, True)

        changed = {k: v(right[k]) if callable(v) and k in right else v for k, v in wrong.items()}
        x, t = (changed.pop(k, lambda v: v)(v) for k, v in (("logits", logits), ("targets", targets)))
        result = oracle(op, x, t, upstream=upstream, **right | changed)
        assert accepted(result, expected, size, upstream, dtype) == (False, False), shape


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_gradient_of_the_numerator_alone_is_rejected(activation: str, dtype: torch.dtype) -> None:
    logits, targets, _ = batch(NORMALIZED, {}, SHAPES[0])
    upstream = random_upstream((), logits)
    expected = oracle(NORMALIZED, logits, targets, upstream=upstream, activation=activation)
    size = sizes(NORMALIZED, logits, targets, upstream, expected, activation=activation)
    op = f"{activation}_focal_loss"
    numerator = oracle(op, logits, targets, alpha=None, reduction="sum").loss
    told = {"alpha": None, "reduction": "sum", "normalizer": numerator / expected.loss}
    result = oracle(op, logits, targets, upstream=upstream, **told)
    assert accepted(result, expected, size, upstream, dtype) == (True, False)
