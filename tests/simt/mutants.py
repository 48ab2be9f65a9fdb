"""Plants faults into a copy of the CUDA kernels, one at a time, and sees whether the emulation notices.
tests/test_planted_faults.py does so for a few of every kind. Here for every barrier: one whose absence changes nothing
is not needed, or not tested. Minutes, since every copy is compiled.

    python tests/simt/mutants.py [part of a file name]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simt.emulation import Emulation
    from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from simt import build  # noqa: E402

BARRIER = re.compile(r"(if \(\w+\) )?(?<!::)\b(__syncthreads|__syncwarp|cluster_sync|cluster_barrier)\([^()]*\);")
SEEDS = range(4)
HARDEST = "hardest losses"


def plant(folder: Path, file: str, old: str, new: str, sources: tuple[str, ...] = ()) -> Path:
    """The library with one text of one file of csrc/cuda replaced, and only the named sources compiled with it."""
    shutil.copytree(build.ROOT / "csrc", folder / "csrc")
    path = folder / "csrc/cuda" / file
    text = path.read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file}: {old!r} is there {text.count(old)} times, so this is no single fault any more")
    path.write_text(text.replace(old, new))
    return build.library(folder, folder / "out", sources)


def problem_of(library: Path, part: str = "") -> str:
    """What is wrong with the kernels of a library, held against those of the CPU; "" if nothing.
    part: of the names in cases.ENGINES and SOFT_ENGINES, or of HARDEST, to try."""
    # In a process of its own: an operator can be registered once.
    command = [sys.executable, __file__, "--check", str(library), part]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()[-300:] if done.returncode else ""


def differs(library: Path, part: str) -> str:
    import torch
    from cases import ENGINES, SOFT_ENGINES, make_index, make_trained_logits
    from compare import assert_agree, random_upstream, run
    from simt.emulation import Emulation

    from focal_cuda import _ops

    emulation, cpu = Emulation(library), _ops.FAMILIES

    def problem(op: str, shape, options: dict[str, Any], reduction: str, bad_place: int | None) -> str:
        torch.manual_seed(0)
        targets = make_index(shape)
        logits = make_trained_logits(shape, targets)
        kwargs = options | ({"gradient": "inplace"} if reduction == "in place" else {"reduction": reduction})
        if reduction == "none":
            size = shape.size if op.startswith("sigmoid") else shape.positions
            kwargs["upstream"] = random_upstream(size, logits)
        if bad_place is not None:
            targets.view(-1)[bad_place] = shape.classes + 1000
        _ops.FAMILIES = cpu
        expected = None if bad_place is not None else run(op, logits, targets, **kwargs)
        _ops.FAMILIES = emulation.families
        for seed in SEEDS:
            emulation.seed = seed
            try:
                got = run(op, logits, targets, **kwargs)
                if expected is None:
                    return "a label is out of range, and nothing was raised"
                assert_agree(got, expected, "simt", 10)
            except IndexError as error:
                if expected is not None:
                    return str(error).splitlines()[0]
            except (RuntimeError, ValueError, AssertionError) as error:
                return str(error).splitlines()[0]
        return ""

    for name, (op, shape, *options) in (ENGINES | SOFT_ENGINES).items():
        positions = torch.Size(shape.positions).numel()
        for reduction in ("mean", "none", "in place"):
            for bad_place in (None, 0, 33 % positions, positions - 1) if part in name else ():
                if found := problem(op, shape, *(options or [{}]), reduction, bad_place):
                    return f"{name}, {reduction}: {found}"
    return differs_in_hardest(emulation) if part in HARDEST else ""


def differs_in_hardest(emulation: Emulation) -> str:
    import torch

    def hardest(operators: Any, losses: Tensor, rule: tuple[float, float]) -> tuple[Tensor, Tensor]:
        mean, kept = operators.hardest(losses, torch.tensor(losses.numel()), *rule)
        gradient = torch.empty_like(losses)
        operators.hardest_backward(torch.full_like(mean, 0.7), losses, kept, gradient)
        return mean, gradient

    torch.manual_seed(0)
    for n in (1000, 20_011):
        for losses in (torch.rand(n) ** 8, torch.randint(0, 9, (n,)) / 9, torch.full((n,), 0.3).double()):
            for rule in ((0.25, -1.0), (0.0, 0.3)):
                expected = hardest(torch.ops.focal_cuda, losses, rule)
                for seed in SEEDS:
                    emulation.seed = seed
                    try:
                        mean, gradient = hardest(emulation.operators, losses, rule)
                    except RuntimeError as error:
                        return f"{HARDEST}: {str(error).splitlines()[0]}"
                    if not (torch.allclose(mean, expected[0], 1e-6, 0) and torch.equal(gradient, expected[1])):
                        return f"{HARDEST}, {rule} of {n}: others are kept, or their mean is wrong"
    return ""


def main(part: str) -> int:
    """Every barrier."""
    survivors = 0
    sources = [Path(path).name for path in build.config.sources(build.ROOT)["cuda"]]
    if problem := problem_of(build.library()):
        print(f"without any fault: {problem}")
        return 1
    for path in sorted((build.ROOT / "csrc/cuda").iterdir()):
        text = path.read_text()
        # Of an engine's own header its source; everything else is in all of them.
        own = tuple(s for s in sources if path.name.startswith(Path(s).stem))
        for barrier in BARRIER.finditer(text) if part in path.name else []:
            line = text[: barrier.start()].count("\n") + 1
            start = text.rfind("\n", 0, barrier.start() - 100) + 1
            old = text[start : barrier.end()]  # with what stands before it, so that it is the only one
            with tempfile.TemporaryDirectory() as folder:
                library = plant(Path(folder), path.name, old, old.removesuffix(barrier[0]) + ";", own)
                caught = problem_of(library)
            survivors += not caught
            print(f"{path.name}:{line} without {barrier[0]:20} {caught or 'NOT NOTICED'}", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        found = differs(Path(sys.argv[2]), sys.argv[3])
        print(found)
        sys.exit(bool(found))
    sys.exit(main(sys.argv[1] if sys.argv[1:] else ""))
