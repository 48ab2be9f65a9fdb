"""Runs loss and gradient of a few scenarios once each, between the marks that a profiler listens for:

ncu --profile-from-start off --clock-control none python -m bench.kernels [SCENARIO[:DTYPE] ...]
"""

from __future__ import annotations

import sys

import torch

from bench.__main__ import DTYPES
from bench.scenarios import SCENARIOS
from bench.timing import Clock, Runner

HEADLINES = (
    "detection-index:float32",
    "detection-index:bfloat16",
    "segmentation-19:float32",
    "segmentation-19:bfloat16",
    "segmentation-150:bfloat16",
    "segmentation-19-channels-last:bfloat16",
    "rows-32000:bfloat16",
)


def main(names: list[str], device: str = "cuda", quick: bool = False) -> int:
    for name in names or HEADLINES:
        scenario, _, dtype = name.partition(":")
        known = SCENARIOS[scenario]
        inputs = known.make_inputs(known.shapes["quick" if quick else device], DTYPES[dtype or "float32"], device, 0)
        runner = Runner(known.all_candidates()["focal_cuda"], [inputs], Clock(device, latency=True))
        runner.train(0)
        least = known.declared_bytes(tuple(inputs.logits.shape), inputs.logits.dtype)["training"]
        print(f"{name}: at least {least / 2**20:.1f} MiB for loss and gradient", flush=True)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        runner.train(0)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
