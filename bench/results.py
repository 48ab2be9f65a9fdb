"""The results of a device as one JSON file, merged by scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def key(scenario: dict[str, Any]) -> str:
    """The name results are kept under: the scenario's, and what differs from the usual run."""
    dtype = "" if scenario["dtype"] == "float32" else f"-{scenario['dtype']}"
    return scenario["name"] + dtype + ("-reused" if scenario["memory"] == "reused" else "")


def select(document: dict[str, Any], reused: bool = False) -> dict[str, dict[str, Any]]:
    """The float32 results of one state of the memory, by the scenario's name."""
    return {
        scenario["name"]: scenario
        for scenario in document["scenarios"].values()
        if scenario["dtype"] == "float32" and (scenario["memory"] == "reused") == reused
    }


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"environment": {}, "scenarios": {}}


def merge(path: Path, environment: dict[str, Any], scenarios: dict[str, Any]) -> dict[str, Any]:
    """Writes the new scenarios over the old ones of the same name; returns everything known.

    Each scenario keeps the commit it was measured at; ``environment`` is that of the latest run.
    """
    document = load(path)
    document["environment"] = environment
    for name, scenario in scenarios.items():
        document["scenarios"][name] = {
            **scenario,
            "commit": environment["commit"],
            "torch": environment["torch"],
            "load": environment["load"],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


def all_devices(folder: Path) -> dict[str, dict[str, Any]]:
    """Every device's results by slug."""
    return {path.stem: load(path) for path in sorted(folder.glob("*.json"))}
