"""Segmentation: softmax over a strided class dimension, one label for each pixel or voxel, blobby masks."""

import torch

from bench.scenario import Scenario

_PEERS = (
    "Python MultiClassFocalLoss",
    "Python cross-entropy based",
    "compile cross-entropy based",
    "F.cross_entropy",
    "clone",
    "copy_",
)
# Slow enough on the CPU that they run where they are used, not everywhere.
_LIBRARIES = ("kornia", "MONAI")


def _segmentation(
    name: str,
    title: str,
    cpu: tuple[int, ...] | None,
    cuda: tuple[int, ...],
    quick: tuple[int, ...],
    memory_format: torch.memory_format = torch.contiguous_format,
    target_dtype: torch.dtype = torch.int64,
    more: tuple[str, ...] = (),
    gamma: float | None = None,
    cuda_candidates: tuple[str, ...] = (),
) -> Scenario:
    shapes = {"cuda": cuda, "quick": quick}
    if cpu is not None:
        shapes["cpu"] = cpu
    return Scenario(
        name=f"segmentation-{name}",
        title=title,
        family="softmax",
        shapes=shapes,
        memory_format=memory_format,
        target_dtype=target_dtype,
        candidates=("focal_cuda", "focal_cuda inplace", *more, *_PEERS),
        baseline="Python MultiClassFocalLoss",
        compiled="compile cross-entropy based",
        options={} if gamma is None else {"gamma": gamma},
        cuda_candidates=cuda_candidates,
    )


SCENARIOS = (
    _segmentation(
        "2",
        "Segmentation, 2 classes",
        (4, 2, 512, 512),
        (4, 2, 1024, 1024),
        (1, 2, 16, 16),
        more=_LIBRARIES,
    ),
    _segmentation(
        "19",
        "Segmentation, 19 classes (Cityscapes)",
        (4, 19, 512, 512),
        (2, 19, 1024, 2048),
        (1, 19, 16, 16),
        more=("focal_cuda recompute", "Python scattered one-hot", *_LIBRARIES),
        cuda_candidates=("focal_cuda unreduced",),
    ),
    _segmentation(
        "19-uint8",
        "Segmentation, 19 classes, uint8 masks",
        (4, 19, 512, 512),
        (2, 19, 1024, 2048),
        (1, 19, 16, 16),
        target_dtype=torch.uint8,
    ),
    _segmentation(
        "19-channels-last",
        "Segmentation, 19 classes, channels_last",
        (4, 19, 512, 512),
        (2, 19, 1024, 2048),
        (1, 19, 16, 16),
        memory_format=torch.channels_last,
    ),
    _segmentation(
        "21-odd",
        "Segmentation, 21 classes (VOC), odd size",
        (2, 21, 513, 513),
        (16, 21, 513, 513),
        (1, 21, 17, 17),
    ),
    _segmentation(
        "150", "Segmentation, 150 classes (ADE20K)", (2, 150, 256, 256), (8, 150, 512, 512), (1, 150, 16, 16)
    ),
    _segmentation(
        "3d",
        "Segmentation, 3-D, 4 classes",
        (2, 4, 64, 96, 96),
        (2, 4, 128, 128, 128),
        (1, 4, 8, 16, 16),
        more=_LIBRARIES,
    ),
    # On a GPU alone from here on.
    _segmentation(
        "2-uint8",
        "Segmentation, 2 classes, uint8 masks",
        None,
        (4, 2, 1024, 1024),
        (1, 2, 16, 16),
        target_dtype=torch.uint8,
    ),
    _segmentation("21", "Segmentation, 21 classes (VOC)", None, (16, 21, 512, 512), (1, 21, 16, 16)),
    _segmentation("19-odd", "Segmentation, 19 classes, odd size", None, (8, 19, 769, 769), (1, 19, 17, 17)),
    _segmentation("171", "Segmentation, 171 classes (COCO-Stuff)", None, (4, 171, 640, 640), (1, 171, 16, 16)),
    _segmentation(
        "21-channels-last",
        "Segmentation, 21 classes (VOC), channels_last",
        None,
        (16, 21, 512, 512),
        (1, 21, 16, 16),
        memory_format=torch.channels_last,
    ),
    _segmentation(
        "150-channels-last",
        "Segmentation, 150 classes (ADE20K), channels_last",
        None,
        (8, 150, 512, 512),
        (1, 150, 16, 16),
        memory_format=torch.channels_last,
    ),
    _segmentation("3d-3", "Segmentation, 3-D, 3 classes", None, (2, 3, 160, 192, 160), (1, 3, 8, 16, 16)),
    _segmentation("3d-14", "Segmentation, 3-D, 14 classes", None, (1, 14, 192, 192, 192), (1, 14, 8, 16, 16)),
    _segmentation("1000", "Segmentation, 1000 classes", None, (1, 1000, 512, 512), (1, 1000, 8, 8)),
    _segmentation(
        "19-gamma-1.5", "Segmentation, 19 classes, gamma = 1.5", None, (2, 19, 1024, 2048), (1, 19, 16, 16), gamma=1.5
    ),
    Scenario(
        name="segmentation-autotuned",
        title="Segmentation, 19 classes, torch.compile autotuned",
        family="softmax",
        shapes={"cuda": (2, 19, 1024, 2048), "quick": (1, 19, 16, 16)},
        candidates=("focal_cuda", "Python MultiClassFocalLoss", "autotuned cross-entropy based", "copy_"),
        baseline="Python MultiClassFocalLoss",
        compiled="autotuned cross-entropy based",
    ),
)
