"""The emulation as the tests use it. What it catches in toy kernels is in tests/simt/test_simt.cpp."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import REPRESENTATIVE, Shape, make_index, make_trained_logits, shapes
from compare import assert_bitwise, random_upstream, run
from simt import build
from simt.emulation import Emulation

import focal_cuda

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def seeds(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    """The emulation behind the public functions, whose seed a test may change."""
    emulation.use(monkeypatch)
    before = emulation.seed
    yield emulation
    emulation.seed = before


@ops
@shapes([*REPRESENTATIVE, Shape((3, 1000))])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_same_bits_in_any_order_of_threads(op: str, shape: Shape, reduction: str, seeds: Emulation) -> None:
    targets = make_index(shape)
    logits = make_trained_logits(shape, targets)
    size = () if reduction == "mean" else shape.size if op.startswith("sigmoid") else shape.positions
    upstream = random_upstream(size, logits)
    kwargs = {"reduction": reduction, "class_dim": shape.class_dim, "upstream": upstream}
    results = []
    for seed in range(8):
        seeds.seed = seed
        results.append(run(op, logits, targets, **kwargs))
    for result in results[1:]:
        assert_bitwise(result, results[0])


@ops
def test_the_public_functions_run_emulated_kernels(op: str, seeds: Emulation) -> None:
    before = seeds.launches
    x = torch.randn(6, 5, requires_grad=True)
    getattr(focal_cuda, op)(x, torch.zeros(6, dtype=torch.int64)).mul(2).backward()
    assert seeds.launches > before
    assert seeds.kernels() >= seeds.kernels(launched=True) != set()


def test_the_seed_comes_from_the_environment() -> None:
    code = "from simt.emulation import Emulation; print(Emulation().seed)"
    env = {**os.environ, "FOCAL_SIMT_SEED": "77", "PYTHONPATH": str(HERE)}
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=HERE.parent, capture_output=True, text=True)
    assert result.stdout.strip() == "77", result.stderr


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert build.compiler() is None
    with pytest.raises(build.BuildFailed, match=r"needs a C\+\+ compiler"):
        build.library()


def test_a_kernel_that_does_not_compile_is_named(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc/sources.txt").write_text("cuda csrc/broken.cu\n")
    (tmp_path / "csrc/broken.cu").write_text('#include "simt.h"\n__global__ void broken() { __syncthread(); }\n')
    with pytest.raises(build.BuildFailed, match=r"broken\.cu:2.*__syncthread"):
        build.library(tmp_path, tmp_path / "out")
