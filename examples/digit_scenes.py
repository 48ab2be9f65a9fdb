"""Scenes to find digits in: real handwritten digits, enlarged and pasted on noise and clutter.

The digits are the 1797 images of 8 x 8 pixels that come with scikit-learn; nothing is downloaded.
Lines and rings make the background hard, as a street makes it hard to find a car.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

NUM_CLASSES = 10
BACKGROUND, IGNORED = NUM_CLASSES, 255  # labels of anchors and pixels, beside the classes 0 ... 9


class Digits(NamedTuple):
    images: list[np.ndarray]  # each cropped to its ink, values in [0, 1]
    labels: np.ndarray


class Scenes(NamedTuple):
    images: Tensor  # [scenes, 1, size, size] uint8
    boxes: list[Tensor]  # per scene [digits, 4]: x1, y1, x2, y2 in pixels
    labels: list[Tensor]  # per scene [digits]: 0 ... 9
    masks: Tensor  # [scenes, size, size] uint8: a digit's ink, BACKGROUND, or IGNORED around ink


def split_digits(seed: int, held_out_fraction: float = 0.25) -> tuple[Digits, Digits]:
    """Training and held-out digits. No digit is in both, so no held-out scene shows one seen in training."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    held_out = round(len(order) * held_out_fraction)

    def pick(indices: np.ndarray) -> Digits:
        return Digits([_crop_to_ink(data.images[i] / 16.0) for i in indices], data.target[indices])

    return pick(order[held_out:]), pick(order[:held_out])


def make_scenes(digits: Digits, count: int, size: int, seed: int, max_digits: int = 5) -> Scenes:
    """``count`` square grey scenes of ``size`` pixels with 1 to ``max_digits`` digits each."""
    rng = np.random.default_rng(seed)
    images, boxes, labels, masks = [], [], [], []
    for _ in range(count):
        image = _background(rng, size)
        _add_strokes(rng, image)
        mask = np.full(image.shape, BACKGROUND, np.uint8)
        taken: list[tuple[int, int, int, int]] = []
        found = []
        for _ in range(rng.integers(1, max_digits + 1)):
            i = rng.integers(len(digits.images))
            if _paste(rng, image, mask, digits.images[i], digits.labels[i], taken):
                found.append(int(digits.labels[i]))
        image += rng.normal(0.0, 0.04, image.shape).astype(np.float32)
        images.append(torch.from_numpy((image.clip(0, 1) * 255).astype(np.uint8)))
        boxes.append(torch.tensor(taken, dtype=torch.float32).view(-1, 4))
        labels.append(torch.tensor(found, dtype=torch.int64))
        masks.append(torch.from_numpy(mask))
    return Scenes(torch.stack(images)[:, None], boxes, labels, _ignore_borders(torch.stack(masks)))


def _crop_to_ink(image: np.ndarray) -> np.ndarray:
    ink = image > 0.2
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = F.interpolate(torch.from_numpy(image)[None, None], (height, width), mode="bicubic")
    return resized[0, 0].clamp_(0, 1).numpy()


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    cells = int(rng.integers(3, 9))
    clouds = torch.from_numpy(rng.normal(0.0, 0.1, (1, 1, cells, cells)).astype(np.float32))
    return rng.uniform(0.2, 0.45) + F.interpolate(clouds, (size, size), mode="bicubic")[0, 0].numpy()


def _add_strokes(rng: np.random.Generator, image: np.ndarray) -> None:
    """Straight lines and rings as thick and as bright as the digits' strokes."""
    size = len(image)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(rng.integers(2, 6)):
        x0, y0 = rng.uniform(0, size, 2)
        if rng.random() < 0.5:
            angle, length = rng.uniform(0, np.pi), rng.uniform(0.1, 0.4) * size
            dx, dy = np.cos(angle), np.sin(angle)
            along = ((x - x0) * dx + (y - y0) * dy).clip(0, length)
            distance = np.hypot(x - x0 - along * dx, y - y0 - along * dy)
        else:
            distance = np.abs(np.hypot(x - x0, y - y0) - rng.uniform(0.1, 0.3) * size)
        ink = (1.0 + rng.uniform(0.5, 1.5) - distance).clip(0, 1)
        image += rng.uniform(0.2, 0.6) * ink * (1 - image).clip(0, 1)


def _paste(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, digit: np.ndarray, label: int, taken: list
) -> bool:
    """Put the digit where it touches nothing in ``taken`` and note its box there; False where no room was found."""
    size = len(image)
    scale = np.exp(rng.uniform(np.log(2.2), np.log(4.5)))
    height = round(digit.shape[0] * scale * rng.uniform(0.9, 1.1))
    width = round(digit.shape[1] * scale * rng.uniform(0.9, 1.1))
    for _ in range(20):
        x1, y1 = (int(v) for v in rng.integers(1, (size - width, size - height)))
        x2, y2 = x1 + width, y1 + height
        if all(x2 + 2 < a1 or a2 + 2 < x1 or y2 + 2 < b1 or b2 + 2 < y1 for a1, b1, a2, b2 in taken):
            ink = _resize(digit, height, width)
            mask[y1:y2, x1:x2][ink > 0.5] = label
            ink = ink * rng.uniform(0.6, 1.0)
            image[y1:y2, x1:x2] += ink * (1 - image[y1:y2, x1:x2]).clip(0, 1)
            taken.append((x1, y1, x2, y2))
            return True
    return False


def _ignore_borders(masks: Tensor, width: int = 2) -> Tensor:
    """Where ink fades, nobody could say what a pixel is: ``width`` pixels around digits are ignored."""
    ink = masks != BACKGROUND
    near = F.max_pool2d(ink[:, None].float(), 2 * width + 1, 1, width)[:, 0] > 0
    return torch.where(near & ~ink, torch.tensor(IGNORED, dtype=torch.uint8), masks)
