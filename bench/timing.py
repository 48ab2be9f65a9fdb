"""Times the candidates of one scenario against each other, in one process and interleaved.

What is timed: the loss with gradients enabled (forward), its gradient with respect to the logits (backward),
both together (training), and the loss under no_grad (inference). Backward is ``torch.autograd.grad``: in a
network the logits are no leaf, so no implementation should be charged for accumulating into ``.grad``. Every
call allocates its gradient afresh; freeing it is left outside, as in a network it happens much later.

On a GPU the time is that between two events, with nothing of the inputs in the cache and the launches queued up
before the first, so that it is the device's alone; except where latency is the question, see ``Scenario.latency``.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy
import torch
from torch import Tensor

from bench.candidates import Candidate
from bench.inputs import Inputs

Outputs = TypeVar("Outputs", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Budget:
    """How long to measure: about ``seconds`` for each candidate, between the two numbers of turns."""

    seconds: float = 0.5
    cap_seconds: float = 2.0
    min_turns: int = 7
    max_turns: int = 300
    burst_seconds: float = 1e-3
    warmup_calls: int = 3


QUICK = Budget(seconds=0.0, cap_seconds=1.0, min_turns=2, max_turns=2, burst_seconds=0.0, warmup_calls=1)
# A turn is a few milliseconds here whatever it measures: waiting, emptying the cache, queueing.
CUDA = Budget(seconds=0.25, cap_seconds=1.0, min_turns=11, max_turns=100, burst_seconds=5e-3, warmup_calls=20)


class Clock:
    """Marks points in time on the device and reads the seconds between two of them."""

    def __init__(self, device: str, latency: bool = False) -> None:
        self.cuda = device == "cuda"
        self.latency = latency
        if self.cuda and not latency:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self.other = torch.ones(cache, dtype=torch.float32, device=device)  # four times the cache

    def before(self) -> None:
        """Before a measurement: nothing may be in flight, and launches must not be what is measured."""
        if self.cuda:
            torch.cuda.synchronize()
            if not self.latency:
                # Read, not written: lines to write back would be charged to whoever pushes them out.
                self.other.sum()
                # About a millisecond of idling, so that the launches queue up behind it.
                torch.cuda._sleep(2_000_000)

    def mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        if not self.cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def captured(call: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """A graph of the call, and its outputs, which every replay writes anew.

    It is called on a stream of its own first, as capturing requires.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph, outputs


