"""GammaSchedule: gamma as a function of the step."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn

from focal_cuda import (
    AsymmetricLoss,
    GammaSchedule,
    GaussianFocalLoss,
    PolyFocalLoss,
    RetinaNetLoss,
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    softmax_focal_loss,
)


class TensorGamma(nn.Module):
    """A module whose gamma lies in memory, where compiled code and captured graphs read it."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.register_buffer("gamma", torch.tensor(gamma))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def course(schedule: GammaSchedule, module: nn.Module, steps: int) -> list[float]:
    gammas = [float(module.gamma)]
    for _ in range(steps):
        schedule.step()
        gammas.append(float(module.gamma))
    return gammas


def half_cosine(low: float, high: float, share: float) -> float:
    return low + (high - low) * (1 - math.cos(math.pi * share)) / 2


COURSES = {
    "staged": [0.5, 0.5, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0],
    "linear": [0.5, 1.25, 2.0, 1.75, 1.5, 1.25, 1.0, 1.0],
    "cosine": [
        *(half_cosine(0.5, 2.0, share) for share in (0, 1 / 2)),
        *(half_cosine(2.0, 1.0, share) for share in (0, 1 / 4, 2 / 4, 3 / 4)),
        *(1.0, 1.0),
    ],
}


@pytest.mark.parametrize("mode", COURSES)
@pytest.mark.parametrize("make", [lambda: SoftmaxFocalLoss(gamma=0.5), lambda: TensorGamma(0.5)], ids=["float", "0-d"])
def test_the_course(make, mode: str) -> None:
    module = make()
    schedule = GammaSchedule(module, {6: 1.0, 2: 2.0}, mode)
    assert course(schedule, module, 7) == pytest.approx(COURSES[mode], rel=1e-6)


@pytest.mark.parametrize("mode", COURSES)
def test_a_milestone_at_0_replaces_the_gamma_of_the_module(mode: str) -> None:
    module = SoftmaxFocalLoss(gamma=5.0)
    GammaSchedule(module, {0: 0.0, 10: 2.0}, mode)
    assert module.gamma == 0.0


def test_the_last_step_and_gamma_are_known() -> None:
    schedule = GammaSchedule(SoftmaxFocalLoss(gamma=1), {2: 3}, "linear")
    assert schedule.last_step == 0 and schedule.get_last_gamma() == [1.0]
    schedule.step()
    assert schedule.last_step == 1 and schedule.get_last_gamma() == [2.0]
    assert repr(schedule) == "GammaSchedule({2: 3.0}, mode='linear', modules=1, last_step=1)"


def test_a_number_stays_a_number_and_the_loss_uses_it() -> None:
    module, logits, targets = SoftmaxFocalLoss(gamma=0), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    GammaSchedule(module, {1: 1.5}).step()
    assert type(module.gamma) is float
    assert torch.equal(module(logits, targets), softmax_focal_loss(logits, targets, gamma=1.5))


def test_a_tensor_is_filled_where_it_lies_without_reading_it() -> None:
    module = TensorGamma(0.0)
    buffer = module.gamma
    schedule = GammaSchedule(module, {1: 1.5, 2: 2.5})
    schedule.step()
    assert module.gamma is buffer and buffer.item() == 1.5
    module.to("meta")  # a read would raise, and a tensor moved meanwhile is the one to fill
    schedule.step()
    assert schedule.get_last_gamma() == [2.5]


def test_compiled_code_sees_a_tensor_without_compiling_again() -> None:
    module, compilations = TensorGamma(1.0), []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]):
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    schedule = GammaSchedule(compiled, {1: 3.0, 2: 4.0})
    seen = [compiled(torch.ones(())).item()]
    for _ in range(2):
        schedule.step()
        seen.append(compiled(torch.ones(())).item())
    assert seen == [1.0, 3.0, 4.0] and len(compilations) == 1


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((3,), 1e-6))


class OurDetector(nn.Module):
    """What users write: losses among layers, one of them derived from ours, and a gamma that is none of the loss's."""

    class OurLoss(SigmoidFocalLoss):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.gamma = 0.9
        self.scale = LayerScale()
        self.losses = nn.ModuleList([self.OurLoss(gamma=1.0), RetinaNetLoss(3, gamma=0.0)])
        self.again = self.losses[0]


def test_of_a_model_only_the_losses_are_set() -> None:
    model = OurDetector()
    schedule = GammaSchedule(model, {2: 2.0}, "linear")
    assert schedule.get_last_gamma() == [1.0, 0.0]
    schedule.step()
    assert (model.losses[0].gamma, model.losses[1].classification.gamma) == (1.5, 1.0)
    assert model.gamma == 0.9 and (model.scale.gamma == 1e-6).all()


