"""Every way to call the functions wrongly: the type of the error, and what its one sentence must name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import INDEX_DTYPES, dtypes
from compare import fails
from torch import Tensor

import focal_cuda
from focal_cuda import _ops

SIGMOID, SOFTMAX = "sigmoid_focal_loss", "softmax_focal_loss"
ops = pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])
on_every_backend = pytest.mark.usefixtures("raising_backend")
X = torch.zeros(4, 3)
T = torch.tensor([0, 1, 2, 0])
IMAGE, MASK = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)


@ops
@pytest.mark.parametrize("value", [None, 1.0, [[1.0, 2.0]], "logits"], ids=repr)
def test_no_tensor(op: str, value: object) -> None:
    fails(TypeError, op, value, T, names="expected logits to be a tensor, got (NoneType|float|list|str)")
    fails(TypeError, op, X, value, names="expected targets to be a tensor, got (NoneType|float|list|str)")


@ops
def test_outputs_of_a_model_that_hold_the_logits(op: str) -> None:
    for outputs in ({"out": X}, (X, X), [X]):
        fails(TypeError, op, outputs, T, names=f"logits to be a tensor, got {type(outputs).__name__}; take the tensor")
    fails(TypeError, op, [[1.0, 2.0]], T, names="got list; wrap it in torch.as_tensor")


@ops
def test_targets_before_logits(op: str) -> None:
    fails(TypeError, op, T, X, names="logits of a floating dtype.*got torch.int64; logits come before targets")
    names = "targets without gradient.*detach them, if they are not the logits, which come first"
    fails(ValueError, op, X, X.clone().requires_grad_(), names=names)


@ops
@dtypes([torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_logits_dtype(op: str, dtype: torch.dtype) -> None:
    """Most of all labels in the place of logits."""
    fails(TypeError, op, X.to(dtype), T, names=f"expected logits .*float.*got {dtype}")


@ops
@dtypes([torch.float32, torch.float64, torch.float16, torch.complex64])
def test_float_targets_of_index_shape(op: str, dtype: torch.dtype) -> None:
    message = fails(TypeError, op, X, T.to(dtype), names=f"targets.*integer.*got {dtype}")
    assert "long()" in message


def test_complex_dense_targets() -> None:
    fails(TypeError, SIGMOID, X, X.to(torch.complex64), names="expected.* targets.*got torch.complex64")


@ops
def test_targets_with_a_singleton_dimension(op: str) -> None:
    """(N, 1) against (N,), and masks that kept their channel: said with the dimension to squeeze."""
    fails(ValueError, op, X, T[:, None], names=r"targets of shape \[4\].*got \[4, 1\].*squeeze dim 1")
    fails(ValueError, op, IMAGE, MASK[:, None], names=r"\[2, 4, 5\].*got \[2, 1, 4, 5\].*squeeze dim 1")
    fails(ValueError, op, X, T[None], names=r"targets of shape \[4\].*got \[1, 4\].*squeeze dim 0")


def test_the_message_of_the_documentation() -> None:
    logits, targets = torch.zeros(8, 3, 16, 16), torch.zeros(8, 1, 16, 16, dtype=torch.int64)
    message = fails(ValueError, SOFTMAX, logits, targets, names="squeeze")
    assert message.startswith(
        "softmax_focal_loss: expected targets of shape [8, 16, 16] (logits without dim 1), got [8, 1, 16, 16]"
    )


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        ((4, 1), (4,)),
        ((4,), (4, 1)),
        ((4, 3), (3, 4)),
        ((4, 3), (3,)),
        ((4, 3), (4, 2)),
        ((4, 3), ()),
        ((4, 3), (1, 3)),
        ((2, 3, 4, 5), (2, 5, 4)),
        ((2, 3, 4, 5), (2, 4, 5, 3)),
        ((2, 3, 4, 5), (2, 1, 1)),
        ((0, 3), (1,)),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(logits: tuple, targets: tuple) -> None:
    """Nothing is broadcast. For the sigmoid the message names both accepted shapes."""
    x = torch.zeros(logits)
    if logits == (4, 1):  # N rows of one class: index targets, and right as they are
        assert focal_cuda.sigmoid_focal_loss(x, torch.zeros(4, dtype=torch.int64)) > 0
        fails(ValueError, SOFTMAX, x, torch.zeros(4, dtype=torch.int64), names="sigmoid_focal_loss")
        return
    for op in (SIGMOID, SOFTMAX):
        got = re.escape(str(list(targets)))
        if len(logits) < 2:
            fails(ValueError, op, x, torch.zeros(targets), names="class_dim|targets of shape")
            continue
        expected = re.escape(str([logits[0], *logits[2:]]))
        either = rf".* or {re.escape(str(list(logits)))}" if op == SIGMOID else ""
        fails(ValueError, op, x, torch.zeros(targets).long(), names=rf"targets of shape {expected}{either}.*got {got}")


@ops
@pytest.mark.parametrize(
    ("logits", "targets", "remedy"),
    [
        ((2, 3, 4, 5), (2, 4, 5, 3), r"targets.argmax\(3\), or soft ones as targets.movedim\(3, 1\)"),
        ((2, 3, 4, 5), (2, 4, 5, 1), "squeeze dim 3"),
        ((1, 3, 4, 5), (4, 5), "unsqueeze dim 0"),
        ((2, 4, 5, 3), (2, 4, 5), "set class_dim=3"),
        ((2, 3, 4, 5), (2, 8, 10), "F.interpolate"),
        ((4, 3), (5,), "nothing is broadcast"),
    ],
    ids=str,
)
def test_the_remedy_for_a_shape(op: str, logits: tuple, targets: tuple, remedy: str) -> None:
    fails(ValueError, op, torch.zeros(logits), torch.zeros(targets).long(), names=rf"; .*{remedy}")


def test_logits_of_one_dimension() -> None:
    """F.cross_entropy takes one sample by its classes, and many take a score of each sample for two classes."""
    t = torch.tensor(1)
    fails(ValueError, SOFTMAX, X[0], t, names=r"got 1; .*class_dim=0, .* take sigmoid_focal_loss")
    fails(ValueError, SIGMOID, X[0], t, names=r"got 1; .*class_dim=0, .* targets the logits' shape")
    assert focal_cuda.softmax_focal_loss(X[0], t, class_dim=0) > 0
    assert focal_cuda.sigmoid_focal_loss(X[0], T[:3] > 0) > 0


def test_dense_integer_targets_for_the_softmax() -> None:
    """Soft ones are floating."""
    one_hot = torch.eye(4, dtype=torch.int64)[:, :3]
    message = fails(ValueError, SOFTMAX, X, one_hot, names=r"targets of shape \[4\].*got \[4, 3\]")
    assert "argmax" in message


@pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])
def test_memory_that_is_not_strided(op: str) -> None:
    fails(TypeError, op, X.to_sparse(), T, names=r"logits in strided memory, got torch.sparse_coo; .*to_dense")
    fails(TypeError, op, X, T.to_sparse(), names="targets in strided memory")
    jagged = torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged)
    fails(TypeError, op, jagged, T, names="logits in strided memory, got a nested tensor; .*to_padded_tensor")


@pytest.mark.parametrize("op", [SIGMOID, SOFTMAX])
def test_a_list_of_weights(op: str) -> None:
    for name in ("alpha", "gamma"):
        for several in ([0.1, 0.2, 0.3], (0.1, 0.2, 0.3), torch.rand(3).numpy()):
            names = rf"{name} to be a number, got {type(several).__name__}; .*torch.as_tensor"
            fails(TypeError, op, X, T, **{name: several}, names=names)


def test_a_binary_mask_without_its_channel() -> None:
    """Read as labels, it is the opposite of what is meant; that can be meant as well, and said."""
    x, mask = torch.zeros(2, 1, 4, 5), torch.rand(2, 4, 5) < 0.1
    for targets in (mask, mask.to(torch.uint8), mask.long()):
        with pytest.warns(UserWarning, match=r"unsqueeze\(1\); if labels are meant, say background_index=1") as told:
            focal_cuda.sigmoid_focal_loss(x, targets)
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            focal_cuda.sigmoid_focal_loss(x, targets.unsqueeze(1))
            focal_cuda.sigmoid_focal_loss(x, targets.long(), background_index=1)
            focal_cuda.sigmoid_focal_loss(x[:, 0, 0], targets[:, 0])
            focal_cuda.sigmoid_focal_loss(x[0, 0, 0, :, None], targets[0, 0])  # rows of a detector of one class
            focal_cuda.RetinaNetLoss(1)(
                x[:, 0, 0, :, None], torch.zeros(2, 5, 4), mask[:, 0].long(), torch.zeros(2, 5, 4)
            )


def test_one_class() -> None:
    for logits, targets in ((torch.zeros(4, 1), T * 0), (torch.zeros(2, 1, 4, 5), MASK)):
        fails(ValueError, SOFTMAX, logits, targets, names="at least 2 classes.*use sigmoid_focal_loss")


@ops
@pytest.mark.parametrize("class_dim", [2, -3, 5])
def test_class_dim_out_of_range(op: str, class_dim: int) -> None:
    fails(ValueError, op, X, T, class_dim=class_dim, names=rf"class_dim.*got {class_dim}")


@ops
@pytest.mark.parametrize("value", [1.0, "1", None], ids=repr)
def test_arguments_that_must_be_int(op: str, value: object) -> None:
    fails(TypeError, op, X, T, class_dim=value, names="class_dim.*; pass the dimension")
    fails(TypeError, op, X, T, ignore_index=value, names="ignore_index.*; .*pass mask if several are")
    fails(TypeError, op, X, T, ignore_index=torch.tensor(1), names="ignore_index.*got Tensor; pass .*int\\(")
    if value is not None:
        fails(TypeError, op, X, T, background_index=value, names="background_index")


@ops
@pytest.mark.parametrize("gamma", [-1.0, -1e-9, float("nan"), float("inf")])
def test_gamma_out_of_range(op: str, gamma: float) -> None:
    fails(ValueError, op, X, T, None, gamma, names=rf"gamma >= 0.*got {gamma}")


@ops
@pytest.mark.parametrize("gamma", ["2", None, [2.0], torch.tensor(2), True], ids=repr)
def test_gamma_of_another_type(op: str, gamma: object) -> None:
    message = fails(TypeError, op, X, T, None, gamma, names="gamma")
    assert isinstance(gamma, list) == ("for a number of each class" in message)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, -1, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    """-1, torchvision's word for "none", included."""
    message = fails(ValueError, SIGMOID, X, T, alpha, names=rf"alpha in \[0, 1\].*got {alpha}")
    assert "None" in message


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_alpha_of_the_softmax_out_of_range(alpha: float) -> None:
    fails(ValueError, SOFTMAX, X, T, alpha, names=rf"alpha >= 0.*got {alpha}")
    assert focal_cuda.softmax_focal_loss(X, T, 3.0) > 0


