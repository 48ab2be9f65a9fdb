"""The losses as modules: the functions with their options kept."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Shape
from combinations import (
    ASYMMETRIC,
    BY_ACTIVATION,
    GAUSSIAN,
    NORMALIZED,
    POLY,
    QUALITY,
    REDUCED,
    SIGMOID,
    SOFTMAX,
    VARIFOCAL,
    call_of,
)
from torch import Tensor, nn

import focal_cuda
from focal_cuda import SigmoidFocalLoss, SoftmaxFocalLoss, sigmoid_focal_loss, softmax_focal_loss

PAIRS = [(SigmoidFocalLoss, sigmoid_focal_loss), (SoftmaxFocalLoss, softmax_focal_loss)]
pairs = pytest.mark.parametrize(("module", "function"), PAIRS, ids=["sigmoid", "softmax"])
ALPHA = [0.1, 0.2, 0.3, 0.4, 0.5]


def batch(device: str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.randn(8, 5, device=device), torch.tensor([0, 1, 2, 3, 4, -100, 0, 1], device=device)


@pairs
def test_the_defaults_are_those_of_the_function(module: type, function, device: str) -> None:
    logits, targets = batch(device)
    assert torch.equal(module()(logits, targets), function(logits, targets))
    of_function = inspect.signature(function).parameters
    of_module = inspect.signature(module).parameters
    for name in ("alpha", "gamma", "reduction"):
        assert of_module[name].default == of_function[name].default


def test_the_documented_defaults() -> None:
    sigmoid, softmax = (inspect.signature(f).parameters for f in (sigmoid_focal_loss, softmax_focal_loss))
    assert [name for name in sigmoid if name != "pos_weight"] == list(softmax)
    assert list(sigmoid)[:5] == ["logits", "targets", "alpha", "gamma", "reduction"]
    assert [sigmoid[n].default for n in list(sigmoid)[2:5]] == [0.25, 2.0, "mean"]
    assert [softmax[n].default for n in list(softmax)[2:5]] == [None, 2.0, "mean"]
    assert sigmoid["pos_weight"].default is None
    for parameters in (sigmoid, softmax):
        keywords = {n: p.default for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        keywords.pop("pos_weight", None)
        assert keywords == {
            "class_dim": 1,
            "ignore_index": -100,
            "background_index": None,
            "sample_weight": None,
            "mask": None,
            "label_smoothing": 0.0,
            "probability_smoothing": 0.0,
            "from_probabilities": False,
            "ohem_keep_ratio": None,
            "ohem_threshold": None,
            "normalizer": None,
            "gradient": "auto",
            "validate": None,
        }


@pairs
@pytest.mark.parametrize(
    "options",
    [
        {"gamma": 0.5},
        {"reduction": "none"},
        {"class_dim": 0},
        {"ignore_index": 1},
        {"background_index": 2, "reduction": "sum", "normalizer": "positives"},
        {"reduction": "sum", "normalizer": 3.5},
        {"gradient": "backward"},
        {"validate": True},
        {"alpha": 0.7},
        {"alpha": None},
    ],
    ids=str,
)
def test_every_option_arrives(module: type, function, options: dict, device: str) -> None:
    logits, targets = batch(device)
    if options.get("ignore_index") == 1:
        targets = targets.clamp(min=0)
    if "class_dim" in options:
        logits = logits.t().contiguous()
    assert torch.equal(module(**options)(logits, targets), function(logits, targets, **options))


@pairs
def test_alpha_is_a_buffer(module: type, function, device: str) -> None:
    """It moves with the model and is saved with it, whatever it was given as."""
    logits, targets = batch(device)
    for alpha in (ALPHA, tuple(ALPHA), torch.tensor(ALPHA)):
        criterion = module(alpha=alpha).to(device)
        assert isinstance(criterion.alpha, Tensor) and "alpha" in dict(criterion.named_buffers())
        assert not list(criterion.parameters())
        assert torch.equal(criterion(logits, targets), function(logits, targets, torch.tensor(ALPHA, device=device)))
    mine = torch.tensor(ALPHA)
    criterion = module(alpha=mine)
    mine.zero_()
    assert criterion.alpha.sum() > 0, "the module shares the caller's tensor"
    assert criterion.double().alpha.dtype == torch.float64
    assert criterion.half()(*batch()).dtype == torch.float32
    assert module(alpha=nn.Parameter(torch.tensor(ALPHA))).alpha.requires_grad is False


@pairs
def test_alpha_that_is_no_tensor_is_no_buffer(module: type, function) -> None:
    for alpha in (None, 0.3):
        criterion = module(alpha=alpha)
        assert criterion.state_dict() == {} and criterion.alpha == alpha


@pairs
def test_state_dict(module: type, function) -> None:
    logits, targets = batch()
    trained, fresh = module(alpha=ALPHA), module(alpha=[1.0, 0.0, 0.5, 0.0, 1.0])
    expected = trained(logits, targets)
    assert not torch.equal(fresh(logits, targets), expected)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(logits, targets), expected)


@pairs
def test_copies(module: type, function) -> None:
    logits, targets = batch()
    criterion = module(alpha=ALPHA, gamma=1.5, reduction="sum", normalizer="positives", background_index=0)
    expected = criterion(logits, targets)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(twin(logits, targets), expected)
        twin.alpha.zero_()
        assert torch.equal(criterion(logits, targets), expected)


@pairs
def test_repr_says_what_it_does(module: type, function) -> None:
    text = repr(module(alpha=ALPHA, gamma=1.5, ignore_index=255))
    assert text.startswith(module.__name__) and "gamma=1.5" in text and "ignore_index=255" in text
    assert "alpha" in text and "5" in text
    assert "reduction" in repr(module())


@pairs
def test_a_normalizer_for_one_call(module: type, function, device: str) -> None:
    """Counted on the device and reduced over the processes, it is known only then."""
    logits, targets = batch(device)
    n = torch.tensor(3.0, device=device)
    criterion = module(reduction="sum")
    assert torch.equal(
        criterion(logits, targets, normalizer=n), function(logits, targets, reduction="sum", normalizer=n)
    )


@pairs
def test_a_forward_leaves_the_module_alone(module: type, function) -> None:
    criterion = module(alpha=ALPHA)
    before = {k: v.clone() for k, v in criterion.state_dict().items()}, dict(criterion.__dict__)
    for size in ((8, 5), (2, 5, 3)):
        logits = torch.randn(size, requires_grad=True)
        criterion(logits, torch.zeros(size[:1] + size[2:], dtype=torch.int64)).backward()
    assert all(torch.equal(v, before[0][k]) for k, v in criterion.state_dict().items())
    assert {k: v for k, v in criterion.__dict__.items() if not k.startswith("_")} == {
        k: v for k, v in before[1].items() if not k.startswith("_")
    }


@pairs
def test_errors_are_those_of_the_function(module: type, function) -> None:
    logits, targets = batch()
    for options, names in (({"gamma": -1.0}, "gamma"), ({"alpha": ALPHA[:3]}, "alpha"), ({"reduction": "no"}, "red")):
        with pytest.raises(ValueError, match=f"{function.__name__}: expected {names}"):
            module(**options)(logits, targets)


def test_in_the_place_of_cross_entropy() -> None:
    """gamma = 0 trains exactly as nn.CrossEntropyLoss does."""
    logits, targets = torch.randn(8, 5, 4, 4), torch.randint(0, 5, (8, 4, 4))
    targets[targets == 4] = 255
    losses = []
    for criterion in (nn.CrossEntropyLoss(ignore_index=255), SoftmaxFocalLoss(gamma=0.0, ignore_index=255)):
        torch.manual_seed(0)
        layer = nn.Conv2d(5, 5, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        for _ in range(5):
            optimizer.zero_grad()
            loss = criterion(layer(logits), targets)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_of_retinanet() -> None:
    """torchvision's composition over the counted anchors, divided by the number of positives."""
    logits, labels = torch.randn(500, 7) - 2, torch.full((500,), 7)
    labels[:5] = torch.tensor([0, 3, 6, 6, 1])
    labels[20:40] = -100
    ours = SigmoidFocalLoss(reduction="sum", normalizer="positives")(logits, labels)
    counted = labels != -100
    x, t = logits[counted], F.one_hot(labels[counted], 8)[:, :7].float()
    p = torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    theirs = ((0.25 * t + 0.75 * (1 - t)) * (1 - p_t) ** 2 * ce).sum() / 5
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_the_package_says_what_it_is() -> None:
    info = focal_cuda.build_info()
    assert info["cpu_capability"] in ("v4", "v3", "base") and isinstance(info["with_cuda"], bool)
    assert info["torch_target"] == "2.11"
    assert focal_cuda.__version__.count(".") == 2
    assert set(focal_cuda.__all__) <= set(dir(focal_cuda))


