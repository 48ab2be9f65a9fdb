"""Calls of the adapters in focal_cuda.compat: of each, with every argument that changes its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import libraries
import test_seeds
import torch
from torch import Tensor

from focal_cuda import compat

CLASSES = 5


class Case(NamedTuple):
    adapter: str  # library.name
    inputs: Callable[[], tuple]  # what a call is given, the logits first
    oracle: Callable[..., Tensor]  # the same in float64
    options: dict[str, Any]
    of_call: dict[str, Any] = {}  # of a class, given to the call
    original: str | None = None  # module:name; None: there it is another value, by a defect that the adapter names
    exact: bool = True  # no gradient that cancels

    @property
    def name(self) -> str:
        shown = {**self.options, **self.of_call}.items()
        return "-".join([self.adapter, *(k if isinstance(v, (Tensor, tuple)) else f"{k}={v}" for k, v in shown)])

    @property
    def given(self) -> Any:
        """The adapter."""
        library, _, name = self.adapter.partition(".")
        return getattr(getattr(compat, library), name)

    def build(self, origin: Any = None) -> Callable[..., Tensor]:
        """The loss as a function of what `inputs` gives, by the adapter or another origin of its signature."""
        given = origin or self.given
        if isinstance(given, type):
            criterion, options = given(**self.options), self.of_call
        else:
            criterion, options = given, {**self.options, **self.of_call}
        if self.adapter.startswith("keras."):  # y_true, y_pred
            return lambda x, y, *more: criterion(y, x, *more, **options)
        return lambda *arguments: criterion(*arguments, **options)

    def expected(self, *inputs: Any) -> Tensor:
        return self.oracle(*inputs, **self.options, **self.of_call)


def labels(*shape: int, low: int = 0, high: int = CLASSES) -> Tensor:
    return torch.randint(low, high, shape)


def hard(*shape: int) -> Tensor:
    return (torch.rand(shape) < 0.3).float()


def soft(*shape: int) -> Tensor:
    return torch.where(torch.rand(shape) < 0.3, torch.rand(shape), 0.0)


def one_hot(*shape: int) -> Tensor:
    """The classes in dim 1."""
    return libraries.one_hot(labels(shape[0], *shape[2:], high=shape[1]), shape[1]).float()


ROWS, MASKS = (40, CLASSES), (3, CLASSES, 6, 7)


def masks_with(ignored: int) -> Tensor:
    made = labels(3, 6, 7)
    return torch.where(torch.rand(made.shape) < 0.2, ignored, made)


def channel(targets: Tensor) -> Tensor:
    return targets.unsqueeze(1)


def vector(seed: int = 0) -> Tensor:
    return torch.rand(CLASSES, generator=torch.Generator().manual_seed(seed)) + 0.2


def _each(adapter: str, original: str | None, oracle: Callable, inputs: Callable, *options: dict, **more: Any):
    return [Case(adapter, inputs, oracle, given, original=original, **more) for given in options]


REDUCTIONS = [{"reduction": r} for r in ("none", "mean", "sum")]


def _torchvision() -> list[Case]:
    path = "torchvision.ops:sigmoid_focal_loss"
    oracle = lambda x, t, alpha=0.25, **o: libraries.dense(x, t, alpha, **o)  # noqa: E731
    cases = _each("torchvision.sigmoid_focal_loss", path, oracle, lambda: (torch.randn(ROWS), hard(*ROWS)),
                  {}, *REDUCTIONS, {"alpha": -1, "gamma": 1.5}, {"alpha": 0.0, "gamma": 0.0})  # fmt: skip
    for shape in ((30,), MASKS):
        cases += _each("torchvision.sigmoid_focal_loss", path, oracle, lambda s=shape: (torch.randn(s), soft(*s)),
                       {"alpha": 0.6, "gamma": 2}, exact=False)  # fmt: skip
    return cases


def _fvcore() -> list[Case]:
    oracle = lambda x, t, alpha=-1, **o: libraries.dense(x, t, alpha, **o)  # noqa: E731
    return [
        *_each("fvcore.sigmoid_focal_loss", "fvcore.nn:sigmoid_focal_loss", oracle,
               lambda: (torch.randn(ROWS), hard(*ROWS)), {}, *REDUCTIONS, {"alpha": 0.25, "gamma": 1.5}),
        *_each("fvcore.sigmoid_focal_loss", "fvcore.nn:sigmoid_focal_loss", oracle,
               lambda: (torch.randn(ROWS), hard(*ROWS).long()), {"alpha": 0.25}),
        *_each("fvcore.sigmoid_focal_loss_star", "fvcore.nn:sigmoid_focal_loss_star", libraries.star,
               lambda: (torch.randn(ROWS), hard(*ROWS)), {}, {"alpha": 0.25, "gamma": 2},
               *({**r, "gamma": 1.7} for r in REDUCTIONS)),
    ]  # fmt: skip


def _detr() -> list[Case]:
    path = "transformers.loss.loss_for_object_detection:sigmoid_focal_loss"
    shape = (2, 30, CLASSES)
    return [
        *_each("detr.sigmoid_focal_loss", path, libraries.detr, lambda: (torch.randn(shape), hard(*shape)),
               {"num_boxes": 7}, {"num_boxes": 6.5, "alpha": -1}, {"num_boxes": torch.tensor(9.0), "gamma": 1.5}),
        *_each("detr.sigmoid_focal_loss", path, libraries.detr, lambda: (torch.randn(ROWS), soft(*ROWS)),
               {"num_boxes": 7, "alpha": 0.6}, exact=False),
    ]  # fmt: skip


def _mmcv() -> list[Case]:
    background = lambda: (torch.randn(ROWS), labels(40, high=CLASSES + 1))  # noqa: E731
    ignored = lambda: (torch.randn(ROWS), labels(40, low=-2))  # noqa: E731
    options = ({}, *REDUCTIONS, {"weight": vector(), "alpha": 0.6, "gamma": 1.5}, {"weight": vector(), **REDUCTIONS[0]})
    cases = []
    for kind, oracle, inputs in (
        ("sigmoid", libraries.mmcv_sigmoid, background),
        ("softmax", libraries.mmcv_softmax, ignored),
    ):
        cases += _each(f"mmcv.{kind}_focal_loss", None, oracle, inputs, *options)
        module = f"mmcv.{kind.capitalize()}FocalLoss"
        cases += _each(module, None, oracle, inputs, *({"gamma": 1.5, "alpha": 0.6, **o} for o in REDUCTIONS[1:]))
    return cases


def _apex() -> list[Case]:
    def inputs() -> tuple:
        return torch.randn(4, 9, 8), labels(4, 9, low=-2)

    plain = {"num_real_classes": CLASSES, "alpha": 0.25, "gamma": 2.0, "num_positive_sum": torch.tensor([7.0])}

    def oracle(x: Tensor, t: Tensor, num_positive_sum: Tensor, num_real_classes: int, **options: Any) -> Tensor:
        return libraries.apex(x, t, num_positive_sum, num_real_classes, **options)

    return _each("apex.focal_loss", None, oracle, inputs, plain, {**plain, "gamma": 0.5, "alpha": 0.6},
                 {**plain, "label_smoothing": 0.1}, exact=False)  # fmt: skip


def _kornia() -> list[Case]:
    binary = (
        {},
        *REDUCTIONS,
        {"alpha": None, "gamma": 1.5},
        {"pos_weight": vector(), "weight": vector(1), "alpha": 0.6},
    )
    cases = []
    for name in ("focal_loss", "FocalLoss"):
        options = ({"alpha": a, **o} for a in (None, 0.25) for o in REDUCTIONS)
        cases += _each(f"kornia.{name}", f"kornia.losses:{name}", libraries.kornia_focal,
                       lambda: (torch.randn(MASKS), masks_with(-100)), *options)  # fmt: skip
        cases += _each(f"kornia.{name}", f"kornia.losses:{name}", libraries.kornia_focal,
                       lambda: (torch.randn(ROWS), labels(40)), {"alpha": 0.6, "gamma": 1.5, "weight": vector()},
                       {"alpha": None, "weight": vector(), "reduction": "mean", "ignore_index": 2})  # fmt: skip
    for name in ("binary_focal_loss_with_logits", "BinaryFocalLossWithLogits"):
        given = [{"alpha": 0.25, **o} for o in binary] if name[0] == "B" else binary
        ignored = lambda: (torch.randn(MASKS), torch.where(torch.rand(MASKS) < 0.2, -100.0, soft(*MASKS)))  # noqa: E731
        for inputs in (ignored, lambda: (torch.randn(ROWS), hard(*ROWS).long())):
            cases += _each(f"kornia.{name}", f"kornia.losses:{name}", libraries.kornia_binary, inputs, *given,
                           exact=False)  # fmt: skip
    return cases


def _monai() -> list[Case]:
    path = "monai.losses:FocalLoss"
    cases = []

    def add(inputs: Callable, *options: dict, original: str | None = path) -> None:
        cases.extend(_each("monai.FocalLoss", original, libraries.monai, inputs, *options, exact=False))

    per_class = [0.1, 0.3, 0.5, 0.7, 0.9]
    weights = ({}, {"alpha": 0.25}, {"alpha": per_class}, {"weight": 0.7}, {"weight": per_class, "alpha": per_class})
    for softmax in (False, True):
        both = {"use_softmax": softmax}
        indices = {"to_onehot_y": True, **both}
        for given, inputs in (
            (indices, lambda: (torch.randn(MASKS), channel(labels(3, 6, 7)))),
            (both, lambda: (torch.randn(MASKS), one_hot(*MASKS))),
        ):
            add(inputs, *({**given, **o} for o in weights), *({**given, "gamma": 1.5, **o} for o in REDUCTIONS))
            four = {"include_background": False, "alpha": per_class[1:], "weight": per_class[1:], **given}
            add(inputs, *({**four, **o} for o in REDUCTIONS), {**given, "include_background": False, "alpha": 0.25})
            add(inputs, *({**given, "ignore_index": 2, **o} for o in REDUCTIONS))
        add(lambda: (torch.randn(MASKS), channel(masks_with(255)).float()),
            *({**indices, "ignore_index": 255, **o} for o in REDUCTIONS),
            {**indices, "ignore_index": 255, "include_background": False})  # fmt: skip
        empty = lambda: (torch.randn(MASKS), one_hot(*MASKS) * (torch.rand(3, 1, 6, 7) < 0.8))  # noqa: E731
        add(empty, *({**both, "ignore_index": -1, **o} for o in REDUCTIONS))
        add(lambda: (torch.randn(ROWS), channel(labels(40))), *({**indices, **o} for o in REDUCTIONS[:2]))
        add(lambda: (torch.randn(ROWS), channel(labels(40))), {**indices, "reduction": "sum"}, original=None)
    add(lambda: (torch.randn(MASKS), soft(*MASKS)), *({"use_softmax": True, **o} for o in REDUCTIONS))
    add(lambda: (torch.randn(MASKS), soft(*MASKS)), {"alpha": 0.25}, original=None)  # another meaning, not documented
    add(lambda: (torch.randn(4, 1, 9), channel(hard(4, 9))), {"alpha": 0.25}, {"ignore_index": 0})
    return cases


def _smp() -> list[Case]:
    path = "segmentation_models_pytorch.losses:FocalLoss"
    cases = []

    def add(inputs: Callable, *options: dict, original: str | None = path) -> None:
        for given in options:  # a sum over a sum has gradients that cancel
            exact = not given.get("normalized")
            cases.extend(_each("smp.FocalLoss", original, libraries.smp, inputs, given, exact=exact))

    kinds = [{"reduction": r} for r in ("mean", "sum", "batchwise_mean")]
    normalized = {"normalized": True, "alpha": 0.25}
    shapes = ({}, {"alpha": 0.25, "gamma": 1.5}, normalized, {"reduced_threshold": 0.4},
              {**normalized, "reduced_threshold": 0.4})  # fmt: skip
    none = {"reduction": "none"}
    unreduced = (none, {**none, **normalized}, {**none, **normalized, "reduced_threshold": 0.6, "gamma": 1.5})
    single = lambda: (torch.randn(3, 1, 6, 7), hard(3, 6, 7))  # noqa: E731
    binary = {"mode": "binary"}
    add(single, *({**binary, **s, **k} for s in shapes for k in kinds))
    add(single, *({**binary, **u} for u in unreduced), original=None)
    add(lambda: (torch.randn(3, 1, 6, 7), torch.where(torch.rand(3, 1, 6, 7) < 0.2, 255, hard(3, 1, 6, 7).long())),
        *({**binary, "ignore_index": 255, **s} for s in shapes))  # fmt: skip
    add(lambda: (torch.rand(3, 1, 6, 7) * 0.9 + 0.05, hard(3, 1, 6, 7)), {**binary, "from_logits": False})
    multi, indices = {"mode": "multiclass"}, lambda: (torch.randn(MASKS), labels(3, 6, 7))
    weights = [0.1, 0.3, 0.5, 0.7, 0.9]
    add(indices, *({**multi, **s, **k} for s in shapes for k in kinds),
        *({**multi, **s, "class_weights": weights} for s in shapes))  # fmt: skip
    add(indices, *({**multi, **u} for u in unreduced), {**multi, **unreduced[1], "class_weights": weights},
        {**multi, **none, "class_weights": weights}, original=None)  # fmt: skip
    add(lambda: (torch.randn(MASKS), masks_with(255)), *({**multi, "ignore_index": 255, **u} for u in unreduced),
        original=None)  # fmt: skip
    add(lambda: (torch.randn(MASKS), masks_with(255)), *({**multi, "ignore_index": 255, **s, **k} for s in shapes
                                                         for k in kinds))  # fmt: skip
    add(lambda: (torch.rand(MASKS) * 0.9 + 0.05, labels(3, 6, 7)), {**multi, "from_logits": False}, original=None)
    many = {"mode": "multilabel"}
    add(lambda: (torch.randn(MASKS), hard(*MASKS)), *({**many, **s} for s in shapes))
    add(lambda: (torch.randn(MASKS), torch.where(torch.rand(MASKS) < 0.2, 255.0, hard(*MASKS))),
        *({**many, "ignore_index": 255, **s} for s in shapes), original=None)  # fmt: skip
    return cases


def _keras() -> list[Case]:
    kinds = [{"reduction": r} for r in ("sum_over_batch_size", "sum", "mean_with_sample_weight", None)]
    cases = []
    for name, oracle, of_loss, targets in (
        ("BinaryFocalCrossentropy", libraries.keras_binary, {"apply_class_balancing": True, "alpha": 0.6}, hard),
        ("CategoricalFocalCrossentropy", libraries.keras_categorical, {"alpha": [0.1, 0.3, 0.5, 0.7, 0.9]}, one_hot),
    ):
        path, adapter = f"keras.losses:{name}", f"keras.{name}"
        raw, smoothed = {"from_logits": True}, {"from_logits": True, "label_smoothing": 0.1, "gamma": 1.5}
        probabilities = lambda f=targets: (torch.softmax(torch.randn(ROWS), 1), f(*ROWS))  # noqa: E731
        plain = lambda f=targets: (torch.randn(ROWS), f(*ROWS))  # noqa: E731
        weighted = lambda f=targets: (torch.randn(ROWS), f(*ROWS), torch.rand(40))  # noqa: E731
        cases += _each(adapter, path, oracle, probabilities, {}, of_loss, {"label_smoothing": 0.1}, exact=False)
        cases += _each(adapter, path, oracle, plain, smoothed, *({**raw, **of_loss, **k} for k in kinds), exact=False)
        cases += _each(adapter, path, oracle, weighted, *({**raw, **k} for k in kinds), exact=False)
        inner = lambda f=targets: (torch.randn(2, 6, CLASSES), f(12, CLASSES).view(2, 6, CLASSES))  # noqa: E731
        cases += _each(adapter, path, oracle, inner, *({**raw, **k} for k in kinds[::3]), exact=False)
    return cases


def _timm() -> list[Case]:
    kinds = [{"reduction": r} for r in ("batchmean", "mean", "sum", "none")]
    detached = {"disable_torch_grad_focal_loss": True}
    weights = [{"weight": vector()}, {"pos_weight": vector(1)}, {"weight": vector(), "pos_weight": 2.5}]
    shapes = [{"clip": None}, detached]
    smoothed = {"smoothing": 0.1}
    single = [{}, {"eps": 0.0}, {"gamma_pos": 2.0, "gamma_neg": 1.0}, {"reduction": "none"}]
    return [
        *_each("timm.AsymmetricLossMultiLabel", "timm.loss:AsymmetricLossMultiLabel", libraries.timm_multi,
               lambda: (torch.randn(ROWS), hard(*ROWS)), {}, *kinds, *weights, *shapes,
               {**detached, "reduction": "none", **weights[2]}),
        *_each("timm.AsymmetricLossMultiLabel", "timm.loss:AsymmetricLossMultiLabel", libraries.timm_multi,
               lambda: (torch.randn(ROWS), soft(*ROWS)), *kinds, *weights, *shapes,
               {"gamma_neg": 0.5, "gamma_pos": 0.25, "clip": 0.2, **smoothed}, exact=False),
        *_each("timm.AsymmetricLossMultiLabel", "timm.loss:AsymmetricLossMultiLabel", libraries.timm_multi,
               lambda: (torch.randn(ROWS), hard(*ROWS).long()), smoothed, {**smoothed, **detached, **weights[2]},
               exact=False),
        *_each("timm.AsymmetricLossMultiLabel", "timm.loss:AsymmetricLossMultiLabel", libraries.timm_multi,
               lambda: (torch.randn(ROWS), hard(*ROWS)), {"gamma_neg": 2.5, "gamma_pos": 0.0, "clip": 0.2},
               exact=False),
        *_each("timm.AsymmetricLossSingleLabel", "timm.loss:AsymmetricLossSingleLabel", libraries.timm_single,
               lambda: (torch.randn(ROWS), labels(40)), *single, exact=False),
    ]  # fmt: skip


def _ultralytics() -> list[Case]:
    def scored() -> tuple:
        positive = hard(*ROWS)
        return torch.randn(ROWS), positive * torch.rand(ROWS) * (torch.rand(ROWS) < 0.8), positive

    path = "ultralytics.utils.loss:"
    return [
        *_each("ultralytics.FocalLoss", path + "FocalLoss", libraries.ultralytics_focal,
               lambda: (torch.randn(2, 8, CLASSES), hard(2, 8, CLASSES)), {}, {"alpha": 0.0, "gamma": 2.0},
               {"alpha": [0.1, 0.3, 0.5, 0.7, 0.9]}),
        *_each("ultralytics.VarifocalLoss", path + "VarifocalLoss", libraries.ultralytics_varifocal, scored,
               {}, {"gamma": 1.5, "alpha": 0.6}, exact=False),
    ]  # fmt: skip


def _calls(adapter: str, oracle: Callable, inputs: Callable, weights: list[Tensor], *options: dict) -> list[Case]:
    """Of OpenMMLab's losses: options of the constructor, and every way to weigh and reduce a call."""
    calls = [
        {"reduction_override": "none"}, {"reduction_override": "sum"}, {"avg_factor": 7.5},
        {"avg_factor": torch.tensor(7.5)}, *({"weight": w} for w in weights), {"weight": weights[0], "avg_factor": 3},
    ]  # fmt: skip
    made = [Case(adapter, inputs, oracle, given, exact=False) for given in options]
    return made + [Case(adapter, inputs, oracle, {"loss_weight": 1.7}, given, exact=False) for given in calls]


