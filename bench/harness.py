"""Runs one scenario: accuracy and memory of every candidate first, then all of them against the clock."""

from __future__ import annotations

import datetime
import math
from typing import Any

import torch
from tqdm import tqdm

from bench.accuracy import Oracle
from bench.candidates import Candidate, candidates_of
from bench.memory import peak_bytes
from bench.scenario import Scenario
from bench.timing import QUICK, Budget, Clock, Runner, interleave

# Rotating the inputs keeps the previous call's logits from waiting in the cache.
INPUT_SETS = {"cpu": 2, "cuda": 3}


def run_scenario(
    scenario: Scenario, device: str, dtype: torch.dtype, quick: bool, compiled: bool, progress: bool = True
) -> dict[str, Any]:
    """Everything measured about one scenario, ready for JSON (seconds, bytes and ratios)."""
    shape = scenario.shapes["quick" if quick else device]
    budget = QUICK if quick else Budget()
    inputs = [scenario.make_inputs(shape, dtype, device, seed) for seed in range(INPUT_SETS[device])]
    clock, oracle = Clock(device), Oracle(inputs[0])
    torch.compiler.reset()  # other scenarios' shapes would count against the recompile limit

    known = candidates_of(scenario.family)
    chosen = [known[name] for name in scenario.candidates if compiled or not known[name].compiled]
    results: dict[str, Any] = {}
    runners = []
    with tqdm(total=len(chosen), desc=scenario.name, unit="", leave=False, disable=not progress) as bar:
        for candidate in chosen:
            bar.set_postfix_str(f"preparing {candidate.name}")
            result = results[candidate.name] = _unavailable(candidate)
            if not result:
                try:
                    runner = Runner(candidate, inputs, clock)
                    if candidate.kind in ("loss", "inplace"):
                        result.update(_examine(runner, oracle, device))
                    runner.warm_up(budget)
                    runners.append(runner)
                except Exception as error:  # another library's failure must not take the others' numbers along
                    if candidate.name.startswith("focal_cuda"):
                        raise
                    result["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
            bar.update()
    with tqdm(
        total=sum(r.turns for r in runners), desc=scenario.name, unit="", leave=False, disable=not progress
    ) as bar:
        for runner in interleave(runners):
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
        "baseline": scenario.baseline,
        "compiled": scenario.compiled,
        "bytes": scenario.declared_bytes(shape, dtype),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "quick": quick,
        "candidates": results,
    }


def _unavailable(candidate: Candidate) -> dict[str, Any]:
    return {} if candidate.available else {"failed": f"{candidate.requires} is not installed"}


def _examine(runner: Runner, oracle: Oracle, device: str) -> dict[str, Any]:
    """Errors against the reference, and peak memory of forward and backward in multiples of the logits."""
    inputs = runner.inputs[0]
    inplace = runner.candidate.kind == "inplace"
    loss, gradient = runner.train(0)
    errors = oracle.errors(runner.candidate.meaning, loss, gradient)
    del loss, gradient
    if inplace:
        inputs.restore()
    peak = peak_bytes(lambda: runner.train(0), device)
    if inplace:
        inputs.restore()
    logits = inputs.logits
    found = {**errors, "peak_memory": peak / (logits.numel() * logits.element_size())}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
