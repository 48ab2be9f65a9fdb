"""The other libraries themselves, where they are installed: tests that ask for one are skipped where it is not."""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any

import pytest

from bench import vision

# Keras chooses its tensors when it is imported.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("YOLO_CONFIG_DIR", "/tmp")


@cache
def _load(module: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(module)
    except Exception as error:
        return error


def original(path: str) -> Any:
    """What "module:name" is."""
    module, _, name = path.partition(":")
    if module.partition(".")[0] in ("torchvision", "timm", "segmentation_models_pytorch", "transformers"):
        with suppress(ImportError):
            vision.load("torchvision")
    loaded = _load(module)
    if isinstance(loaded, Exception):
        pytest.skip(f"{module}: {loaded}")
    return getattr(loaded, name) if name else loaded
