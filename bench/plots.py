"""PNG plots of a device's results: speed-up bars, time against size, peak memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  the backend has to be chosen first
from matplotlib.axes import Axes  # noqa: E402

from bench.results import CURVES, dtypes, select  # noqa: E402
from bench.targets import PLAIN, median, ratio, share_of_copy  # noqa: E402

# Okabe and Ito's palette, told apart by every kind of colour vision; hatches help in print.
_SERIES = {
    "focal_cuda": ("focal_cuda", "#0072B2"),
    "focal_cuda inplace": ("focal_cuda, gradient in place", "#56B4E9"),
    "compiled": ("torch.compile", "#E69F00"),
    "kornia": ("kornia", "#009E73"),
    "MONAI": ("MONAI", "#CC79A7"),
    "baseline": ("pure Python", "#666666"),
    "copy_": ("copy of the logits (memory speed)", "#BBBBBB"),
}
_BAR = 0.8

Result = dict[str, Any]


def draw(document: Result, folder: Path, slug: str) -> list[Path]:
    """Writes what the results suffice for; returns the paths."""
    facts = document["environment"]
    device = f"{facts['model']}" + (f" ({facts['threads']} threads)" if facts["device"] == "cpu" else "")
    written = []
    for dtype in dtypes(document):
        name, where = f"{slug}{'' if dtype == 'float32' else f'-{dtype}'}", f"{device}, {dtype}"
        scenarios = select(document, dtype=dtype).values()
        groups: dict[str | None, list[Result]] = {}
        for scenario in scenarios:
            groups.setdefault(scenario["group"], []).append(scenario)
        single = groups.get(None, [])
        for group, kind in ((None, "speedup"), ("relatives", "relatives")):
            if group in groups:
                written.append(_save(_speedup(groups[group], where, group), folder / f"{name}-{kind}.png"))
        if comparable := [s for s in groups.get("options", []) if PLAIN in s["candidates"]]:
            written.append(_save(_options(comparable, where), folder / f"{name}-options.png"))
        if curves := {group: groups[group] for group in CURVES if group in groups}:
            written.append(_save(_size(curves, where), folder / f"{name}-size.png"))
        large = [s for s in single if s["bytes"]["logits"] > 1e4]
        if large:
            written.append(_save(_memory(large, where), folder / f"{name}-memory.png"))
        if large and facts["device"] == "cuda":
            written.append(_save(_of_copy(large, where), folder / f"{name}-copy.png"))
    return written


def _candidate(scenario: Result, series: str) -> Result:
    name = scenario[series] if series in ("baseline", "compiled") else series
    return scenario["candidates"].get(name, {})


def _speedup(scenarios: list[Result], device: str, group: str | None) -> plt.Figure:
    def value(scenario: Result, series: str) -> float | None:
        return ratio(median(_candidate(scenario, "baseline")), median(_candidate(scenario, series)))

    series = ("focal_cuda", "focal_cuda inplace", "compiled", "kornia", "MONAI")
    figure, axes = _bars(scenarios, series, value, lambda v: f"{v:.0f}x" if v >= 10 else f"{v:.1f}x")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}x")
    axes.axvline(1, color=_SERIES["baseline"][1], linewidth=1.5)
    what = "Relatives of the focal loss" if group else "Focal loss"
    axes.set_xlabel("times as fast as the pure-Python loss (longer is better, log scale)")
    axes.set_title(f"{what}, forward + backward: speed-up over pure Python\n{device}", loc="left")
    return figure


def _options(scenarios: list[Result], device: str) -> plt.Figure:
    def value(scenario: Result, series: str) -> float | None:
        return ratio(median(_candidate(scenario, series)), median(_candidate(scenario, PLAIN)))

    figure, axes = _bars(scenarios, ("focal_cuda",), value, lambda v: f"{v:.2f}")
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("time in multiples of that of the same call without the option (shorter is better)")
    axes.set_title(f"Focal loss with options, forward + backward: what they cost\n{device}", loc="left")
    return figure


def _memory(scenarios: list[Result], device: str) -> plt.Figure:
    def value(scenario: Result, series: str) -> float | None:
        return _candidate(scenario, series).get("peak_memory")

    series = ("focal_cuda", "focal_cuda inplace", "compiled", "kornia", "MONAI", "baseline")
    figure, axes = _bars(scenarios, series, value, lambda v: f"{v:.2g}" if v >= 0.01 else "0")
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("peak memory beyond the logits, in multiples of the logits (shorter is better; the gradient is 1)")
    axes.set_title(f"Focal loss, forward + backward: peak extra memory\n{device}", loc="left")
    return figure


def _of_copy(scenarios: list[Result], device: str) -> plt.Figure:
    def value(scenario: Result, series: str) -> float | None:
        return share_of_copy(scenario, _candidate(scenario, series))

    series = ("focal_cuda", "focal_cuda inplace", "compiled", "baseline")
    figure, axes = _bars(scenarios, series, value, lambda v: f"{v:.0%}")
    axes.axvline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    axes.set_xlabel("the bytes that have to be moved, per second, against a copy of the logits (longer is better)")
    axes.set_title(f"Focal loss, forward + backward: part of the speed of a copy\n{device}", loc="left")
    return figure


def _bars(
    scenarios: list[Result],
    series: tuple[str, ...],
    value: Callable[[Result, str], float | None],
    label: Callable[[float], str],
) -> tuple[plt.Figure, Axes]:
    """Groups of horizontal bars with a value label each; candidates that were not measured take no room."""
    figure, axes = plt.subplots(layout="constrained")
    position, ticks, shown = 0.0, [], set()
    for scenario in scenarios:
        bars = [(name, v) for name in series if (v := value(scenario, name)) is not None]
        ticks.append((position + (len(bars) - 1) / 2, _tick(scenario)))
        for name, v in bars:
            text, colour = _SERIES[name]
            axes.barh(position, v, _BAR, color=colour, label=None if name in shown else text)
            axes.annotate(
                label(v),
                (v, position),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                fontweight="bold" if name.startswith("focal_cuda") else "normal",
            )
            shown.add(name)
            position += 1
        position += 1
    axes.set_yticks([t for t, _ in ticks], [text for _, text in ticks], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_size_inches(10, 1.8 + 0.17 * position)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure, axes


def _tick(scenario: Result) -> str:
    return f"{scenario['title']}\n{' x '.join(map(str, scenario['shape']))}"


def _size(groups: dict[str, list[Result]], device: str) -> plt.Figure:
    titles = {"size-sigmoid": "Sigmoid focal loss, [N, 80]", "size-softmax": "Softmax focal loss, 19 classes"}
    figure, panels = plt.subplots(1, len(groups), figsize=(6.2 * len(groups), 5), layout="constrained", squeeze=False)
    for axes, (group, scenarios) in zip(panels[0], groups.items(), strict=True):
        scenarios = sorted(scenarios, key=lambda s: math.prod(s["shape"]))
        for series in ("baseline", "compiled", "focal_cuda", "copy_"):
            points = [
                (math.prod(s["shape"]), time * 1e3)
                for s in scenarios
                if (time := median(_candidate(s, series))) is not None
            ]
            if not points:
                continue
            text, colour = _SERIES[series]
            style = ":" if series == "copy_" else "-"
            axes.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=text, linewidth=2)
            axes.annotate(
                _milliseconds(points[-1][1]),
                points[-1],
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontsize=9,
            )
        axes.set(xscale="log", yscale="log", xlabel="elements of the logits", title=titles.get(group, group))
        axes.grid(which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    panels[0][0].set_ylabel("forward + backward [ms]")
    panels[0][0].legend(frameon=False)
    figure.suptitle(f"Time of one training call against size (lower is better), {device}")
    return figure


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def _save(figure: plt.Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
