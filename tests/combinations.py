"""Calls of the losses made of a choice for everything there is to choose, such that any two choices meet in one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from cases import DTYPES, Shape, make_dense, make_index, make_logits, make_soft, make_trained_logits, of_each_class
from torch import Tensor

SIGMOID, SOFTMAX = "sigmoid_focal_loss", "softmax_focal_loss"
QUALITY, VARIFOCAL, GAUSSIAN = "quality_focal_loss", "varifocal_loss", "gaussian_focal_loss"
ASYMMETRIC, POLY, REDUCED, NORMALIZED = (
    "asymmetric_loss",
    "poly_focal_loss",
    "reduced_focal_loss",
    "normalized_focal_loss",
)
ALL = [QUALITY, VARIFOCAL, GAUSSIAN, ASYMMETRIC, POLY, REDUCED, NORMALIZED]
BY_ACTIVATION = [POLY, REDUCED, NORMALIZED]
# Which exponent a tensor on the device may be; of all others gamma.
ON_DEVICE = {QUALITY: "beta", GAUSSIAN: "alpha", ASYMMETRIC: "gamma_negative"}

# Small, for the emulation; each a regime of cases.py.
SHAPES = [
    Shape((5, 3)),
    Shape((129, 19)),
    Shape((21, 65)),
    Shape((3, 1000)),
    Shape((2, 2, 5, 7)),
    Shape((2, 19, 7, 9)),
    Shape((1, 150, 3, 7)),
    Shape((1, 4099, 2)),
    Shape((3, 5, 1)),
    Shape((2, 7, 128)),
    Shape((2, 6, 21), class_dim=-1),
    Shape((7, 40), class_dim=0),
]
FEW_SHAPES = [Shape((129, 19)), Shape((2, 19, 7, 9)), Shape((21, 65))]

# Memory in which the same values lie in another order or with gaps, in which there is nothing to be read.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "second dimension last": lambda x: x.movedim(min(1, x.dim() - 1), -1).contiguous().movedim(-1, min(1, x.dim() - 1)),
    "backwards": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "gaps": lambda x: _with_gaps(x),
}


def _with_gaps(x: Tensor) -> Tensor:
    empty = torch.full_like(x, torch.nan if x.is_floating_point() else 1)
    return torch.stack([x, empty], -1)[..., 0]


def pairwise(axes: dict[str, list], valid: Callable[[dict[str, Any]], bool], seed: int = 0) -> list[dict[str, Any]]:
    """Few combinations of one value for each axis, such that any two values that go together are together in one."""
    chooser = random.Random(seed)
    index = {name: range(len(values)) for name, values in axes.items()}
    missing = {
        ((a, i), (b, j)) for a, b in itertools.combinations(axes, 2) for i in index[a] for j in index[b]
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    while missing:
        wanted = chooser.choice(sorted(missing))
        candidates = []
        for attempt in range(1000):
            if attempt >= 60 and candidates:
                break
            chosen = {name: chooser.choice(numbers) for name, numbers in index.items()} | dict(wanted)
            if valid({name: axes[name][i] for name, i in chosen.items()}):
                pairs = set(itertools.combinations(chosen.items(), 2))
                candidates.append((len(missing & pairs), len(candidates), chosen, pairs))
        if not candidates:
            missing.remove(wanted)  # it goes with nothing
            continue
        _, _, chosen, pairs = max(candidates, key=lambda candidate: candidate[:2])
        missing -= pairs
        rows.append({name: axes[name][i] for name, i in chosen.items()})
    return rows


# What all losses have to be chosen.
COMMON = {
    "shape": SHAPES,
    "layout": list(LAYOUTS),
    "dtype": DTYPES,
    "reduction": ["none", "mean", "sum", "number", "tensor", "positives"],
    "gradient": ["auto", "forward", "backward", "inplace"],
    "sample_weight": [None, "position", "element", "one for all", "expanded", "zeros"],
    "mask": [None, "position", "element", "nothing left"],
}


def computing_dtype(row: dict[str, Any]) -> torch.dtype:
    return torch.float64 if row["dtype"] == torch.float64 else torch.float32


def make_targets(softmax: bool, kind: str, shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, int]:
    """Targets and what of them is ignored; of dense ones one tenth of the rows are."""
    dim = shape.class_dim
    ignore = {"uint8": 255, "bool": 1}.get(kind, -100)
    if kind in ("uint8", "bool", "int64"):
        return make_index(shape, getattr(torch, kind), device, ignore_index=ignore), ignore
    if kind == "dense bool":
        return make_dense(shape.size, torch.bool, device), ignore
    if kind == "one-hot":
        labels = make_index(shape, ignore_index=None)
        targets = F.one_hot(labels, shape.classes).movedim(-1, dim).to(device, dtype)
    elif softmax:
        targets = make_soft(shape, dtype, device, total=1.0 if kind == "soft" else 1.7)
    else:
        targets = make_dense(shape.size, dtype, device, soft=kind == "soft")
    out = torch.rand(shape.positions, device=device) < 0.1
    return torch.where(out.unsqueeze(dim), ignore, targets), ignore


def make_logits_for(targets: Tensor, shape: Shape) -> Tensor:
    if targets.dim() == len(shape.size):
        return make_logits(shape.size, torch.float32, str(targets.device))
    return make_trained_logits(shape, targets)


def of_row(
    row: dict[str, Any], logits: Tensor, targets: Tensor, softmax: bool
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The choices that all losses have: logits and targets as they lie in memory, and options."""
    shape, lay, device, compute = row["shape"], LAYOUTS[row["layout"]], logits.device, computing_dtype(row)
    dim, of_loss = shape.class_dim, shape.positions if softmax else shape.size
    logits = logits.to(row["dtype"])
    options: dict[str, Any] = {"class_dim": dim, "gradient": row["gradient"], "reduction": row["reduction"]}
    if row["reduction"] in ("number", "tensor", "positives"):
        normalizers = {"number": 3.7, "tensor": torch.tensor(11.0, device=device), "positives": "positives"}
        options |= {"reduction": "sum", "normalizer": normalizers[row["reduction"]]}
        if softmax:
            options["background_index"] = 0
    sizes = {
        "position": shape.positions, "element": of_loss, "one for all": (1,) * len(of_loss),
        "expanded": (1, *of_loss[1:]), "zeros": of_loss, "nothing left": (1,) * len(shape.positions),
    }  # fmt: skip
    if kind := row["sample_weight"]:
        weight = (torch.rand(sizes[kind]) + 0.5).to(device, compute)
        if kind == "expanded":
            weight = weight.expand(of_loss)
        if kind == "zeros":
            weight = torch.where(torch.rand(of_loss, device=device) < 0.4, 0.0, weight)
            out = (weight == 0).unsqueeze(dim) if softmax else weight == 0
            logits = torch.where(out & (torch.rand(logits.shape, device=device) < 0.7), torch.nan, logits)
        options["sample_weight"] = lay(weight) if kind in ("element", "zeros") else weight
    if kind := row["mask"]:
        options["mask"] = torch.rand(sizes[kind], device=device) < (0.0 if kind == "nothing left" else 0.8)
    return lay(logits), lay(targets), options