@ops
@pytest.mark.parametrize("alpha", ["0.25", [0.1, 0.2, 0.3], (0.5,), True], ids=repr)
def test_alpha_of_another_type(op: str, alpha: object) -> None:
    fails(TypeError, op, X, T, alpha, names="alpha")


@ops
def test_alpha_vectors(op: str) -> None:
    for bad in (torch.ones(2), torch.ones(4), torch.ones(1), torch.ones(1, 3), torch.ones(())):
        got = re.escape(str(list(bad.shape)))
        fails(ValueError, op, X, T, bad, names=rf"alpha of shape \[3\].*got {got}")
    fails(ValueError, op, X, T, torch.tensor(0.5), names=r"one number for all classes is alpha.item\(\)")
    fails(ValueError, op, IMAGE, MASK, torch.ones(5), names=r"alpha of shape \[3\].*got \[5\]; pass one entry")
    if op == SIGMOID:
        names = r"alpha of shape \[1\].*got \[2\]; of negatives and positives .*alpha\[1\]"
        fails(ValueError, op, X[:, :1], X[:, :1], torch.tensor([0.25, 0.75]), names=names)
    fails(TypeError, op, X, T, torch.ones(3, dtype=torch.int64), names="alpha.*got torch.int64")
    fails(ValueError, op, X, T, torch.ones(3).requires_grad_(), names="alpha.*detach")


