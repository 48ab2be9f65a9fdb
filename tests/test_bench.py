"""The benchmark itself: every scenario runs, bytes and memory are true, the verdicts are right."""

import collections
import contextlib
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench import report
from bench.__main__ import _choose, main
from bench.candidates import candidates_of
from bench.inputs import IGNORED, Inputs
from bench.memory import STATES, peak_bytes
from bench.scenarios import SCENARIOS, plan
from bench.targets import TARGETS, Target, share_of_copy, verdicts
from bench.timing import Budget, Clock, Runner, interleave

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """All scenarios on tiny shapes, with everything written to a temporary folder."""
    folder = tmp_path_factory.mktemp("bench")
    readme = folder / "README.md"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    threads = torch.get_num_threads()
    try:
        arguments = ["--quick", "--json", "--plot", "--report", "--device=cpu", "--threads=1"]
        assert main([*arguments, f"--results={folder}", f"--readme={readme}"]) == 0
    finally:
        torch.set_num_threads(threads)
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text()), path, readme


def test_quick_run_measures_every_candidate_of_every_scenario(quick):
    document, _, _ = quick
    assert set(document["scenarios"]) == set(SCENARIOS)
    assert document["environment"]["threads"] == 1
    for name, scenario in SCENARIOS.items():
        result = document["scenarios"][name]
        known = candidates_of(scenario.family)
        expected = [label for label in scenario.candidates if not known[label].compiled]
        assert list(result["candidates"]) == expected
        for label, candidate in result["candidates"].items():
            if not known[label].available:
                assert "not installed" in candidate["failed"]
                continue
            assert "failed" not in candidate, (name, label, candidate)
            assert 0 < candidate["training"]["p20"] <= candidate["training"]["p50"] <= candidate["training"]["p80"]


def test_every_candidate_computes_what_it_is_compared_by(quick):
    document, _, _ = quick
    for name, scenario in document["scenarios"].items():
        for label, candidate in scenario["candidates"].items():
            if "loss_error" not in candidate:
                continue
            own = label.startswith("focal_cuda")
            # That one smooths its probabilities by 0.001, and is off by about as much.
            smoothed = label == "Python one-vs-all"
            assert candidate["loss_error"] <= (2e-5 if own else 1e-2 if smoothed else 1e-4), (name, label)
            # The others lose 1 - p to cancellation where the prediction is sure.
            assert candidate["gradient_error"] <= (1e-4 if own else 1e-1), (name, label)


def test_quick_run_writes_plots_and_the_readme_between_its_markers(quick):
    document, path, readme = quick
    for kind in ("speedup", "size", "memory"):
        assert path.with_name(f"{path.stem}-{kind}.png").stat().st_size > 10_000
    text = readme.read_text()
    assert text.startswith(f"before\n{report.START}\n") and text.endswith(f"\n{report.END}\nafter\n")
    assert "old" not in text
    for scenario in document["scenarios"].values():
        assert (f"| {scenario['title']} " in text) == (scenario["group"] is None)