def test_a_schedule_fills_the_gamma_of_losses_but_of_heat_maps() -> None:
    """There gamma weighs negatives."""
    losses = nn.ModuleList(
        [
            SoftmaxFocalLoss(gamma=torch.tensor(0.0)),
            GaussianFocalLoss(),
            PolyFocalLoss(gamma=0.0),
            AsymmetricLoss(),
        ]
    )
    buffer = losses[0].gamma
    schedule = GammaSchedule(losses, {2: 2.0}, "linear")
    schedule.step()
    assert losses[0].gamma is buffer and buffer.item() == 1.0 and losses[2].gamma == 1.0
    assert losses[1].gamma == 4.0 and schedule.get_last_gamma() == [1.0, 1.0]
    x, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(losses[0](x, targets), softmax_focal_loss(x, targets, gamma=1.0))
    for loss in (losses[1], losses[3]):
        with pytest.raises(ValueError, match=f"a module with a gamma, got {type(loss).__name__}"):
            GammaSchedule(loss, {1: 1.0})


def test_a_list_of_modules_each_once() -> None:
    first, second = SoftmaxFocalLoss(gamma=1.0), TensorGamma(0.0)
    schedule = GammaSchedule([first, nn.Sequential(first), second], {4: 2.0}, "linear")
    schedule.step()
    assert schedule.get_last_gamma() == [1.25, 0.5]
    assert (first.gamma, second.gamma.item()) == (1.25, 0.5)


@pytest.mark.parametrize("mode", COURSES)
def test_a_training_resumes_where_it_stopped(mode: str) -> None:
    """Also where the module comes back with the gamma it was saved with, as a buffer does."""
    module, milestones = TensorGamma(0.5), {2: 2.0, 6: 1.0}
    schedule = GammaSchedule(module, milestones, mode)
    course(schedule, module, 1)
    file = io.BytesIO()
    torch.save({"module": module.state_dict(), "schedule": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = TensorGamma(9.0)
    resumed.load_state_dict(saved["module"])
    fresh = GammaSchedule(resumed, milestones, mode)
    fresh.load_state_dict(saved["schedule"])
    assert fresh.last_step == 1 and fresh.state_dict() == schedule.state_dict()
    assert course(fresh, resumed, 6) == pytest.approx(COURSES[mode][1:], rel=1e-6)


def test_loading_sets_gamma_and_shares_nothing() -> None:
    first, second = SoftmaxFocalLoss(gamma=1.0), SoftmaxFocalLoss(gamma=4.0)
    schedule = GammaSchedule(first, {2: 2.0}, "linear")
    schedule.step()
    other = GammaSchedule(second, {7: 7.0})
    state = schedule.state_dict()
    other.load_state_dict(state)
    assert second.gamma == 1.5 and other.get_last_gamma() == [1.5]
    state["milestones"][2] = 9.0
    schedule.step()
    other.step()
    assert first.gamma == second.gamma == 2.0


def test_a_state_of_other_modules_is_refused() -> None:
    state = GammaSchedule([SoftmaxFocalLoss(), SoftmaxFocalLoss()], {1: 1.0}).state_dict()
    with pytest.raises(ValueError, match="expected the state of 1 modules, got that of 2; "):
        GammaSchedule(SoftmaxFocalLoss(), {1: 1.0}).load_state_dict(state)


@pytest.mark.parametrize(
    ("module", "milestones", "options", "error", "message"),
    [
        (SoftmaxFocalLoss(), {}, {}, ValueError, "at least one milestone, got none"),
        (SoftmaxFocalLoss(), {-1: 1.0}, {}, ValueError, "steps >= 0, got -1"),
        (SoftmaxFocalLoss(), {1: -2.0}, {}, ValueError, "gamma at step 1 >= 0 and finite, got -2"),
        (SoftmaxFocalLoss(), {1: math.inf}, {}, ValueError, "gamma at step 1 >= 0 and finite, got inf"),
        (SoftmaxFocalLoss(), {1: 1.0}, {"mode": "stage"}, ValueError, "mode .* got 'stage'"),
        (SoftmaxFocalLoss(), [(1, 1.0)], {}, TypeError, "milestones to be a dict, got list"),
        (SoftmaxFocalLoss(), {0.5: 1.0}, {}, TypeError, "every step to be an int, got float"),
        (SoftmaxFocalLoss(), {1: "2"}, {}, TypeError, "gamma at step 1 to be a number, got str"),
        (nn.Linear(2, 2), {1: 1.0}, {}, ValueError, "a module with a gamma, got Linear"),
        (LayerScale(), {1: 1.0}, {}, ValueError, r"a number or a 0-d tensor, got shape \[3\]"),
        ([], {1: 1.0}, {}, ValueError, "at least one module, got none"),
        ([2.0], {1: 1.0}, {}, TypeError, "modules, got float"),
        (SoftmaxFocalLoss(gamma="2"), {1: 1.0}, {}, TypeError, "the module's gamma to be a number, got str"),
    ],
    ids=[
        *("empty", "step", "gamma", "infinite", "mode", "milestones", "step-type", "gamma-type"),
        *("layer", "vector", "no-module", "number", "module's-gamma"),
    ],
)
def test_errors(module, milestones, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^GammaSchedule: expected .*{message}.*; .*\\.$"):
        GammaSchedule(module, milestones, **options)
