"""How much of a training step is the loss: torchvision's RetinaNet with its own focal loss, and with this one.

    python -m bench.retinanet                                              on a GPU: 8 images of 800 x 800
    python -m bench.retinanet --device cpu --size 320 --batch 2 --steps 5

Two copies of one network, with random weights, train on the same made-up images and boxes. They take steps in turn, one
of them under ``focal_cuda.patch("torchvision")``. A step is all of forward, losses, backward and optimizer.

The loss's part is measured twice. *In the step*: marks around each call of the loss, one for each image, and around its
backward pass, which begins when the gradient of its value is there and ends when that of its logits is. On a GPU that
includes waiting for launches. *By itself*: all calls of a step again, forward and then backward, on the logits, targets
and upstream gradients it had; that is also where the loss's memory and its error are taken from. What torchvision does
around the loss, one-hot targets and the choice of anchors, counts as the rest of the step in both.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import importlib.metadata
import math
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import focal_cuda
from bench import environment, report, results, vision
from bench.memory import peak_bytes
from bench.timing import Clock, interleave, percentiles
from focal_cuda import reference

LOSSES: dict[str, Callable[[], AbstractContextManager]] = {
    "torchvision": nullcontext,
    "focal_cuda": lambda: focal_cuda.patch("torchvision"),
}
RETINANET = "torchvision.models.detection.retinanet"
DEFAULTS = {"alpha": 0.25, "gamma": 2.0}  # of torchvision's function
CLASSES = 91
BOXES = 7  # of an image, as in COCO
LEARNING_RATE = 0.01
WARM_UP = 2
DTYPES = ("float32", "bfloat16")

# The two curves part by rounding alone: of convolutions, and in bfloat16 of torchvision's formula.
SAME_CURVE = {"float32": 1e-3, "bfloat16": 1e-2}
# Our loss and its gradient, against float64; a gradient in bfloat16 is rounded to that.
LOSS_ERROR, GRADIENT_ERROR = 2e-5, {"float32": 1e-4, "bfloat16": 2**-8}

ABSENT = 4  # the exit status where there is no torchvision


class Call(NamedTuple):
    """One of the loss, as the network made it."""

    logits: Tensor
    targets: Tensor
    options: dict[str, Any]


class Trace:
    """Stands in for the loss during a step, and marks when it and its backward pass begin and end."""

    def __init__(self, loss: Callable[..., Tensor], clock: Clock) -> None:
        self.loss, self.clock = loss, clock
        self.forward: list[tuple[Any, Any]] = []
        self.backward: list[list[Any]] = []

    def __call__(self, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        logits = logits.view_as(logits)  # whose own backward pass follows the loss's at once
        start = self.clock.mark()
        loss = self.loss(logits, targets, **options)
        self.forward.append((start, self.clock.mark()))
        marks: list[Any] = []
        self.backward.append(marks)
        loss.register_hook(lambda gradient: marks.append(self.clock.mark()))
        logits.register_hook(lambda gradient: marks.append(self.clock.mark()))
        return loss

    def seconds(self) -> dict[str, float]:
        passes = {"forward": self.forward, "backward": self.backward}
        times = {name: sum(self.clock.seconds(*pair) for pair in pairs) for name, pairs in passes.items()}
        return {**times, "loss": sum(times.values())}


class Recorder(Trace):
    """Also keeps what the loss was given, in both directions."""

    def __init__(self, loss: Callable[..., Tensor], clock: Clock) -> None:
        super().__init__(loss, clock)
        self.calls: list[Call] = []
        self.upstream: list[Tensor] = []

    def __call__(self, logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        loss = super().__call__(logits, targets, **options)
        which = len(self.calls)
        self.calls.append(Call(logits.detach().clone().requires_grad_(), targets.clone(), options))
        self.upstream.append(torch.empty(()))
        loss.register_hook(lambda gradient: self.upstream.__setitem__(which, gradient.clone()))
        return loss


class Training:
    """One of the two networks; ``turn`` is a step on the clock."""

    def __init__(self, name: str, device: str, dtype: str, size: int, batch: int, steps: int) -> None:
        self.label, self.device, self.turns = name, device, steps
        self.clock = Clock(device, latency=True)
        self.autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")
        torch.manual_seed(0)
        self.module = vision.load(RETINANET)
        self.model = self.module.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size
        )
        for name, module in self.model.named_modules():
            if name.endswith("bn3"):
                # Residual branches begin at 0, as is usual. Else what is rounding in one step is a thousandth of the
                # loss two steps later, and no two curves could be compared.
                torch.nn.init.zeros_(module.weight)
        self.model.to(device).train()
        self.images, self.targets = scenes(size, batch, device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4)
        self.curve: list[Tensor] = []
        self.samples: dict[str, list[float]] = {}

    def step(self) -> None:
        with self.autocast():
            loss = sum(self.model(self.images, self.targets).values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # here, so that between steps there are weights and momenta alone
        self.curve.append(loss.detach())

    def under(self, trace: type[Trace]) -> AbstractContextManager[Trace]:
        """The step's loss, traced."""
        own = self.module.sigmoid_focal_loss
        return mock.patch.object(self.module, "sigmoid_focal_loss", trace(own, self.clock))

    def turn(self) -> None:
        gc.collect()
        with LOSSES[self.label](), self.under(Trace) as trace:
            self.clock.before()
            start = self.clock.mark()
            self.step()
            seconds = self.clock.seconds(start, self.clock.mark())
        for name, value in {"step": seconds, **trace.seconds()}.items():
            self.samples.setdefault(name, []).append(value)

    def warm_up(self) -> dict[str, int]:
        """The first steps, untimed, and the memory of one."""
        with LOSSES[self.label]():
            for _ in range(WARM_UP):
                self.step()
            gc.collect()
            return {"step_bytes": peak_bytes(self.step, self.device)}

    def recorded(self) -> Recorder:
        with LOSSES[self.label](), self.under(Recorder) as recorder:
            self.step()
        return recorder

    def summary(self) -> dict[str, Any]:
        return {name: percentiles(values) for name, values in self.samples.items()}


