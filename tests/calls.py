"""Every loss, alone and with its options, on a small batch: what the contracts with torch are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import Shape, make_index, make_logits, of_each_class
from combinations import ALL, BY_ACTIVATION, SIGMOID, SOFTMAX, call_of, make_targets
from torch import Tensor

import focal_cuda

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft targets": {},
    "smoothed probability": {"probability_smoothing": 0.1, "gamma": 0.5},
    "smoothed labels": {"label_smoothing": 0.1},
    "probabilities": {"from_probabilities": True, "gamma": 1.5},
    "hardest": {"ohem_keep_ratio": 0.4},
    "everything": {},  # many at once: see below
}
# The name of each, with its function, and what it is called with or the activation.
FOCAL = {f"{op}, {kind}": (op, kind) for op in (SIGMOID, SOFTMAX) for kind in OPTIONS}
RELATIVES = {
    f"{op}, {activation}": (op, activation)
    for op in ALL
    for activation in (("sigmoid", "softmax") if op in BY_ACTIVATION else ("sigmoid",))
}
CALLS = FOCAL | RELATIVES
UPSTREAM = 0.3


def calls(names: dict[str, tuple[str, str]] = CALLS) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names)


@dataclass(frozen=True)
class Call:
    op: str
    logits: Tensor
    targets: Tensor
    options: dict[str, Any]

    def loss(self, logits: Tensor, **more: Any) -> Tensor:
        """Of other logits, or with further options."""
        return getattr(focal_cuda, self.op)(logits, self.targets, **self.options | more)

    def rows(self, some: slice) -> Call:
        """The same of a part of the batch."""
        n = len(self.logits)

        def part(value: Any) -> Any:
            return value[some] if isinstance(value, Tensor) and value.dim() and len(value) == n else value

        options = {key: part(value) for key, value in self.options.items()}
        return Call(self.op, part(self.logits), part(self.targets), options)

    def value_and_grad(self, **more: Any) -> tuple[Tensor, Tensor]:
        return value_and_grad(lambda x: self.loss(x, **more), self.logits)

    def arguments(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        return self.logits, self.targets, self.options


def value_and_grad(f: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and the gradient under an upstream gradient that is not 1."""
    x = logits.detach().clone().requires_grad_()
    loss = f(x)
    (grad,) = torch.autograd.grad(loss, x, torch.full_like(loss, UPSTREAM))
    return loss.detach(), grad


def call(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32, size: tuple[int, ...] = (6, 5)) -> Call:
    op, kind = CALLS[name]
    shape = Shape(size)
    computing = torch.float64 if dtype == torch.float64 else torch.float32
    if op in ALL:
        logits, targets, options = call_of(op, shape, device, computing)
        options |= {"activation": kind} if op in BY_ACTIVATION else {}
        return Call(op, logits.to(dtype).clamp(-4, 4), targets, options)
    targets = make_index(shape, device=device)
    if kind == "soft targets":
        targets, _ = make_targets(op == SOFTMAX, "soft", shape, computing, device)
    options = everything(op, shape, computing, device) if kind == "everything" else OPTIONS[kind]
    logits = make_logits(size, dtype, device).clamp(-4, 4)
    return Call(op, logits.sigmoid() if kind == "probabilities" else logits, targets, options)


def everything(op: str, shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Many options at once."""
    options: dict[str, Any] = {
        "alpha": of_each_class(shape, dtype, device),
        "gamma": of_each_class(shape, dtype, device, 3.0),
        "sample_weight": torch.rand(shape.positions, dtype=dtype, device=device) + 0.5,
        "mask": torch.rand(shape.positions, device=device) < 0.8,
        "label_smoothing": 0.1,
        "reduction": "sum",
        "normalizer": torch.tensor(3.0, device=device),
    }
    return options | ({"pos_weight": of_each_class(shape, dtype, device, 3.0)} if op == SIGMOID else {})
