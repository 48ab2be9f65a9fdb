"""The results of a device as one JSON file, merged by name: of losses ("scenarios") and of training steps ("steps")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The groups of scenarios that differ in size only.
CURVES = ("size-sigmoid", "size-softmax")
SECTIONS = ("scenarios", "steps")
FOLDER = Path(__file__).resolve().parent / "results"


def key(scenario: str, dtype: str = "float32", memory: str = "fresh") -> str:
    """The name results are kept under: the scenario's, and what differs from the usual run."""
    return scenario + ("" if dtype == "float32" else f"-{dtype}") + ("-reused" if memory == "reused" else "")


def select(document: dict[str, Any], reused: bool = False, dtype: str = "float32") -> dict[str, dict[str, Any]]:
    """The results of one type and one state of the memory, by the scenario's name."""
    return {
        scenario["name"]: scenario
        for scenario in document["scenarios"].values()
        if scenario["dtype"] == dtype and (scenario["memory"] == "reused") == reused
    }


def dtypes(document: dict[str, Any]) -> list[str]:
    """The types there are results of, as they were measured."""
    return list(dict.fromkeys(scenario["dtype"] for scenario in document["scenarios"].values()))


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"environment": {}, "scenarios": {}}


def merge(path: Path, environment: dict[str, Any], found: dict[str, Any], section: str = "scenarios") -> dict[str, Any]:
    """Writes new results over the old ones of the same name; returns everything known.

    Each keeps the commit it was measured at; the document's environment is that of the latest run of scenarios.
    """
    document = load(path)
    if section == "scenarios" or not document["environment"]:
        document["environment"] = environment
    for name, result in found.items():
        document.setdefault(section, {})[name] = {
            **result,
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