@ops
@pytest.mark.parametrize("reduction", ["Mean", "batchmean", "", None, 1], ids=repr)
def test_unknown_reduction(op: str, reduction: object) -> None:
    fails(ValueError, op, X, T, None, 2.0, reduction, names='reduction.*"none", "mean" or "sum"')


@ops
@pytest.mark.parametrize("gradient", ["fast", "in-place", None, True], ids=repr)
def test_unknown_gradient(op: str, gradient: object) -> None:
    fails(ValueError, op, X, T, gradient=gradient, names='gradient.*"auto", "forward", "backward" or "inplace"')


@ops
@pytest.mark.parametrize("gradient", ["forward", "inplace"])
def test_a_gradient_in_the_forward_needs_a_scalar(op: str, gradient: str) -> None:
    x = X.clone().requires_grad_() * 1
    fails(ValueError, op, x, T, reduction="none", gradient=gradient, names=f'reduction="none".*got .*{gradient}')


@ops
def test_in_place_on_logits_that_must_not_change(op: str) -> None:
    leaf = X.clone().requires_grad_()
    fails(ValueError, op, leaf, T, gradient="inplace", names="leaf")
    fails(ValueError, op, X.clone(), T, gradient="inplace", names="require grad")
    expanded = (torch.zeros(1, 3).requires_grad_() * 1).expand(4, 3)
    fails(ValueError, op, expanded, T, gradient="inplace", names="expanded")
    fails(ValueError, op, torch._neg_view(leaf * 1), T, gradient="inplace", names="negates")
    assert (leaf == 0).all()


