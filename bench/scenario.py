"""What a scenario is, and the bytes it has to move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from bench.inputs import Inputs
from bench.losses import GAMMA


@dataclass(frozen=True)
class Scenario:
    """One workload. ``shapes`` has an entry "quick", and one for each device it is for: "cpu", "cuda"."""

    name: str
    title: str
    family: Literal["sigmoid", "softmax"]
    shapes: dict[str, tuple[int, ...]]
    candidates: tuple[str, ...]
    baseline: str
    compiled: str
    targets: Literal["index", "dense"] = "index"
    target_dtype: torch.dtype = torch.int64
    memory_format: torch.memory_format = torch.contiguous_format
    # Scenarios of one group differ in size only: one line of a table each, one curve of a plot together.
    group: str | None = None
    gamma: float = GAMMA
    # On a GPU the time of calls in a row, the host's part included; otherwise the device's alone.
    latency: bool = False
    # On a GPU: more candidates, and the compiled one to compare with where it is another than elsewhere.
    cuda_candidates: tuple[str, ...] = ()
    cuda_compiled: str | None = None

    def candidates_on(self, device: str) -> tuple[str, ...]:
        if device != "cuda":
            return self.candidates
        # What a loss without its gradient is measured by, wherever one with it is measured by a copy.
        ceilings = ("sum",) if "copy_" in self.candidates and not self.latency else ()
        return self.candidates + self.cuda_candidates + ceilings

    def compiled_on(self, device: str) -> str:
        return self.cuda_compiled if device == "cuda" and self.cuda_compiled else self.compiled

    @property
    def ignore_index(self) -> int:
        return 255 if self.target_dtype == torch.uint8 else -100

    def declared_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, int]:
        """The least any implementation has to move, from the shape alone.

        Inference reads logits and targets once; training also writes the gradient once.
        """
        elements = math.prod(shape)
        logits = elements * dtype.itemsize
        if self.targets == "dense":
            targets = elements * dtype.itemsize
        else:
            targets = elements // shape[1] * self.target_dtype.itemsize
        return {
            "logits": logits,
            "targets": targets,
            "inference": logits + targets,
            "training": 2 * logits + targets,
        }

    def make_inputs(self, shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Inputs:
        """Inputs for one set, checked against the declared bytes."""
        inputs = Inputs(
            family=self.family,
            shape=shape,
            dtype=dtype,
            device=device,
            seed=seed,
            dense=self.targets == "dense",
            target_dtype=self.target_dtype,
            ignore_index=self.ignore_index,
            memory_format=self.memory_format,
        )
        declared = self.declared_bytes(shape, dtype)
        for name in ("logits", "targets"):
            tensor = getattr(inputs, name)
            actual = tensor.numel() * tensor.element_size()
            if actual != declared[name]:
                raise AssertionError(f"{self.name}: {declared[name]} bytes of {name} declared, {actual} passed")
        return inputs
