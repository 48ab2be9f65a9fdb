"""Every instruction set the kernels are built for, forced in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import focal_cuda

TESTS = Path(__file__).parent
CAPABILITIES = ["base", "v3", "v4"]

# A fresh process, since the choice is made once: the arithmetic, all types, all engines, special values.
CHECK = """
import torch
from cases import DTYPES, Shape, make_dense, make_index, make_logits, make_trained_logits
from compare import check
import focal_cuda
import test_math
print(focal_cuda.build_info()["cpu_capability"])
test_math.check_exp()
test_math.check_log1p()
test_math.check_log()
for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
    for dtype in (torch.float32, torch.float64):
        test_math.check_margins(gamma, dtype)
torch.manual_seed(20171007)
for dtype in DTYPES:
    for gamma in (0.0, 0.5, 2.0):
        for shape in (Shape((129, 19)), Shape((3, 1000)), Shape((2, 19, 13, 17)), Shape((7, 40), class_dim=0)):
            targets = make_index(shape)
            logits = make_trained_logits(shape, targets, dtype)
            for reduction in ("none", "mean"):
                for op in ("softmax_focal_loss", "sigmoid_focal_loss"):
                    check(op, logits, targets, None, gamma, reduction, class_dim=shape.class_dim)
        for soft in (False, True):
            dense = make_dense((33, 80), soft=soft)
            check("sigmoid_focal_loss", make_logits((33, 80), dtype), dense, 0.3, gamma, "none")
    x = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 3.0, 0.0], [torch.nan, 0.0, 1.0], [88.0, -88.0, 17.0]]).to(dtype)
    for t in ([0, 1, -100, 0], [1, 1, 0, 2]):
        check("softmax_focal_loss", x, torch.tensor(t), None, 2.0, "none")
        check("sigmoid_focal_loss", x, torch.tensor(t), None, 0.5, "none")
"""


def python(code: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "FOCAL_CUDA_CPU_ISA"}
    if isa is not None:
        env["FOCAL_CUDA_CPU_ISA"] = isa
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), env.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("isa", CAPABILITIES)
def test_values(isa: str) -> None:
    best = focal_cuda.build_info()["cpu_capability"]
    done = python(CHECK, isa)
    if CAPABILITIES.index(isa) > CAPABILITIES.index(best):
        # A machine that lacks it must say so, or take what it has; never end with an illegal instruction.
        assert done.returncode == 1 and isa in done.stderr or done.stdout.strip() == best, done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


def test_the_default_is_the_best() -> None:
    done = python("import focal_cuda; print(focal_cuda.build_info()['cpu_capability'])", None)
    assert done.stdout.strip() == focal_cuda.build_info()["cpu_capability"]


def test_an_unknown_value_is_refused() -> None:
    isa = "avx2"
    done = python("import focal_cuda; print(focal_cuda.build_info()['cpu_capability'])", isa)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "FOCAL_CUDA_CPU_ISA" in last and isa in last and all(known in last for known in CAPABILITIES)
