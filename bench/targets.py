"""What the project promises, as ratios within one run. ``verdicts`` holds them against a set of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

PYTHON_SIGMOID = "Python torchvision formula"
PYTHON_SOFTMAX = "Python MultiClassFocalLoss"
CE_BASED = "Python cross-entropy based"

LARGE = (
    "detection-index",
    "detection-dense",
    "detection-uint8",
    "segmentation-2",
    "segmentation-19",
    "segmentation-19-uint8",
    "segmentation-19-channels-last",
    "segmentation-21-odd",
    "segmentation-150",
    "segmentation-3d",
    "rows-10",
    "rows-1000",
    "rows-32000",
    "rows-128256",
)


@dataclass(frozen=True)
class Target:
    """One promise. Exactly one of ``at_least`` and ``at_most`` is set; of several scenarios the worst counts.

    speedup: time of ``against`` / time of ``of``, forward + backward. time: the inverse. The others are plain
    quantities of ``of``: peak memory in multiples of the logits, relative error of loss and gradient.
    """

    scenarios: tuple[str, ...]
    quantity: Literal["speedup", "time", "peak_memory", "loss_error", "gradient_error"]
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    of: str = "focal_cuda"
    device: str = "cpu"

    @property
    def claim(self) -> str:
        what = {
            "speedup": f"{self.of} over {self.against}",
            "time": f"time of {self.of} / time of {self.against}",
            "peak_memory": f"peak extra memory of {self.of} / logits",
            "loss_error": f"relative error of the loss, {self.of}",
            "gradient_error": f"error of the gradient / its row's largest, {self.of}",
        }
        return what[self.quantity]

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}"

    def measure(self, scenario: dict[str, Any]) -> float | None:
        """The quantity in one scenario's result; None where something it needs was not measured."""
        candidates = scenario["candidates"]
        own = candidates.get(self.of, {})
        if self.quantity not in ("speedup", "time"):
            return own.get(self.quantity)
        other = candidates.get(self.against or "", {})
        if "training" not in own or "training" not in other:
            return None
        ratio = other["training"]["p50"] / own["training"]["p50"]
        return ratio if self.quantity == "speedup" else 1 / ratio

    def reached(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


TARGETS = (
    Target(("detection-index",), "speedup", PYTHON_SIGMOID, at_least=30),
    Target(("detection-index",), "speedup", "compile torchvision formula", at_least=4),
    Target(("detection-dense",), "speedup", PYTHON_SIGMOID, at_least=25),
    Target(("segmentation-19",), "speedup", PYTHON_SOFTMAX, at_least=11),
    Target(("segmentation-19",), "speedup", "compile cross-entropy based", at_least=1.8),
    Target(("segmentation-19",), "time", "clone", at_most=0.8),
    Target(("segmentation-19",), "speedup", PYTHON_SOFTMAX, at_least=18, of="focal_cuda inplace"),
    Target(("segmentation-19",), "time", "copy_", at_most=1.35, of="focal_cuda inplace"),
    Target(("segmentation-19-channels-last",), "speedup", CE_BASED, at_least=4),
    Target(("segmentation-150",), "speedup", CE_BASED, at_least=4),
    Target(("small-softmax",), "time", "F.cross_entropy", at_most=1),
    Target(LARGE, "peak_memory", at_most=1.05),
    Target(LARGE, "peak_memory", at_most=0.05, of="focal_cuda inplace"),
    Target(LARGE, "loss_error", at_most=2e-5),
    Target(LARGE, "gradient_error", at_most=1e-4),
)


@dataclass(frozen=True)
class Verdict:
    target: Target
    value: float | None
    scenario: str  # the one with the worst value

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        return "yes" if self.target.reached(self.value) else "NO"


def verdicts(results: dict[str, dict[str, Any]], device: str, targets: tuple[Target, ...] = TARGETS) -> list[Verdict]:
    """One verdict for each target of the device, from the results by scenario name."""
    found = []
    for target in targets:
        if target.device != device:
            continue
        measured = [
            (value, name)
            for name in target.scenarios
            if name in results and (value := target.measure(results[name])) is not None
        ]
        worst = min if target.at_least is not None else max
        value, name = worst(measured, default=(None, ", ".join(target.scenarios[:1])))
        found.append(Verdict(target, value, name))
    return found
