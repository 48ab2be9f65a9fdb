"""How the benchmark takes its turns, and a run on a GPU that is pretended."""

import collections
import contextlib
import json
import time
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench import report
from bench.__main__ import main
from bench.candidates import candidates_of
from bench.inputs import Inputs
from bench.scenarios import SCENARIOS, plan
from bench.targets import TARGETS
from bench.timing import Budget, Clock, Runner, interleave


def test_interleaving_takes_every_turn_and_spreads_the_rare_ones():
    class Turns:
        def __init__(self, name, turns):
            self.name, self.turns = name, turns

        def turn(self):
            pass

    order = [runner.name for runner in interleave([Turns("often", 100), Turns("rare", 5)])]
    assert collections.Counter(order) == {"often": 100, "rare": 5}
    places = [i for i, name in enumerate(order) if name == "rare"]
    assert all(15 <= b - a <= 27 for a, b in zip(places, places[1:], strict=False))


def test_a_gpu_run_measures_all_that_is_meant_for_it_and_what_decides_first():
    runs = plan("cuda")
    assert len(set((run.scenario, run.dtype) for run in runs)) == len(runs)
    assert {run.scenario for run in runs} == {name for name, s in SCENARIOS.items() if "cuda" in s.shapes}
    compiled = {(run.scenario, run.dtype) for run in runs if run.compiled}
    for target in TARGETS:
        if target.device == "cuda" and "compile" in (target.against or ""):
            assert {(name, target.dtype) for name in target.scenarios} <= compiled
    assert [run.scenario for run in runs[:2]] == ["detection-index"] * 2
    assert {run.scenario for run in plan("cpu")} == {name for name, s in SCENARIOS.items() if "cpu" in s.shapes}


class _Event:
    """Time on the pretended GPU: the calls of autograd before it, a millisecond each."""

    calls = 0

    def __init__(self, enable_timing=True):
        self.at = None

    def record(self):
        self.at = _Event.calls

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return float(other.at - self.at)


class _OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """The device "cuda" is the CPU, with what torch.cuda would answer. Returns the sleeps that were asked for."""

    class Properties:
        L2_cache_size = 1024

    torch.compiler.reset()  # imports what would stumble over the pretence
    slept = []
    generator = torch.Generator
    answers = {
        "get_device_properties": lambda device: Properties,
        "get_device_name": lambda: "A GPU 200",
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_stats": lambda: collections.defaultdict(int),
        "_sleep": slept.append,
        "Event": _Event,
        "Stream": mock.MagicMock,
        "current_stream": mock.MagicMock,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": mock.MagicMock,
        "graph": lambda graph: contextlib.nullcontext(),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "Generator", lambda device: generator("cpu"))
    with _OnTheCpu():
        yield slept


@pytest.mark.parametrize("latency", (False, True))
def test_gpu_turns(pretended_gpu, latency):
    """How calls are grouped and told apart on a GPU."""
    known = candidates_of("softmax")

    def counted(function):
        def call(*arguments):
            _Event.calls += 1
            return function(*arguments)

        return call

    budget = Budget(seconds=0.02, min_turns=8, max_turns=8, warmup_calls=2, burst_seconds=5e-3)
    inputs = [Inputs("softmax", (8, 4), seed=seed) for seed in range(3)]
    for name in ("focal_cuda", "focal_cuda inplace", "copy_", "sum"):
        runner = Runner(known[name], inputs, Clock("cuda", latency))
        runner.function = counted(runner.function)
        runner.warm_up(budget)
        assert runner.burst == (5 if latency else 1)
        for _ in range(8):
            runner.turn()
        summary = runner.summary()
        assert summary["training"]["p50"] == pytest.approx(1e-3) and summary["turns"] == 8
        split = known[name].is_loss and not latency
        assert len(runner.samples.get("forward", ())) == (2 if split else 0)
        assert ("inference" in summary) == (name == "focal_cuda")
    assert bool(pretended_gpu) != latency


def test_compiling_does_not_count_as_a_turn_on_a_gpu(pretended_gpu):
    slow = [0.3]

    def function(logits, *arguments):
        if not torch.is_grad_enabled() and slow:
            time.sleep(slow.pop())
        return logits.sum()

    runner = Runner(candidates_of("softmax")["focal_cuda"], [Inputs("softmax", (8, 4))], Clock("cuda"))
    runner.function = function
    runner.warm_up(Budget(seconds=0.1, cap_seconds=0.2, min_turns=11, max_turns=20, warmup_calls=5))
    assert runner.turns >= 11 and not slow


def test_a_gpu_run_from_the_plan_to_the_readme(pretended_gpu, monkeypatch, tmp_path, capsys):
    names = ["detection-index", "segmentation-19", "small-softmax", "rows-32000", "options-detection-all"]
    for name in names:
        scenario = SCENARIOS[name]
        monkeypatch.setitem(SCENARIOS[name].shapes, "cuda", scenario.shapes["quick"])
    monkeypatch.setattr("bench.harness.CUDA", Budget(seconds=0.0, min_turns=4, max_turns=4, warmup_calls=1))
    monkeypatch.setattr(_Event, "elapsed_time", lambda self, other: 1.5)
    arguments = ["--device=cuda", "--json", "--plot", "--no-compile", f"--results={tmp_path}"]
    assert main([*names, *arguments]) == 0
    printed = capsys.readouterr().out
    measured = json.loads((tmp_path / "a-gpu-200.json").read_text())["scenarios"]
    both = ("detection-index", "segmentation-19", "rows-32000")
    assert list(measured)[:2] == ["detection-index", "detection-index-bfloat16"]
    three = {f"{name}{dtype}" for name in both for dtype in ("", "-bfloat16", "-float16")}
    assert set(measured) == {"small-softmax", "options-detection-all", "options-detection-all-bfloat16"} | three
    candidates = measured["detection-index"]["candidates"]
    assert {"sum", "torchvision", "apex", "mmcv"} <= set(candidates)
    for name in ("detection-index", "segmentation-19"):
        unreduced = measured[name]["candidates"]["focal_cuda unreduced"]
        assert unreduced["loss_error"] <= 2e-5 and unreduced["gradient_error"] <= 1e-4
    assert "CUDA graph" in " ".join(measured["small-softmax"]["candidates"])
    for scenario in measured.values():
        for label, candidate in scenario["candidates"].items():
            assert "training" in candidate or "not installed" in candidate["failed"], (
                scenario["name"],
                label,
                candidate,
            )
    assert measured["detection-index"]["compiled"] == "compile from labels"
    assert "speed of focal_cuda / speed of copy_" in printed and "bfloat16" in printed
    assert (tmp_path / "a-gpu-200-bfloat16-copy.png").stat().st_size > 10_000

    readme = tmp_path / "README.md"
    readme.write_text(f"{report.START}\n{report.END}\n")
    assert main(["--report", f"--results={tmp_path}", f"--readme={readme}"]) == 0
    text = readme.read_text()
    assert "`make gpu` on A GPU 200" in text and "targets (`bench/targets.py`) are reached" in text
    header, of_options = (line for line in text.splitlines() if line.startswith("| scenario"))
    assert header.count("% of a copy") == header.count("torch.compile") == 2
    assert sum(line.startswith("| Detection, class-index targets (int64)") for line in text.splitlines()) == 1
    (line,) = (line for line in text.splitlines() if line.startswith("| Detection, all three of these"))
    assert "time / plain" in of_options and "| 1.00 / 1.00 " in line
