"""The inputs of the tests: shapes, each with the regime it is there for, and random logits and targets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INDEX_DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]

# Cross entropy; a derivative that others divide by zero; linear; a second derivative that others divide by
# zero; the default; a cube by exp; the end of the promised range.
GAMMAS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0]

# Zero, rounding, ordinary, 1 - p lost in float32 (17) and in float64 (37), underflow of exp (88, 104), far.
MARGINS = [0.0, 1e-4, 0.3, 1.0, 5.0, 10.0, 16.0, 17.5, 25.0, 40.0, 80.0, 88.5, 104.0, 750.0, 1e4]


@dataclass(frozen=True)
class Shape:
    size: tuple[int, ...]
    class_dim: int = 1

    @property
    def classes(self) -> int:
        return self.size[self.class_dim]

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of index targets."""
        dim = self.class_dim % len(self.size)
        return self.size[:dim] + self.size[dim + 1 :]

    def __str__(self) -> str:
        name = "x".join(map(str, self.size)) or "scalar"
        return name if self.class_dim == 1 else f"{name}@{self.class_dim}"


SOFTMAX_SHAPES = [
    Shape((1, 2)),  # the smallest there is
    Shape((5, 3)),  # a row shorter than any vector
    Shape((33, 16)),  # a row of exactly one or two vectors
    Shape((129, 19)),  # short rows with a tail, more rows than a chunk
    Shape((61, 63)),  # just below the length from which rows are taken one by one
    Shape((21, 65)),  # just above
    Shape((3, 1000)),  # long rows with a tail
    Shape((2, 100_003)),  # rows longer than any buffer, of prime length
    Shape((2, 2, 5, 7)),  # two classes, fewer positions than a tile
    Shape((2, 19, 13, 17)),  # several tiles with a tail, odd
    Shape((1, 150, 3, 67)),  # many classes: short tiles
    Shape((1, 1000, 21)),  # so many strided classes that no tile of them stays in the first cache
    Shape((1, 4099, 5)),  # nor in the second
    Shape((2, 4, 3, 5, 7)),  # volumes
    Shape((3, 5, 1)),  # one inner position: rows again
    Shape((2, 7, 128)),  # whole tiles, no tail
    Shape((2, 6, 21), class_dim=-1),  # classes last
    Shape((7, 40), class_dim=0),  # classes first
]
SIGMOID_SHAPES = [
    Shape((1, 1)),  # the smallest there is; one class is legal here
    Shape((5, 3)),  # a row shorter than any vector
    Shape((301, 80)),  # detection: rows of whole vectors, more rows than a chunk
    Shape((4097, 1)),  # one class, many rows
    Shape((2, 32771)),  # long rows of prime length
    Shape((2, 19, 13, 17)),  # strided classes, odd
    Shape((2, 4, 3, 5, 7)),  # volumes
    Shape((3, 5, 1)),  # one inner position
    Shape((2, 6, 21), class_dim=-1),  # classes last
    Shape((7, 40), class_dim=0),  # classes first
]
DENSE_SIZES = [
    Shape((), 0),  # a scalar
    Shape((1,), 0),
    Shape((17,), 0),  # one vector and a tail
    Shape((65_537,), 0),  # several chunks and a tail of one
    Shape((33, 80)),
    Shape((2, 3, 4, 5)),
    Shape((1, 1, 1, 3, 3), -1),
]

# The rows engine, the columns engine, and classes strided without being in the middle.
REPRESENTATIVE = [Shape((129, 19)), Shape((2, 19, 13, 17)), Shape((7, 40), class_dim=0)]

