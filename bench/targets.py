"""What the project promises, as ratios within one run. ``verdicts`` holds them against a set of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bench.results import select

PYTHON_SIGMOID = "Python torchvision formula"
PYTHON_SOFTMAX = "Python MultiClassFocalLoss"
CE_BASED = "Python cross-entropy based"
PLAIN = "focal_cuda plain"
ORIGINAL = "Python original"

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
MINING = ("options-detection-ohem", "options-detection-ohem-dense", "options-segmentation-ohem")
_BOTH_OPTIONS = ("label-smoothing", "sample-weight", "alpha", "all", "gamma", "probability-smoothing", "mask")
OPTIONS = (
    *(f"options-{task}-{option}" for task in ("detection", "segmentation") for option in _BOTH_OPTIONS),
    "options-detection-pos-weight",
    "options-segmentation-soft",
    *MINING,
)
RELATIVES = tuple(
    f"relative-{name}" for name in ("quality", "varifocal", "gaussian", "asymmetric", "poly", "reduced", "normalized")
)


def median(candidate: dict[str, Any], kind: str = "training") -> float | None:
    return candidate[kind]["p50"] if kind in candidate else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator and denominator else None


def share_of_copy(scenario: dict[str, Any], candidate: dict[str, Any], kind: str = "training") -> float | None:
    """The least bytes the candidate could do with per second, of those that a copy of the logits moves."""
    copy, time = median(scenario["candidates"].get("copy_", {})), median(candidate, kind)
    if copy is None or time is None:
        return None
    return scenario["bytes"][kind] / time / (2 * scenario["bytes"]["logits"] / copy)


@dataclass(frozen=True)
class Target:
    """One promise. Exactly one of ``at_least`` and ``at_most`` is set; of several scenarios the worst counts.

    speedup: time of ``against`` / time of ``of``, forward + backward. time: the inverse. inference_speedup: the same
    of the loss alone. The others are quantities of ``of``: peak memory in multiples of the logits, relative error of
    loss and gradient, and the bytes it has to move per second, of those a copy moves, with the gradient (of_copy) and
    without (inference_of_copy).
    """

    scenarios: tuple[str, ...]
    quantity: Literal[
        "speedup",
        "time",
        "inference_speedup",
        "of_copy",
        "inference_of_copy",
        "peak_memory",
        "loss_error",
        "gradient_error",
    ]
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    of: str = "focal_cuda"
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def claim(self) -> str:
        what = {
            "speedup": f"{self.of} over {self.against}",
            "time": f"time of {self.of} / time of {self.against}",
            "inference_speedup": f"loss alone: {self.of} over {self.against}",
            "of_copy": f"speed of {self.of} / speed of copy_",
            "inference_of_copy": f"loss alone: speed of {self.of} / speed of copy_",
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
        if self.quantity.endswith("of_copy"):
            return share_of_copy(scenario, own, self._kind)
        if self.quantity in ("peak_memory", "loss_error", "gradient_error"):
            return own.get(self.quantity)
        factor = ratio(median(candidates.get(self.against or "", {}), self._kind), median(own, self._kind))
        return 1 / factor if factor and self.quantity == "time" else factor

    @property
    def _kind(self) -> str:
        return "inference" if self.quantity.startswith("inference") else "training"

    def reached(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


CPU = (
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
    # 10 us of 75 for the adapter.
    Target(("small-softmax", "small-sigmoid"), "time", "focal_cuda", at_most=1.13, of="focal_cuda.compat"),
    Target(LARGE, "peak_memory", at_most=1.05),
    Target(LARGE, "peak_memory", at_most=0.05, of="focal_cuda inplace"),
    Target(LARGE, "loss_error", at_most=2e-5),
    Target(LARGE, "gradient_error", at_most=1e-4),
    *(Target((f"options-{task}-all",), "time", PLAIN, at_most=1.3) for task in ("detection", "segmentation")),
    *(Target((name,), "time", PLAIN, at_most=2) for name in MINING),
    Target(("options-segmentation-soft",), "speedup", "Python soft composition", at_least=10),
    *(Target((name,), "speedup", ORIGINAL, at_least=15) for name in RELATIVES),
    Target((*OPTIONS, *RELATIVES), "loss_error", at_most=2e-5),
    Target((*OPTIONS, *RELATIVES), "gradient_error", at_most=1e-4),
)

FP32, BF16 = "float32", "bfloat16"


def _cuda(
    *scenarios: str,
    of_copy: tuple[float, float] | None = None,
    compiled: tuple[float, float] | None = None,
    python: float | None = None,
) -> list[Target]:
    """What is promised of scenarios in float32 and in bfloat16: the part of a copy's speed, and the factors over
    torch.compile and over the best plain Python, both given what suits them best."""
    detection = scenarios[0].startswith("detection")
    found = []
    for which, dtype in enumerate((FP32, BF16)):
        if of_copy:
            found.append(Target(scenarios, "of_copy", None, of_copy[which], device="cuda", dtype=dtype))
        if compiled:
            name = "compile from labels" if detection else "compile cross-entropy based"
            found.append(Target(scenarios, "speedup", name, compiled[which], device="cuda", dtype=dtype))
        if python:
            name = PYTHON_SIGMOID if detection else CE_BASED
            found.append(Target(scenarios, "speedup", name, python, device="cuda", dtype=dtype))
    return found


_CUDA_LARGE = (
    *(name for name in LARGE if name != "rows-10"),  # of which the workspace is no longer a small part
    "segmentation-2-uint8",
    "segmentation-21",
    "segmentation-19-odd",
    "segmentation-171",
    "segmentation-1000",
    "rows-81",
    "rows-256000",
)
CUDA = (
    *_cuda("detection-index", of_copy=(0.93, 0.90), compiled=(2, 4), python=25),
    *_cuda("detection-gamma-1.5", of_copy=(0.90, 0.85), compiled=(3, 5)),
    Target(("detection-index",), "inference_of_copy", at_least=0.85, device="cuda", dtype=BF16),
    Target(("detection-index",), "inference_speedup", "compile from labels", 4, device="cuda", dtype=BF16),
    *_cuda("segmentation-19", of_copy=(0.92, 0.90), compiled=(2.5, 4), python=4),
    *_cuda("segmentation-2-uint8", of_copy=(0.88, 0.88), compiled=(3, 3), python=10),
    *_cuda("segmentation-21-odd", "segmentation-19-odd", of_copy=(0.80, 0.80)),
    *_cuda("segmentation-150", "segmentation-171", of_copy=(0.90, 0.90)),
    *_cuda("segmentation-150", compiled=(2.5, 2.5), python=3.5),
    *_cuda("segmentation-1000", of_copy=(0.80, 0.80)),
    *_cuda("segmentation-19-channels-last", of_copy=(0.88, 0.88), compiled=(4, 4), python=5),
    *_cuda("rows-1000", "rows-32000", "rows-128256", of_copy=(0.92, 0.92)),
    *_cuda("rows-1000", "rows-32000", compiled=(1.5, 1.5), python=5),
    *(Target(_CUDA_LARGE, "peak_memory", at_most=1.01, device="cuda", dtype=dtype) for dtype in (FP32, BF16)),
    Target(_CUDA_LARGE, "peak_memory", at_most=0.01, of="focal_cuda inplace", device="cuda"),
    *(
        target
        for names in (_CUDA_LARGE, (*OPTIONS, *RELATIVES))
        for target in (
            Target(names, "loss_error", at_most=2e-5, device="cuda"),
            Target(names, "gradient_error", at_most=1e-4, device="cuda"),
        )
    ),
)
TARGETS = CPU + CUDA


@dataclass(frozen=True)
class Verdict:
    target: Target
    value: float | None
    scenario: str  # the one with the worst value
    unmeasured: int = 0  # of the target's scenarios

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        return "yes" if self.target.reached(self.value) else "NO"


def verdicts(
    document: dict[str, Any], device: str, reused: bool = False, targets: tuple[Target, ...] = TARGETS
) -> list[Verdict]:
    """One verdict for each target of the device, from a device's results."""
    found = []
    for target in targets:
        if target.device != device:
            continue
        results = select(document, reused, target.dtype)
        measured = [
            (value, name)
            for name in target.scenarios
            if name in results and (value := target.measure(results[name])) is not None
        ]
        worst = min if target.at_least is not None else max
        value, name = worst(measured, default=(None, ", ".join(target.scenarios[:1])))
        found.append(Verdict(target, value, name, len(target.scenarios) - len(measured)))
    return found
