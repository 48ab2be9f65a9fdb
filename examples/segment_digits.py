"""Trains a small segmentation network three times: with cross entropy, with the focal loss, and with the focal loss of
the hardest pixels alone (OHEM). Same seeds, same scenes, same initial weights; only the loss differs.

Every pixel of a scene (examples/digit_scenes.py) is ink of one of ten digits or background, which 97 of 100 are; two
pixels around ink are ignored. Prints one table and writes segment.png.

What is to be seen: all three find the background, and end within a few hundredths of each other in the IoU of the
digits, about what another seed changes. Cross entropy is no worse than the focal loss; OHEM ended highest in each of
the five runs looked at. The focal losses take a third of cross entropy's memory.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import training
from digit_scenes import BACKGROUND, IGNORED, NUM_CLASSES, Scenes
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor, nn

import focal_cuda

LOSSES = ("cross entropy", "focal", "focal + OHEM")
COLOURS = {"cross entropy": "#999999", "focal": "#0072B2", "focal + OHEM": "#D55E00"}
WATCHED_SCENES, POINTS = 32, 15  # of the held-out scenes, and of the curve


def make_loss(name: str, options: argparse.Namespace) -> training.Loss:
    """From logits [B, 11, H, W] and masks [B, H, W] uint8 to the mean over pixels that are not ignored."""
    if name == "cross entropy":
        return lambda logits, masks: F.cross_entropy(logits, masks.long(), ignore_index=IGNORED)
    keep_ratio = options.keep_ratio if name == "focal + OHEM" else None
    return partial(focal_cuda.softmax_focal_loss, gamma=options.gamma, ignore_index=IGNORED, ohem_keep_ratio=keep_ratio)


class Segmenter(nn.Module):
    """Class logits of the backbone's cells, interpolated to every pixel."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.backbone = training.Backbone(width)
        self.classes = nn.Conv2d(width, NUM_CLASSES + 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.classes(self.backbone(images)), images.shape[-2:], mode="bilinear")


# --- predictions and how good they are -------------------------------------------------------------------------------


class Quality(NamedTuple):
    iou: float  # mean over the digits
    background: float  # which share of the background is called background


@torch.no_grad()
def segment(model: Segmenter, images: Tensor) -> Tensor:
    model.eval()
    classes = torch.cat([model(some).argmax(1).to(torch.uint8) for some in images.split(16)])
    model.train()
    return classes


def assess(predicted: Tensor, masks: Tensor) -> Quality:
    """Of pixels that are not ignored, all scenes together; digits that are in none do not count."""
    counted = masks != IGNORED
    classes = NUM_CLASSES + 1
    pairs = masks[counted].long() * classes + predicted[counted]
    confusion = pairs.bincount(minlength=classes**2).view(classes, classes).double()
    hits = confusion.diagonal()
    truth = confusion.sum(1)
    iou = (hits / (truth + confusion.sum(0) - hits))[:NUM_CLASSES]
    return Quality(iou[truth[:NUM_CLASSES] > 0].mean().item(), (hits / truth)[BACKGROUND].item())


# --- training --------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    curve: list[tuple[int, float]]  # steps and the mean IoU after them
    quality: Quality
    costs: training.Costs
    predicted: Tensor


def train(name: str, options: argparse.Namespace, scenes: Scenes, held_out: Scenes) -> Run:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = Segmenter().to(device)
    loss = make_loss(name, options)
    images, masks = scenes.images.to(device), scenes.masks.to(device)
    unseen, truth = held_out.images.to(device), held_out.masks.to(device)
    curve = []

    def losses_of(batch: Tensor) -> tuple[Tensor, Tensor]:
        value = loss(model(images[batch]), masks[batch])
        return value, value

    def watch(step: int) -> None:
        if (step + 1) % max(options.steps // POINTS, 1) == 0:
            predicted = segment(model, unseen[:WATCHED_SCENES])
            curve.append((step + 1, assess(predicted, truth[:WATCHED_SCENES]).iou))

    _, step_ms = training.train(name, model, losses_of, options, watch)
    with torch.no_grad():
        logits = model(images[: options.batch])
    costs = training.measure(loss, logits, masks[: options.batch], step_ms)
    predicted = segment(model, unseen)
    return Run(curve, assess(predicted, truth), costs, predicted.cpu())


# --- the picture -----------------------------------------------------------------------------------------------------


def draw(runs: dict[str, Run], held_out: Scenes, path: Path) -> None:
    figure = plt.figure(figsize=(16, 9), layout="constrained")
    figure.suptitle("One segmentation network, three losses", fontsize=16)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
    curves, bars = left.subplots(2, 1, height_ratios=(2, 1))
    for name, run in runs.items():
        curves.plot(*zip(*run.curve, strict=True), color=COLOURS[name], marker=".", label=name)
    curves.set(title="held-out scenes while training", xlabel="step", ylabel="mean IoU of the digits", ylim=(0, 1))
    curves.legend()
    curves.grid(alpha=0.3)
    training.draw_costs(bars, {name: run.costs for name, run in runs.items()}, COLOURS)

    right.suptitle("held-out scenes; a colour for each digit, grey is ignored")
    columns = {"scene": held_out.images[:, 0], "truth": held_out.masks} | {
        name: run.predicted for name, run in runs.items()
    }
    shown = min(4, len(held_out.images))
    for i, axes in enumerate(right.subplots(shown, len(columns), squeeze=False)):
        for axis, (title, pictures) in zip(axes, columns.items(), strict=True):
            axis.axis("off")
            if i == 0:
                axis.set_title(title)
            if title == "scene":
                axis.imshow(pictures[i], cmap="gray", vmin=0, vmax=255)
            else:
                draw_mask(axis, pictures[i])
    figure.savefig(path, dpi=100)


def draw_mask(axis: Axes, mask: Tensor) -> None:
    """Digits in ten colours on black, a grey line around them where pixels are ignored."""
    ignored = NUM_CLASSES + 1
    colours = list(plt.colormaps["tab10"].colors)
    colours[7] = "white"  # the colour map's grey is too near that of ignored pixels
    colours = ListedColormap([*colours, "black", "#444444"])
    axis.imshow(mask.clamp(max=ignored), cmap=colours, vmin=-0.5, vmax=ignored + 0.5, interpolation="nearest")


def main() -> None:
    parser = training.make_parser(__doc__, LOSSES, "segment.png", steps=500, batch=8, learning_rate=1e-2)
    parser.add_argument("--keep-ratio", type=float, default=0.1, help="which share of the pixels OHEM keeps")
    options = training.parse(parser)
    scenes, held_out = training.make_data(options)
    counted = scenes.masks != IGNORED
    share = (scenes.masks == BACKGROUND).sum() / counted.sum()
    print(
        f"{share:.1%} of the pixels are background, {1 - counted.float().mean():.1%} are ignored; a step has "
        f"{options.batch * options.size**2} pixels x {NUM_CLASSES + 1} classes; "
        f"{options.device}, {torch.get_num_threads()} threads"
    )
    runs = {name: train(name, options, scenes, held_out) for name in options.losses}
    training.print_table(
        runs,
        {
            "mean IoU of digits": lambda run: f"{run.quality.iou:.3f}",
            "background accuracy": lambda run: f"{run.quality.background:.4f}",
            **training.COST_COLUMNS,
        },
    )
    print("\nmean IoU: of held-out scenes, 1 is perfect; a few hundredths are what another --seed changes.")
    draw(runs, held_out, options.output)
    print(f"Scenes, predictions and curves are in {options.output}.")


if __name__ == "__main__":
    main()
