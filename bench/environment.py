"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench import machine

ROOT = Path(__file__).resolve().parent.parent


def describe(device: str) -> dict[str, Any]:
    import focal_cuda  # here, for whatever is only about results to work without the extension

    facts: dict[str, Any] = {
        "device": device,
        "model": torch.cuda.get_device_name() if device == "cuda" else _cpu_model(),
        "threads": torch.get_num_threads(),
        "clock": _gpu_clock() if device == "cuda" else _cpu_clock(),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "focal_cuda": focal_cuda.__version__,
        "cpu_capability": focal_cuda.build_info().get("cpu_capability"),
        "commit": _commit(),
        "peers": {name: found for name in machine.PEERS if (found := machine.version(name)) != machine.MISSING},
    }
    if device == "cuda":
        facts["cuda"] = torch.version.cuda
    return facts


def headline(facts: dict[str, Any]) -> str:
    """One line for the top of every report."""
    where = facts["model"]
    if facts["device"] == "cpu":
        where += f" ({facts['threads']} threads, {facts['cpu_capability']})"
    return (
        f"{where}, {facts['clock']}, load {facts['load']}, torch {facts['torch']}, "
        f"focal_cuda {facts['focal_cuda']} at {facts['commit']}"
    )


def slug(facts: dict[str, Any]) -> str:
    """A file name for the device."""
    name = facts["model"] if facts["device"] == "cuda" else f"{facts['model']} {facts['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_clock() -> str:
    """Governor and frequency, as far as the system tells."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    parts = [governor.read_text().strip()] if governor.exists() else []
    try:
        mhz = re.search(r"^cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        mhz = None
    if mhz:
        parts.append(f"{float(mhz[1]) / 1000:.1f} GHz")
    return " ".join(parts) or "clock unknown"


def _gpu_clock() -> str:
    torch.cuda._sleep(2_000_000_000)  # a second of work, since the clocks of an idle GPU tell nothing
    query = [
        "nvidia-smi",
        "--query-gpu=clocks.sm,clocks.mem,driver_version",
        "--format=csv,noheader",
        "--id=0",
    ]
    found = _output(query).split(", ")
    sm, memory, driver = found if len(found) == 3 else ("?", "?", "?")
    return f"SM {sm}, memory {memory}, driver {driver}"


def _commit() -> str:
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    if not commit:  # a copy without its history can be told
        return os.environ.get("FOCAL_CUDA_COMMIT", "unknown")
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--", "csrc", "focal_cuda", "bench/*.py"])
    return f"{commit} with changes" if changed else commit


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
