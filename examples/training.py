"""What the examples share: a backbone, the same training for each of several losses, what a loss takes by itself, and
the options, tables and plots around them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler counts memory below; its own messages are not wanted

import matplotlib

matplotlib.use("Agg")
import torch
import torch.nn.functional as F
from digit_scenes import Scenes, make_scenes, split_digits
from matplotlib.axes import Axes
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import focal_cuda

Loss = Callable[[Tensor, Tensor], Tensor]  # logits and labels to a scalar


class Backbone(nn.Module):
    """Features of a grey image at stride 4, with context from stride 8."""

    stride = 4

    def __init__(self, width: int = 40) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        self.fine = nn.Sequential(block(1, 16, 2), block(16, width, 2), block(width, width))
        self.coarse = nn.Sequential(block(width, 2 * width, 2), *(block(2 * width, 2 * width) for _ in range(3)))
        self.lateral = nn.Conv2d(2 * width, width, 1)
        self.joint = block(width, width)

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8, [B, 1, H, W]."""
        fine = self.fine(images.float() / 255 - 0.4)
        context = F.interpolate(self.lateral(self.coarse(fine)), size=fine.shape[-2:])
        return self.joint(fine + context)


# --- training --------------------------------------------------------------------------------------------------------


class Costs(NamedTuple):
    step_ms: float
    loss_ms: float
    loss_megabytes: float


def train(
    name: str,
    model: nn.Module,
    losses_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    options: argparse.Namespace,
    watch: Callable[[int], None] = lambda step: None,
) -> tuple[list[float], float]:
    """The curve of the loss and the milliseconds of a step, after AdamW in one cycle of learning rates.

    losses_of: from the indices of a batch's scenes to the loss that is shown and the one that is minimised.
    watch: called after each step.
    """
    device = torch.device(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=options.steps, pct_start=options.warm_up
    )
    curve, times = [], []
    for step in (progress := tqdm(range(options.steps), desc=f"{name:>14}", unit="step", mininterval=0.5)):
        synchronize(device)
        start = time.perf_counter()
        shown, minimised = losses_of(torch.randint(options.scenes, (options.batch,)).to(device))
        optimizer.zero_grad()
        minimised.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        curve.append(shown.item())
        times.append(time.perf_counter() - start)
        progress.set_postfix(loss=f"{statistics.mean(curve[-20:]):.3f}", refresh=False)
        watch(step)
    return curve, 1e3 * statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_megabytes(call: Callable[[], object], device: torch.device) -> float:
    """The most memory the call held beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    held = peak = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def measure(loss: Loss, logits: Tensor, labels: Tensor, step_ms: float) -> Costs:
    """Time and memory of the loss alone, forward and backward."""
    logits = logits.detach().requires_grad_()

    def once() -> None:
        logits.grad = None
        loss(logits, labels).backward()

    times = []
    for _ in range(9):
        synchronize(logits.device)
        start = time.perf_counter()
        once()
        synchronize(logits.device)
        times.append(time.perf_counter() - start)
    logits.grad = None
    return Costs(step_ms, 1e3 * statistics.median(times), peak_megabytes(once, logits.device))


# --- options, scenes, tables, plots ----------------------------------------------------------------------------------


def make_parser(
    doc: str, losses: Iterable[str], output: str, *, steps: int, batch: int, learning_rate: float
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = list(losses)
    parser.add_argument("--losses", nargs="+", choices=names, default=names, metavar="LOSS", help=f"of {names}")
    parser.add_argument("--steps", type=int, default=steps, help="training steps per loss")
    parser.add_argument("--batch", type=int, default=batch, help="scenes per step")
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="the highest of the cycle")
    parser.add_argument("--warm-up", type=float, default=0.2, help="the share of steps in which it rises")
    parser.add_argument("--gamma", type=float, default=2.0, help="of the focal losses")
    parser.add_argument("--scenes", type=int, default=600, help="training scenes")
    parser.add_argument("--held-out", type=int, default=120, help="scenes to measure on")
    parser.add_argument("--size", type=int, default=144, help="width and height of a scene in pixels, a multiple of 8")
    usable = torch.cuda.is_available() and focal_cuda.is_available("cuda")
    parser.add_argument("--device", default="cuda" if usable else "cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; scenes have seeds of their own")
    parser.add_argument("--output", type=Path, default=Path(output), help="where the picture goes")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if options.size % 8:
        parser.error(f"expected --size to be a multiple of 8, got {options.size}")
    return options


def make_data(options: argparse.Namespace) -> tuple[Scenes, Scenes]:
    """Training and held-out scenes."""
    print(f"making {options.scenes} training and {options.held_out} held-out scenes of {options.size} pixels")
    digits, held_out_digits = split_digits(seed=0)
    scenes = make_scenes(digits, options.scenes, options.size, seed=1)
    return scenes, make_scenes(held_out_digits, options.held_out, options.size, seed=2)


# Of a run that has Costs in its field costs.
COST_COLUMNS = {
    "ms per step": lambda run: f"{run.costs.step_ms:.0f}",
    "ms in the loss": lambda run: f"{run.costs.loss_ms:.2f}",
    "peak MB of the loss": lambda run: f"{run.costs.loss_megabytes:.1f}",
}


def print_table(runs: Mapping[str, object], columns: Mapping[str, Callable[..., str]]) -> None:
    """columns: from a header to what it shows of a run."""
    rows = [[name, *(show(run) for show in columns.values())] for name, run in runs.items()]
    align = ["left"] + ["right"] * len(columns)
    print("\n" + tabulate(rows, ["loss", *columns], disable_numparse=True, colalign=align))


def draw_costs(axis: Axes, costs: Mapping[str, Costs], colours: Mapping[str, str]) -> None:
    axis.set(title="the loss alone, forward and backward", xscale="log")
    for i, (name, (_, ms, megabytes)) in enumerate(costs.items()):
        axis.barh(i, ms, color=colours[name])
        axis.text(ms * 1.08, i, f"{ms:.1f} ms, {megabytes:.0f} MB", va="center")
    axis.set_yticks(range(len(costs)), list(costs))
    times = [cost.loss_ms for cost in costs.values()]
    axis.set_xlim(min(times) / 3, max(times) * 8)
    axis.set_xlabel("milliseconds (logarithmic)")
