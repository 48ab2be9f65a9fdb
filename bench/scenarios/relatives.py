"""The relatives of the focal loss against their originals in PyTorch, each at a size it is used at."""

from __future__ import annotations

from typing import Any

from bench.inputs import TENSOR, Targets
from bench.scenario import Scenario

_DETECTION = {"cpu": (100_000, 80), "cuda": (1_227_600, 80), "quick": (200, 80)}
# CenterNet's heat maps of 512 x 512 images, and the labels of Open Images.
_HEAT_MAPS = {"cpu": (16, 80, 128, 128), "cuda": (64, 80, 128, 128), "quick": (1, 80, 16, 16)}
_LABELS = {"cpu": (1024, 9605), "cuda": (8192, 9605), "quick": (8, 500)}


def _relative(
    name: str,
    title: str,
    loss: str | None = None,
    shapes: dict[str, tuple[int, ...]] = _DETECTION,
    targets: Targets = "index",
    **options: Any,
) -> Scenario:
    return Scenario(
        name=f"relative-{name}",
        title=title,
        family="sigmoid",
        loss=loss or f"{name}_focal_loss",
        shapes=shapes,
        targets=targets,
        candidates=("focal_cuda", "Python original", "compile original", "copy_"),
        baseline="Python original",
        compiled="compile original",
        group="relatives",
        options=options,
    )


SCENARIOS = (
    _relative("quality", "Quality focal loss, labels and scores", scores=TENSOR),
    _relative("varifocal", "Varifocal loss, labels and scores", "varifocal_loss", scores=TENSOR),
    _relative("gaussian", "Gaussian focal loss, heat maps", shapes=_HEAT_MAPS, targets="heat map"),
    _relative("asymmetric", "Asymmetric loss, many labels", "asymmetric_loss", _LABELS, "many-hot"),
    _relative("poly", "Poly-1 focal loss"),
    _relative("reduced", "Reduced focal loss"),
    _relative("normalized", "Normalized focal loss"),
)