def by_class(value: Any, row: dict[str, Any], device: str, most: float = 1.0) -> Any:
    """A number for each class where that was chosen."""
    return of_each_class(row["shape"], computing_dtype(row), device, most) if value == "classes" else value


def name_of(value: object) -> str:
    if isinstance(value, dict):
        return "-".join(str(v).removeprefix("torch.") for v in value.values() if v is not None)
    return str(value).split("_")[0]


def labels_and_logits(shape: Shape, device: str = "cpu") -> tuple[Tensor, Tensor]:
    targets = make_index(shape, device=device)
    return targets, make_logits_for(targets, shape)


def call_of(
    op: str, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, targets and options of a loss, with tensors for all it may have beside gamma."""
    targets, x = labels_and_logits(shape, device)
    options: dict[str, Any] = {"sample_weight": torch.rand(shape.positions, dtype=dtype, device=device) + 0.5}
    if op == GAUSSIAN:
        targets = make_dense(shape.size, device=device, soft=True)
        options["sample_weight"] = options["sample_weight"].unsqueeze(1)
    if op in (QUALITY, VARIFOCAL):
        options["scores"] = torch.rand(targets.shape, device=device)
    if op in BY_ACTIVATION:
        options["alpha"] = of_each_class(shape, dtype, device)
    return x.to(dtype), targets, options
