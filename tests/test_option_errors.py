"""Every way to give an option wrongly: the type of the error, and what its one sentence must name."""

from __future__ import annotations

import re

import pytest
import torch
from compare import fails

import focal_cuda

SIGMOID, SOFTMAX = "sigmoid_focal_loss", "softmax_focal_loss"
ops = pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])
X = torch.zeros(4, 3)
T = torch.tensor([0, 1, 2, 0])
SOFT = torch.full((4, 3), 0.25)
IMAGE, MASK = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)


# --- tensors beside the targets --------------------------------------------------------------------------------------


@ops
def test_sample_weight(op: str) -> None:
    for value in (1.0, [1.0] * 4, "ones"):
        fails(TypeError, op, X, T, sample_weight=value, names="sample_weight to be a tensor, got (float|list|str)")
    for dtype in (torch.int64, torch.bool, torch.complex64):
        bad = torch.ones(4).to(dtype)
        fails(TypeError, op, X, T, sample_weight=bad, names=f"sample_weight of a floating dtype, got {dtype}")
    bad = torch.ones(4, requires_grad=True)
    fails(ValueError, op, X, T, sample_weight=bad, names="sample_weight without gradient.*detach")
    bad = torch.ones(4, device="meta")
    fails(ValueError, op, X, T, sample_weight=bad, names="sample_weight on the logits' device cpu, got meta")


@ops
@pytest.mark.parametrize("size", [(3,), (5,), (), (4, 2), (3, 4), (4, 3, 1), (0,)], ids=str)
def test_shapes_of_weights_and_masks(op: str, size: tuple) -> None:
    """Both forms are named; nothing is broadcast but a 1."""
    either = r"\[4\] or \[4, 3\]" if op == SIGMOID else r"\[4\]"
    got = re.escape(str(list(size)))
    fails(ValueError, op, X, T, sample_weight=torch.ones(size), names=rf"sample_weight of shape {either}, .*got {got}")
    fails(ValueError, op, X, T, mask=torch.ones(size) > 0, names=rf"mask of shape .*\[4.*, got {got}")
    for good in ((1,), (4,)) if op == SOFTMAX else ((1,), (4,), (1, 3), (4, 1), (1, 1)):
        assert getattr(focal_cuda, op)(X, T, sample_weight=torch.ones(good), mask=torch.ones(good) > 0) > 0


def test_shapes_of_weights_where_there_are_no_rows() -> None:
    """Dense targets of any shape; class_dim means nothing there."""
    x = torch.zeros(5)
    fails(ValueError, SIGMOID, x, x, sample_weight=torch.ones(4), names=r"sample_weight of shape \[5\], .*got \[4\]")
    fails(ValueError, SIGMOID, x, x, mask=torch.ones(5, 1) > 0, names=r"mask of shape \[5\], .*got \[5, 1\]")
    fails(ValueError, SOFTMAX, IMAGE, MASK, sample_weight=torch.ones(2, 4), names=r"\[2, 4, 5\], .*got \[2, 4\]")


@ops
def test_mask(op: str) -> None:
    for value in (True, [True] * 4):
        fails(TypeError, op, X, T, mask=value, names="mask to be a bool tensor, got (bool|list)")
    for dtype in (torch.uint8, torch.float32, torch.int64):
        fails(TypeError, op, X, T, mask=torch.ones(4).to(dtype), names=f"mask to be a bool tensor, got {dtype}.*!= 0")
    bad = torch.ones(4, dtype=torch.bool, device="meta")
    fails(ValueError, op, X, T, mask=bad, names="mask on the logits' device cpu, got meta")


@ops
@pytest.mark.parametrize("name", ["gamma", "pos_weight"])
def test_numbers_of_classes(op: str, name: str) -> None:
    if op == SOFTMAX and name == "pos_weight":
        with pytest.raises(TypeError, match="pos_weight"):
            focal_cuda.softmax_focal_loss(X, T, pos_weight=2.0)
        return
    sizes = [(2,), (4,), (1,), (1, 3)] + ([()] if name == "pos_weight" else [])
    for size in sizes:
        got = re.escape(str(list(size)))
        fails(ValueError, op, X, T, **{name: torch.ones(size)}, names=rf"{name} of shape \[3\].*got {got}")
    for size in ((3,), ()) if name == "gamma" else ((3,),):
        bad = torch.ones(size, dtype=torch.int64)
        fails(TypeError, op, X, T, **{name: bad}, names=f"{name} of a floating dtype, got torch.int64")
        bad = torch.ones(size, requires_grad=True)
        fails(ValueError, op, X, T, **{name: bad}, names=f"{name} without gradient.*detach")
        bad = torch.ones(size, device="meta")
        fails(ValueError, op, X, T, **{name: bad}, names=f"{name} on the logits' device cpu, got meta")


