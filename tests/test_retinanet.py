"""``python -m bench.retinanet``: what it calls the loss of a training step is the loss, and another loss is noticed."""

from __future__ import annotations

import importlib
import time
from types import ModuleType

import pytest
import torch
from originals import original

from bench import report, results, retinanet
from bench.timing import Clock
from focal_cuda import compat

QUICK = ["--quick", "--device=cpu", "--threads=1", "--json"]


@pytest.fixture
def network() -> ModuleType:
    return original("torchvision.models.detection:retinanet")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_step_is_measured_with_both_losses(network, tmp_path, capsys):
    own_loss = network.sigmoid_focal_loss
    assert retinanet.main([*QUICK, f"--results={tmp_path}"]) == 0
    assert network.sigmoid_focal_loss is own_loss
    (path,) = tmp_path.glob("*.json")
    document = results.load(path)
    assert list(document["steps"]) == ["retinanet", "retinanet-bfloat16"] and not document["scenarios"]
    for step in document["steps"].values():
        (elements,) = (rows * classes for rows, classes in step["logits"])
        logits = elements * (4 if step["dtype"] == "float32" else 2)
        own, theirs = step["losses"]["focal_cuda"], step["losses"]["torchvision"]
        assert own["loss_bytes"] <= 1.05 * logits and theirs["loss_bytes"] > 4 * logits
        for found in (own, theirs):
            assert 0 < found["forward"]["p50"] and 0 < found["backward"]["p50"]
            assert found["loss"]["p50"] < found["step"]["p50"] and 0 < found["alone"]["p50"]
            # 34 million weights have a gradient at the end of a step.
            assert found["step_bytes"] > 34e6 * 4
            assert len(found["curve"]) == retinanet.WARM_UP + 2 + step["steps"]
            assert found["curve"][-1] < 0.98 * found["curve"][0]
        assert own["loss_error"] <= retinanet.LOSS_ERROR
    printed = capsys.readouterr().out
    environment = {"commit": "other", "torch": "", "load": 0}
    results.merge(path, environment | {"torch": "2"}, {}, "steps")
    assert results.load(path)["environment"] == document["environment"]
    assert results.merge(path, environment, {})["environment"] == environment
    for text in (printed, report.readme_section({"a": document}, "pictures")):
        assert text.count("RetinaNet, ResNet-50 FPN, 1 x 64 x 64") == 4


def test_another_loss_fails_and_is_not_written(network, monkeypatch, tmp_path, capsys):
    right = compat.torchvision.sigmoid_focal_loss
    wrong = lambda inputs, targets, alpha=0.25, gamma=2, reduction="none": right(  # noqa: E731
        inputs, targets, alpha * 0.9, gamma, reduction
    )
    monkeypatch.setattr(compat.torchvision, "sigmoid_focal_loss", wrong)
    assert retinanet.main([*QUICK, "--dtype=float32", f"--results={tmp_path}"]) == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("failed: float32: loss_error ") and "the curves part in step 0" in said
    assert not list(tmp_path.iterdir())


def test_what_differs_is_named():
    one = {"loss_error": 1e-6, "gradient_error": 1e-6, "curve": [2.0, 1.5, 1.0]}
    other = {**one, "curve": [2.0, 1.5, 1.002]}

    def said(dtype="float32", **changed):
        losses = {"focal_cuda": {**one, **changed}, "torchvision": other}
        return retinanet.disagreement({"dtype": dtype, "losses": losses})

    assert said() == "the curves part in step 2: 1.0 with focal_cuda, 1.002 with torchvision"
    assert said("bfloat16") == said(curve=other["curve"]) == ""
    assert "step 1: nan" in said("bfloat16", curve=[2.0, float("nan"), 1.0])
    assert said("bfloat16", loss_error=float("nan")) == "loss_error nan > 2.0e-05"
    assert said("bfloat16", gradient_error=0.01).startswith("gradient_error 1.0e-02 > 3.9e-03")


class Slow(torch.autograd.Function):
    """The sum, both of whose passes take their time."""

    @staticmethod
    def forward(context, x, forward, backward):
        time.sleep(forward)
        context.shape, context.pause = x.shape, backward
        return x.sum()

    @staticmethod
    def backward(context, gradient):
        time.sleep(context.pause)
        return gradient.expand(context.shape), None, None


def test_a_trace_holds_the_loss_and_nothing_beside_it():
    def loss(logits, targets, reduction):
        assert reduction == "sum"
        return Slow.apply(logits, 0.02, 0.04)

    trace = retinanet.Trace(loss, Clock("cpu"))
    weights = torch.ones(2, 3, requires_grad=True)
    images = [Slow.apply(weights * number, 0.1, 0.1).reshape(1, 1) for number in (1, 2)]
    losses = [trace(logits, torch.zeros(1, 1), reduction="sum") for logits in images]
    sum(Slow.apply(value.reshape(1), 0.1, 0.1) for value in losses).backward()
    assert torch.equal(weights.grad, torch.full((2, 3), 3.0))
    found = trace.seconds()
    assert 0.04 <= found["forward"] < 0.09 and 0.08 <= found["backward"] < 0.13
    assert found["loss"] == found["forward"] + found["backward"]


def test_without_torchvision_it_says_so(monkeypatch, capsys):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    assert retinanet.main([]) == retinanet.ABSENT
    assert capsys.readouterr().out.startswith("absent: torchvision does not import: No module named 'torchvision")


def test_without_time_nothing_is_told(network, tmp_path, capsys):
    assert retinanet.main([*QUICK, "--dtype=float32", "--seconds=0", f"--results={tmp_path}"]) == 0
    assert "no time left for: float32" in capsys.readouterr().out and not list(tmp_path.iterdir())
