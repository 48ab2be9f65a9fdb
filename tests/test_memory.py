"""The fused promise: training needs one gradient buffer beside the logits, in place none, evaluation none."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_cpu_isa import python
from torch import Tensor

import focal_cuda

# glibc keeps freed blocks of up to 32 MiB for itself, where they would not be seen to come and go.
BYTES = 48 * 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """VmRSS, the memory in use, or VmHWM, the most there ever was, in bytes."""
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def peak_of(call: Callable[[], object]) -> float:
    """The most memory a call needs beside what is there, in multiples of the logits."""
    call()  # code pages, threads and their stacks
    gc.collect()
    CLEAR.write_text("5")  # sets the high-water mark back to what is in use now
    before = resident("VmRSS")
    result = call()
    after = resident("VmHWM")
    del result
    return (after - before) / BYTES


def cuda_peak_of(call: Callable[[], object]) -> float:
    call()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    after = torch.cuda.max_memory_allocated()
    del result
    return (after - before) / BYTES


def measure(device: str, call: Callable[[], object]) -> float:
    if device == "cuda":
        return cuda_peak_of(call)
    if not CLEAR.exists():
        pytest.skip("needs Linux's /proc to measure peak memory")
    return peak_of(call)


def noise(size: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Random numbers, made of one block, since making them takes longer than the loss does."""
    n = torch.Size(size).numel()
    return torch.randn(2**16, device=device).to(dtype).repeat(n // 2**16 + 1)[:n].view(size)


def segmentation(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    positions = BYTES // (2 * 19 * dtype.itemsize)
    logits = noise((2, 19, positions), dtype, device)
    return logits, torch.randint(0, 19, (2, positions), device=device, dtype=torch.uint8)


def detection(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    anchors = BYTES // (80 * dtype.itemsize)
    return noise((anchors, 80), dtype, device), torch.randint(0, 81, (anchors,), device=device)


def dense(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    logits = detection(device, dtype)[0]
    return logits, (noise(logits.shape, torch.float32, device) > 2).float()


CASES = {
    "segmentation": (focal_cuda.softmax_focal_loss, segmentation),
    "detection": (focal_cuda.sigmoid_focal_loss, detection),
    "dense": (focal_cuda.sigmoid_focal_loss, dense),
}
cases = pytest.mark.parametrize("case", CASES)
pytestmark = pytest.mark.native


@cases
@pytest.mark.parametrize(
    ("dtype", "gradient", "upstream"),
    [
        (torch.float32, "forward", 1.0),
        (torch.float32, "forward", 0.3),
        (torch.float32, "backward", 0.3),
        (torch.bfloat16, "forward", 1.0),
        (torch.float16, "backward", 0.3),
    ],
)
def test_one_gradient_buffer(case: str, dtype: torch.dtype, gradient: str, upstream: float, device: str) -> None:
    """No float32 copy of half logits, no one-hot, no softmax, no int64 copy of labels, no clone of the gradient."""
    function, make = CASES[case]
    logits, targets = make(device, dtype)
    logits.requires_grad_()

    def step() -> Tensor:
        (function(logits, targets, gradient=gradient) * upstream).backward()
        grad, logits.grad = logits.grad, None
        return grad

    assert 0.9 <= measure(device, step) <= 1.05


@cases
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_in_place_needs_none(case: str, upstream: float, device: str) -> None:
    function, make = CASES[case]
    leaf, targets = make(device)
    leaf.requires_grad_()
    # The logits of a layer, made outside of what is measured; twice, because the first call overwrites them.
    layers = [leaf * 1, leaf * 1]

    def step() -> Tensor:
        logits = layers.pop()
        loss = function(logits, targets, gradient="inplace") * upstream
        return torch.autograd.grad(loss, logits)[0]

    assert measure(device, step) <= 0.05


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_evaluation_needs_none(case: str, dtype: torch.dtype, device: str) -> None:
    function, make = CASES[case]
    logits, targets = make(device, dtype)
    assert measure(device, lambda: function(logits, targets)) <= 0.05


def test_other_layouts_are_not_copied(device: str) -> None:
    logits, targets = segmentation(device)
    strided = {
        "classes last": logits.movedim(1, -1).contiguous().movedim(-1, 1),
        "sliced": torch.cat([logits, logits[:, :3]], 1)[:, 1:20],
    }
    for name, x in strided.items():
        x.requires_grad_()

        def step(x: Tensor = x) -> Tensor:
            return torch.autograd.grad(focal_cuda.softmax_focal_loss(x, targets), x)[0]

        assert measure(device, step) <= 1.05, name


def test_unreduced_needs_its_result_and_the_gradient(device: str) -> None:
    logits, targets = segmentation(device)
    logits.requires_grad_()

    def step() -> Tensor:
        focal_cuda.softmax_focal_loss(logits, targets, reduction="none").sum().backward()
        grad, logits.grad = logits.grad, None
        return grad

    assert measure(device, step) <= 1.05 + 1 / 19


@cases
def test_a_hundred_steps_need_no_more_than_one(case: str, device: str) -> None:
    function, make = CASES[case]
    logits, targets = make(device)
    # Small, because only what piles up counts.
    part, labels = logits[..., :7].contiguous().requires_grad_(), targets[..., :7].contiguous()
    if case == "detection":
        labels = targets % 8

    def steps() -> None:
        for _ in range(100):
            function(part, labels).backward()
            part.grad = None

    assert measure(device, steps) * BYTES <= 1.1 * part.numel() * 4 + 2**20


AFTER_NO_MEMORY = """
import resource, torch, focal_cuda
few, huge, label = torch.randn(1, 5000), torch.zeros(1).expand(1, 2**29), torch.zeros(1, dtype=torch.int64)
before = focal_cuda.softmax_focal_loss(few, label, label_smoothing=0.1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31,) * 2)
try:
    focal_cuda.softmax_focal_loss(huge, label, label_smoothing=0.1)  # whose scratch memory is 6 GiB
except (MemoryError, RuntimeError):
    assert torch.equal(focal_cuda.softmax_focal_loss(few, label, label_smoothing=0.1), before)
    print("went on")
"""


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's limits")
def test_a_call_without_memory_leaves_the_next_one_its_scratch() -> None:
    done = python(AFTER_NO_MEMORY, None)
    assert done.stdout == "went on\n", done.stderr or done.returncode
