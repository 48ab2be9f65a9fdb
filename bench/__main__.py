"""Command line of the benchmark: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import tempfile
import time
import traceback
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import focal_cuda
from bench import environment, memory, plots, report, results
from bench.harness import device_answers, own_failures, run_scenario
from bench.scenarios import SCENARIOS, Run, plan
from bench.targets import verdicts

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

LOST = 3
# What a scenario takes at least, on a GPU.
MINIMUM_SECONDS = 3


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the focal losses against others.")
    parser.add_argument("scenario", nargs="*", help="names, or beginnings of names (see --list); all when none given")
    parser.add_argument("--list", action="store_true", help="list the scenarios and stop")
    parser.add_argument("--json", action="store_true", help="merge the results into DIR/<device>.json")
    parser.add_argument("--plot", action="store_true", help="draw the PNGs next to the JSON from all that is in it")
    parser.add_argument("--report", action="store_true", help="write the README's table from the JSON files")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that everything runs")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="time torch.compile too; default: yes, with --quick no",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one that focal_cuda supports")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32; on a GPU what each scenario is meant for")
    parser.add_argument(
        "--memory",
        choices=memory.STATES,
        default="fresh",
        help="CPU: large tensors get new pages from the system, or reuse the heap's (see bench/memory.py)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; torch's default when not given")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing new, and stop, after this time")
    parser.add_argument("--without", nargs="+", metavar="RESULT", default=[], help="names of results to leave out")
    parser.add_argument("--plan", choices=("cpu", "cuda"), help="with --quick: run what is meant for this device")
    parser.add_argument("--results", type=Path, metavar="DIR", help="bench/results; with --quick a temporary folder")
    parser.add_argument("--readme", type=Path, default=environment.ROOT / "README.md", help="where --report writes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    deadline = time.monotonic() + options.seconds
    if options.list:
        width = max(map(len, SCENARIOS))
        for name in _choose(options.scenario):
            print(f"{name:{width}} {SCENARIOS[name].title}")
        return 0
    folder = options.results
    if folder is None:
        folder = Path(tempfile.gettempdir()) / "focal_cuda-bench" if options.quick else results.FOLDER

    # --report alone, or with --plot alone, is about results that are there already.
    measure = bool(options.scenario or options.json or options.quick or not (options.report or options.plot))
    status = _measure(options, folder, deadline) if measure else 0
    for slug, document in results.all_devices(folder).items():
        if options.plot:
            for path in plots.draw(document, folder, slug):
                print(f"wrote {path}")
    if options.report:
        devices = results.all_devices(folder)
        pictures = Path(os.path.relpath(folder, options.readme.parent)).as_posix()
        report.write_readme(options.readme, report.readme_section(devices, pictures))
        print(f"wrote {options.readme}")
    return status


def _measure(options: argparse.Namespace, folder: Path, deadline: float) -> int:
    """The exit status: 1 where a scenario failed, LOST where the rest needs a new process."""
    if options.threads:
        torch.set_num_threads(options.threads)
    supported = torch.cuda.is_available() and focal_cuda.build_info()["with_cuda"]
    device = options.device or ("cuda" if supported else "cpu")
    pinned = device == "cpu" and not options.quick and memory.pin(options.memory)
    facts = environment.describe(device)
    print(environment.headline(facts), flush=True)
    if facts["load"] > 0.5 and device == "cpu":
        print(f"warning: load average {facts['load']}: other work is running, the times will not be right")
    if pinned:
        print(f"memory: {options.memory} (see bench/memory.py)")

    path = folder / f"{environment.slug(facts)}.json"
    state = options.memory if pinned else "system"
    measured: dict[str, Any] = {}
    failed: list[str] = []
    left_out: list[str] = []
    lost = False
    runs = [run for run in _runs(options, device) if results.key(run.scenario, run.dtype, state) not in options.without]
    for group, members in groupby(runs, key=lambda run: SCENARIOS[run.scenario].group):
        shown = []
        for run in members:
            key = results.key(run.scenario, run.dtype, state)
            if lost or time.monotonic() + MINIMUM_SECONDS > deadline:
                left_out.append(key)
                continue
            print(f"measuring {key}", flush=True)
            # What is left now stays, and most of it is modules: half a second to look through before every measurement.
            gc.collect()
            gc.freeze()
            try:
                result = run_scenario(
                    SCENARIOS[run.scenario],
                    device,
                    DTYPES[run.dtype],
                    options.quick,
                    run.compiled,
                    progress=sys.stderr.isatty(),
                    deadline=deadline,
                )
            except Exception:  # the others still count
                traceback.print_exc()
                failed.append(key)
                lost = device == "cuda" and not device_answers()
                continue
            if own_failures(result):
                failed.append(key)
            result["memory"] = state
            measured[key] = result
            if options.json:
                results.merge(path, facts, {key: result})
            shown.append(result)
            if group not in results.CURVES:
                print("\n" + report.scenario_table(key, result), flush=True)
        if group is not None and shown:
            print("\n" + report.group_table(shown), flush=True)
    gc.unfreeze()
    print(report.LEGEND)
    if options.quick:
        print("(quick: tiny shapes, so no verdicts)")
    else:
        here = {"scenarios": measured}
        names = {result["name"] for result in measured.values()}
        found = [v for v in verdicts(here, device, state == "reused") if v.scenario in names]
        print(report.verdict_table(found) if found else "No target concerns these scenarios.")
    if options.json and measured:
        print(f"wrote {path}")
    for what, keys in (("no time left for", left_out), ("failed", failed)):
        if keys:
            print(f"{what}: {', '.join(keys)}")
    return LOST if lost else int(bool(failed))


def _runs(options: argparse.Namespace, device: str) -> list[Run]:
    """What to measure, in which order: the device's plan, or the scenarios that were named, in the types that were."""
    if options.quick and not options.plan:
        runs = [Run(name) for name in SCENARIOS]
    else:
        runs = plan(options.plan or device)
    if options.scenario:
        names = _choose(options.scenario)
        runs = [run for run in runs if run.scenario in names]
        if missing := set(names) - {run.scenario for run in runs}:
            raise SystemExit(f"not meant for {device}: {', '.join(sorted(missing))}")
    if options.dtype:
        runs = [Run(name, options.dtype) for name in dict.fromkeys(run.scenario for run in runs)]
    if options.compile is not None:
        return [run._replace(compiled=options.compile) for run in runs]
    return [run._replace(compiled=run.compiled and not options.quick) for run in runs]


def _choose(wanted: list[str]) -> list[str]:
    if not wanted:
        return list(SCENARIOS)
    matches = {
        word: {word} if word in SCENARIOS else {name for name in SCENARIOS if name.startswith(word)} for word in wanted
    }
    if missing := [word for word, names in matches.items() if not names]:
        raise SystemExit(f"no scenario begins with {', '.join(missing)}; known: {', '.join(SCENARIOS)}")
    return [name for name in SCENARIOS if any(name in names for names in matches.values())]


if __name__ == "__main__":
    sys.exit(main())
