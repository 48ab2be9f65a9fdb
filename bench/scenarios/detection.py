"""Dense detection: one-vs-all over millions of anchors, one in a thousand of them positive."""

import torch

from bench.scenario import Scenario

# 100000 anchors and COCO's 80 classes; on a GPU a batch of 16 images of 640 x 640 with 76725 anchors each.
_SHAPES = {"cpu": (100_000, 80), "cuda": (1_227_600, 80), "quick": (200, 80)}
# Other numbers of classes, and the largest level of a feature pyramid as it leaves the network, [16, 9 * 80, 100, 152].
_MORE_SHAPES = {
    "heads": ("in planes, 100 x 152", {"cuda": (144, 80, 100, 152), "quick": (2, 80, 5, 7)}),
    "1m": ("a million anchors", {"cuda": (1_000_000, 80), "quick": (200, 80)}),
    "91": ("91 classes", {"cuda": (200_000, 91), "quick": (200, 91)}),
    "81": ("81 classes", {"cuda": (1_000_000, 81), "quick": (200, 81)}),
    "1": ("1 class", {"cuda": (5_000_000, 1), "quick": (5000, 1)}),
}
_PEERS = ("Python torchvision formula", "compile torchvision formula", "F.binary_cross_entropy", "clone", "copy_")

SCENARIOS = (
    Scenario(
        name="detection-index",
        title="Detection, class-index targets (int64)",
        family="sigmoid",
        shapes=_SHAPES,
        candidates=(
            "focal_cuda",
            "focal_cuda recompute",
            "focal_cuda inplace",
            "Python from labels",
            "Python exp(-BCE)",
            "Python one-vs-all",
            "compile from labels",
            "kornia",
            "MONAI",
            *_PEERS,
        ),
        baseline="Python torchvision formula",
        compiled="compile torchvision formula",
        cuda_candidates=("focal_cuda unreduced", "torchvision", "apex", "mmcv"),
        cuda_compiled="compile from labels",
    ),
    Scenario(
        name="detection-dense",
        title="Detection, dense targets",
        family="sigmoid",
        shapes=_SHAPES,
        targets="dense",
        candidates=("focal_cuda", "focal_cuda inplace", *_PEERS),
        baseline="Python torchvision formula",
        compiled="compile torchvision formula",
    ),
    Scenario(
        name="detection-uint8",
        title="Detection, class-index targets (uint8)",
        family="sigmoid",
        shapes=_SHAPES,
        target_dtype=torch.uint8,
        candidates=(
            "focal_cuda",
            "focal_cuda inplace",
            "Python torchvision formula",
            "compile torchvision formula",
            "compile from labels",
            "copy_",
        ),
        baseline="Python torchvision formula",
        compiled="compile torchvision formula",
        cuda_compiled="compile from labels",
    ),
    Scenario(
        name="detection-gamma-1.5",
        title="Detection, gamma = 1.5",
        family="sigmoid",
        shapes={kind: _SHAPES[kind] for kind in ("cuda", "quick")},
        candidates=("focal_cuda", "Python torchvision formula", "compile from labels", "copy_"),
        baseline="Python torchvision formula",
        compiled="compile from labels",
        options={"gamma": 1.5},
    ),
    Scenario(
        name="detection-autotuned",
        title="Detection, torch.compile autotuned",
        family="sigmoid",
        shapes={kind: _SHAPES[kind] for kind in ("cuda", "quick")},
        candidates=("focal_cuda", "Python torchvision formula", "autotuned from labels", "copy_"),
        baseline="Python torchvision formula",
        compiled="autotuned from labels",
    ),
    *(
        Scenario(
            name=f"detection-{name}",
            title=f"Detection, {title}",
            family="sigmoid",
            shapes=shapes,
            candidates=("focal_cuda", "Python torchvision formula", "compile from labels", "copy_"),
            baseline="Python torchvision formula",
            compiled="compile from labels",
        )
        for name, (title, shapes) in _MORE_SHAPES.items()
    ),
)
