"""What a library rejects its adapter rejects, in a sentence of our form; and what ends other trainings, it survives."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from compare import random_upstream
from compat_cases import CASES, CLASSES, Case, labels
from test_compat import every_case
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from focal_cuda import compat as c

X, T, L = torch.zeros(4, CLASSES), torch.zeros(4, CLASSES), torch.zeros(4, dtype=torch.long)
MASK = torch.zeros(4, 1, 6, dtype=torch.long)
WRONG = torch.ones(3)
KEPT = "expected targets of the logits' shape"

ERRORS = [
    (lambda: c.torchvision.sigmoid_focal_loss(X, L), ValueError, KEPT),
    (lambda: c.torchvision.sigmoid_focal_loss(X, T.long()), TypeError, "expected floating targets, got torch.int64"),
    (lambda: c.torchvision.sigmoid_focal_loss(X, T, alpha=1.5), ValueError, "expected alpha"),
    (lambda: c.torchvision.sigmoid_focal_loss(X, T, alpha=-0.5), ValueError, "expected alpha"),
    (lambda: c.torchvision.sigmoid_focal_loss(X, T, reduction="max"), ValueError, "expected reduction"),
    (lambda: c.torchvision.sigmoid_focal_loss([1.0], T), TypeError, "expected logits to be a tensor"),
    (lambda: c.fvcore.sigmoid_focal_loss(X, L), ValueError, KEPT),
    (lambda: c.fvcore.sigmoid_focal_loss(X, T, reduction="nine"), ValueError, "expected reduction"),
    (lambda: c.fvcore.sigmoid_focal_loss_star(X, T, gamma=0), ValueError, "expected gamma > 0"),
    (lambda: c.fvcore.sigmoid_focal_loss_star(X, T, reduction="nine"), ValueError, "expected reduction"),
    (lambda: c.detr.sigmoid_focal_loss(X[0], T[0], 3), ValueError, "at least 2 dimensions"),
    (lambda: c.detr.sigmoid_focal_loss(X, L, 3), ValueError, KEPT),
    (lambda: c.detr.sigmoid_focal_loss(X, T, 0), ValueError, "expected normalizer > 0"),
    (lambda: c.mmcv.sigmoid_focal_loss(X, T), ValueError, r"logits \[N, C\] and class index targets \[N\]"),
    (lambda: c.mmcv.sigmoid_focal_loss(X, L, weight=WRONG), ValueError, r"weight to be a tensor \[5\], got \[3\]"),
    (lambda: c.mmcv.sigmoid_focal_loss(X, L + CLASSES + 1), IndexError, "expected class labels"),
    (lambda: c.mmcv.sigmoid_focal_loss(X, L + 9, weight=torch.ones(CLASSES)), IndexError, "expected class labels"),
    (lambda: c.mmdet.QualityFocalLoss()(X, (L + 9, WRONG.new_ones(4))), IndexError, "expected class labels"),
    (lambda: c.mmcv.softmax_focal_loss(X, L + CLASSES), IndexError, "expected class labels"),
    (lambda: c.mmcv.softmax_focal_loss(X, L.float()), TypeError, "integer dtype"),
    (lambda: c.apex.focal_loss(X, L, WRONG[:1], 6, 0.25, 2.0), ValueError, r"num_real_classes in \[1, C\]"),
    (lambda: c.apex.focal_loss(X, T, WRONG[:1], 5, 0.25, 2.0), ValueError, "expected class index targets"),
    (lambda: c.apex.focal_loss(X, L + 4, WRONG[:1], 3, 0.25, 2.0), IndexError, "expected class labels"),
    (lambda: c.kornia.focal_loss(X, T, 0.25), ValueError, "expected class index targets"),
    (lambda: c.kornia.focal_loss(X, L - 100, None, ignore_index=None), IndexError, "expected class labels"),
    (lambda: c.kornia.focal_loss(X, L, None, weight=WRONG), ValueError, r"weight to be a tensor \[5\]"),
    (lambda: c.kornia.focal_loss(X, L, None, reduction="max"), ValueError, "expected reduction"),
    (lambda: c.kornia.binary_focal_loss_with_logits(X, L), ValueError, KEPT),
    (lambda: c.kornia.binary_focal_loss_with_logits(X[0], T[0]), ValueError, "at least 2 dimensions"),
    (lambda: c.kornia.binary_focal_loss_with_logits(X, T, pos_weight=WRONG), ValueError, "pos_weight to be a tensor"),
    (lambda: c.monai.FocalLoss(reduction="max"), ValueError, "expected reduction to be 'none', 'mean' or 'sum'"),
    (lambda: c.monai.FocalLoss(weight=-1.0), ValueError, "expected weight >= 0, got -1"),
    (lambda: c.monai.FocalLoss(weight=[1.0, 2.0])(X, T), ValueError, "one number for each of 5 classes"),
    (lambda: c.monai.FocalLoss()(X, T[:, :1]), ValueError, KEPT),
    (lambda: c.monai.FocalLoss(to_onehot_y=True)(X, L), ValueError, r"targets \[B, 1, ...\] with to_onehot_y=True"),
    (lambda: c.monai.FocalLoss(to_onehot_y=True)(X, L[:, None] + 9), IndexError, "expected class labels"),
    (lambda: c.smp.FocalLoss("ternary"), ValueError, "expected mode to be 'binary', 'multiclass' or 'multilabel'"),
    (lambda: c.smp.FocalLoss("binary", class_weights=[1.0]), ValueError, "class_weights with several classes"),
    (
        lambda: c.smp.FocalLoss("binary", normalized=True, reduced_threshold=0.5)(X, T + 0.5),
        ValueError,
        "expected dense targets 0, 1",
    ),
    (lambda: c.smp.FocalLoss("multiclass", normalized=True)(X, L + CLASSES), IndexError, "expected class labels"),
    (lambda: c.smp.FocalLoss("binary")(X, L), ValueError, "as many targets as logits"),
    (lambda: c.smp.FocalLoss("multiclass")(torch.zeros(4, 3, 6), MASK), ValueError, "without the classes, got"),
    (lambda: c.keras.BinaryFocalCrossentropy(reduction="max"), ValueError, "expected reduction"),
    (lambda: c.keras.CategoricalFocalCrossentropy()(L, X.softmax(1)), ValueError, KEPT),
    (lambda: c.timm.AsymmetricLossMultiLabel(reduction="max"), ValueError, "expected reduction"),
    (lambda: c.timm.AsymmetricLossMultiLabel()(X, T + 2), ValueError, "expected dense targets 0, 1"),
    (lambda: c.timm.AsymmetricLossMultiLabel()(X, T + 1.5), ValueError, r"expected dense targets in \[0, 1\]"),
    (lambda: c.timm.AsymmetricLossMultiLabel(smoothing=1.0), ValueError, "expected smoothing in"),
    (lambda: c.timm.AsymmetricLossMultiLabel()(X, L), ValueError, KEPT),
    (lambda: c.timm.AsymmetricLossSingleLabel(reduction="max")(X, L), ValueError, "expected reduction"),
    (lambda: c.timm.AsymmetricLossSingleLabel()(torch.zeros(4, 3, 6), MASK), ValueError, r"logits \[N, C\]"),
    (lambda: c.ultralytics.FocalLoss()(X[0], T[0]), ValueError, "at least 2 dimensions"),
    (lambda: c.ultralytics.VarifocalLoss()(X, T, L), ValueError, KEPT),
    (lambda: c.mmdet.FocalLoss(use_sigmoid=False), ValueError, "expected use_sigmoid=True"),
    (lambda: c.mmdet.FocalLoss()(X, L, reduction_override="max"), ValueError, "expected reduction_override"),
    (lambda: c.mmdet.FocalLoss()(X, L, avg_factor=2, reduction_override="sum"), ValueError, "drop avg_factor"),
    (lambda: c.mmdet.FocalLoss()(X, L, weight=WRONG), ValueError, "expected sample_weight of shape"),
    (lambda: c.mmdet.QualityFocalLoss()(X, (L,)), ValueError, r"target \(labels, scores\), got 1"),
    (lambda: c.mmdet.VarifocalLoss()(X, L), ValueError, KEPT),
    (lambda: c.mmdet.GaussianFocalLoss()(X, T, pos_inds=L), ValueError, "expected pos_labels with pos_inds"),
    (lambda: c.mmseg.FocalLoss(reduction="max"), ValueError, "expected reduction"),
    (lambda: c.mmseg.FocalLoss()(X, L + CLASSES + 1), IndexError, "expected class labels"),
    (lambda: c.mmseg.FocalLoss()(torch.zeros(4, 3, 6), MASK), ValueError, KEPT),
    (lambda: c.seeds.MultiClassFocalLoss(alpha=WRONG)(X, L), ValueError, r"alpha of shape \[5\]"),
    (lambda: c.seeds.MultiClassFocalLoss()(X, T), ValueError, "expected class index targets"),
    (lambda: c.seeds.OneVsAllFocalLoss()(X, T), ValueError, "expected class index targets"),
    (lambda: c.seeds.OneVsAllFocalLoss()(X, L + 9), IndexError, "expected class labels"),
    (lambda: c.seeds.BinaryFocalLoss()(X, T.long()), TypeError, "expected floating targets"),
    (lambda: c.seeds.SoftmaxFocalLoss(3)(X, L), ValueError, r"alpha of shape \[5\]"),
]


@pytest.mark.parametrize(("call", "error", "match"), ERRORS, ids=[match for *_, match in ERRORS])
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        call()
    assert ": expected " in str(raised.value) and str(raised.value).endswith(".")


@pytest.mark.filterwarnings("ignore")
@every_case
def test_gradients_are_finite_at_any_logit(case: Case) -> None:
    """Beyond 17 the libraries lose the loss, or the gradient, of gamma < 1 at the latest."""
    x, *rest = case.inputs()
    if x.min() < 0:  # probabilities stay probabilities
        x = x * 60
    x = x.requires_grad_()
    options = {**case.options, **({"gamma": 0.5} if "gamma" in case.options else {})}
    loss = case._replace(options=options).build()(x, *rest)
    (grad,) = torch.autograd.grad(loss, x, random_upstream(loss.shape, x))
    assert loss.isfinite().all() and grad.isfinite().all() and grad.any()


def test_labels_that_are_all_ignored_leave_a_gradient() -> None:
    x = torch.randn(4, CLASSES, 6, requires_grad=True)
    nothing = torch.full((4, 6), 255)
    for loss in (
        c.kornia.focal_loss(x, nothing, 0.25, reduction="mean", ignore_index=255),
        c.monai.FocalLoss(to_onehot_y=True, ignore_index=255)(x, nothing.unsqueeze(1)),
        c.smp.FocalLoss("multiclass", ignore_index=255)(x, nothing),
        c.mmseg.FocalLoss()(x, nothing),
        c.apex.focal_loss(x.movedim(1, -1), nothing - 257, torch.zeros(1), CLASSES, 0.25, 2.0),
        c.apex.focal_loss(x.movedim(1, -1), nothing - 257, torch.zeros(1), CLASSES, 0.25, 2.0, 0.1),
        c.seeds.MultiClassFocalLoss(ignore_index=255)(x, nothing),
    ):
        assert loss == 0 and not torch.autograd.grad(loss, x)[0].any()


def test_uint8_masks_are_taken() -> None:
    x, masks = torch.randn(4, CLASSES, 6), labels(4, 6)
    for loss in (
        lambda t: c.kornia.focal_loss(x, t, 0.25),
        lambda t: c.monai.FocalLoss(include_background=False, to_onehot_y=True)(x, t.unsqueeze(1)),
        lambda t: c.mmseg.FocalLoss()(x, t),
        lambda t: c.smp.FocalLoss("multiclass")(x, t),
        lambda t: c.mmcv.sigmoid_focal_loss(x[..., 0], t[:, 0], weight=torch.ones(CLASSES)),
        lambda t: c.mmcv.softmax_focal_loss(x[..., 0], t[:, 0]),
        lambda t: torch.func.grad(lambda x: c.mmcv.softmax_focal_loss(x, t[:, 0]))(x[..., 0]),
        lambda t: c.mmdet.QualityFocalLoss()(x[..., 0], (t[:, 0], torch.full((4,), 0.5))),
    ):
        torch.testing.assert_close(loss(masks.to(torch.uint8)), loss(masks), rtol=0, atol=0)


def test_what_is_kept_between_calls_serves_any_call() -> None:
    """A constant that is made where no other call could use it: without autograd, of no memory, in a transform."""
    x, t = torch.randn(6, CLASSES), labels(6)
    loss_of = {
        alpha: lambda x, alpha=alpha: c.kornia.focal_loss(x, t, alpha, reduction="sum") for alpha in (0.31, 0.32, 0.33)
    }
    with torch.inference_mode():
        loss_of[0.31](x.clone())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss_of[0.32](mode.from_tensor(x))
        loss_of[0.32](x)
    torch.func.grad(loss_of[0.33])(x)
    for alpha, loss in loss_of.items():
        expected = [c.kornia.focal_loss(x, t, None, weight=torch.tensor([1 - alpha] + [alpha] * (CLASSES - 1)))]
        leaf = x.clone().requires_grad_()
        total = loss(leaf)
        total.backward()
        torch.testing.assert_close(total.detach(), expected[0].sum())
        assert type(leaf.grad) is Tensor and leaf.grad.any()


MODULES = list({case.adapter: case for case in CASES if isinstance(case.given, type)}.values())


@pytest.mark.parametrize("case", MODULES, ids=lambda case: case.adapter)
def test_modules_are_modules(case: Case) -> None:
    """They copy, pickle, and keep their state through a call."""
    criterion = case.given(**case.options)
    assert isinstance(criterion, nn.Module)
    before = copy.deepcopy(criterion.state_dict())
    x, *rest = case.inputs()
    first = [rest[0], x, *rest[1:]] if case.adapter.startswith("keras.") else [x, *rest]
    loss = criterion(*first)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(other(*first), loss)
    assert criterion.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    "criterion",
    [
        c.kornia.FocalLoss(0.25, weight=torch.ones(CLASSES)),
        c.kornia.BinaryFocalLossWithLogits(0.25, pos_weight=torch.ones(CLASSES)),
        c.monai.FocalLoss(alpha=[0.5] * CLASSES, weight=[1.0] * CLASSES),
        c.mmcv.SoftmaxFocalLoss(2.0, 0.25, torch.ones(CLASSES)),
        c.mmseg.FocalLoss(alpha=[0.5] * CLASSES, class_weight=[1.0] * CLASSES),
        c.smp.FocalLoss("multiclass", class_weights=[1.0] * CLASSES),
        c.timm.AsymmetricLossMultiLabel(weight=torch.ones(CLASSES), pos_weight=2.0),
        c.keras.CategoricalFocalCrossentropy(alpha=[0.5] * CLASSES),
        c.ultralytics.FocalLoss(alpha=[0.5] * CLASSES),
        c.seeds.MultiClassFocalLoss(alpha=torch.ones(CLASSES)),
        c.seeds.SoftmaxFocalLoss(CLASSES),
    ],
    ids=lambda criterion: f"{type(criterion).__module__.rpartition('.')[2]}.{type(criterion).__name__}",
)
def test_tensors_of_a_module_move_with_it(criterion: nn.Module) -> None:
    moved = copy.deepcopy(criterion).to("meta")
    held = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    buffers = list(moved.buffers())
    assert buffers and not held and all(buffer.is_meta for buffer in buffers)


FIRST = list({case.adapter: case for case in reversed(CASES)}.values())


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.adapter)
def test_compiles_whole(case: Case) -> None:
    torch._dynamo.reset()
    x, *rest = case.inputs()
    loss_of = case.build()
    compiled = torch.compile(loss_of, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, *rest), loss_of(x, *rest))