def _openmmlab() -> list[Case]:
    rows, elements = torch.rand(40), torch.rand(ROWS)
    background = lambda: (torch.randn(ROWS), labels(40, high=CLASSES + 1))  # noqa: E731
    pair = lambda: (torch.randn(ROWS), (labels(40, low=-1, high=CLASSES + 1), torch.rand(40)))  # noqa: E731
    scores = lambda: (torch.randn(ROWS), soft(*ROWS))  # noqa: E731
    heat = lambda: (torch.rand(ROWS) * 0.9 + 0.05, torch.where(torch.rand(ROWS) < 0.1, 1.0, torch.rand(ROWS)))  # noqa: E731
    pixels = lambda: (torch.randn(MASKS), masks_with(255))  # noqa: E731
    activated = {"activated": True}
    probabilities = lambda inputs: lambda: (torch.rand(ROWS) * 0.9 + 0.05, inputs()[1])  # noqa: E731
    at = {"pos_inds": torch.arange(0, 40, 4), "pos_labels": torch.arange(10) % CLASSES}
    mmdet = [
        *_calls("mmdet.FocalLoss", libraries.mmdet_focal, background, [rows, elements, elements.flatten()], {},
                {"gamma": 1.5, "alpha": 0.6, "reduction": "sum"}),
        *_calls("mmdet.FocalLoss", libraries.mmdet_focal, scores, [rows, elements], {}),
        *_each("mmdet.FocalLoss", None, libraries.mmdet_focal, probabilities(background), activated, exact=False),
        *_calls("mmdet.QualityFocalLoss", libraries.mmdet_quality, pair, [rows], {}, {"beta": 1.5}),
        *_calls("mmdet.QualityFocalLoss", libraries.mmdet_quality, scores, [rows], {}),
        *_each("mmdet.QualityFocalLoss", None, libraries.mmdet_quality, probabilities(pair), activated, exact=False),
        *_each("mmdet.QualityFocalLoss", None, libraries.mmdet_quality, probabilities(scores), activated, exact=False),
        *_calls("mmdet.VarifocalLoss", libraries.mmdet_varifocal, scores, [elements, vector()], {},
                {"alpha": 0.6, "gamma": 1.5, "iou_weighted": False}),
        *_calls("mmdet.GaussianFocalLoss", libraries.mmdet_gaussian, heat, [elements], {},
                {"alpha": 1.5, "gamma": 3.0, "pos_weight": 2.0, "neg_weight": 0.5}),
        *(Case("mmdet.GaussianFocalLoss", heat, libraries.mmdet_gaussian, {"pos_weight": 2.0}, {**at, **o}, exact=False)
          for o in ({}, {"avg_factor": 7.5}, {"reduction_override": "sum"})),
    ]  # fmt: skip
    weighted = [{"alpha": [0.1, 0.3, 0.5, 0.7, 0.9]}, {"class_weight": [0.1, 0.3, 0.5, 0.7, 0.9], "alpha": 0.6}]
    flat = torch.rand(3 * 6 * 7)
    mmseg = [
        *_calls("mmseg.FocalLoss", libraries.mmseg, pixels, [flat, torch.rand(126, CLASSES)], {}, *weighted),
        *_calls("mmseg.FocalLoss", libraries.mmseg, lambda: (torch.randn(ROWS), labels(40)), [rows], {}, *weighted),
        *_each("mmseg.FocalLoss", None, libraries.mmseg, lambda: (torch.randn(MASKS), one_hot(*MASKS)), {}, *weighted),
        *_each("mmseg.FocalLoss", None, libraries.mmseg,
               lambda: (torch.randn(3, 1, 6, 7), torch.where(torch.rand(3, 6, 7) < 0.2, 255, labels(3, 6, 7, high=2))),
               {}, of_call={"ignore_index": 255}),
    ]  # fmt: skip
    return mmdet + mmseg


