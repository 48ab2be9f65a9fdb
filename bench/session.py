"""One call of ``python -m bench.gpu``: where it writes, how long it may take, and what has come of its parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import process
from bench.process import Call

ROOT = Path(__file__).resolve().parent.parent
PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Outcome:
    word: str
    note: str = ""
    seconds: float = 0.0


@dataclass
class Session:
    out: Path
    deadline: float
    dry: bool
    facts: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    missing: bool = False  # measure only what bench/results lacks of this GPU
    wheels: Path = ROOT / "build" / "wheels"
    environment: dict[str, str] = field(default_factory=dict)  # of every process from now on

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def gpu(self) -> dict[str, Any]:
        return next(iter(self.facts.get("gpus") or [{}]))

    @property
    def cpus(self) -> int:
        return self.facts.get("cpus") or os.cpu_count() or 1

    @property
    def results(self) -> list[Path]:
        """The benchmark's, in a folder where others may keep theirs."""
        return sorted(path for path in self.out.glob("*.json") if path.read_text().startswith('{\n "environment"'))

    def say(self, text: str) -> None:
        print(text, flush=True)
        with (self.out / "log.txt").open("a") as log:
            log.write(f"{text}\n")

    def call(self, command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> Call:
        """Runs a command for so long at most; what it prints is shown, logged and returned."""
        self.say(f"$ {' '.join(command)}")
        call = process.call(command, seconds, self.environment | dict(environment or {}), ROOT, self.out / "log.txt")
        if call.status is None:
            self.say(f"stopped after {seconds:.0f} s")
        return call


@dataclass(frozen=True)
class Part:
    """``limit``: seconds at most. ``reserve``: what earlier parts leave for it."""

    run: Callable[[Session, float], Outcome]
    limit: float
    reserve: float
    needs: tuple[str, ...] = ("machine", "build")