@ops
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_normalizer_divides_a_sum_only(op: str, reduction: str) -> None:
    for normalizer in (2.0, torch.tensor(2.0), "positives"):
        kwargs = {"reduction": reduction, "normalizer": normalizer, "background_index": 0}
        fails(ValueError, op, X, T, **kwargs, names='reduction="sum".*normalizer')


@ops
def test_normalizers(op: str) -> None:
    def bad(error: type[Exception], normalizer: object, names: str) -> None:
        fails(error, op, X, T, reduction="sum", normalizer=normalizer, background_index=0, names=names)

    for number in (0.0, 0, -1.0, float("nan"), float("inf")):
        bad(ValueError, number, rf"normalizer >=? 0.*got {number}")
    bad(ValueError, "positive", '"positives".*got .positive.')
    bad(ValueError, torch.ones(2), r"normalizer.*one.*element.*got .*\[2\]")
    bad(ValueError, torch.ones(0), r"normalizer.*one.*element.*got .*\[0\]")
    bad(ValueError, torch.ones(()).requires_grad_(), "normalizer.*detach")
    for value in ([1.0], object(), True):
        bad(TypeError, value, "normalizer")


def test_positives_of_a_softmax_need_a_background() -> None:
    kwargs = {"reduction": "sum", "normalizer": "positives"}
    fails(ValueError, SOFTMAX, X, T, **kwargs, names="background_index.*got None")
    assert focal_cuda.sigmoid_focal_loss(X, T, **kwargs) > 0


@ops
def test_what_must_not_require_grad(op: str) -> None:
    assert op == SOFTMAX or fails(ValueError, op, X, X.clone().requires_grad_(), names="targets.*detach")
    fails(ValueError, op, X, T, torch.full((3,), 0.5, requires_grad=True), names="alpha.*detach")


@ops
def test_devices(op: str) -> None:
    """The meta device stands for another one."""
    fails(ValueError, op, X, T.to("meta"), names="targets on the logits' device cpu, got meta")
    fails(ValueError, op, X, T, torch.ones(3, device="meta"), names="alpha on the logits' device cpu, got meta")
    kwargs = {"reduction": "sum", "normalizer": torch.ones((), device="meta")}
    fails(ValueError, op, X, T, **kwargs, names="normalizer on the logits' device cpu, got meta")


@pytest.mark.parametrize("ignore_index", [0, 1])
def test_ignore_index_that_is_a_dense_target(ignore_index: int) -> None:
    """Of a softmax it would be compared with the target of class 0."""
    for op in (SIGMOID, SOFTMAX):
        fails(ValueError, op, X, X, ignore_index=ignore_index, names=f"ignore_index.*got {ignore_index}")
        assert getattr(focal_cuda, op)(X, T, ignore_index=ignore_index) > 0


@ops
def test_dense_targets_of_an_unusual_dtype(op: str) -> None:
    fails(TypeError, op, X, X.to(torch.float8_e4m3fn), names="dense targets.*got torch.float8_e4m3fn")


BAD_LABELS = [-1, -2, 3, 4, 100, -101]


@on_every_backend
@ops
@pytest.mark.parametrize("label", BAD_LABELS)
@pytest.mark.parametrize("kwargs", [{}, {"reduction": "none"}, {"gradient": "backward"}], ids=str)
def test_labels_out_of_range(op: str, label: int, kwargs: dict) -> None:
    """Value, place and range are named, for rows and for masks; index C is the sigmoid's background."""
    if op == SIGMOID and label == 3:
        return
    t, mask = T.clone(), MASK.clone()
    t[2] = label
    mask[1, 3, 2] = label
    for requires_grad in (False, True):
        x, image = X.clone().requires_grad_(requires_grad), IMAGE.clone().requires_grad_(requires_grad)
        fails(IndexError, op, x, t, names=rf"\[0, 3\).*got targets\[2\] = {label}", **kwargs)
        fails(IndexError, op, image, mask, names=rf"\[0, 3\).*got targets\[1, 3, 2\] = {label}", **kwargs)


