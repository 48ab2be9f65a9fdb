"""torchvision, also where it was built for another torch than the one that is there."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch


def load(module: str) -> ModuleType:
    """A module of torchvision.

    Raises:
        ImportError: there is none that imports.
    """
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise ImportError(str(error)) from error
        name_operators()
        return importlib.import_module(module)


@functools.cache
def name_operators() -> torch.library.Library:
    """A torchvision built for another torch has Python code that works, but for naming operators which are not there.

    Losses and training steps need none of them.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