# --- every loss ------------------------------------------------------------------------------------------------------

MODULES = {
    "SigmoidFocalLoss": SIGMOID,
    "SoftmaxFocalLoss": SOFTMAX,
    "QualityFocalLoss": QUALITY,
    "VarifocalLoss": VARIFOCAL,
    "GaussianFocalLoss": GAUSSIAN,
    "AsymmetricLoss": ASYMMETRIC,
    "PolyFocalLoss": POLY,
    "ReducedFocalLoss": REDUCED,
    "NormalizedFocalLoss": NORMALIZED,
}
modules = pytest.mark.parametrize("name", MODULES)


def module_and_batch(name: str, device: str = "cpu") -> tuple[nn.Module, dict, Tensor, Tensor, dict]:
    """A module with an option of each kind, those options, a batch, and what is given with it."""
    op = MODULES[name]
    x, targets, given = call_of(op, Shape((6, 5)), device)
    kept: dict[str, Any] = {"ignore_index": 7}
    targets = targets.where(targets != -100, 7)
    if op in (SIGMOID, SOFTMAX, *BY_ACTIVATION):
        given.pop("alpha", None)
        kept |= {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5], "gamma": torch.tensor(1.5)}
    if op == NORMALIZED:
        kept["activation"] = "softmax"
    else:
        kept["reduction"] = "sum"
    return getattr(focal_cuda, name)(**kept).to(device), kept, x, targets, given