class Alone:
    """The loss of one step without the network."""

    def __init__(self, training: Training, recorded: Recorder) -> None:
        self.training, self.calls, self.upstream = training, recorded.calls, recorded.upstream
        self.turns = training.turns
        self.clock = Clock(training.device)
        self.samples: list[float] = []

    def run(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        with self.training.autocast():
            loss = self.training.module.sigmoid_focal_loss
            losses = [loss(call.logits, call.targets, **call.options) for call in self.calls]
        return losses, torch.autograd.grad(losses, [call.logits for call in self.calls], self.upstream)

    def turn(self) -> None:
        with LOSSES[self.training.label]():
            self.clock.before()
            start = self.clock.mark()
            outputs = self.run()
            self.samples.append(self.clock.seconds(start, self.clock.mark()))
        del outputs

    def examine(self) -> dict[str, Any]:
        """The memory of the loss, and its worst errors in an image; the gradient's by the largest there."""
        with LOSSES[self.training.label]():
            self.run()
            used = peak_bytes(self.run, self.training.device)
            losses, gradients = self.run()
        errors = []
        for call, loss, gradient, upstream in zip(self.calls, losses, gradients, self.upstream, strict=True):
            logits = call.logits.detach().double().requires_grad_()
            exact = reference.sigmoid_focal_loss(logits, call.targets.double(), **DEFAULTS | call.options)
            (slope,) = torch.autograd.grad(exact, logits, upstream.double())
            error = (loss - exact).abs() / exact, (gradient - slope).abs().max() / slope.abs().max()
            errors.append([e.item() for e in error])
        loss_error, gradient_error = map(max, zip(*errors, strict=True))
        return {"loss_bytes": used, "loss_error": loss_error, "gradient_error": gradient_error}


def scenes(size: int, batch: int, device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of noise, and boxes of all sizes in them; the same on every device."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(batch):
        images.append(torch.rand(3, size, size, generator=generator).to(device))
        extent = size * (0.05 + 0.55 * torch.rand(BOXES, 2, generator=generator))
        corner = (size - extent) * torch.rand(BOXES, 2, generator=generator)
        labels = torch.randint(1, CLASSES, (BOXES,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + extent], 1).to(device), "labels": labels.to(device)})
    return images, targets