def test_numbers_of_classes_need_a_class_dim() -> None:
    x = torch.zeros(5)
    for name in ("alpha", "gamma", "pos_weight"):
        fails(ValueError, SIGMOID, x, x, **{name: torch.ones(5)}, names=r"class_dim in \[-1, 1\).*got 1")
        assert focal_cuda.sigmoid_focal_loss(x, x, **{name: torch.ones(5)}, class_dim=0) >= 0


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, -1e-9, float("nan"), float("inf")])
def test_pos_weight_out_of_range(value: float) -> None:
    fails(ValueError, SIGMOID, X, T, pos_weight=value, names=rf"pos_weight >= 0.*got {value}")


@ops
@pytest.mark.parametrize("name", ["label_smoothing", "probability_smoothing"])
def test_smoothing(op: str, name: str) -> None:
    for value in (1.0, -0.1, 1.5, float("nan"), float("inf")):
        fails(ValueError, op, X, T, **{name: value}, names=rf"{name} in \[0, 1[\])].*got {value}")
    for value in ("0.1", None, True, torch.tensor(0.1)):
        fails(TypeError, op, X, T, **{name: value}, names=f"{name} to be a number, got (str|NoneType|bool|Tensor)")


@pytest.mark.parametrize("value", ["2", True, [2.0]], ids=repr)
def test_pos_weight_of_another_type(value: object) -> None:
    fails(TypeError, SIGMOID, X, T, pos_weight=value, names="pos_weight to be a number, got (str|bool|list)")


@ops
@pytest.mark.parametrize("value", [None, 1, "yes"], ids=repr)
def test_from_probabilities_of_another_type(op: str, value: object) -> None:
    fails(TypeError, op, X + 0.5, T, from_probabilities=value, names="from_probabilities to be True or False")


@ops
def test_ohem(op: str) -> None:
    for value in (0.0, 0, -0.1, 1.5, float("nan")):
        fails(ValueError, op, X, T, ohem_keep_ratio=value, names=rf"ohem_keep_ratio in [\[(]0, 1\].*got {value}")
    for value in (-0.1, float("nan"), float("inf")):
        fails(ValueError, op, X, T, ohem_threshold=value, names=rf"ohem_threshold >= 0.*got {value}")
    for value in ("0.5", True, [0.5], torch.tensor(0.5)):
        for name in ("ohem_keep_ratio", "ohem_threshold"):
            fails(TypeError, op, X, T, **{name: value}, names=f"{name} to be a number")


@ops
def test_ohem_with_negative_weights(op: str) -> None:
    """Losses are ordered by their bits, as if they had no sign."""
    weight = torch.tensor([1.0, 0.0, -0.5, 2.0])
    for told in ({"ohem_keep_ratio": 0.5}, {"ohem_threshold": 0.1}):
        names = r"sample_weight >= 0.*got sample_weight\[2\] = -0.5"
        fails(ValueError, op, X, T, sample_weight=weight, **told, names=names)
        assert getattr(focal_cuda, op)(X, T, sample_weight=weight.abs(), **told) > 0
    assert getattr(focal_cuda, op)(X, T, sample_weight=weight, validate=True) > 0


# --- what does not go together ---------------------------------------------------------------------------------------


@ops
def test_smoothed_probabilities_go_with_hard_targets_and_logits(op: str) -> None:
    s = {"probability_smoothing": 0.1}
    fails(ValueError, op, X, T, **s, label_smoothing=0.1, names="probability_smoothing.*got it with label_smoothing")
    fails(ValueError, op, X + 0.5, T, **s, from_probabilities=True, names="got it with from_probabilities; drop one")
    if op == SOFTMAX:
        fails(ValueError, op, X, SOFT, **s, names="probability_smoothing.*soft targets; drop one")
    else:  # seen by the kernel alone
        fails(ValueError, op, X, SOFT, **s, names=r"dense targets 0, 1 .*got targets\[0, 0\] = 0.25")


@ops
@pytest.mark.parametrize("option", [{"ohem_keep_ratio": 0.5}, {"ohem_threshold": 0.1}], ids=str)
def test_ohem_is_a_mean(op: str, option: dict) -> None:
    for reduction in ("none", "sum"):
        fails(ValueError, op, X, T, reduction=reduction, **option, names='expected reduction="mean".*OHEM')
    for normalizer in (2.0, torch.tensor(2.0), "positives"):
        told = {"reduction": "sum", "normalizer": normalizer, "background_index": 0}
        fails(ValueError, op, X, T, **told, **option, names="no normalizer with OHEM")


