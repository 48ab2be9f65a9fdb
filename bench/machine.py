"""What a GPU machine has: ``python -m bench.machine``. Imports nothing of the package, so that it runs before it is
built. The last line is JSON, for ``bench.gpu``; the exit status is 1 without a GPU that torch can use."""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

MISSING = "missing"  # for a version
# What others compute with, in the benchmark.
PEERS = ("triton", "torchvision", "apex", "mmcv", "liger-kernel", "quack-kernels", "kornia", "monai")
PACKAGES = (
    "setuptools",
    "ninja",
    "numpy",
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
    "hypothesis",
    "mpmath",
    "tabulate",
    "matplotlib",
    "tqdm",
    *PEERS,
)
_CLOCKS = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,mig.mode.current"
)


def main() -> int:
    facts: dict[str, Any] = {"python": platform.python_version(), "cpus": len(os.sched_getaffinity(0))}
    print(f"{platform.platform()}, Python {facts['python']} ({sys.executable}), {facts['cpus']} CPUs")
    print("packages:", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    print("tools:", ", ".join(f"{tool} {path or 'missing'}" for tool, path in tools().items()))
    print(first_line([tools()["nvcc"] or "nvcc", "--version"], containing="release"))
    query = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv"]
    print(output(query) or "nvidia-smi does not answer")
    try:
        import torch

        facts["torch"], facts["cuda"] = torch.__version__, torch.version.cuda
        print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
        facts["gpus"] = [describe(torch, index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # reported like everything else; the rest of the run decides what it can do
        print(f"torch does not work: {type(error).__name__}: {error}")
    for gpu in facts.get("gpus", []):
        print(", ".join(f"{name} {value}" for name, value in gpu.items()))
    print(json.dumps(facts))
    return 0 if facts.get("gpus") else 1


def describe(torch: Any, index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": getattr(properties, "L2_cache_size", 0) >> 20,
        "free_gib": round(free / 2**30, 1),
        "total_gib": round(total / 2**30, 1),
    }


def tools() -> dict[str, str | None]:
    """The CUDA tools, on PATH or where the toolkit is."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [f"{home}/bin", f"{home}/compute-sanitizer", *glob.glob("/opt/nvidia/nsight-compute/*")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    return {tool: shutil.which(tool, path=path) for tool in ("nvcc", "compute-sanitizer", "ncu", "cuobjdump")}


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def first_line(command: list[str], containing: str) -> str:
    return next((line for line in output(command).splitlines() if containing in line), f"{command[0]} does not answer")


if __name__ == "__main__":
    sys.exit(main())
