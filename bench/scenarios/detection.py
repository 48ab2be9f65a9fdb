"""Dense detection: one-vs-all over millions of anchors, one in a thousand of them positive."""

import torch

from bench.scenario import Scenario

# 100000 anchors and COCO's 80 classes; on a GPU a batch of 16 images of 640 x 640 with 76725 anchors each.
_SHAPES = {"cpu": (100_000, 80), "cuda": (1_227_600, 80), "quick": (200, 80)}
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
    ),
)