def test_probabilities_of_a_softmax_are_not_overwritten() -> None:
    p = torch.full((4, 3), 1 / 3).requires_grad_() * 1
    for targets in (T, SOFT):
        fails(ValueError, SOFTMAX, p, targets, gradient="inplace", from_probabilities=True, names="got 'inplace'")


def test_soft_targets() -> None:
    fails(ValueError, SOFTMAX, X, SOFT[:, :2], names=r"targets of shape \[4\].*got \[4, 2\]")
    fails(ValueError, SOFTMAX, X, SOFT, class_dim=2, names=r"class_dim in \[-2, 2\).*got 2")
    fails(ValueError, SOFTMAX, X[:, :1], SOFT[:, :1], names="at least 2 classes.*use sigmoid_focal_loss")
    fails(ValueError, SOFTMAX, X, SOFT.clone().requires_grad_(), names="targets without gradient")
    told = {"reduction": "sum", "normalizer": "positives"}
    fails(ValueError, SOFTMAX, X, SOFT, **told, names="background_index.*got None")
    fails(ValueError, SOFTMAX, X, SOFT, reduction="sum", normalizer="positive", names='"positives", got .positive.')
    assert focal_cuda.softmax_focal_loss(X, SOFT, **told, background_index=1) > 0


# --- values ----------------------------------------------------------------------------------------------------------

KERNELS: list[dict] = [{}, {"label_smoothing": 0.1}, {"from_probabilities": True}, {"probability_smoothing": 0.1}]


@pytest.mark.usefixtures("raising_backend")
@ops
@pytest.mark.parametrize("options", KERNELS, ids=lambda options: next(iter(options), "plain"))
@pytest.mark.parametrize("label", [-1, 4, 77])
def test_labels_out_of_range(op: str, options: dict, label: int) -> None:
    """Whichever engine reads them, or torch."""
    wrong = T.clone()
    wrong[2] = label
    x = X + 0.5
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    further = [{}, {"reduction": "none"}, {"sample_weight": weight}, {"alpha": torch.rand(3)}]
    if options:
        further += [{"gamma": torch.rand(3)}, {"mask": torch.tensor([[True]]).expand(4, 3)} if op == SIGMOID else {}]
    for extra in further:
        fails(IndexError, op, x, wrong, **options, **extra, names=rf"\[0, 3\).*got targets\[2\] = {label}")


@ops
def test_the_remedy_for_a_weight(op: str) -> None:
    for name, ones in (("sample_weight", torch.ones), ("mask", lambda *n: torch.ones(n, dtype=torch.bool))):
        fails(ValueError, op, IMAGE, MASK, **{name: ones(2)}, names=rf"; .*{name}.view\(-1, 1, 1\)")
        fails(ValueError, op, IMAGE, MASK, **{name: ones(4, 5)}, names="; reshape it")
        with_channel = {name: ones(2, 1, 4, 5)}
        if op == SOFTMAX:
            fails(ValueError, op, IMAGE, MASK, **with_channel, names="; squeeze dim 1")
        else:
            assert focal_cuda.sigmoid_focal_loss(IMAGE, MASK, **with_channel) > 0
    fails(TypeError, op, X, T, sample_weight=[1.0] * 4, names="sample_weight.*got list; .*torch.as_tensor")
    fails(TypeError, op, X, T, sample_weight=2.0, names="sample_weight.*got float; for one factor scale the loss")


@ops
def test_what_validate_sees(op: str) -> None:
    told = {"validate": True}
    weight = torch.tensor([1.0, 1.0, torch.nan, 1.0])
    names = r"sample_weight without NaN, got sample_weight\[2(, 0)?\] = nan"
    fails(ValueError, op, X, T, sample_weight=weight, **told, names=names)
    if op == SIGMOID:
        return
    soft = SOFT.clone()
    soft[2, 1] = -0.5
    fails(ValueError, op, X, soft, **told, names=r"dense targets >= 0.*got targets\[2, 1\] = -0.5")
    soft[2, 0] = -100
    assert getattr(focal_cuda, op)(X, soft, **told) > 0


@ops
def test_meta_tensors_have_the_right_shapes(op: str) -> None:
    x, labels, dense = (t.to("meta") for t in (IMAGE, MASK, IMAGE))
    options = {"sample_weight": torch.ones(2, 1, 5, device="meta"), "gamma": torch.ones(3, device="meta")}
    for targets in (labels, dense):
        loss = getattr(focal_cuda, op)(x, targets, reduction="none", mask=labels == 0, label_smoothing=0.1, **options)
        assert loss.is_meta and loss.shape == (IMAGE.shape if op == SIGMOID else MASK.shape)
