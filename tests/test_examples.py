"""The examples run as a user runs them, on small settings, and print and draw what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "dense_digits.py"
pytest.importorskip("sklearn", reason="the scenes are made of scikit-learn's digits")


def run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, str(EXAMPLE), *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dense_digits_trains_with_three_losses(tmp_path: Path) -> None:
    small = ("--steps", "4", "--batch", "2", "--scenes", "8", "--held-out", "4", "--size", "64")
    printed = run(*small, cwd=tmp_path)
    rows = dict(re.findall(r"^(cross entropy|focal, Python|focal_cuda) +([\d.]+) ", printed, re.MULTILINE))
    assert set(rows) == {"cross entropy", "focal, Python", "focal_cuda"}
    assert float(rows["focal_cuda"]) == pytest.approx(float(rows["focal, Python"]), rel=2e-4)
    for column in ("final loss", "AP@0.5", "ms per step", "ms in the loss", "peak MB"):
        assert column in printed
    picture = (tmp_path / "demo.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 50_000


def test_dense_digits_offers_options(tmp_path: Path) -> None:
    text = run("--help", cwd=tmp_path)
    for option in ("--steps", "--losses", "--device", "--seed", "--size", "--output"):
        assert option in text
