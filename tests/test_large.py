"""Beyond 2^31: offsets, elements and counts that no 32-bit integer holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compare import assert_agree, numbers_of, run
from tolerance import assert_close, loss_bound
from torch import Tensor

import focal_cuda
from focal_cuda import _ops

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
FAR = 2**31 + 2**20
GIB = 2**30


def available(device: str) -> int:
    """The memory that can still be had, in bytes."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def far_apart(device: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Sizes and strides whose last elements lie beyond 2^31, of either sign as 32 bits, and few of them."""
    return {
        "rows": ((5, 37), (FAR // 4, 1)),
        "rows with a gap": ((5, 9), (FAR // 4, 3)),
        "images": ((3, 7, 40), (FAR // 2, 40, 1)),
        "classes": ((2, 5, 40), (100, FAR // 4, 1)),
        "positions": ((2, 7, 5), (100, 10, FAR // 4)),
    }


@ops
@pytest.mark.parametrize("case", list(far_apart("cpu")))
def test_offsets(op: str, case: str, device: str, backend: str, operators) -> None:
    """Memory that is reserved and never touched costs nothing, so this needs a few pages only."""
    if device == "cuda" and available(device) < 6 * GIB:
        pytest.skip("needs 6 GiB of GPU memory")
    size, stride = far_apart(device)[case]
    storage = torch.empty(FAR + 1000, dtype=torch.bfloat16, device=device)
    logits = storage.as_strided(size, stride)
    logits.copy_(torch.randn(size) * 3)
    plain = logits.contiguous()
    targets = torch.randint(0, size[1], size[:1] + size[2:], device=device)
    targets[0] = -100
    like = logits if op.startswith("sigmoid") else targets
    upstream = torch.randn(like.shape, device=device)
    kwargs = {"reduction": "none", "upstream": upstream}
    expected, far = run(op, plain, targets, **kwargs), run(op, logits, targets, **kwargs)
    assert_agree(far, expected, backend, upstream.abs().max().item())
    # The in-place operator writes as far away as it reads.
    operator = getattr(operators, f"{op}_inplace").default
    numbers = numbers_of(background_index=size[1], reduction="sum")
    loss, _ = operator(logits, targets, *_ops.NO_PARTS, None, 1.0, *numbers)
    summed = run(op, plain, targets, None, 2.0, "sum")
    assert_close(loss, summed.loss.double(), loss_bound(summed.loss.double(), torch.float32), "loss")
    torch.testing.assert_close(logits.contiguous(), summed.grad, rtol=2**-7, atol=0)


@ops
def test_offsets_of_targets(op: str, device: str, backend: str) -> None:
    if device == "cuda" and available(device) < 6 * GIB:
        pytest.skip("needs 6 GiB of GPU memory")
    storage = torch.empty(FAR + 1000, dtype=torch.uint8, device=device)
    logits = torch.randn(5, 7, 30, device=device)
    targets = storage.as_strided((5, 30), (FAR // 4, 1))
    targets.copy_(torch.randint(0, 7, (5, 30)))
    assert_agree(run(op, logits, targets), run(op, logits, targets.contiguous()), backend)
    if op.startswith("sigmoid"):
        dense = storage.as_strided((5, 7, 30), (FAR // 4, 50, 1))
        dense.copy_(torch.randint(0, 2, (5, 7, 30)))
        assert_agree(run(op, logits, dense), run(op, logits, dense.contiguous()), backend)


def expanded(device: str) -> dict[str, Callable[[], tuple[str, Tensor, Tensor]]]:
    """One value seen 2^31 times and more; the storage holds but a row or a label."""

    def of(op: str, x: Tensor, size: tuple[int, ...], t: Tensor) -> tuple[str, Tensor, Tensor]:
        return op, x.to(device).expand(size), t.to(device)

    zero = torch.zeros((), dtype=torch.uint8)
    row, many = torch.tensor([[0.3, -1.2, 2.0, 0.1]]), 2**29 + 7
    return {
        "dense": lambda: of(OPS[1], torch.tensor(0.3), (FAR,), zero.expand(FAR)),
        "sigmoid rows": lambda: of(OPS[1], row, (many, 4), zero.expand(many)),
        "softmax rows": lambda: of(OPS[0], row, (many, 4), zero.expand(many)),
        "softmax columns": lambda: of(OPS[0], row[:, :, None], (1, 4, many), zero.expand(1, many)),
    }


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("case", list(expanded("cpu")))
def test_elements(case: str, device: str) -> None:
    op, logits, targets = expanded(device)[case]()
    assert logits.numel() > 2**31
    loss = getattr(focal_cuda, op)(logits, targets)
    part = slice(0, 1)
    first = (logits[..., part], targets[..., part]) if "columns" in case else (logits[part], targets[part])
    expected = getattr(focal_cuda, op)(*first).double()
    assert_close(loss, expected, loss_bound(expected, torch.float32), "mean")


@pytest.mark.large
@pytest.mark.native
@ops
def test_gradients(op: str, device: str) -> None:
    """4.3 GB of logits and as much of gradients, with the last rows looked at."""
    if available(device) < 12 * GIB:
        pytest.skip("needs 12 GiB of free memory")
    rows, classes = 2**21 + 3, 1024
    logits = torch.empty(rows, classes, dtype=torch.bfloat16, device=device)
    block = torch.randn(1024, classes).to(torch.bfloat16).to(device)
    for start in range(0, rows, 1024):
        logits[start : start + 1024] = block[: rows - start]
    targets = (torch.arange(rows, device=device) % 1024).to(torch.int16)
    result = run(op, logits, targets, reduction="sum")
    one = run(op, block, targets[:1024], reduction="sum")
    for start in (0, rows // 2048 * 1024, rows // 1024 * 1024):
        part = result.grad[start : start + 1024]
        assert torch.equal(part, one.grad[: len(part)])
    whole, rest = divmod(rows, 1024)
    tail = run(op, block[:rest], targets[:rest], reduction="sum").loss.double()
    expected = one.loss.double() * whole + tail
    assert_close(result.loss, expected, loss_bound(expected, torch.float32), "loss")