@dataclass
class Runner:
    """One candidate over all input sets, and the samples taken of it, in seconds for one call."""

    candidate: Candidate
    inputs: list[Inputs]
    clock: Clock
    function: Callable[..., Tensor] = field(init=False)
    arguments: list[tuple[Any, ...]] = field(init=False)
    samples: dict[str, list[float]] = field(init=False)
    replays: list[Callable[[], tuple[Tensor, Tensor]]] = field(init=False)
    burst: int = 1
    turns: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self.function = self.candidate.build()
        self.arguments = [self.candidate.arguments(inputs) for inputs in self.inputs]
        self.samples = {}
        self.replays = [self._capture(which) for which in range(len(self.inputs))] if self.kind == "graph" else []

    @property
    def kind(self) -> str:
        return self.candidate.kind

    def logits(self, which: int) -> Tensor:
        inputs = self.inputs[which]
        if self.kind == "inplace":
            return inputs.working_logits
        return inputs.logits

    def step(self, which: int) -> tuple[Tensor, Tensor]:
        """One training call: loss and gradient."""
        if self.replays:
            return self.replays[which]()
        logits = self.logits(which)
        loss = self.function(logits, *self.arguments[which])
        return loss, torch.autograd.grad(loss, logits)[0]

    def train(self, which: int) -> tuple[Tensor, Tensor]:
        """Loss and gradient of one set, untimed; the caller restores the logits of an in-place candidate."""
        loss, gradient = self.step(which)
        return loss.detach(), gradient

    def _capture(self, which: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """A CUDA graph of the training call."""
        logits, arguments = self.logits(which), self.arguments[which]

        def call() -> tuple[Tensor, Tensor]:
            loss = self.function(logits, *arguments)
            return loss, torch.autograd.grad(loss, logits)[0]

        graph, outputs = captured(call)

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return outputs

        return replay

    def warm_up(self, budget: Budget) -> None:
        """Compiles, fills caches, and plans the turns from the quickest call."""
        if self.clock.cuda:
            self.turn(record=False)  # torch.compile compiles the loss alone, which says nothing of the turns to come
        quickest, wall, spent = math.inf, math.inf, 0.0
        for _ in range(1 + budget.warmup_calls):
            start = time.perf_counter()
            took = self.turn(record=False)
            elapsed = time.perf_counter() - start
            quickest, wall = min(quickest, took), min(wall, elapsed)
            spent += elapsed if self.clock.cuda else took
            if spent > budget.seconds:
                break
        if self.clock.latency and self.clock.cuda:
            # A single call has a queue to itself; of several, each waits for the one before, as in a training loop.
            self.burst = min(max(int(budget.burst_seconds / quickest), 3), 500)
        elif not self.clock.cuda and quickest < budget.burst_seconds and self.kind == "loss":
            self.burst = min(max(int(budget.burst_seconds / quickest), 1), 500)
        turn = (wall if self.clock.cuda else quickest) * self.burst
        self.turns = min(max(math.ceil(budget.seconds / turn), budget.min_turns), budget.max_turns)
        if self.turns * turn > budget.cap_seconds:
            self.turns = max(min(3, self.turns), int(budget.cap_seconds / turn))

    def turn(self, record: bool = True) -> float:
        """One measurement of everything; returns the seconds of one training call."""
        which = self.calls % len(self.inputs)
        self.calls += 1
        if not self.candidate.is_loss:
            times = {"training": self._time_copy(which)}
        else:
            times = self._time_training(which, split=not self.clock.cuda)
            # A mark costs next to nothing on the CPU, but about a microsecond of a GPU: there, forward and backward are
            # told apart in calls of their own, now and then.
            if self.clock.cuda and self.burst == 1 and self.kind != "graph" and self.calls % 4 == 0:
                times = {**self._time_training(which, split=True), **times}
            if self.kind == "loss":
                times["inference"] = self._time_inference(which)
        if record:
            for name, seconds in times.items():
                self.samples.setdefault(name, []).append(seconds)
        return times["training"]

    def _time_copy(self, which: int) -> float:
        self.clock.before()
        start = self.clock.mark()
        for _ in range(self.burst):
            result = self.function(self.inputs[which].logits, *self.arguments[which])
        seconds = self.clock.seconds(start, self.clock.mark())
        del result
        return seconds / self.burst

    def _time_training(self, which: int, split: bool) -> dict[str, float]:
        logits, arguments = self.logits(which), self.arguments[which]
        marks = []
        self.clock.before()
        start = self.clock.mark()
        for _ in range(self.burst):
            if split:
                marks.append(self.clock.mark())
                loss = self.function(logits, *arguments)
                marks.append(self.clock.mark())
                gradient = torch.autograd.grad(loss, logits)
            else:
                loss, gradient = self.step(which)
        end = self.clock.mark()
        times = {"training": self.clock.seconds(start, end) / self.burst}
        if split:
            forward = sum(self.clock.seconds(a, b) for a, b in zip(marks[::2], marks[1::2], strict=True))
            times["forward"] = forward / self.burst
            times["backward"] = times["training"] - times["forward"]
        del loss, gradient
        if self.kind == "inplace":
            self.inputs[which].restore()
        return times

    def _time_inference(self, which: int) -> float:
        logits, arguments = self.inputs[which].logits, self.arguments[which]
        with torch.no_grad():
            self.clock.before()
            start = self.clock.mark()
            for _ in range(self.burst):
                loss = self.function(logits, *arguments)
            seconds = self.clock.seconds(start, self.clock.mark())
        del loss
        return seconds / self.burst

    def summary(self) -> dict[str, Any]:
        """p20, p50 and p80 of each kind of sample, in seconds."""
        result: dict[str, Any] = {"turns": len(self.samples.get("training", ())), "burst": self.burst}
        return {**result, **{name: percentiles(values) for name, values in self.samples.items()}}


def percentiles(samples: list[float]) -> dict[str, float]:
    return {f"p{rank}": float(numpy.percentile(samples, rank)) for rank in (20, 50, 80)}


class Turns(Protocol):
    """What takes turns: a Runner, or anything else with a number of them."""

    turns: int

    def turn(self) -> object: ...


Taker = TypeVar("Taker", bound=Turns)


def interleave(runners: list[Taker], seed: int = 0, deadline: float = math.inf) -> Iterator[Taker]:
    """Takes all turns, or those for which there is time until the deadline; yields the runner after each.

    Whoever has fewer turns takes them evenly spread over the whole time, in shuffled company, so that a clock
    or a neighbour that changes on the way touches all alike.
    """
    shuffle = random.Random(seed)
    rounds = max((runner.turns for runner in runners), default=0)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            due = [r for r in runners if (number + 1) * r.turns // rounds > number * r.turns // rounds]
            shuffle.shuffle(due)
            if time.monotonic() > deadline:
                break
            for runner in due:
                runner.turn()
                yield runner
    finally:
        gc.enable()
