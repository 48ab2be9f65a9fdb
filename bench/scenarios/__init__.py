"""The scenarios, by name, and which of them a run measures, in which order."""

from __future__ import annotations

from typing import NamedTuple

from bench.results import CURVES
from bench.scenario import Scenario
from bench.scenarios import detection, options, relatives, rows, segmentation, size, small

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for module in (detection, segmentation, rows, small, options, relatives, size)
    for scenario in module.SCENARIOS
}


class Run(NamedTuple):
    scenario: str
    dtype: str = "float32"
    compiled: bool = True  # time torch.compile, which takes seconds to compile


# On a GPU machine time is short and a run may be cut off at any point, so what the targets ask for comes first, in the
# two types that decide, and torch.compile is timed only there.
_DECIDING = (
    "detection-index",
    "segmentation-19",
    "segmentation-150",
    "segmentation-19-channels-last",
    "rows-1000",
    "rows-32000",
    "segmentation-21-odd",
    "detection-gamma-1.5",
    "segmentation-2-uint8",
)
_ALSO = (
    "segmentation-19-odd",
    "detection-dense",
    "detection-uint8",
    "detection-heads",
    "rows-81",
    "segmentation-21",
    "rows-128256",
    "segmentation-171",
    "segmentation-1000",
    "detection-1m",
    "detection-91",
    "detection-81",
    "detection-1",
    "segmentation-2",
    "segmentation-19-uint8",
    "segmentation-19-gamma-1.5",
    "segmentation-3d",
    "rows-10",
    "rows-256000",
    "segmentation-21-channels-last",
    "segmentation-150-channels-last",
    "rows-50257",
    "rows-1203",
    "segmentation-3d-3",
    "segmentation-3d-14",
)
_LATENCY = ("small-softmax", "small-sigmoid", "small-softmax-64", "small-sigmoid-100")
_HALF = ("detection-index", "segmentation-19", "rows-32000")
_LAST = ("detection-autotuned", "segmentation-autotuned")
_BOTH = ("float32", "bfloat16")


def plan(device: str) -> list[Run]:
    """What is measured on a device when nothing else is asked for, the most telling first."""
    if device != "cuda":
        return [Run(name) for name, scenario in SCENARIOS.items() if "cpu" in scenario.shapes]
    curves = [name for name, scenario in SCENARIOS.items() if scenario.group in CURVES]
    compared = [name for name, scenario in SCENARIOS.items() if scenario.group in ("options", "relatives")]
    return [
        *(Run(name, dtype) for name in _DECIDING for dtype in _BOTH),
        *(Run(name) for name in _LATENCY),
        *(Run(name, dtype, compiled=False) for name in _ALSO for dtype in _BOTH),
        *(Run(name, "float16", compiled=False) for name in _HALF),
        *(Run(name, dtype, compiled=False) for name in compared for dtype in _BOTH),
        *(Run(name, "bfloat16") for name in _LAST),
        *(Run(name, compiled=False) for name in curves),
    ]