def _seeds() -> list[Case]:
    rows = lambda: (torch.randn(ROWS), torch.where(torch.rand(40) < 0.2, -100, labels(40)))  # noqa: E731

    def multi_class(x: Tensor, t: Tensor, gamma: float = 2.0, ignore_index: int = -100, **options: Any) -> Tensor:
        return test_seeds.multi_class(x, t, gamma, ignore=ignore_index, **options)

    def one_vs_all(x: Tensor, t: Tensor, gamma: float = 2.0, alpha: float | None = 0.25) -> Tensor:
        return test_seeds.one_vs_all(x, t, gamma, alpha)

    def binary(x: Tensor, t: Tensor, gamma: float = 2.0, **options: Any) -> Tensor:
        return test_seeds.binary(x, t, gamma, **options)

    def softmax(x: Tensor, t: Tensor, class_num: int, alpha: Tensor | None = None, gamma: float = 2.0,
                size_average: bool = True) -> Tensor:  # fmt: skip
        column = (torch.ones(class_num) if alpha is None else alpha).view(-1, 1).to(x)
        return test_seeds.softmax_then_log(x, t, gamma, column, size_average)

    probabilities = lambda: (torch.rand(ROWS) * 0.9 + 0.05, hard(*ROWS))  # noqa: E731
    logits = {"logits": True}
    return [
        *_each("seeds.MultiClassFocalLoss", None, multi_class, rows, {}, {"gamma": 1.5, "alpha": vector()},
               {"reduction": "sum"}),
        *_each("seeds.MultiClassFocalLoss", None, multi_class, lambda: (torch.randn(MASKS), masks_with(255)),
               {"ignore_index": 255, "alpha": vector()}),
        *_each("seeds.OneVsAllFocalLoss", None, one_vs_all, rows, {}, {"alpha": None, "gamma": 0.5}, {"alpha": 0}),
        *_each("seeds.BinaryFocalLoss", None, binary, probabilities, {}, {"alpha": 0.6, "reduce": False}),
        *_each("seeds.BinaryFocalLoss", None, binary, lambda: (torch.randn(ROWS), hard(*ROWS)), logits,
               {**logits, "alpha": 0.6, "gamma": 1.5, "reduce": False}),
        *_each("seeds.SoftmaxFocalLoss", None, softmax, lambda: (torch.randn(ROWS), labels(40)), {"class_num": CLASSES},
               {"class_num": CLASSES, "alpha": vector(), "size_average": False},
               {"class_num": CLASSES, "alpha": vector().view(-1, 1), "gamma": 1.5}),
    ]  # fmt: skip


CASES = [
    case
    for cases in (
        _torchvision, _fvcore, _detr, _mmcv, _apex, _kornia, _monai, _smp, _keras, _timm, _ultralytics, _openmmlab,
        _seeds,
    )
    for case in cases()
]  # fmt: skip
