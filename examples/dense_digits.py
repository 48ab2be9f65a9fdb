"""Trains a small one-stage dense detector three times: with cross entropy, with the focal loss written in Python, and
with focal_cuda. Same seeds, same scenes, same initial weights; only the classification loss differs.

Every scene (examples/digit_scenes.py) has thousands of anchors and a handful of digits: about one anchor in 500 is a
positive. Prints one table and writes demo.png. `python examples/dense_digits.py --help` lists the options.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
import training
from digit_scenes import BACKGROUND, IGNORED, NUM_CLASSES, Scenes
from matplotlib import patheffects
from torch import Tensor, nn

import focal_cuda

ANCHOR_SIZES = [(height, height * ratio) for height in (16, 22, 30, 40) for ratio in (0.45, 0.8)]


# --- the three classification losses: logits [N, C] of all anchors, labels [N] uint8 -> sum / positives ---------------


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels.clamp(max=BACKGROUND).long(), NUM_CLASSES + 1)[:, :NUM_CLASSES].float()


def positives(labels: Tensor) -> Tensor:
    return (labels < NUM_CLASSES).sum().clamp(min=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits, one_hot(labels), reduction="none")
    return (loss * (labels != IGNORED)[:, None]).sum() / positives(labels)


def focal_in_python(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    targets = one_hot(labels)
    p = torch.sigmoid(logits)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    loss = alpha_t * (1 - p_t) ** gamma * ce
    return (loss * (labels != IGNORED)[:, None]).sum() / positives(labels)


def focal_of_this_package(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    return focal_cuda.sigmoid_focal_loss(
        logits, labels, alpha, gamma, "sum", ignore_index=IGNORED, background_index=BACKGROUND, normalizer="positives"
    )


LOSSES = {"cross entropy": cross_entropy, "focal, Python": focal_in_python, "focal_cuda": focal_of_this_package}
COLOURS = {"cross entropy": "#999999", "focal, Python": "#E69F00", "focal_cuda": "#0072B2"}


def make_loss(name: str, options: argparse.Namespace) -> training.Loss:
    loss = LOSSES[name]
    return loss if loss is cross_entropy else partial(loss, alpha=options.alpha, gamma=options.gamma)


# --- detector, anchors, matching -------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Per cell of the backbone and anchor, class logits and box offsets."""

    def __init__(self, prior: float, width: int = 40) -> None:
        super().__init__()
        self.backbone = training.Backbone(width)
        self.classes = nn.Conv2d(width, len(ANCHOR_SIZES) * NUM_CLASSES, 1)
        self.boxes = nn.Conv2d(width, len(ANCHOR_SIZES) * 4, 1)
        # Every anchor starts out as "no digit, probably": otherwise the many negatives drown the first steps.
        nn.init.normal_(self.classes.weight, std=0.01)
        focal_cuda.init_prior_bias_(self.classes, prior)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        # [B, A * K, H, W] -> [B, H * W * A, K], the order of make_anchors
        return tuple(
            head(features).permute(0, 2, 3, 1).reshape(len(images), -1, per_anchor)
            for head, per_anchor in ((self.classes, NUM_CLASSES), (self.boxes, 4))
        )


