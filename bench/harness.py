"""Runs one scenario: accuracy and memory of every candidate first, then all of them against the clock."""

from __future__ import annotations

import datetime
import math
import time
import traceback
from typing import Any

import torch
from tqdm import tqdm

from bench.accuracy import Oracle
from bench.candidates import Candidate
from bench.memory import peak_bytes
from bench.scenario import Scenario
from bench.timing import CUDA, QUICK, Budget, Clock, Runner, interleave

# Rotating the inputs keeps the previous call's logits from waiting in the cache.
INPUT_SETS = {"cpu": 2, "cuda": 3}
OWN = "focal_cuda"
# Nothing is compiled any more so close to the deadline.
COMPILING_SECONDS = 20


def run_scenario(
    scenario: Scenario,
    device: str,
    dtype: torch.dtype,
    quick: bool,
    compiled: bool,
    progress: bool = True,
    deadline: float = math.inf,
) -> dict[str, Any]:
    """Everything measured about one scenario, ready for JSON (seconds, bytes and ratios)."""
    shape = scenario.shapes["quick" if quick else device]
    budget = QUICK if quick else CUDA if device == "cuda" else Budget()
    if device == "cuda":
        torch.cuda.empty_cache()  # blocks of another scenario's sizes
    inputs = [scenario.make_inputs(shape, dtype, device, seed) for seed in range(INPUT_SETS[device])]
    clock, oracle = Clock(device, scenario.latency), Oracle(inputs[0])
    torch.compiler.reset()  # other scenarios' shapes would count against the recompile limit

    known = scenario.all_candidates()
    named = [known[name] for name in scenario.candidates_on(device)]
    chosen = [candidate for candidate in named if compiled or not candidate.compiled]
    results: dict[str, Any] = {}
    runners = []
    with tqdm(total=len(chosen), desc=scenario.name, unit="", leave=False, disable=not progress) as bar:
        for candidate in chosen:
            bar.set_postfix_str(f"preparing {candidate.name}")
            result = results[candidate.name] = _unavailable(candidate, deadline)
            if not result:
                try:
                    runner = Runner(candidate, inputs, clock)
                    if candidate.is_loss:
                        result.update(_examine(runner, oracle, device))
                    runner.warm_up(budget)
                    runners.append(runner)
                except Exception as error:  # one's failure must not take the others' numbers along
                    if device == "cuda" and not device_answers():
                        raise
                    if candidate.name.startswith(OWN):
                        traceback.print_exc()
                    result["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            bar.update()
    with tqdm(
        total=sum(r.turns for r in runners), desc=scenario.name, unit="", leave=False, disable=not progress
    ) as bar:
        for runner in interleave(runners, deadline=deadline):
            bar.set_postfix_str(runner.candidate.name)
            bar.update()
    for runner in runners:
        results[runner.candidate.name].update(runner.summary())
    return {
        "name": scenario.name,
        "title": scenario.title,
        "group": scenario.group,
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "loss": scenario.loss,
        "options": dict(scenario.options),
        "baseline": scenario.baseline,
        "compiled": scenario.compiled_on(device),
        "bytes": scenario.declared_bytes(shape, dtype),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "quick": quick,
        "candidates": results,
    }


def device_answers() -> bool:
    """An error inside a kernel takes the process's access to the GPU with it."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def own_failures(result: dict[str, Any]) -> list[str]:
    """What is said of those of the project's own ways that failed."""
    own = {label: c for label, c in result["candidates"].items() if label.startswith(OWN)}
    return [f"{label}: {candidate['failed']}" for label, candidate in own.items() if "failed" in candidate]


def _unavailable(candidate: Candidate, deadline: float) -> dict[str, Any]:
    if not candidate.available:
        return {"failed": f"{candidate.requires} is not installed"}
    if candidate.compiled and time.monotonic() + COMPILING_SECONDS > deadline:
        return {"failed": "no time left to compile it"}
    return {}


def _examine(runner: Runner, oracle: Oracle, device: str) -> dict[str, Any]:
    """Errors against the reference, and peak memory of forward and backward in multiples of the logits."""
    inputs = runner.inputs[0]
    inplace = runner.kind == "inplace"
    loss, gradient = runner.train(0)
    found = oracle.errors(runner.candidate.meaning, loss, gradient)
    del loss, gradient
    if inplace:
        inputs.restore()
    if runner.kind != "graph":  # which holds its memory for good
        logits = inputs.logits
        found["peak_memory"] = peak_bytes(lambda: runner.train(0), device) / (logits.numel() * logits.element_size())
    if inplace:
        inputs.restore()
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
