"""What pages show of numbers is made when the site is built, and never edited: docs/_generated has figures of the loss
and of its errors, from the package itself, and the tables and plots of bench/results.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from tabulate import tabulate
from torch import Tensor

import focal_cuda
from bench import plots, report, results
from bench.losses import ALPHA, cross_entropy_based, torchvision_formula
from bench.targets import verdicts
from focal_cuda import reference

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend has to be chosen first

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
WORDS = {"svg.hashsalt": "focal_cuda", "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", lambda app: make(Path(app.srcdir) / "_generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for background, style in (("light", "default"), ("dark", "dark_background")):
        with plt.style.context([style, WORDS]):
            _save(_loss_and_gradient(), folder / f"margin-{background}.svg")
            _save(_errors_by_margin(), folder / f"errors-{background}.svg")
    (folder / "errors.md").write_text(_error_table())
    (folder / "performance.md").write_text(_performance(folder))


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)


# --- the loss as a function of the margin ----------------------------------------------------------------------------


def _loss_and_gradient() -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharex=True)
    z = torch.linspace(-5, 5, 401).reshape(-1, 1).requires_grad_()
    for gamma, colour in zip(GAMMAS, plt.colormaps["plasma"](torch.linspace(0.25, 0.9, len(GAMMAS))), strict=True):
        loss = focal_cuda.sigmoid_focal_loss(z, torch.ones_like(z), alpha=None, gamma=gamma, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        label = f"$\\gamma$ = {gamma:g}" + (" (cross entropy)" if gamma == 0 else "")
        for axes, values in ((left, loss), (right, gradient)):
            axes.plot(z.detach(), values.detach(), color=colour, linewidth=2, label=label)
    left.set(title="loss  L(z)", ylim=(0, 5), xlabel="margin z")
    right.set(title="gradient  dL/dz", xlabel="margin z")
    for axes in (left, right):
        axes.axvline(0, color="gray", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
    left.legend(frameon=False)
    return figure


# --- errors, against the float64 reference ---------------------------------------------------------------------------

# One logit of a positive, or two logits of which the first is the label's: functions of the margin alone.
Formula = Callable[[Tensor, float], Tensor]


def _binary(loss: Callable, **options) -> Formula:
    return lambda z, gamma: loss(z.reshape(1, 1), torch.ones(1, 1, dtype=z.dtype), gamma=gamma, **options)


def _two_classes(loss: Callable, **options) -> Formula:
    label = torch.zeros(1, dtype=torch.int64)
    return lambda z, gamma: loss(torch.stack([z, torch.zeros_like(z)])[None], label, gamma=gamma, **options)


# name: the formula in float32, the same in float64 by the reference, colour
FORMULAS: dict[str, tuple[Formula, Formula, str]] = {
    "p_t from sigmoid, 1 - p_t": (
        _binary(torchvision_formula),
        _binary(reference.sigmoid_focal_loss, alpha=ALPHA),
        "#E69F00",
    ),
    "1 - exp(-F.cross_entropy)": (
        _two_classes(cross_entropy_based),
        _two_classes(reference.softmax_focal_loss),
        "#CC79A7",
    ),
    "focal_cuda, sigmoid": (
        _binary(focal_cuda.sigmoid_focal_loss, alpha=ALPHA),
        _binary(reference.sigmoid_focal_loss, alpha=ALPHA),
        "#0072B2",
    ),
    "focal_cuda, softmax": (
        _two_classes(focal_cuda.softmax_focal_loss),
        _two_classes(reference.softmax_focal_loss),
        "#56B4E9",
    ),
}


def _values(formula: Formula, z: float, gamma: float, dtype: torch.dtype) -> tuple[float, float]:
    margin = torch.tensor(z, dtype=dtype, requires_grad=True)
    loss = formula(margin, gamma)
    return loss.item(), torch.autograd.grad(loss, margin)[0].item()


def _errors(name: str, z: float, gamma: float) -> tuple[float, float]:
    """Relative, of loss and gradient; NaN where they are not finite."""
    formula, exact, _ = FORMULAS[name]
    pairs = zip(_values(formula, z, gamma, torch.float32), _values(exact, z, gamma, torch.float64), strict=True)
    return tuple(abs(got - expected) / abs(expected) for got, expected in pairs)


def _errors_by_margin() -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
    margins = torch.linspace(0, 30, 121).tolist()
    for axes, gamma, which, title in (
        (panels[0], 2.0, 0, "loss, $\\gamma$ = 2"),
        (panels[1], 0.5, 1, "gradient, $\\gamma$ = 0.5"),
    ):
        for name, (_, _, colour) in FORMULAS.items():
            errors = torch.tensor([_errors(name, z, gamma)[which] for z in margins])
            style = "--" if "softmax" in name else "-"  # it lies on the sigmoid's
            axes.plot(margins, errors.clamp(min=1e-9), style, color=colour, linewidth=2, label=name)
            lost = [z for z, error in zip(margins, errors, strict=True) if not error.isfinite()]
            axes.plot(lost, [3.0] * len(lost), "x", color=colour, markersize=5)
        axes.axhline(1, color="gray", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", ylim=(1e-9, 10), xlabel="margin z (the larger, the easier)", title=title)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("relative error in float32\n(1: nothing is right; x: NaN)")
    panels[0].legend(frameon=False, fontsize=9, loc="center right")
    return figure


def _error_table() -> str:
    margins = (4.0, 8.0, 12.0, 16.0, 20.0)

    def told(error: float) -> str:
        return "NaN" if error != error else f"{error:.0e}"

    rows = [
        [f"`{name}`", what, *(told(_errors(name, z, gamma)[which]) for z in margins)]
        for name in FORMULAS
        for what, gamma, which in (("loss, gamma = 2", 2.0, 0), ("gradient, gamma = 0.5", 0.5, 1))
    ]
    headers = ["float32", "relative error of", *(f"z = {z:g}" for z in margins)]
    made = f"Computed when this page was built, by focal_cuda {focal_cuda.__version__} and torch {torch.__version__}."
    return f"{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n\n{made}\n"


# --- what was measured -----------------------------------------------------------------------------------------------


def _performance(folder: Path) -> str:
    devices = results.all_devices(results.FOLDER)
    parts = []
    if not any(document["environment"].get("device") == "cuda" for document in devices.values()):
        parts.append(
            "**No GPU figure has been measured.** The CUDA kernels have not yet run on a GPU; what their machine code "
            "predicts is in [Contributing](contributing.md#what-the-cuda-kernels-cost).\n"
        )
    for slug, document in devices.items():
        pictures = plots.draw(document, folder, slug)
        parts += [f"## {document['environment']['model']}\n", report.readme_section({slug: document}, folder.name)]
        parts += [f"![{path.stem}]({folder.name}/{path.name})\n" for path in pictures if "speedup" not in path.stem]
        parts.append("### Targets\n")
        found = [v for v in verdicts(document, document["environment"]["device"]) if v.value is not None]
        parts.append(_block(report.verdict_table(found)))
        parts.append("### Everything that was measured\n")
        tables = [report.scenario_table(key, s) for key, s in document["scenarios"].items() if not s["group"]]
        tables += [
            report.group_table([s for s in document["scenarios"].values() if s["group"] == group])
            for group in dict.fromkeys(s["group"] for s in document["scenarios"].values())
            if group
        ]
        parts.append(_block("\n".join(tables)))
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"