@on_every_backend
@ops
@dtypes([d for d in INDEX_DTYPES if d != torch.bool], "index_dtype")
def test_labels_out_of_range_in_every_type(op: str, index_dtype: torch.dtype) -> None:
    t = T.to(index_dtype, copy=True)
    t[3] = 77
    fails(IndexError, op, X, t, names=r"got targets\[3\] = 77")


@on_every_backend
def test_true_is_no_class_of_one() -> None:
    """Of one class, True is the background; with another background it is a mistake."""
    x, t = torch.zeros(4, 1), torch.tensor([False, False, True, False])
    assert focal_cuda.sigmoid_focal_loss(x, t) > 0
    with pytest.raises(IndexError, match=r"targets\[2\] = (1|True)"):
        focal_cuda.sigmoid_focal_loss(x, t, background_index=-1)


@on_every_backend
@ops
def test_labels_beyond_32_bits(op: str) -> None:
    """A label must not be cut to 32 bits before it is looked at."""
    for label in (2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)):
        fails(IndexError, op, X, torch.tensor([0, label, 1, 2]), names=rf"got targets\[1\] = {label}")


@ops
def test_the_first_bad_label_is_named_in_a_large_batch(op: str) -> None:
    """Whichever thread met which one."""
    t = torch.zeros(200_000, dtype=torch.int64)
    t[150_001], t[70_003] = 9, 8
    for _ in range(3):
        fails(IndexError, op, torch.zeros(200_000, 3), t, names=r"got targets\[70003\] = 8")


@on_every_backend
@ops
def test_labels_in_views_are_named_by_their_index(op: str) -> None:
    mask = MASK.clone()
    mask[1, 3, 2] = 7
    strided = mask.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    fails(IndexError, op, IMAGE, strided, names=r"got targets\[1, 3, 2\] = 7")
    last = IMAGE.movedim(1, -1).contiguous()
    fails(IndexError, op, last, mask, class_dim=-1, names=r"got targets\[1, 3, 2\] = 7")


@on_every_backend
@ops
def test_ignored_and_background_labels_are_no_mistake(op: str) -> None:
    t = torch.tensor([0, -7, 2, -7])
    assert getattr(focal_cuda, op)(X, t, ignore_index=-7) > 0
    fails(IndexError, op, X, t, names=r"got targets\[[13]\] = -7")  # of several a GPU names any
    # Without a background label of its own the softmax has C classes and nothing else.
    if op == SOFTMAX:
        fails(IndexError, op, X, torch.tensor([0, 3, 1, 2]), background_index=3, names=r"got targets\[1\] = 3")


