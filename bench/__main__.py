"""Command line of the benchmark: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import focal_cuda
from bench import environment, memory, plots, report, results
from bench.harness import run_scenario
from bench.scenarios import SCENARIOS
from bench.targets import verdicts

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


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
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--memory",
        choices=memory.STATES,
        default="fresh",
        help="CPU: large tensors get new pages from the system, or reuse the heap's (see bench/memory.py)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; torch's default when not given")
    parser.add_argument("--results", type=Path, metavar="DIR", help="bench/results; with --quick a temporary folder")
    parser.add_argument("--readme", type=Path, default=environment.ROOT / "README.md", help="where --report writes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    chosen = _choose(options.scenario)
    if options.list:
        for name in chosen:
            print(f"{name:32} {SCENARIOS[name].title}")
        return 0
    folder = options.results
    if folder is None:
        folder = Path(tempfile.gettempdir()) / "focal_cuda-bench" if options.quick else results.FOLDER

    # --report alone, or with --plot alone, is about results that are there already.
    measure = bool(options.scenario or options.json or options.quick or not (options.report or options.plot))
    if measure:
        _measure(options, chosen, folder)
    for slug, document in results.all_devices(folder).items():
        if options.plot:
            for path in plots.draw(document, folder, slug):
                print(f"wrote {path}")
    if options.report:
        devices = results.all_devices(folder)
        pictures = Path(os.path.relpath(folder, options.readme.parent)).as_posix()
        report.write_readme(options.readme, report.readme_section(devices, pictures))
        print(f"wrote {options.readme}")
    return 0


def _measure(options: argparse.Namespace, chosen: list[str], folder: Path) -> None:
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
    measured: dict[str, Any] = {}
    for group, names in groupby(chosen, key=lambda name: SCENARIOS[name].group):
        members = []
        for name in names:
            compiled = options.compile if options.compile is not None else not options.quick
            result = run_scenario(
                SCENARIOS[name],
                device,
                DTYPES[options.dtype],
                options.quick,
                compiled,
                progress=sys.stderr.isatty(),
            )
            result["memory"] = options.memory if pinned else "system"
            key = results.key(result)
            measured[key] = result
            if options.json:
                results.merge(path, facts, {key: result})
            members.append(result)
            if group is None:
                print("\n" + report.scenario_table(key, result), flush=True)
        if group is not None:
            print("\n" + report.group_table(members), flush=True)
    print(report.LEGEND)
    if options.quick:
        print("(quick: tiny shapes, so no verdicts)")
    else:
        here = results.select({"scenarios": measured}, reused=pinned and options.memory == "reused")
        found = [v for v in verdicts(here, device) if v.scenario in here]
        print(report.verdict_table(found) if found else "No target concerns these scenarios.")
    if options.json:
        print(f"wrote {path}")


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
