"""The examples run as a user runs them, on small settings, and print and draw what they promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ("--steps", "4", "--batch", "2", "--scenes", "8", "--held-out", "4", "--size", "64")
pytest.importorskip("sklearn", reason="the scenes are made of scikit-learn's digits")


def run(example: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(printed: str) -> dict[str, dict[str, str]]:
    """The rows of the printed table, by their names: what stands below each header."""
    lines = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    header = next(line for line in lines if line[0] == "loss")
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines if line[0] in LOSSES}


LOSSES = ("cross entropy", "focal, Python", "focal_cuda", "focal", "focal + OHEM")


def check_picture(path: Path) -> None:
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 50_000


def test_dense_digits_trains_with_three_losses(tmp_path: Path) -> None:
    rows = table(run("dense_digits.py", *SMALL, cwd=tmp_path))
    assert set(rows) == {"cross entropy", "focal, Python", "focal_cuda"}
    final = {name: float(row["final loss"]) for name, row in rows.items()}
    assert final["focal_cuda"] == pytest.approx(final["focal, Python"], rel=2e-4)
    assert {"AP@0.5", "ms per step", "ms in the loss", "peak MB of the loss", "speed-up"} < set(rows["focal_cuda"])
    check_picture(tmp_path / "demo.png")


def test_segment_digits_trains_with_three_losses(tmp_path: Path) -> None:
    printed = run("segment_digits.py", *SMALL, "--keep-ratio", "0.2", cwd=tmp_path)
    rows = table(printed)
    assert set(rows) == {"cross entropy", "focal", "focal + OHEM"}
    for row in rows.values():
        assert 0 <= float(row["mean IoU of digits"]) <= 1 and 0 <= float(row["background accuracy"]) <= 1
        assert {"ms per step", "ms in the loss", "peak MB of the loss"} < set(row)
    assert float(rows["focal"]["peak MB of the loss"]) < float(rows["cross entropy"]["peak MB of the loss"])
    assert re.search(r"[\d.]+% of the pixels are background", printed)
    check_picture(tmp_path / "segment.png")


def test_masks_of_scenes() -> None:
    """Every digit has ink of its class, ignored pixels around it and background beyond."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import digit_scenes
    finally:
        sys.path.remove(str(EXAMPLES))
    digits, _ = digit_scenes.split_digits(seed=0)
    scenes = digit_scenes.make_scenes(digits, 6, 96, seed=3)
    assert scenes.masks.shape == (6, 96, 96)
    for mask, boxes, labels in zip(scenes.masks, scenes.boxes, scenes.labels, strict=True):
        assert set(mask.unique().tolist()) == {*labels.tolist(), digit_scenes.BACKGROUND, digit_scenes.IGNORED}
        for (x1, y1, x2, y2), label in zip(boxes.int().tolist(), labels, strict=True):
            inside = mask[y1:y2, x1:x2]
            assert (inside == label).float().mean() > 0.15
            mask[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = digit_scenes.BACKGROUND
        assert (mask == digit_scenes.BACKGROUND).all()


@pytest.mark.parametrize("example", ["dense_digits.py", "segment_digits.py"])
def test_examples_offer_options(example: str, tmp_path: Path) -> None:
    text = run(example, "--help", cwd=tmp_path)
    for option in ("--steps", "--losses", "--device", "--seed", "--size", "--output", "--learning-rate", "--gamma"):
        assert option in text