@on_every_backend
@pytest.mark.parametrize("value", [1.5, -0.1, 2.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kwargs", [{}, {"reduction": "none"}], ids=str)
def test_dense_targets_out_of_range(value: float, kwargs: dict) -> None:
    t = torch.zeros(4, 3)
    t[2, 1] = value
    fails(ValueError, SIGMOID, X, t, names=rf"\[0, 1\].*got targets\[2, 1\] = {value:g}", **kwargs)


@on_every_backend
@dtypes([torch.uint8, torch.int8, torch.int64])
def test_dense_integer_targets_out_of_range(dtype: torch.dtype) -> None:
    t = torch.zeros(4, 3, dtype=dtype)
    t[3, 0] = 7
    fails(ValueError, SIGMOID, X, t, names=r"\[0, 1\].*got targets\[3, 0\] = 7")


def wrong_calls(x: Tensor) -> list[tuple[str, Callable[[], Tensor]]]:
    """Calls that fail only when the kernel has seen the targets."""
    late = torch.zeros(len(x), dtype=torch.int64)
    late[-1] = 99
    dense = torch.zeros_like(x, requires_grad=False)
    dense[-1, -1] = 1.5
    return [
        ("softmax", lambda: focal_cuda.softmax_focal_loss(x, late, gradient="inplace")),
        ("sigmoid", lambda: focal_cuda.sigmoid_focal_loss(x, late, gradient="inplace")),
        ("dense", lambda: focal_cuda.sigmoid_focal_loss(x, dense, gradient="inplace")),
    ]


@pytest.mark.parametrize("rows", [4, 100_000])
def test_nothing_is_written_when_a_target_is_wrong(rows: int) -> None:
    """Not even by the in-place mode, and not by the threads that met good targets only."""
    x = torch.randn(rows, 3).requires_grad_() * 1
    before, version = x.detach().clone(), x._version
    for _, call in wrong_calls(x):
        with pytest.raises((IndexError, ValueError)):
            call()
        assert torch.equal(x.detach(), before) and x._version == version
    focal_cuda.softmax_focal_loss(x, torch.zeros(rows, dtype=torch.int64)).backward()


@ops
def test_numbers_of_classes_on_the_cpu(op: str) -> None:
    """Looked at in every call. Weights of classes as alpha of the sigmoid made its loss negative, and said nothing."""
    for number in (-2.0, torch.nan):
        bad = torch.tensor([0.5, number, 0.5])
        fails(ValueError, op, X, T, bad, names=rf"alpha.*got alpha\[1\] = {number:g}")
        fails(ValueError, op, X, T, gamma=bad, names=rf"gamma >= 0, got gamma\[1\] = {number:g}")
        fails(ValueError, op, X, T, gamma=bad[1], names=f"gamma >= 0, got {number:g}")
    weights = focal_cuda.class_weights([80, 15, 5])
    if op == SOFTMAX:
        assert focal_cuda.softmax_focal_loss(X, T, weights) > 0
        return
    fails(ValueError, op, X, T, weights, names=r"alpha in \[0, 1\], got alpha\[2\] = .*; .*pos_weight may be larger")
    fails(ValueError, op, X, T, 4.0, names=r"alpha in \[0, 1\].*got 4.*; .*pos_weight may be larger")
    fails(ValueError, op, X, T, pos_weight=-weights, names=r"pos_weight >= 0, got pos_weight\[0\]")
    assert focal_cuda.sigmoid_focal_loss(X, T, pos_weight=weights) > 0


@on_every_backend
@ops
def test_validate_checks_what_is_not_checked_by_default(op: str) -> None:
    kwargs = {"reduction": "sum", "normalizer": torch.tensor(-3.0)}
    assert getattr(focal_cuda, op)(X, T, **kwargs).isfinite()
    fails(ValueError, op, X, T, **kwargs, validate=True, names="normalizer >= 0.*got -3")
    t = T.clone()
    t[2] = 9
    fails(IndexError, op, X, t, validate=True, names=r"\[0, 3\).*got targets\[2\] = 9")
    assert torch.equal(getattr(focal_cuda, op)(X, T, validate=True), getattr(focal_cuda, op)(X, T))


@ops
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_validate_looks_at_targets_before_any_kernel(op: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it would be too late after it: the kernel ends the process's access to the device."""

    def never(*_arguments):
        raise AssertionError("a kernel was called")

    kernels = dict.fromkeys(_ops.FAMILIES, _ops.Family(never, never, never))
    monkeypatch.setattr(_ops, "FAMILIES", kernels)
    monkeypatch.setattr(focal_cuda._values, "_VALIDATE", how == "environment")
    told = {"validate": True} if how == "argument" else {}
    for label in BAD_LABELS:
        labels = torch.tensor([0, label if label != 3 else 9, 0, 0])
        fails(IndexError, op, X, labels, **told, names=r"\[0, 3\).*got targets\[1\] = ")
    if op == SIGMOID:
        dense = torch.zeros_like(X)
        dense[2, 1] = 1.5
        fails(ValueError, op, X, dense, **told, names=r"got targets\[2, 1\] = 1.5")
    with pytest.raises(AssertionError, match="a kernel was called"):
        getattr(focal_cuda, op)(X, T, **told)


def test_validate_by_environment() -> None:
    code = (
        "import torch, focal_cuda\n"
        "x, t, n = torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor(-2.0)\n"
        "focal_cuda.sigmoid_focal_loss(x, t, reduction='sum', normalizer=n)"
    )
    for value, fine in (("1", False), ("0", True)):
        env = {**os.environ, "FOCAL_CUDA_VALIDATE": value}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == fine, done.stderr
        assert fine or "normalizer >= 0, got -2" in done.stderr


@on_every_backend
@ops
def test_good_calls_after_bad_ones(op: str) -> None:
    """An error leaves nothing behind."""
    before = getattr(focal_cuda, op)(X, T)
    for label in BAD_LABELS:
        with pytest.raises(IndexError):
            getattr(focal_cuda, op)(X, torch.tensor([0, label if label != 3 else 9, 0, 0]))
    assert torch.equal(getattr(focal_cuda, op)(X, T), before)
