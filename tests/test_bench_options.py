"""Options and relatives in the benchmark: who gets them, and the oracle that knows them."""

from dataclasses import replace

import pytest
import torch

from bench import accuracy
from bench.candidates import candidates_of
from bench.inputs import Inputs
from bench.scenarios import SCENARIOS
from bench.targets import MINING, OPTIONS, RELATIVES
from focal_cuda import reference

_EAGER_AND_COMPILED = ("Python original", "compile original")
compared = pytest.mark.parametrize("name", (*OPTIONS, *RELATIVES))


@pytest.mark.parametrize("family", ("sigmoid", "softmax"))
def test_another_gamma_reaches_every_focal_loss(family):
    inputs = Inputs(family, (64, 5))
    others = candidates_of(family, options={"gamma": 1.5})
    for name, candidate in candidates_of(family).items():
        other = others[name]
        if not candidate.is_loss or not candidate.takes_options:
            assert other == candidate
            continue
        assert dict(other.meaning.options)["gamma"] == 1.5
        if not candidate.available or candidate.kind == "graph":
            continue
        logits = inputs.logits * 1  # no leaf, for what works in place
        values = [float(c.loss(logits.clone(), *c.arguments(inputs)).detach()) for c in (candidate, other)]
        assert values[1] > values[0] * 1.01, name


@compared
def test_what_is_measured_has_the_options_and_what_it_is_compared_with_has_not(name):
    scenario = SCENARIOS[name]
    known = scenario.all_candidates()
    assert scenario.options.items() <= dict(known["focal_cuda"].meaning.options).items()
    assert known["focal_cuda"].meaning.loss == (scenario.loss or f"{scenario.family}_focal_loss")
    if "focal_cuda plain" in scenario.candidates:
        plain = dict(known["focal_cuda plain"].meaning.options)
        assert plain == dict(candidates_of(scenario.family)["focal_cuda"].meaning.options)
        assert plain.items() != dict(known["focal_cuda"].meaning.options).items()
    if scenario.baseline:
        expected = replace(known["focal_cuda"].meaning, ignores=known[scenario.baseline].meaning.ignores)
        assert known[scenario.baseline].meaning == expected


def _expected(scenario, inputs, meaning):
    """Loss and gradient of the mean over everything, in one call."""
    keywords = inputs.keywords(dict(meaning.options))
    leaf = inputs.logits.detach().double().requires_grad_()
    loss = getattr(reference, meaning.loss)(leaf, inputs.targets, ignore_index=scenario.ignore_index, **keywords)
    return float(loss.detach()), torch.autograd.grad(loss, leaf)[0]


@compared
def test_the_oracle_of_parts_is_that_of_the_whole(name, monkeypatch):
    monkeypatch.setattr(accuracy, "CHUNK_ELEMENTS", {"cpu": 1000})
    monkeypatch.setattr(accuracy, "GRADIENT_ELEMENTS", 3000)
    scenario = SCENARIOS[name]
    inputs = scenario.make_inputs(scenario.shapes["quick"], torch.float32, "cpu", seed=1)
    meaning = scenario.all_candidates()["focal_cuda"].meaning
    loss, gradient = _expected(scenario, inputs, meaning)
    found = accuracy.Oracle(inputs).errors(meaning, torch.tensor(loss, dtype=torch.float64), gradient)
    assert found["loss_error"] < 1e-12 and found["gradient_error"] < 1e-9
    wrong = accuracy.Oracle(inputs).errors(meaning, torch.tensor(loss * 1.01), gradient * 1.01)
    assert wrong["loss_error"] == pytest.approx(0.01, rel=0.01)
    assert wrong["gradient_error"] == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("name", MINING)
def test_the_oracle_leaves_open_only_what_rounding_decides(name):
    scenario = SCENARIOS[name]
    inputs = scenario.make_inputs(scenario.shapes["quick"], torch.float32, "cpu", seed=0)
    meaning = scenario.all_candidates()["focal_cuda"].meaning
    loss, gradient = _expected(scenario, inputs, meaning)
    oracle = accuracy.Oracle(inputs)
    assert oracle.errors(meaning, torch.tensor(loss), gradient)["gradient_error"] < 1e-9
    undecided = oracle.known[meaning].undecided.expand_as(gradient)
    kept = gradient != 0
    assert 0 < undecided.sum() < 0.01 * gradient.numel() + inputs.classes
    # The least that is kept may as well be missing; what is above it may not, and what is below may not be there.
    assert oracle.errors(meaning, torch.tensor(loss), gradient.masked_fill(undecided, 0.0))["gradient_error"] < 1e-9
    at = tuple((kept & ~undecided).nonzero()[0])
    missing = gradient.clone()
    missing[at] = 0.0
    more = gradient.clone()
    more[tuple((~kept & ~undecided).nonzero()[0])] = 1.0
    for wrong in (missing, more):
        assert oracle.errors(meaning, torch.tensor(loss), wrong)["gradient_error"] > 1e-3


@pytest.mark.parametrize("name", RELATIVES)
def test_what_is_compiled_of_a_relative_computes_the_same(name):
    """It need not be what runs eagerly."""
    scenario = SCENARIOS[name]
    inputs = scenario.make_inputs(scenario.shapes["quick"], torch.float32, "cpu", seed=0)
    known = scenario.all_candidates()
    losses = [float(c.loss(inputs.logits, *c.arguments(inputs)).detach()) for c in map(known.get, _EAGER_AND_COMPILED)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