# The loss and a shape for each engine of a GPU and each way it goes through memory.
ENGINES = {
    "sigmoid rows": ("sigmoid_focal_loss", Shape((301, 80))),
    "sigmoid rows across vectors": ("sigmoid_focal_loss", Shape((301, 91))),
    "sigmoid planes": ("sigmoid_focal_loss", Shape((2, 19, 13, 17))),
    "sigmoid strided": ("sigmoid_focal_loss", Shape((40, 7, 5))),
    "softmax columns of two": ("softmax_focal_loss", Shape((2, 2, 33, 16))),
    "softmax columns": ("softmax_focal_loss", Shape((2, 19, 33, 16))),
    "softmax odd columns": ("softmax_focal_loss", Shape((2, 5, 33, 31))),
    "softmax columns over warps": ("softmax_focal_loss", Shape((1, 150, 67, 4))),
    "softmax strided": ("softmax_focal_loss", Shape((40, 7, 5))),
    "softmax strided, few classes": ("softmax_focal_loss", Shape((40, 4, 5))),
    "softmax rows in chunks": ("softmax_focal_loss", Shape((129, 19))),
    "softmax rows of vectors": ("softmax_focal_loss", Shape((61, 128))),
    "softmax rows of a warp": ("softmax_focal_loss", Shape((33, 520))),
    "softmax odd rows of a warp": ("softmax_focal_loss", Shape((33, 513))),
    "softmax rows of a block": ("softmax_focal_loss", Shape((33, 4099))),
    "softmax rows of a cluster": ("softmax_focal_loss", Shape((5, 70_001))),
    "softmax rows swept": ("softmax_focal_loss", Shape((3, 200_003))),
}
# With options.
SOFT_ENGINES = {
    "softmax soft, held": ("softmax_focal_loss", Shape((129, 19)), {"label_smoothing": 0.1}),
    "softmax soft, swept": ("softmax_focal_loss", Shape((5, 1030)), {"label_smoothing": 0.1}),
}


def shapes(values: list[Shape]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", values, ids=str)


def dtypes(values: list[torch.dtype] = DTYPES, name: str = "dtype") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, values, ids=lambda d: str(d).removeprefix("torch."))


def make_logits(size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Logits of which most are moderate and one in eight is sure of itself, right or wrong."""
    x = torch.randn(size) * 2
    sure = torch.rand(size) < 0.125
    return torch.where(sure, x * 8, x).to(dtype).to(device)


def make_trained_logits(shape: Shape, targets: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits whose target has a margin of about 1 +- 4 over all others together; ordinary where ignored.

    Random logits alone leave a target among many classes no chance, and a hopeless target hides gamma.
    """
    x = make_logits(shape.size).to(targets.device)
    t = targets.long().unsqueeze(shape.class_dim)
    legal = (t >= 0) & (t < shape.classes)
    t = torch.where(legal, t, 0)
    is_target = torch.zeros_like(x, dtype=torch.bool).scatter(shape.class_dim, t, legal)
    margin = torch.randn(t.shape) * 4 + 1
    margin.view(-1)[:1] = 1.1
    others = torch.where(is_target, -torch.inf, x).logsumexp(shape.class_dim, keepdim=True)
    return torch.where(is_target, others + margin.to(x.device), x).to(dtype)


def make_index(
    shape: Shape,
    dtype: torch.dtype = torch.int64,
    device: str = "cpu",
    *,
    ignore_index: int | None = -100,
    background: int | None = None,
) -> Tensor:
    """Class indices, one in ten ignored and, where there is a background label, half of them background."""
    highest = 2 if dtype == torch.bool else min(shape.classes, 128)
    targets = torch.randint(0, min(highest, shape.classes), shape.positions)
    if background is not None:
        targets[torch.rand(shape.positions) < 0.5] = background
    if ignore_index is not None:
        targets[torch.rand(shape.positions) < 0.1] = ignore_index
    return targets.to(dtype).to(device)


def make_dense(
    size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu", *, soft: bool = False
) -> Tensor:
    """Dense targets: mostly 0, some 1 and, if soft, a third in between."""
    targets = (torch.rand(size) < 0.3).double()
    if soft:
        targets = torch.where(torch.rand(size) < 0.35, torch.rand(size).double(), targets)
    return targets.to(dtype).to(device)


def make_soft(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", *, total: float = 1.0) -> Tensor:
    """Soft targets of a softmax: a third of the classes of a position have one, of that sum."""
    y = torch.rand(shape.size, dtype=torch.float64) * (torch.rand(shape.size) < 0.35)
    y.select(shape.class_dim, shape.classes // 2).clamp_(min=0.05)
    return (total * y / y.sum(shape.class_dim, keepdim=True)).to(dtype).to(device)


def of_each_class(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", most: float = 1.0) -> Tensor:
    """A number for each class: alpha, gamma, pos_weight."""
    return (torch.rand(shape.classes) * most).to(dtype).to(device)