def measure(
    device: str, dtype: str, size: int, batch: int, steps: int, deadline: float = math.inf
) -> dict[str, Any] | None:
    """Everything about the step in one type, ready for JSON (seconds, bytes, ratios); None where time was too short."""
    trainings = [Training(name, device, dtype, size, batch, steps) for name in LOSSES]
    found: dict[str, dict[str, Any]] = {training.label: training.warm_up() for training in trainings}
    # Both losses on what one of the networks had. The other takes that step too, for the curves to have the same steps.
    recorded, _ = (training.recorded() for training in trainings)
    alone = [Alone(training, recorded) for training in trainings]
    for one in alone:
        found[one.training.label].update(one.examine())
    for _ in interleave(alone, deadline=deadline):
        pass
    shapes = [list(call.logits.shape) for call in recorded.calls]
    del recorded
    for one in alone:
        one.calls, one.upstream = [], []
    for _ in interleave(trainings, deadline=deadline):
        pass
    if not all(training.samples for training in trainings):
        return None
    for training, one in zip(trainings, alone, strict=True):
        found[training.label].update(training.summary(), alone=percentiles(one.samples))
        found[training.label]["curve"] = [round(loss.item(), 6) for loss in training.curve]
    return {
        "name": "retinanet",
        "title": "RetinaNet, ResNet-50 FPN",
        "shape": [batch, 3, size, size],
        "logits": shapes,
        "dtype": dtype,
        "torchvision": importlib.metadata.version("torchvision"),
        "steps": len(trainings[0].samples["step"]),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "losses": found,
    }


def disagreement(result: dict[str, Any]) -> str:
    """What is wrong with the two losses of a result; nothing where they are one."""
    dtype, own, theirs = result["dtype"], result["losses"]["focal_cuda"], result["losses"]["torchvision"]
    bounds = {"loss_error": LOSS_ERROR, "gradient_error": GRADIENT_ERROR[dtype]}
    wrong = [f"{name} {own[name]:.1e} > {bound:.1e}" for name, bound in bounds.items() if not own[name] <= bound]
    pairs = list(zip(own["curve"], theirs["curve"], strict=True))
    apart = [step for step, (a, b) in enumerate(pairs) if not abs(a - b) <= SAME_CURVE[dtype] * abs(b)]
    if apart:
        a, b = pairs[apart[0]]
        wrong.append(f"the curves part in step {apart[0]}: {a} with focal_cuda, {b} with torchvision")
    return "; ".join(wrong)


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.retinanet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available() and focal_cuda.build_info()["with_cuda"]
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--size", type=int, default=800, help="edge of the images")
    parser.add_argument("--batch", type=int, default=8, help="how many of them")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each network")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="bfloat16: by autocast; on a GPU both, else float32")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's default when not given")
    parser.add_argument("--seconds", type=float, default=math.inf, help="take no further steps after this time")
    parser.add_argument("--json", action="store_true", help="merge the results into DIR/<device>.json")
    parser.add_argument("--quick", action="store_true", help="one tiny image, to see that everything runs")
    parser.add_argument("--results", type=Path, metavar="DIR", help="bench/results; with --quick a temporary folder")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.batch, options.steps = 64, 1, 2
        options.results = options.results or Path(tempfile.gettempdir()) / "focal_cuda-bench"
    options.dtype = options.dtype or (DTYPES if options.device == "cuda" or options.quick else DTYPES[:1])
    options.results = options.results or results.FOLDER
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    deadline = time.monotonic() + options.seconds
    try:
        vision.load(RETINANET)
    except ImportError as error:
        print(f"absent: torchvision does not import: {error}")
        return ABSENT
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = environment.describe(options.device)
    print(environment.headline(facts), flush=True)
    path = options.results / f"{environment.slug(facts)}.json"
    failed = []
    for which, dtype in enumerate(options.dtype):
        now = time.monotonic()
        share = now + (deadline - now) / (len(options.dtype) - which)
        result = measure(options.device, dtype, options.size, options.batch, options.steps, share)
        if result is None:
            print(f"no time left for: {dtype}")
            continue
        print(f"\n{report.steps_table([result], 'simple')}\n", flush=True)
        if wrong := disagreement(result):
            failed.append(f"{dtype}: {wrong}")
        elif options.json:
            results.merge(path, facts, {results.key("retinanet", dtype): result}, section="steps")
            print(f"wrote {path}")
    for wrong in failed:
        print(f"failed: {wrong}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