def make_anchors(size: int) -> Tensor:
    """[H * W * A, 4] boxes (x1, y1, x2, y2)."""
    stride = training.Backbone.stride
    centers = torch.arange(size // stride) * stride + stride / 2
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    half = torch.tensor(ANCHOR_SIZES).flip(1) / 2  # width, height
    middle = torch.stack([x, y], -1)[:, :, None]
    return torch.cat([middle - half, middle + half], -1).view(-1, 4)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """[len(a), len(b)] intersection over union of boxes."""
    corners = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    overlap = corners.clamp(min=0).prod(-1)
    return overlap / ((a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None] - overlap)


def match(anchors: Tensor, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Labels [scenes, N] uint8 and matched boxes [scenes, N, 4]: IoU >= 0.65 positive, >= 0.45 ignored."""
    labels, boxes = [], []
    for truth, classes in zip(scenes.boxes, scenes.labels, strict=True):
        overlaps = iou(anchors, truth)
        best, which = overlaps.max(1)
        label = torch.where(best >= 0.45, IGNORED, BACKGROUND)
        label = torch.where(best >= 0.65, classes[which], label)
        label[overlaps.argmax(0)] = classes  # every digit has at least one anchor
        which[overlaps.argmax(0)] = torch.arange(len(classes))
        labels.append(label.to(torch.uint8))
        boxes.append(truth[which])
    return torch.stack(labels), torch.stack(boxes)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([shift / anchor_size, (size / anchor_size).log()], -1) / 0.2


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    middle = (anchors[..., :2] + anchors[..., 2:]) / 2 + 0.2 * offsets[..., :2] * anchor_size
    half = anchor_size * (0.2 * offsets[..., 2:]).clamp(max=2).exp() / 2
    return torch.cat([middle - half, middle + half], -1)


# --- detections and their average precision --------------------------------------------------------------------------


class Detections(NamedTuple):
    boxes: Tensor  # [K, 4]
    labels: Tensor  # [K]
    scores: Tensor  # [K], falling


@torch.no_grad()
def detect(model: Detector, images: Tensor, anchors: Tensor, keep: int = 100) -> list[Detections]:
    results = []
    for image in images.split(16):
        for logits, offsets in zip(*model(image), strict=True):
            scores, flat = logits.sigmoid().flatten().topk(keep)
            labels, at = flat % NUM_CLASSES, flat // NUM_CLASSES
            boxes = decode(offsets[at], anchors[at])
            overlaps = iou(boxes, boxes)
            kept: list[int] = []
            for k in range(keep):  # greedy suppression, whatever the class: digits do not overlap
                if scores[k] > 0.05 and all(overlaps[k, other] < 0.45 for other in kept):
                    kept.append(k)
            results.append(Detections(boxes[kept].cpu(), labels[kept].cpu(), scores[kept].cpu()))
    return results


def average_precision(detections: list[Detections], scenes: Scenes) -> float:
    """Mean over the classes of the area under the precision-recall curve, at IoU 0.5."""
    areas = []
    for c in range(NUM_CLASSES):
        hits, scores, total = [], [], 0
        for found, truth, classes in zip(detections, scenes.boxes, scenes.labels, strict=True):
            truth = truth[classes == c]
            total += len(truth)
            free = torch.ones(len(truth), dtype=torch.bool)
            of_class = found.labels == c
            for box, score in zip(found.boxes[of_class], found.scores[of_class], strict=True):
                overlaps = iou(box[None], truth)[0] * free if len(truth) else torch.zeros(1)
                hit = bool(overlaps.max() >= 0.5)
                if hit:
                    free[overlaps.argmax()] = False
                hits.append(hit)
                scores.append(float(score))
        order = torch.tensor(scores).argsort(descending=True)
        right = torch.tensor(hits, dtype=torch.float64)[order].cumsum(0)
        precision = right / torch.arange(1, len(right) + 1)
        recall = right / max(total, 1)
        envelope = precision.flip(0).cummax(0).values.flip(0)
        areas.append(float((envelope * torch.diff(recall, prepend=torch.zeros(1))).sum()))
    return statistics.mean(areas)


# --- training and measuring ------------------------------------------------------------------------------------------


class Run(NamedTuple):
    curve: list[float]
    precision: float
    costs: training.Costs
    detections: list[Detections]


def train(name: str, options: argparse.Namespace, scenes: Scenes, held_out: Scenes) -> Run:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = Detector(options.prior).to(device)
    class_loss = make_loss(name, options)
    anchors = make_anchors(options.size)
    labels, boxes = (tensor.to(device) for tensor in match(anchors, scenes))
    anchors, images = anchors.to(device), scenes.images.to(device)

    def losses_of(batch: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = model(images[batch])
        label = labels[batch].flatten()
        loss = class_loss(logits.flatten(0, 1), label)
        at = label < NUM_CLASSES
        wanted = encode(boxes[batch].flatten(0, 1)[at], anchors.repeat(options.batch, 1)[at])
        return loss, loss + F.smooth_l1_loss(offsets.flatten(0, 1)[at], wanted, beta=0.5)

    curve, step_ms = training.train(name, model, losses_of, options)
    with torch.no_grad():
        logits = model.eval()(images[: options.batch])[0].flatten(0, 1)
    costs = training.measure(class_loss, logits, labels[: options.batch].flatten(), step_ms)
    detections = detect(model, held_out.images.to(device), anchors)
    return Run(curve, average_precision(detections, held_out), costs, detections)


# --- the picture -----------------------------------------------------------------------------------------------------


def smooth(curve: list[float], window: int = 15) -> list[float]:
    return [statistics.mean(curve[max(0, i - window + 1) : i + 1]) for i in range(len(curve))]


def draw(runs: dict[str, Run], held_out: Scenes, path: Path) -> None:
    figure = plt.figure(figsize=(16, 9), layout="constrained")
    figure.suptitle("One dense detector, three classification losses", fontsize=16)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    axes = left.subplots(3, 1, height_ratios=(1.3, 1, 1))

    focal = [name for name in runs if name.startswith("focal")]
    for name, style in zip(focal, (dict(lw=5, alpha=0.55), dict(lw=1.8, ls="--")), strict=False):
        axes[0].plot(smooth(runs[name].curve), color=COLOURS[name], label=name, **style)
    axes[0].set(title="focal loss while training: the two curves lie on each other", ylabel="loss", ylim=(0, None))
    for name in set(runs) - set(focal):
        axes[1].plot(smooth(runs[name].curve), color=COLOURS[name], lw=2, label=name)
    axes[1].set(title="cross entropy while training (another scale)", xlabel="step", ylabel="loss", ylim=(0, None))
    for axis in axes[:2]:
        if axis.has_data():
            axis.legend()
        axis.grid(alpha=0.3)

    training.draw_costs(axes[2], {name: run.costs for name, run in runs.items()}, COLOURS)

    best = "focal_cuda" if "focal_cuda" in runs else next(iter(runs))
    right.suptitle(f"held-out scenes, detected by the model trained with {best} (true boxes dashed)")
    for i, axis in enumerate(right.subplots(3, 3).flat):
        axis.axis("off")
        if i >= len(held_out.images):
            continue
        axis.imshow(held_out.images[i, 0], cmap="gray", vmin=0, vmax=255)
        for x1, y1, x2, y2 in held_out.boxes[i].tolist():
            axis.add_patch(plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, ec="white", ls="--"))
        for (x1, y1, x2, y2), label, score in zip(*(t.tolist() for t in runs[best].detections[i]), strict=True):
            if score < 0.3:
                continue
            axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="#56B4E9", lw=2))
            text = axis.text(x1, y1 - 2, f"{label} ({score:.0%})", color="#56B4E9", fontsize=9, weight="bold")
            text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="black")])
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = training.make_parser(__doc__, LOSSES, "demo.png", steps=600, batch=11, learning_rate=1e-2)
    parser.add_argument("--alpha", type=float, default=0.25, help="of the focal losses")
    parser.add_argument("--prior", type=float, default=0.01, help="what the probability of every class starts at")
    options = training.parse(parser)
    scenes, held_out = training.make_data(options)
    labels, _ = match(make_anchors(options.size), scenes)
    share = (labels != IGNORED).sum() / (labels < NUM_CLASSES).sum()
    print(
        f"{labels.shape[1]} anchors a scene, one positive in {share:.0f}; a step has {options.batch * labels.shape[1]} "
        f"anchors x {NUM_CLASSES} classes; {options.device}, {torch.get_num_threads()} threads"
    )
    runs = {name: train(name, options, scenes, held_out) for name in options.losses}

    columns = {
        "final loss": lambda run: f"{statistics.mean(run.curve[-20:]):.4f}",
        "AP@0.5": lambda run: f"{run.precision:.3f}",
        **training.COST_COLUMNS,
    }
    if "focal, Python" in runs:
        baseline = runs["focal, Python"].costs.loss_ms
        columns["speed-up"] = lambda run: f"{baseline / run.costs.loss_ms:.1f}x"
    training.print_table(runs, columns)
    print(
        "\nAP@0.5: detection on held-out scenes, 1 is perfect. Time and memory of a loss: its forward and backward.\n"
        "The two focal losses are one function; what differs is rounding, which training amplifies. Cross entropy\n"
        "is ruled by the many easy negatives: in as many steps it learns to find nothing."
    )
    draw(runs, held_out, options.output)
    print(f"Curves, bars and detections are in {options.output}.")


if __name__ == "__main__":
    main()
