"""What the benchmark measures on: inputs like a network's, and bytes and memory that are what they are said to be."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.inputs import IGNORED, PEAK, TENSOR, Inputs
from bench.memory import STATES, peak_bytes
from bench.scenarios import SCENARIOS
from bench.targets import MINING

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", SCENARIOS)
def test_declared_bytes_are_those_of_the_tensors(name, dtype):
    scenario = SCENARIOS[name]
    shape = scenario.shapes["quick"]
    inputs = scenario.make_inputs(shape, dtype, "cpu", seed=0)
    declared = scenario.declared_bytes(shape, dtype)
    tensors = [value for value in inputs.keywords(scenario.options).values() if isinstance(value, torch.Tensor)]
    moved = inputs.logits.nbytes + inputs.targets.nbytes + sum(tensor.nbytes for tensor in tensors)
    assert declared["inference"] == moved
    # An option adds no pass; mining reads what is kept again.
    again = 0.3 * inputs.logits.nbytes if scenario.name in MINING else 0
    assert declared["training"] == moved + torch.empty_like(inputs.logits).nbytes + int(again)
    assert inputs.logits.is_contiguous(memory_format=scenario.memory_format)
    assert {scenario.baseline, scenario.compiled} <= {*scenario.candidates, None}
    for device in ("cpu", "cuda"):
        named = {*scenario.candidates_on(device), scenario.compiled_on(device)} - {None}
        assert named <= set(scenario.all_candidates())


def test_wrongly_declared_bytes_are_refused(monkeypatch):
    scenario = SCENARIOS["rows-10"]
    true = scenario.declared_bytes((16, 10), torch.float32)
    monkeypatch.setattr(type(scenario), "declared_bytes", lambda *_: {**true, "targets": true["targets"] // 2})
    with pytest.raises(AssertionError, match="bytes of targets declared"):
        scenario.make_inputs((16, 10), torch.float32, "cpu", seed=0)


def test_the_bytes_of_an_option_are_checked(monkeypatch):
    scenario = SCENARIOS["options-detection-sample-weight"]
    monkeypatch.setattr(Inputs, "option", lambda self, name: torch.ones(self.labels.shape, dtype=torch.float64))
    with pytest.raises(AssertionError, match="800 bytes of sample_weight declared, 1600 passed"):
        scenario.make_inputs((200, 80), torch.float32, "cpu", seed=0)


def test_detection_inputs_have_rare_positives_and_some_ignored():
    inputs = Inputs("sigmoid", (50_000, 20), target_dtype=torch.uint8, ignore_index=255)
    ignored, background = inputs.targets == 255, inputs.targets == 20
    assert ignored.float().mean().item() == pytest.approx(0.05, rel=0.1)
    assert (~ignored & ~background).float().mean().item() == pytest.approx(1e-3, rel=0.4)
    assert inputs.dense_targets.sum() == (~ignored & ~background).sum()
    assert inputs.logits.mean().item() == pytest.approx(-4, abs=0.1)
    dense = Inputs("sigmoid", (50_000, 20), kind="dense")
    assert torch.equal((dense.targets == -100).all(1), ignored)
    assert torch.equal(dense.targets.clamp(min=0), inputs.dense_targets)


def test_masks_are_blobs_and_mostly_predicted_right():
    inputs = Inputs("softmax", (2, 19, 128, 128))
    neighbours_agree = (inputs.labels[:, :, 1:] == inputs.labels[:, :, :-1]).float().mean()
    assert neighbours_agree > 0.9
    counted = inputs.labels != IGNORED
    right = (inputs.logits.argmax(1) == inputs.labels)[counted].float().mean()
    assert 0.9 < right < 1


def test_soft_targets_are_a_teachers():
    inputs = Inputs("softmax", (2, 19, 64, 64), kind="soft")
    ignored = inputs.labels == IGNORED
    assert torch.equal((inputs.targets == IGNORED).all(1), ignored) and bool(ignored.any())
    torch.testing.assert_close(inputs.dense_targets.sum(1), torch.ones(2, 64, 64))
    agree = (inputs.dense_targets.argmax(1) == inputs.logits.argmax(1))[~ignored].float().mean()
    assert 0.9 < agree < 1


def test_heat_maps_fall_off_around_each_object():
    inputs = Inputs("sigmoid", (2, 5, 128, 128), kind="heat map")
    heat, labels = inputs.dense_targets, inputs.labels
    objects = (labels >= 0) & (labels < 5)
    peaks = heat == 1
    assert torch.equal(peaks.any(1), objects) and peaks.sum() == objects.sum() > 10
    near = torch.nn.functional.max_pool2d(peaks.float(), 2 * PEAK + 1, 1, PEAK).bool()
    assert torch.equal(heat > 0, near) and heat.max() == 1
    image, plane, y, x = next(p for p in peaks.nonzero().tolist() if PEAK <= p[2] < 124 and PEAK <= p[3] < 124)
    line = heat[image, plane, y, x : x + PEAK + 1]
    assert bool((line[1:] < line[:-1]).all())
    assert torch.equal((inputs.targets == IGNORED).all(1), labels == IGNORED)


def test_many_labels_are_rare_and_mostly_predicted():
    inputs = Inputs("sigmoid", (64, 5000), kind="many-hot")
    positive = inputs.dense_targets == 1
    assert positive.float().mean().item() == pytest.approx(1e-3, rel=0.2)
    assert torch.equal(positive, inputs.dense_targets != 0)
    raised = inputs.logits.detach()[positive].mean() - inputs.logits.detach()[~positive].mean()
    assert raised.item() == pytest.approx(5, abs=0.5)
    assert torch.equal((inputs.targets == IGNORED).all(1), inputs.labels == IGNORED)


def test_the_tensors_of_options_do_not_depend_on_what_else_was_asked_for():
    names = ("alpha", "gamma", "pos_weight", "sample_weight", "mask", "scores")
    first, second = Inputs("softmax", (4, 7, 8, 8)), Inputs("softmax", (4, 7, 8, 8))
    made = {name: first.option(name) for name in names}
    for name in reversed(names):
        assert torch.equal(made[name], second.option(name))
        assert made[name].shape == ((4, 8, 8) if name in ("sample_weight", "mask", "scores") else (7,))
        assert made[name].dtype == (torch.bool if name == "mask" else torch.float32)
    assert not torch.equal(made["sample_weight"] - 0.5, made["scores"])
    assert not torch.equal(made["alpha"], Inputs("softmax", (4, 7, 8, 8), seed=1).option("alpha"))
    keywords = first.keywords({"label_smoothing": 0.1, "alpha": TENSOR})
    assert keywords["label_smoothing"] == 0.1 and keywords["alpha"] is made["alpha"]
    assert Inputs("softmax", (4, 7), dtype=torch.float64).option("alpha").dtype == torch.float64
    scored = Inputs("sigmoid", (2000, 7))
    assert torch.equal(scored.scored_targets > 0, scored.dense_targets == 1)
    assert torch.equal(scored.scored_targets.amax(1), scored.option("scores") * scored.dense_targets.amax(1))


def test_inputs_are_the_same_for_a_seed_and_restored_after_being_overwritten():
    first, second = Inputs("softmax", (64, 5)), Inputs("softmax", (64, 5), seed=1)
    assert torch.equal(first.logits, Inputs("softmax", (64, 5)).logits)
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
