"""Runs a command for a limited time, with all that it starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOG_BYTES = 3_000_000  # of one call; a tool that finds one fault finds a million
KEPT_LINES = 100_000


@dataclass(frozen=True)
class Call:
    """A finished process. ``status`` is None where it was stopped because its time was up."""

    status: int | None
    output: str

    def last_line(self, pattern: str) -> str:
        return next((line.strip("= ") for line in reversed(self.output.splitlines()) if re.search(pattern, line)), "")


def call(command: list[str], seconds: float, environment: Mapping[str, str], folder: Path, log: Path) -> Call:
    """What it prints goes to our own output, to the log, and is returned."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=KEPT_LINES)

    def read() -> None:
        written = 0
        with log.open("a") as file:
            for line in process.stdout:
                lines.append(line)
                written += len(line)
                if written < LOG_BYTES:
                    sys.stdout.write(line)
                    sys.stdout.flush()
                    file.write(line)
                    file.flush()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        process.wait(max(seconds, 1))
        status = process.returncode
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process)
    reader.join(5)
    return Call(status, "".join(lines))


def _end(process: subprocess.Popen) -> None:
    """Ends the process and all it started: politely, so that pytest still sums up, then not."""
    for number, patience in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
