"""Every kernel of every engine: class counts on either side of each boundary between kernels, planes and rows on the
boundaries of vectors and off them, more blocks than are added up in one pass. Small, so that the emulation runs all."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, Shape, dtypes, make_dense, make_index, make_logits, make_trained_logits
from compare import check, run
from simt.emulation import Emulation
from tolerance import assert_close, loss_bound
from torch import Tensor

import focal_cuda
from focal_cuda._ohem import hardest_mean

SOFTMAX, SIGMOID = "softmax_focal_loss", "sigmoid_focal_loss"

# Classes in the registers of one thread (up to 2, 4, 8, 16, 19, 21, 32), shared by 12 warps (16 or 32 each) or by 16
# (64 each), too many.
STRIDED_CLASSES = [2, 3, 4, 5, 8, 9, 16, 17, 19, 20, 21, 22, 32, 33, 192, 193, 384, 385, 500, 1024, 1025]
# A row for each thread, shared by 2 to 32 lanes, by warps, by a cluster of blocks, and swept twice.
ROW_CLASSES = [2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 19, 20, 21, 24, 25, 31, 32, 33, 40, 47, 63, 64, 65, 96, 100]
ROW_CLASSES += [127, 128, 150, 160, 192, 255, 256, 257, 320, 384, 511, 512, 513, 520, 1000, 1003, 2500, 4096, 5003]
LONG_ROWS = [16_384, 20_001, 131_072, 163_841, 200_003, 600_000]
SIGMOID_CLASSES = [*range(1, 10), 16, 17, 80, 81, 91, 2049]
PLANES = [(8, 66), (17, 31)]

PROBLEMS = {
    "softmax columns": (SOFTMAX, [Shape((2, c, *plane)) for c in STRIDED_CLASSES for plane in PLANES]),
    "softmax few positions": (SOFTMAX, [Shape((3, c, 5)) for c in (2, 4, 5, 33, 385)]),
    "softmax rows": (SOFTMAX, [Shape((37, c)) for c in ROW_CLASSES] + [Shape((2, c)) for c in LONG_ROWS]),
    "sigmoid rows": (SIGMOID, [Shape((37, c)) for c in SIGMOID_CLASSES]),
    "sigmoid planes": (SIGMOID, [Shape((2, c, *plane)) for c in (1, 2, 5, 19) for plane in PLANES]),
    "sigmoid few positions": (SIGMOID, [Shape((3, c, 5)) for c in (1, 4, 80)]),
    "sigmoid dense": (SIGMOID, [Shape((n,), 0) for n in (1, 3, 4, 7, 8, 9, 255, 4096, 4097)]),
    "softmax soft": (
        SOFTMAX,
        # Held in registers by 1 to 32 lanes, and swept where they are too many.
        [Shape((37, c)) for c in (2, 5, 15, 16, 31, 32, 33, 65, 129, 1024, 1025)]
        + [Shape((2, c, 17, 31)) for c in (2, 19)]
        + [Shape((1, c, 64, 65)) for c in (5, 32, 33)],
    ),
}
# More than a thousand blocks, and blocks that take several tiles.
MANY_BLOCKS = {
    "softmax columns": (SOFTMAX, [Shape((1100, c, s)) for c, s in [(2, 16), (3, 17), (5, 16), (8, 19), (9, 17)]]),
    "softmax rows": (SOFTMAX, [Shape((20_003, 19)), Shape((9001, 16)), Shape((1030, 513))]),
    "sigmoid planes": (SIGMOID, [Shape((1100, 3, 17))]),
    "sigmoid rows": (SIGMOID, [Shape((1, 600_001))]),
}
CALLS = [("mean", 2.0), ("none", 2.0), ("sum", 1.5), ("none", 1.5)]


def batch(name: str, shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    if name == "sigmoid dense":
        return make_logits(shape.size, dtype, device), make_dense(shape.size, device=device, soft=True)
    if name == "softmax soft":
        return make_logits(shape.size, dtype, device), torch.rand(shape.size, device=device).softmax(shape.class_dim)
    targets = make_index(shape, device=device)
    return make_trained_logits(shape, targets, dtype), targets


def one_element_further(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)


def check_all(name: str, op: str, shapes: list[Shape], dtype: torch.dtype, device: str, further: bool = False) -> None:
    for number, shape in enumerate(shapes):
        logits, targets = batch(name, shape, dtype, device)
        logits = one_element_further(logits) if further else logits
        reduction, gamma = CALLS[number % len(CALLS)]
        kwargs = {"class_dim": 0} if len(shape.size) == 1 else {}
        try:
            check(op, logits, targets, None, gamma, reduction, **kwargs)
        except AssertionError as error:
            raise AssertionError(f"{shape}, {reduction}, gamma {gamma}: {error}") from error


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("further", [False, True], ids=["aligned", "one element further"])
@dtypes()
def test_every_boundary(problem: str, further: bool, dtype: torch.dtype, device: str) -> None:
    check_all(problem, *PROBLEMS[problem], dtype, device, further)


@pytest.mark.parametrize("problem", MANY_BLOCKS)
@dtypes([torch.float32, torch.bfloat16])
def test_many_blocks(problem: str, dtype: torch.dtype, device: str) -> None:
    check_all(problem, *MANY_BLOCKS[problem], dtype, device)


def test_more_rows_than_blocks(device: str) -> None:
    """A row for a block, and more rows than there are blocks: some take two."""
    logits, targets = batch("softmax rows", Shape((41, 2049)), torch.float32, device)
    once = run(SOFTMAX, logits, targets, reduction="sum")
    many = run(SOFTMAX, logits.expand(200, 41, 2049), targets.expand(200, 41), reduction="sum", class_dim=2)
    expected = 200 * once.loss.double()
    assert_close(many.loss, expected, loss_bound(expected, torch.float32), "loss")
    assert torch.equal(many.grad, once.grad.expand(200, 41, 2049))


def test_counts_of_many_labels(device: str) -> None:
    """More than a million, which are counted in more blocks than are added up in one pass."""
    targets = (torch.arange(1_100_001, device=device) % 7 != 0).to(torch.uint8)[None]
    logits = torch.zeros(1, 2, 1, device=device).expand(1, 2, targets.numel())
    mean = focal_cuda.softmax_focal_loss(logits, targets, ignore_index=0).double()
    total = run(SOFTMAX, logits, targets, reduction="sum", ignore_index=0).loss.double()
    per_positive = focal_cuda.softmax_focal_loss(
        logits, targets, reduction="sum", normalizer="positives", background_index=0
    )
    assert_close(total / mean, targets.double().sum(), loss_bound(targets.double().sum(), torch.float32), "counted")
    expected = mean * targets.numel() / targets.double().sum()
    assert_close(per_positive, expected, 2 * loss_bound(expected, torch.float32), "positives")


@pytest.mark.usefixtures("threads")
def test_no_kernel_is_left_out(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every instance of a template that the library has is launched by these problems."""
    emulation.use(monkeypatch)
    torch.set_num_threads(1)
    for problem, (op, shapes) in PROBLEMS.items():
        # The kernels of softmax rows and columns are the same for every call.
        calls = CALLS[:1] if problem in ("softmax rows", "softmax columns") else CALLS
        for shape in shapes:
            for dtype in DTYPES:
                logits, targets = batch(problem, shape, dtype, "cpu")
                kwargs = {"class_dim": 0} if len(shape.size) == 1 else {}
                for reduction, gamma in calls:
                    x = logits.clone().requires_grad_()
                    getattr(focal_cuda, op)(x, targets, None, gamma, reduction, **kwargs).sum().backward()
    logits, targets = batch("softmax columns", Shape((1, 193, 16)), torch.float32, "cpu")
    focal_cuda.softmax_focal_loss(one_element_further(logits), targets)
    for dtype in DTYPES:  # a loss that is not the plain one, in rows too long for everything
        for more in (0, 1):
            logits, targets = batch("softmax rows", Shape((1, LONG_ROWS[-1] + more)), dtype, "cpu")
            focal_cuda.reduced_focal_loss(logits.requires_grad_(), targets, activation="softmax").backward()
    for dtype in (torch.float32, torch.float64):
        losses = torch.rand(200_003, dtype=dtype, requires_grad=True)
        for rule in ((0.3, None), (None, 0.9)):
            hardest_mean(losses, torch.tensor(len(losses)), *rule).backward()
    for gamma in (1.5, 2.0):
        for dtype in (torch.float32, torch.float64):
            emulation.operators.margin_probe(torch.zeros(3, dtype=dtype), gamma)
    for dtype in DTYPES:
        emulation.operators.scale_(
            torch.zeros(3, dtype=dtype), torch.zeros((), dtype=torch.promote_types(dtype, torch.float32))
        )
    assert sorted(emulation.kernels() - emulation.kernels(launched=True)) == []