def test_results_are_merged_by_scenario(quick, tmp_path):
    _, path, _ = quick
    copy = tmp_path / path.name
    document = json.loads(path.read_text())
    document["scenarios"]["kept"] = document["scenarios"].pop("rows-1000")
    copy.write_text(json.dumps(document))
    threads = torch.get_num_threads()
    try:
        main(["small-softmax", "--quick", "--json", "--device=cpu", "--threads=1", f"--results={tmp_path}"])
    finally:
        torch.set_num_threads(threads)
    merged = json.loads(copy.read_text())["scenarios"]
    assert set(merged) == set(document["scenarios"])
    assert merged["kept"] == document["scenarios"]["kept"]
    assert merged["small-softmax"] != document["scenarios"]["small-softmax"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", SCENARIOS)
def test_declared_bytes_are_those_of_the_tensors(name, dtype):
    scenario = SCENARIOS[name]
    shape = scenario.shapes["quick"]
    inputs = scenario.make_inputs(shape, dtype, "cpu", seed=0)
    declared = scenario.declared_bytes(shape, dtype)
    moved = inputs.logits.nbytes + inputs.targets.nbytes
    assert declared["inference"] == moved
    assert declared["training"] == moved + torch.empty_like(inputs.logits).nbytes
    assert inputs.logits.is_contiguous(memory_format=scenario.memory_format)
    assert scenario.baseline in scenario.candidates and scenario.compiled in scenario.candidates
    for device in ("cpu", "cuda"):
        assert {*scenario.candidates_on(device), scenario.compiled_on(device)} <= set(candidates_of(scenario.family))


def test_wrongly_declared_bytes_are_refused(monkeypatch):
    scenario = SCENARIOS["rows-10"]
    true = scenario.declared_bytes((16, 10), torch.float32)
    monkeypatch.setattr(type(scenario), "declared_bytes", lambda *_: {**true, "targets": true["targets"] // 2})
    with pytest.raises(AssertionError, match="bytes of targets declared"):
        scenario.make_inputs((16, 10), torch.float32, "cpu", seed=0)


def _inputs(family, shape, **changes):
    defaults = {
        "dtype": torch.float32,
        "device": "cpu",
        "seed": 0,
        "dense": False,
        "target_dtype": torch.int64,
        "ignore_index": -100,
        "memory_format": torch.contiguous_format,
    }
    return Inputs(family=family, shape=shape, **{**defaults, **changes})


def test_detection_inputs_have_rare_positives_and_some_ignored():
    inputs = _inputs("sigmoid", (50_000, 20), target_dtype=torch.uint8, ignore_index=255)
    ignored, background = inputs.targets == 255, inputs.targets == 20
    assert ignored.float().mean().item() == pytest.approx(0.05, rel=0.1)
    assert (~ignored & ~background).float().mean().item() == pytest.approx(1e-3, rel=0.4)
    assert inputs.dense_targets.sum() == (~ignored & ~background).sum()
    assert inputs.logits.mean().item() == pytest.approx(-4, abs=0.1)
    dense = _inputs("sigmoid", (50_000, 20), dense=True)
    assert torch.equal((dense.targets == -100).all(1), ignored)
    assert torch.equal(dense.targets.clamp(min=0), inputs.dense_targets)


def test_masks_are_blobs_and_mostly_predicted_right():
    inputs = _inputs("softmax", (2, 19, 128, 128))
    neighbours_agree = (inputs.labels[:, :, 1:] == inputs.labels[:, :, :-1]).float().mean()
    assert neighbours_agree > 0.9
    counted = inputs.labels != IGNORED
    right = (inputs.logits.argmax(1) == inputs.labels)[counted].float().mean()
    assert 0.9 < right < 1


def test_inputs_are_the_same_for_a_seed_and_restored_after_being_overwritten():
    first, second = _inputs("softmax", (64, 5)), _inputs("softmax", (64, 5), seed=1)
    assert torch.equal(first.logits, _inputs("softmax", (64, 5)).logits)
    assert not torch.equal(first.logits, second.logits)
    first.working_logits.detach().zero_()
    first.restore()
    assert torch.equal(first.working_logits, first.logits)
    assert not first.working_logits.is_leaf


def test_peak_memory_is_counted_exactly():
    x = torch.ones(1000, 100)
    assert peak_bytes(x.clone, "cpu") == x.nbytes
    assert peak_bytes(lambda: x.neg().abs_(), "cpu") == x.nbytes
    assert peak_bytes(lambda: x.neg() * x.abs(), "cpu") == 3 * x.nbytes
    assert peak_bytes(x.neg_, "cpu") == 0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc's heap can be told what to reuse")
@pytest.mark.parametrize("state", STATES)
def test_memory_state_decides_whether_a_large_tensor_faults(state):
    program = f"""
import resource, torch
from bench import memory
memory._RESERVE = 1 << 29
assert memory.pin({state!r})
x = torch.ones(16, 1 << 20)
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt for _ in range(5) if x.clone() is not None]
print((faults[-1] - faults[0]) / 4 * resource.getpagesize() / x.nbytes)
"""
    command = [sys.executable, "-c", program]
    share = float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert share == pytest.approx(1.0 if state == "fresh" else 0.0, abs=0.05)


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


def _result(name, dtype="float32", **times):
    candidates = {name.replace("_s_", " "): {"training": {"p50": t}} for name, t in times.items()}
    return {"name": name, "dtype": dtype, "memory": "system", "candidates": candidates}


def _document(*scenarios):
    return {"scenarios": {f"{s['name']}-{s['dtype']}": s for s in scenarios}}


def test_verdicts_compare_medians_of_forward_and_backward():
    results = _document(_result("a", focal_cuda=1.0, other=4.0), _result("b", focal_cuda=1.0, other=3.0))
    speedup = Target(("a", "b"), "speedup", "other", at_least=3.5)
    time = Target(("a",), "time", "other", at_most=0.25)
    found = verdicts(results, "cpu", targets=(speedup, time))
    assert [(v.scenario, v.value, v.word) for v in found] == [("b", 3.0, "NO"), ("a", 0.25, "yes")]


def test_verdicts_are_about_one_type():
    results = _document(_result("a", focal_cuda=1.0, other=4.0), _result("a", "bfloat16", focal_cuda=1.0, other=8.0))
    targets = [Target(("a",), "speedup", "other", 4, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")]
    assert [v.value for v in verdicts(results, "cpu", targets=tuple(targets))] == [4.0, 8.0, None]


def test_verdicts_on_the_speed_of_a_copy_count_bytes():
    scenario = _result("a", focal_cuda=2.0, copy_=1.6)
    scenario["bytes"] = {"logits": 100, "targets": 50, "inference": 150, "training": 250}
    scenario["candidates"]["focal_cuda"]["inference"] = {"p50": 1.5}
    targets = (Target(("a",), "of_copy", at_least=0.9), Target(("a",), "inference_of_copy", at_least=0.9))
    # A copy moves 200 bytes in 1.6, so 125 a second.
    assert [v.value for v in verdicts(_document(scenario), "cpu", targets=targets)] == [pytest.approx(1.0), 0.8]
    assert share_of_copy(scenario, {}) is None


def test_verdicts_on_memory_take_the_worst_scenario_and_say_what_is_missing():
    a, b = _result("a"), _result("b")
    a["candidates"] = {"focal_cuda": {"peak_memory": 1.0}}
    target = Target(("a", "b"), "peak_memory", at_most=1.05)
    (verdict,) = verdicts(_document(a), "cpu", targets=(target,))
    assert (verdict.word, verdict.unmeasured) == ("yes", 1)
    b["candidates"] = {"focal_cuda": {"peak_memory": 2.0}}
    (verdict,) = verdicts(_document(a, b), "cpu", targets=(target,))
    assert (verdict.scenario, verdict.word, verdict.unmeasured) == ("b", "NO", 0)
    assert "1 not measured" in report.verdict_table(verdicts(_document(a), "cpu", targets=(target,)))


def test_verdicts_say_when_something_was_not_measured_and_leave_other_devices_out():
    results = _document(_result("a", focal_cuda=1.0))
    target = Target(("a",), "speedup", "other", at_least=2)
    assert [v.word for v in verdicts(results, "cpu", targets=(target,))] == ["not measured"]
    assert verdicts(results, "cuda", targets=(target,)) == []


def test_targets_name_scenarios_and_candidates_that_exist():
    for target in TARGETS:
        assert (target.at_least is None) != (target.at_most is None)
        planned = {run.scenario for run in plan(target.device) if run.dtype == target.dtype}
        for name in target.scenarios:
            named = {target.of, target.against} - {None}
            assert named <= set(SCENARIOS[name].candidates_on(target.device)), (target, name)
            assert name in planned, (target, name)
            assert not target.quantity.endswith("of_copy") or "copy_" in SCENARIOS[name].candidates


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


def test_no_scenario_for_the_cpu_when_it_is_meant_for_a_gpu():
    with pytest.raises(SystemExit, match="not meant for cpu: segmentation-1000"):
        main(["segmentation-1000", "--device=cpu"])


def test_a_failing_scenario_is_reported_and_the_others_are_measured(monkeypatch, capsys):
    import bench.__main__ as command

    real = command.run_scenario

    def run_scenario(scenario, *arguments, **options):
        if scenario.name == "small-softmax":
            raise RuntimeError("broken")
        return real(scenario, *arguments, **options)

    monkeypatch.setattr(command, "run_scenario", run_scenario)
    assert main(["small", "--quick", "--device=cpu"]) == 1
    printed = capsys.readouterr()
    assert "failed: small-softmax\n" in printed.out and "broken" in printed.err
    assert "small-sigmoid: Call overhead" in printed.out


def test_an_own_way_that_fails_is_reported_and_keeps_the_others(monkeypatch, capsys, tmp_path):
    real = Runner.train

    def train(self, which):
        if self.candidate.name == "focal_cuda inplace":
            raise RuntimeError("broken")
        return real(self, which)

    monkeypatch.setattr(Runner, "train", train)
    assert main(["rows-10", "--quick", "--json", "--device=cpu", f"--results={tmp_path}"]) == 1
    printed = capsys.readouterr()
    assert "failed: rows-10\n" in printed.out and "Traceback" in printed.err
    (path,) = tmp_path.glob("*.json")
    candidates = json.loads(path.read_text())["scenarios"]["rows-10"]["candidates"]
    assert candidates["focal_cuda inplace"] == {"failed": "RuntimeError: broken"}
    assert "training" in candidates["focal_cuda"]


def test_time_that_is_up_and_results_that_are_there_are_left_out(capsys):
    assert main(["small", "--quick", "--device=cpu", "--seconds=0"]) == 0
    assert "no time left for: small-softmax, small-sigmoid\n" in capsys.readouterr().out
    assert main(["small", "--quick", "--device=cpu", "--without", "small-softmax"]) == 0
    printed = capsys.readouterr().out
    assert "measuring small-sigmoid\n" in printed and "measuring small-softmax\n" not in printed


@pytest.mark.parametrize("family", ("sigmoid", "softmax"))
def test_another_gamma_reaches_every_focal_loss(family):
    inputs = _inputs(family, (64, 5))
    for name, candidate in candidates_of(family).items():
        other = candidate.at(1.5)
        if not candidate.is_loss or candidate.meaning.gamma == 0:
            assert other is candidate
            continue
        assert other.meaning.gamma == 1.5
        if not candidate.available or candidate.kind == "graph":
            continue
        logits = inputs.logits * 1  # no leaf, for what works in place
        values = [float(c.loss(logits.clone(), *c.arguments(inputs)).detach()) for c in (candidate, other)]
        assert values[1] > values[0] * 1.01, name


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
    inputs = [_inputs("softmax", (8, 4), seed=seed) for seed in range(3)]
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

    runner = Runner(candidates_of("softmax")["focal_cuda"], [_inputs("softmax", (8, 4))], Clock("cuda"))
    runner.function = function
    runner.warm_up(Budget(seconds=0.1, cap_seconds=0.2, min_turns=11, max_turns=20, warmup_calls=5))
    assert runner.turns >= 11 and not slow


def test_a_gpu_run_from_the_plan_to_the_readme(pretended_gpu, monkeypatch, tmp_path, capsys):
    names = ["detection-index", "segmentation-19", "small-softmax", "rows-32000"]
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
    assert set(measured) == {"small-softmax"} | {f"{n}{d}" for n in both for d in ("", "-bfloat16", "-float16")}
    candidates = measured["detection-index"]["candidates"]
    assert {"sum", "torchvision", "apex", "mmcv"} <= set(candidates)
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
    (header,) = (line for line in text.splitlines() if line.startswith("| scenario"))
    assert header.count("% of a copy") == header.count("torch.compile") == 2
    assert sum(line.startswith("| Detection, class-index targets (int64)") for line in text.splitlines()) == 1


def test_readme_without_markers_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    with pytest.raises(SystemExit, match="bench:start"):
        report.write_readme(readme, "section")
    assert readme.read_text() == "no markers\n"


def test_command_line_lists_scenarios_and_names_unknown_ones():
    command = [sys.executable, "-m", "bench"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(SCENARIOS)
    # A whole name means that scenario alone, though others begin with it.
    assert _choose(["segmentation-19", "rows"]) == ["segmentation-19", *(n for n in SCENARIOS if n.startswith("rows"))]
    with pytest.raises(SystemExit, match="nonsense"):
        main(["nonsense", "--list"])