@modules
def test_a_module_is_its_function_with_options_kept(name: str, device: str) -> None:
    module, kept, x, targets, given = module_and_batch(name, device)
    function = getattr(focal_cuda, MODULES[name])
    told = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in kept.items()}
    told = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in told.items()}
    mask = torch.rand(6, device=device) < 0.7
    for further in ({}, given, {"mask": mask}):
        assert torch.equal(module(x, targets, **further), function(x, targets, **told, **further))
    if "scores" in given:
        assert torch.equal(module(x, targets, given["scores"]), module(x, targets, scores=given["scores"]))
    if name != "NormalizedFocalLoss":
        n = torch.tensor(3.0, device=device)
        assert torch.equal(module(x, targets, normalizer=n), function(x, targets, **told, normalizer=n))


@modules
def test_tensors_of_a_module_are_buffers(name: str) -> None:
    module, kept, x, targets, given = module_and_batch(name)
    tensors = {k for k, v in kept.items() if isinstance(v, (Tensor, list))}
    assert set(dict(module.named_buffers())) == set(module.state_dict()) == tensors
    assert not list(module.parameters())
    expected = module(x, targets, **given)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x, targets, **given), expected) and repr(twin) == repr(module)
        for buffer in twin.buffers():
            buffer.zero_()
        assert torch.equal(module(x, targets, **given), expected)
    if tensors:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        fresh = getattr(focal_cuda, name)(**kept | {"alpha": [1.0] * 5, "gamma": torch.tensor(0.0)})
        assert not torch.equal(fresh(x, targets, **given), expected)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(fresh(x, targets, **given), expected)


@modules
def test_a_module_says_what_it_does(name: str) -> None:
    module, kept, *_ = module_and_batch(name)
    text = repr(module)
    assert text.startswith(f"{name}(") and "ignore_index=7" in text
    assert "alpha" not in kept or ("alpha=tensor([5])" in text and "gamma=tensor(1.5)" in text)
    assert "ignore_index" not in repr(getattr(focal_cuda, name)())


@modules
def test_wrong_arguments_of_a_module(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected arguments of .*, got gama; see help"):
        getattr(focal_cuda, name)(gama=2.0)
    module, _, x, targets, _ = module_and_batch(name)
    with pytest.raises(TypeError, match=f"{name}: expected .*, got gamma; .*constructor"):
        module(x, targets, gamma=2.0)


@modules
def test_a_module_that_is_called_as_its_function(name: str) -> None:
    """Its "loss" would be a module: the mistake would show in loss.backward() alone."""
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=rf"{name}: expected .*got shape \[4, 3\]; .*{name}\(\)\(logits, targets\)"):
        getattr(focal_cuda, name)(x, torch.zeros_like(x))
    with pytest.raises(TypeError, match="got logits; give it when you call the module"):
        getattr(focal_cuda, name)(logits=x)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("weight", "alpha"),
        ("smoothing", "label_smoothing"),
        ("ignore_label", "ignore_index"),
        ("size_average", "reduction"),
        ("avg_factor", "normalizer"),
        ("dim", "class_dim"),
    ],
)
@pairs
def test_what_other_losses_call_an_argument(module: type, function, theirs: str, ours: str) -> None:
    with pytest.raises(TypeError, match=f"{module.__name__}: expected .*, got {theirs}; that is {ours} here"):
        module(**{theirs: 1})
    with pytest.raises(TypeError, match=f"{module.__name__}: expected .*, got others: too many"):
        module(0.5, 2.0, "mean", 1)


def test_numbers_of_a_module_are_looked_at_once() -> None:
    """On a GPU it is the one place where they are."""
    weights = focal_cuda.class_weights([80, 15, 5])
    remedy = r"alpha in \[0, 1\], got alpha\[2\] = .*; .*pos_weight"
    for make in (SigmoidFocalLoss, focal_cuda.PolyFocalLoss, focal_cuda.ReducedFocalLoss):
        with pytest.raises(ValueError, match=f"{make.__name__}: expected {remedy}"):
            make(alpha=weights)
    for make in (SoftmaxFocalLoss, lambda **told: focal_cuda.PolyFocalLoss(activation="softmax", **told)):
        assert torch.equal(make(alpha=weights).alpha, weights)
        with pytest.raises(ValueError, match=r"expected gamma >= 0, got -1"):
            make(gamma=torch.tensor(-1.0))
    with torch.device("meta"):
        assert SigmoidFocalLoss(alpha=[0.5, 0.25]).alpha.is_meta
