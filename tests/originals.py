"""The other libraries themselves, where they are installed: tests that ask for one are skipped where it is not."""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch

# Keras chooses its tensors when it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp")


@cache
def _load(module: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(module)
    except Exception as error:
        return error


@cache
def _name_operators_of_torchvision() -> torch.library.Library:
    """A build for another torch has Python code that works, but for naming operators which that does not have."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def original(path: str) -> Any:
    """What "module:name" is."""
    module, _, name = path.partition(":")
    if module.partition(".")[0] in ("torchvision", "timm", "segmentation_models_pytorch"):
        vision = _load("torchvision")
        if isinstance(vision, RuntimeError) and "torchvision::nms" in str(vision):
            _name_operators_of_torchvision()
            _load.cache_clear()
    loaded = _load(module)
    if isinstance(loaded, Exception):
        pytest.skip(f"{module}: {loaded}")
    return getattr(loaded, name) if name else loaded
