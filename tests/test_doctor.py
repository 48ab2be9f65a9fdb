"""`python -m focal_cuda.doctor`: what it says of this machine, of packages that do not load, and of GPUs."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_import import PACKAGE, copy_without_extension, run_in  # noqa: F401  the fixture

import focal_cuda
from focal_cuda import doctor

GPU = {"NVIDIA H200": (9, 0)}
OPERATORS = {"softmax_focal_loss": ["cpu", "cuda"], "scale_": ["cuda"]}
# A machine on which everything is right; each test breaks one thing.
FINE = doctor.Facts(
    torch="2.13.0",
    runtime="13.0",
    gpus=GPU,
    driver="NVIDIA H200, 595.1",
    toolkit="13.0 (/usr/local/cuda/bin/nvcc)",
    has_extension=True,
    build={"with_cuda": True, "cuda_architectures": "8.0;9.0+PTX"},
    operators=OPERATORS,
    self_tests={"cpu": 1e-6, "cuda": 1e-6},
)


def verdict_of(done: subprocess.CompletedProcess) -> str:
    """The last line, of a doctor that found something wrong and did not stumble over it."""
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("verdict")
    return last


def test_it_says_that_this_machine_works() -> None:
    done = subprocess.run([sys.executable, "-m", "focal_cuda.doctor"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert "works on cpu" in last
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith(("build:", "op ")))
    assert told["focal_cuda"].startswith(focal_cuda.__version__) and told["torch"] == torch.__version__
    info = focal_cuda.build_info()
    for name in ("cpu_capability", "built_with_torch", "compiler"):
        assert any(line.split() == ["build:", name, *str(info[name]).split()] for line in lines), name
    for name in ("sigmoid_focal_loss", "softmax_focal_loss_backward", "hardest"):
        assert any(line.split()[:3] in (["op", name, "cpu"], ["op", name, "cpu,"]) for line in lines), name


def test_the_self_test_is_quick_and_has_teeth(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = doctor.examine()
    assert 0 < facts.self_tests["cpu"] <= doctor.PROMISED and facts.seconds < 10
    right = focal_cuda.functional.softmax_focal_loss

    def slightly_wrong(logits, targets, **options):
        return right(logits, targets, **options) * (1 + 1e-4)

    monkeypatch.setattr(focal_cuda.functional, "softmax_focal_loss", slightly_wrong)
    facts = doctor.examine()
    assert "wrong numbers on cpu" in doctor.verdict(facts)[1]

    calls = []

    def never_the_same(logits, targets, **options):
        calls.append(1)
        return right(logits, targets, **options) * (1 + 2e-7 * len(calls))

    monkeypatch.setattr(focal_cuda.functional, "softmax_focal_loss", never_the_same)
    assert doctor.worst_error("cpu") == float("inf")

    def broken(logits, targets, **options):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(focal_cuda.functional, "softmax_focal_loss", broken)
    assert "no kernel image is available" in doctor.verdict(doctor.examine())[1]


def test_a_gpu_beside_a_build_without_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, index))  # none is built for these
    facts = doctor.examine()
    works, line = doctor.verdict(facts)
    expected = "no kernels for GPU 0" if focal_cuda.build_info()["with_cuda"] else "CPU-only build"
    assert facts.gpus == {"GPU 0": (6, 0), "GPU 1": (6, 1)} and not works and expected in line
    assert "GPU 1, compute capability 6.1: the build has NO code for it" in doctor.report(facts)

    def out_of_order(index: int) -> str:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "get_device_name", out_of_order)
    assert "CUDA driver initialization failed" in doctor.verdict(doctor.examine())[1]


@pytest.mark.parametrize("command", [("-m", "focal_cuda.doctor"), ("-mfocal_cuda.doctor",)], ids=" ".join)
def test_without_an_extension(copy_without_extension: Path, command: tuple[str, ...]) -> None:  # noqa: F811
    last = verdict_of(run_in(copy_without_extension, *command))
    assert "there is no extension focal_cuda._C in" in last and "pip install --no-build-isolation" in last


def test_in_a_checkout_that_is_not_built(copy_without_extension: Path) -> None:  # noqa: F811
    (copy_without_extension / "setup.py").touch()
    last = verdict_of(run_in(copy_without_extension, "-m", "focal_cuda.doctor"))
    assert f"the checkout {copy_without_extension} is not built: `make build`" in last


def test_with_an_extension_for_another_python(copy_without_extension: Path) -> None:  # noqa: F811
    (copy_without_extension / "focal_cuda" / "_C.cpython-27m.so").touch()
    last = verdict_of(run_in(copy_without_extension, "-m", "focal_cuda.doctor"))
    assert "another Python (_C.cpython-27m.so; this is" in last and "pip install" in last


def test_with_an_extension_that_does_not_load(copy_without_extension: Path) -> None:  # noqa: F811
    (copy_without_extension / "focal_cuda" / next(PACKAGE.glob("_C.*.so")).name).write_text("half a download")
    last = verdict_of(run_in(copy_without_extension, "-m", "focal_cuda.doctor"))
    assert "_C does not load" in last and "file too short" in last and "pip install" in last


def test_without_torch(copy_without_extension: Path) -> None:  # noqa: F811
    last = verdict_of(run_in(copy_without_extension, "-m", "focal_cuda.doctor", with_torch=False))
    assert "No module named 'torch'" in last and "pip install 'torch>=2.11'" in last


def test_other_imports_of_a_broken_package_still_fail(copy_without_extension: Path) -> None:  # noqa: F811
    for arguments in (("-c", "import focal_cuda", "focal_cuda.doctor"), ("-m", "focal_cuda.functional")):
        assert "did not load" in run_in(copy_without_extension, *arguments).stderr


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({"torch": "2.9.1"}, "torch 2.9.1 is too old: upgrade it to >= 2.11"),
        (
            {"build": {"with_cuda": False, "cuda_architectures": ""}},
            "torch sees NVIDIA H200, but this is a CPU-only build: Reinstall .*`FOCAL_CUDA_BUILD=cuda pip install",
        ),
        (
            {"build": {"with_cuda": False, "cuda_architectures": ""}, "toolkit": ""},
            "CPU-only build: install nvcc of CUDA 13.0 and set CUDA_HOME, then: .*FOCAL_CUDA_BUILD=cuda make build",
        ),
        (
            {"build": {"with_cuda": True, "cuda_architectures": "8.0"}},
            "no kernels for NVIDIA H200, of compute capability 9.0: .*TORCH_CUDA_ARCH_LIST=9.0 pip install",
        ),
        ({"operators": {"softmax_focal_loss": ["cpu"]}}, "no cuda kernel for softmax_focal_loss: "),
        ({"operators": {"softmax_focal_loss": ["cuda"], "scale_": []}}, "no cpu kernel for softmax_focal_loss: "),
        ({"self_tests": {"cpu": 1e-6, "cuda": 3e-3}}, "wrong numbers on cuda, a relative error of 3e-03"),
        ({"self_tests": {"cpu": float("nan")}}, "wrong numbers on cpu"),
        (
            {"self_tests": {"cpu": 1e-6, "cuda": "no memory"}},
            r"self-test on cuda failed \(no memory\). If torch.ones.*pip install",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(broken: dict, expected: str) -> None:
    works, line = doctor.verdict(replace(FINE, **broken))
    assert not works and "\n" not in line
    assert re.search(expected, line), line
    assert doctor.report(replace(FINE, **broken)).endswith(line)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (FINE, "works on cpu and cuda."),
        (replace(FINE, gpus={}, self_tests={"cpu": 1e-6}), "works on cpu; torch sees no GPU, though nvidia-smi does"),
        (replace(FINE, gpus={}, runtime=None, self_tests={"cpu": 1e-6}), "works on cpu; torch is CPU-only: "),
        (replace(FINE, gpus={}, driver="", self_tests={"cpu": 1e-6}), "works on cpu."),
    ],
)
def test_what_works_is_said_to(facts: doctor.Facts, expected: str) -> None:
    works, line = doctor.verdict(facts)
    assert works and line.startswith(expected)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("9.0", (9, 0), True),
        ("8.0", (8, 9), True),  # machine code of the same generation
        ("8.9", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (12, 0), True),
        ("9.0+PTX", (8, 9), False),  # PTX is for later ones
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
        ("7.5;8.0;9.0;10.0;12.0+PTX", (12, 1), True),
        ("7.5 8.0", (7, 0), False),
        ("", (9, 0), False),
    ],
)
def test_which_architectures_serve_a_gpu(architectures: str, capability: tuple[int, int], runs: bool) -> None:
    assert doctor.has_code_for(architectures, capability) == runs
