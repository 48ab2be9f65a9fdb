"""What a scenario is, and the bytes it has to move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bench.candidates import Candidate, candidates_of
from bench.inputs import PER_POSITION, TENSOR, Inputs, Targets, option_dtype


@dataclass(frozen=True)
class Scenario:
    """One workload. ``shapes`` has an entry "quick", and one for each device it is for: "cpu", "cuda"."""

    name: str
    title: str
    family: Literal["sigmoid", "softmax"]
    shapes: dict[str, tuple[int, ...]]
    candidates: tuple[str, ...]
    baseline: str | None = None
    compiled: str | None = None
    targets: Targets = "index"
    target_dtype: torch.dtype = torch.int64
    memory_format: torch.memory_format = torch.contiguous_format
    # Scenarios of one group are the lines of one table, or the points of one curve.
    group: Literal["options", "relatives", "size-sigmoid", "size-softmax"] | None = None
    # What the loss is called with; TENSOR: what the inputs make for it.
    options: Mapping[str, Any] = field(default_factory=dict)
    # A relative, by its name in focal_cuda; None: the focal loss of the family.
    loss: str | None = None
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

    def compiled_on(self, device: str) -> str | None:
        return self.cuda_compiled if device == "cuda" and self.cuda_compiled else self.compiled

    def all_candidates(self) -> dict[str, Candidate]:
        """Every candidate there is for its loss, with its options."""
        return candidates_of(self.family, self.loss, self.options)

    @property
    def ignore_index(self) -> int:
        return 255 if self.target_dtype == torch.uint8 else -100

    def declared_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, int]:
        """The least any implementation has to move, from the shape alone.

        Inference reads logits, targets and the options' tensors once; training also writes the gradient once. Only with
        mining are logits read again: those of what is kept, which is known when all have been read.
        """
        elements = math.prod(shape)
        logits = elements * dtype.itemsize
        positions = elements // shape[1]
        targets = positions * self.target_dtype.itemsize if self.targets == "index" else elements * dtype.itemsize
        options = {
            name: (positions if name in PER_POSITION else shape[1]) * option_dtype(name, dtype).itemsize
            for name, value in self.options.items()
            if value == TENSOR
        }
        inference = logits + targets + sum(options.values())
        again = int(logits * self.options.get("ohem_keep_ratio", 0))
        return {
            "logits": logits,
            "targets": targets,
            **options,
            "inference": inference,
            "training": inference + logits + again,
        }

    def make_inputs(self, shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Inputs:
        """Inputs for one set, checked against the declared bytes."""
        inputs = Inputs(
            self.family,
            shape,
            kind=self.targets,
            dtype=dtype,
            device=device,
            seed=seed,
            target_dtype=self.target_dtype,
            ignore_index=self.ignore_index,
            memory_format=self.memory_format,
        )
        declared = self.declared_bytes(shape, dtype)
        tensors = {name: inputs.option(name) for name, value in self.options.items() if value == TENSOR}
        for name, tensor in {"logits": inputs.logits, "targets": inputs.targets, **tensors}.items():
            actual = tensor.numel() * tensor.element_size()
            if actual != declared[name]:
                raise AssertionError(f"{self.name}: {declared[name]} bytes of {name} declared, {actual} passed")
        return inputs
