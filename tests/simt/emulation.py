"""The device "simt" of the tests: the package with its CUDA kernels, run by the emulation on CPU tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from focal_cuda import _ohem, _ops

from . import build

NAMESPACE = "focal_cuda_simt"


class Emulation:
    """The library, loaded; the one of this checkout unless another is named. Raises build.BuildFailed."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or build.library()
        torch.ops.load_library(str(path))
        self._library = ctypes.CDLL(str(path))
        self._library.focal_simt_kernels.restype = ctypes.c_char_p
        for name in ("launches", "seed"):
            getattr(self._library, f"focal_simt_{name}").restype = ctypes.c_uint64
        self._library.focal_simt_set_seed.argtypes = [ctypes.c_uint64]
        self.operators = getattr(torch.ops, NAMESPACE)
        self.families = {}
        for name, family in _ops.FAMILIES.items():
            names = {"forward": name, "inplace": f"{name}_inplace", "backward": f"{name}_backward"}
            self.families[name] = family._replace(**self._standing_for(names))
        self.hardest = _ohem.Operators(**self._standing_for({"forward": "hardest", "backward": "hardest_backward"}))

    def _standing_for(self, names: dict[str, str]) -> dict[str, torch._ops.OpOverload]:
        for name in names.values():
            # Shapes for tracing, from the operator that this one stands for.
            torch.library.register_fake(f"{NAMESPACE}::{name}", getattr(torch.ops.focal_cuda, name).default)
        return {key: getattr(self.operators, name).default for key, name in names.items()}

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on the public functions run emulated kernels. torch.ops.focal_cuda does not: torch finds operators
        by name there."""
        monkeypatch.setattr(_ops, "FAMILIES", self.families)
        monkeypatch.setattr(_ohem, "OPERATORS", self.hardest)

    @property
    def launches(self) -> int:
        return self._library.focal_simt_launches()

    def kernels(self, launched: bool = False) -> set[str]:
        """All there are, each set of template arguments by itself, or those that have run."""
        return set(self._library.focal_simt_kernels(launched).decode().splitlines())

    @property
    def seed(self) -> int:
        """Of the order that blocks, warps and lanes run in; FOCAL_SIMT_SEED in the environment, to begin with."""
        return self._library.focal_simt_seed()

    @seed.setter
    def seed(self, value: int) -> None:
        self._library.focal_simt_set_seed(value)
