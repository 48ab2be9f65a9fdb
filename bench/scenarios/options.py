"""What the options of the two losses cost: the same call without them is measured beside each."""

from __future__ import annotations

from typing import Any

from bench.inputs import TENSOR, Targets
from bench.scenario import Scenario

_TASKS = {
    "detection": ("sigmoid", "Detection", (100_000, 80), (1_227_600, 80), (200, 80)),
    "segmentation": ("softmax", "Segmentation, 19 classes", (4, 19, 512, 512), (2, 19, 1024, 2048), (1, 19, 16, 16)),
}


def _scenario(
    task: str,
    name: str,
    title: str,
    options: dict[str, Any],
    python: str | None = None,
    compiled: str | None = None,
    targets: Targets = "index",
) -> Scenario:
    family, long, cpu, cuda, quick = _TASKS[task]
    # What differs in its targets alone differs from itself in nothing.
    plain = "focal_cuda plain" if options else None
    return Scenario(
        name=f"options-{task}-{name}",
        title=f"{long}, {title}",
        family=family,
        shapes={"cpu": cpu, "cuda": cuda, "quick": quick},
        targets=targets,
        candidates=tuple(c for c in ("focal_cuda", plain, python, compiled, "copy_") if c),
        baseline=python,
        compiled=compiled,
        group="options",
        options=options,
    )


_SMOOTHING, _WEIGHT, _ALPHA = {"label_smoothing": 0.1}, {"sample_weight": TENSOR}, {"alpha": TENSOR}
_ALL = {**_SMOOTHING, **_WEIGHT, **_ALPHA}
_OHEM = {"ohem_keep_ratio": 0.3}
_MORE = (
    ("gamma", "gamma of each class", {"gamma": TENSOR}),
    ("probability-smoothing", "probability smoothing", {"probability_smoothing": 0.001}),
    ("mask", "mask", {"mask": TENSOR}),
)

SCENARIOS = (
    _scenario("detection", "label-smoothing", "label smoothing", _SMOOTHING, "Python from labels"),
    _scenario("detection", "sample-weight", "weight of each row", _WEIGHT, "Python from labels"),
    _scenario("detection", "alpha", "alpha of each class", _ALPHA, "Python from labels"),
    _scenario("detection", "all", "all three of these", _ALL, "Python from labels", "compile from labels"),
    *(_scenario("detection", *option) for option in _MORE),
    _scenario("detection", "pos-weight", "weight of each class's positives", {"pos_weight": TENSOR}),
    _scenario("detection", "ohem", "hardest 30 %", _OHEM, "Python from labels"),
    _scenario(
        "detection", "ohem-dense", "hardest 30 %, dense targets", _OHEM, "Python torchvision formula", targets="dense"
    ),
    _scenario("segmentation", "label-smoothing", "label smoothing", _SMOOTHING, "Python smoothed labels"),
    _scenario("segmentation", "sample-weight", "weight of each pixel", _WEIGHT, "Python cross-entropy based"),
    _scenario("segmentation", "alpha", "alpha of each class", _ALPHA, "Python cross-entropy based"),
    _scenario("segmentation", "all", "all three of these", _ALL, "Python smoothed labels", "compile smoothed labels"),
    *(_scenario("segmentation", *option) for option in _MORE),
    _scenario("segmentation", "ohem", "hardest 30 %", _OHEM, "Python cross-entropy based"),
    _scenario(
        "segmentation",
        "soft",
        "soft targets",
        {},
        "Python soft composition",
        "compile soft composition",
        targets="soft",
    ),
)
