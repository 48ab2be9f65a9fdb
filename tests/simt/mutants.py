"""Takes the barriers out of the CUDA kernels, one at a time, and sees whether the emulation notices: a barrier whose
absence changes nothing is not needed, or not tested. Minutes, since every mutant is compiled; not part of `make test`.

    python tests/simt/mutants.py [part of a file name]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from simt import build  # noqa: E402

BARRIER = re.compile(r"\b(__syncthreads|__syncwarp|cluster_sync|cluster_barrier)\([^()]*\);")
SEEDS = range(6)
OPS = ("sigmoid_focal_loss", "softmax_focal_loss")


def differs(library: Path) -> str:
    """What is wrong with the kernels of a library, held against those of the CPU; "" if nothing."""
    import torch
    from cases import REPRESENTATIVE, Shape, make_dense, make_index, make_trained_logits
    from compare import run
    from simt.emulation import Emulation

    from focal_cuda import _ops

    emulation, cpu = Emulation(library), _ops.FAMILIES
    # A label that is no class, wherever it is found: in many warps and blocks, by any lane.
    _ops.FAMILIES = emulation.families
    for place in (0, 7, 33, 250, 20_000):
        targets = torch.zeros(20_011, dtype=torch.int64)
        targets[place] = 1000
        for op in OPS:
            for seed in SEEDS:
                emulation.seed = seed
                try:
                    run(op, torch.zeros(20_011, 19), targets)
                except IndexError:
                    continue
                except RuntimeError as error:
                    return f"{op} seed {seed}: {str(error).splitlines()[0]}"
                return f"{op} seed {seed}: label {place} is out of range, and nothing was raised"
    # Rows of every length, strided classes, more than one block, and many.
    every_shape = [*REPRESENTATIVE, Shape((301, 80)), Shape((3, 1000)), Shape((2, 100_003)), Shape((20_011, 19))]
    every_shape += [Shape((1, 150, 3, 67)), Shape((1, 1000, 21))]
    for shape in every_shape:
        for op in OPS:
            for reduction, dense in (("mean", False), ("none", False), ("sum", op.startswith("sigmoid"))):
                torch.manual_seed(0)
                targets = make_dense(shape.size) if dense else make_index(shape)
                logits = make_trained_logits(shape, make_index(shape))
                kwargs = {"reduction": reduction, "class_dim": shape.class_dim}
                if reduction == "none":
                    kwargs["upstream"] = torch.ones(shape.size if op.startswith("sigmoid") else shape.positions)
                if reduction == "sum" and not dense:
                    kwargs["normalizer"] = "positives"
                _ops.FAMILIES = cpu
                expected = run(op, logits, targets, **kwargs)
                _ops.FAMILIES = emulation.families
                for seed in SEEDS:
                    emulation.seed = seed
                    where = f"{op} {shape} {reduction} seed {seed}"
                    try:
                        got = run(op, logits, targets, **kwargs)
                    except (RuntimeError, IndexError, ValueError) as error:
                        return f"{where}: {str(error).splitlines()[0]}"
                    for name in ("loss", "grad"):
                        a, b = getattr(got, name), getattr(expected, name)
                        if not torch.allclose(a, b, rtol=1e-3, atol=1e-6 * float(b.abs().max()), equal_nan=True):
                            return f"{where}: wrong {name}"
    return ""


def check(library: Path) -> str:
    # In a process of its own: an operator can be registered once.
    command = [sys.executable, __file__, "--check", str(library)]
    result = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True)
    return result.stdout.strip() or result.stderr.strip()[-300:] if result.returncode else ""


def main(part: str) -> int:
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(build.ROOT / "csrc", root / "csrc")
        if problem := check(build.library(root, root / "out")):
            print(f"without any mutation: {problem}")
            return 1
        for path in sorted((root / "csrc/cuda").iterdir()):
            text = path.read_text()
            for barrier in BARRIER.finditer(text) if part in path.name else []:
                path.write_text(text[: barrier.start()] + ";" + text[barrier.end() :])
                line = text[: barrier.start()].count("\n") + 1
                caught = check(build.library(root, root / "out"))
                survivors += not caught
                print(f"{path.name}:{line} without {barrier[0]:20} {caught or 'NOT NOTICED'}", flush=True)
            path.write_text(text)
    return int(survivors > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        found = differs(Path(sys.argv[2]))
        print(found)
        sys.exit(bool(found))
    sys.exit(main(sys.argv[1] if sys.argv[1:] else ""))
