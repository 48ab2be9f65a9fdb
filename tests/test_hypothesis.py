"""Combinations nobody thought of: any shape, strides, offset, types, options and special values at once."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import test_options
import test_variants
import torch
from cases import DTYPES, GAMMAS, INDEX_DTYPES, Shape, make_dense, make_index, make_logits, make_trained_logits
from combinations import ALL, SIGMOID, SOFTMAX
from compare import check, hold
from hypothesis import assume, given
from simt.emulation import Emulation
from torch import Tensor

# Nothing, one, below, at and above the lengths of vectors and tiles, primes.
SIZES = [0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 67, 127, 128, 129, 257]
LARGEST = 30_000
SPECIAL_OF_OPTIONS = [None, None, 1e4, -1e4, 65504.0, -0.0, 1e-40]
SPECIAL = [None, None, math.nan, -math.inf, 1e4, -1e4, 65504.0, -0.0, 1e-40]


@st.composite
def sizes(draw: st.DrawFn, least_classes: int) -> tuple[tuple[int, ...], int]:
    """A shape of two to four dimensions and the dimension of its classes."""
    rank = draw(st.integers(2, 4))
    class_dim = draw(st.integers(0, rank - 1))
    size: list[int] = []
    for dim in range(rank):
        room = LARGEST // max(1, math.prod(max(1, n) for n in size)) // 3 ** (rank - dim - 1)
        least = least_classes if dim == class_dim else 0
        size.append(draw(st.sampled_from([n for n in SIZES if least <= n <= max(room, least, 2)])))
    return tuple(size), class_dim


@st.composite
def views(draw: st.DrawFn, x: Tensor) -> Tensor:
    """The same values in memory of another order, with gaps, from an odd offset."""
    order = draw(st.permutations(range(x.dim())))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in order]
    offset = draw(st.integers(0, 3))
    inner = [x.shape[d] * s for d, s in zip(order, steps, strict=True)]
    fill = torch.nan if x.is_floating_point() else 1
    storage = torch.full((offset + math.prod(inner),), fill, dtype=x.dtype)
    view = storage[offset:].view(inner)[tuple(slice(None, None, s) for s in steps)]
    view = view.permute([order.index(d) for d in range(x.dim())])
    return view.copy_(x)


@st.composite
def problems(draw: st.DrawFn, op: str) -> tuple[tuple, dict[str, Any]]:
    softmax = op == SOFTMAX
    dense = not softmax and draw(st.booleans())
    soft = dense and draw(st.booleans())
    size, class_dim = draw(sizes(2 if softmax else 1))
    shape = Shape(size, class_dim)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))
    ignore = draw(st.sampled_from([-100, -1, 255, 101]))
    kwargs: dict[str, Any] = {"class_dim": class_dim - draw(st.sampled_from([0, len(size)])), "ignore_index": ignore}

    if dense:
        targets = make_dense(size, draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])), soft=soft)
        targets[torch.rand(size) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = ignore
        logits = make_logits(size, dtype)
    else:
        # Labels beyond the type, and -100 or 255 in one that lacks it, would be another test's error.
        fitting = [d for d in INDEX_DTYPES if d != torch.bool and torch.iinfo(d).min <= ignore <= torch.iinfo(d).max]
        background = None if softmax else draw(st.sampled_from([None, 0, 120]))
        label = None if softmax else shape.classes if background is None else background
        if label is not None and label > 127:
            fitting = [d for d in fitting if d in (torch.int16, torch.int32, torch.int64)]
        targets = make_index(shape, draw(st.sampled_from(fitting)), ignore_index=ignore, background=label)
        if softmax:
            logits = make_trained_logits(shape, targets, dtype)
        else:
            logits = make_logits(size, dtype)
            kwargs["background_index"] = background

    special = draw(st.sampled_from(SPECIAL))
    # An infinite logit of a soft target has an infinite loss, whose gradient is anybody's guess.
    if special is not None and not (soft and math.isinf(special)):
        logits[torch.rand(size) < 0.02] = special

    reduction = draw(st.sampled_from(["none", "mean", "sum"]))
    if reduction == "sum":
        kwargs["normalizer"] = draw(st.sampled_from([None, 3.7, torch.tensor(11.0), "positives"]))
        if softmax:
            kwargs["background_index"] = 0
    policies = ["auto", "backward"] if reduction == "none" else ["auto", "forward", "backward"]
    kwargs["gradient"] = draw(st.sampled_from(policies))
    alpha = draw(st.sampled_from([None, 0.3, torch.rand(shape.classes)]))
    gamma = draw(st.one_of(st.sampled_from(GAMMAS), st.floats(0, 5)))
    return (draw(views(logits)), draw(views(targets)), alpha, gamma, reduction), kwargs


@st.composite
def calls(draw: st.DrawFn, op: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """A loss with options: any choice for each, and special values."""
    axes = test_variants.axes_of(op) if op in ALL else test_options.AXES[op]
    row = {name: draw(st.sampled_from(values)) for name, values in axes.items() if name != "shape"}
    assume(test_variants.go_together(row) if op in ALL else test_options.go_together(op, row))
    row["shape"] = Shape(*draw(sizes(2)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    made = test_variants.arguments if op in ALL else test_options.arguments
    logits, targets, options = made(op, row, "cpu")
    special = draw(st.sampled_from(SPECIAL_OF_OPTIONS))
    if special is not None and not options.get("from_probabilities"):
        logits = torch.where(torch.rand(logits.shape) < 0.02, special, logits)
    return draw(views(logits)), draw(views(targets)), options


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("op", [SOFTMAX, SIGMOID])
@given(data=st.data(), threads=st.sampled_from([1, 2, 4]))
def test_anything(op: str, data: st.DataObject, threads: int) -> None:
    arguments, kwargs = data.draw(problems(op), label="problem")
    torch.set_num_threads(threads)
    check(op, *arguments, **kwargs)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("op", [SOFTMAX, SIGMOID, *ALL])
@given(data=st.data(), threads=st.sampled_from([1, 2, 4]))
def test_any_options(op: str, data: st.DataObject, threads: int) -> None:
    logits, targets, options = data.draw(calls(op), label="call")
    torch.set_num_threads(threads)
    hold(op, logits, targets, **options)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("op", [SOFTMAX, SIGMOID, *ALL])
@given(data=st.data())
def test_anything_on_a_gpu(op: str, data: st.DataObject, emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated."""
    torch.set_num_threads(1)
    with monkeypatch.context() as patch:
        emulation.use(patch)
        if op in (SOFTMAX, SIGMOID) and data.draw(st.booleans()):
            arguments, kwargs = data.draw(problems(op), label="problem")
            check(op, *arguments, **kwargs)
        else:
            logits, targets, options = data.draw(calls(op), label="call")
            hold(op, logits, targets, **options)
