"""RetinaNetLoss against its composition, over processes and compiled; init_prior_bias_."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from focal_cuda import RetinaNetLoss, init_prior_bias_, sigmoid_focal_loss

CLASSES, BACKGROUND, IGNORED = 5, 5, -100


def batch(device: str = "cpu", dtype: torch.dtype = torch.float32, anchors: int = 12) -> dict[str, Tensor]:
    """Two images: positives (of class 0, too), background and ignored anchors in both."""
    labels = torch.full((2, anchors), BACKGROUND)
    labels[0, :4] = torch.tensor([0, 3, 4, 4])
    labels[1, 3:5] = torch.tensor([1, 0])
    labels[:, 6:8] = IGNORED
    tensors = {
        "class_logits": torch.randn(2, anchors, CLASSES, dtype=dtype) - 1,
        "box_pred": torch.randn(2, anchors, 4, dtype=dtype),
        "class_targets": labels,
        "box_targets": torch.randn(2, anchors, 4, dtype=dtype) / 4,
    }
    return {name: value.to(device) for name, value in tensors.items()}


def with_gradients(criterion: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The losses, and the gradients of the logits and of the boxes under upstream gradients that are not 1."""
    leaves = {name: tensors[name].detach().requires_grad_() for name in ("class_logits", "box_pred")}
    losses = criterion(**{**tensors, **leaves})
    total = 1.7 * losses["classification"] + 0.3 * losses["box"]
    return losses, *torch.autograd.grad(total, list(leaves.values()))


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    size = difference.abs()
    return torch.where(size < beta, size**2 / (2 * beta), size - beta / 2) if beta else size


class Composition(nn.Module):
    """As detectors write it: only the counted anchors, by boolean masks."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, beta: float = 1 / 9, box_weight: float = 1.0) -> None:
        super().__init__()
        self.options = alpha, gamma, beta, box_weight

    def forward(self, class_logits, box_pred, class_targets, box_targets) -> dict[str, Tensor]:
        alpha, gamma, beta, box_weight = self.options
        counted = class_targets != IGNORED
        positive = counted & (class_targets != BACKGROUND)
        x, t = class_logits[counted], F.one_hot(class_targets[counted], CLASSES + 1)[:, :CLASSES].to(class_logits.dtype)
        p_t = torch.sigmoid(x) * t + torch.sigmoid(-x) * (1 - t)
        focal = (alpha * t + (1 - alpha) * (1 - t)) * (1 - p_t) ** gamma * -torch.log(p_t)
        boxes = smooth_l1(box_pred[positive] - box_targets[positive], beta)
        n = max(1, int(positive.sum()))
        return {"classification": focal.sum() / n, "box": box_weight * boxes.sum() / n}


def assert_same(ours: tuple, theirs: tuple, rtol: float = 2e-5, atol: float = 1e-7) -> None:
    for name in ("classification", "box"):
        torch.testing.assert_close(ours[0][name], theirs[0][name], rtol=rtol, atol=0)
    for actual, expected in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.4, "gamma": 1.5}, {"beta": 0.0}, {"beta": 1.0, "box_weight": 2.5}],
    ids=["defaults", "focal", "l1", "boxes"],
)
def test_it_is_the_composition(options: dict, device: str) -> None:
    tensors = batch(device)
    assert_same(
        with_gradients(RetinaNetLoss(CLASSES, **options), tensors), with_gradients(Composition(**options), tensors)
    )


def test_the_classification_is_that_of_the_library(device: str) -> None:
    """With every option that the loss has: a vector of alpha, other labels, its ways to a gradient."""
    tensors, alpha = batch(device), torch.linspace(0.1, 0.5, CLASSES)
    labels = tensors["class_targets"]
    labels[labels == BACKGROUND] = -1
    labels[labels == IGNORED] = -2
    options = {"background_index": -1, "ignore_index": -2, "gradient": "backward", "validate": True}
    losses = RetinaNetLoss(CLASSES, alpha.tolist(), 1.5, **options).to(device)(**tensors)
    expected = sigmoid_focal_loss(
        tensors["class_logits"], labels, alpha.to(device), 1.5, "sum", class_dim=-1, normalizer=6.0, **options
    )
    torch.testing.assert_close(losses["classification"], expected, rtol=1e-6, atol=0)
    positive = labels >= 0
    boxes = F.smooth_l1_loss(
        tensors["box_pred"][positive], tensors["box_targets"][positive], reduction="sum", beta=1 / 9
    )
    torch.testing.assert_close(losses["box"], boxes / 6)


def test_boxes_of_other_anchors_are_not_looked_at() -> None:
    tensors = batch()
    expected = with_gradients(RetinaNetLoss(CLASSES), tensors)
    other = (tensors["class_targets"] == BACKGROUND) | (tensors["class_targets"] == IGNORED)
    tensors["box_pred"][other] = math.nan
    tensors["box_targets"][other] = math.inf
    losses, _, boxes = actual = with_gradients(RetinaNetLoss(CLASSES), tensors)
    assert_same(actual, expected, rtol=0, atol=0)
    assert (boxes[other] == 0).all() and (boxes[~other] != 0).all()


def test_without_positives_every_parameter_still_gets_a_gradient() -> None:
    tensors = batch()
    tensors["class_targets"].fill_(BACKGROUND)
    losses, logits, boxes = with_gradients(RetinaNetLoss(CLASSES), tensors)
    assert losses["box"] == 0 and (boxes == 0).all()
    everything = sigmoid_focal_loss(
        tensors["class_logits"], tensors["class_targets"], reduction="sum", class_dim=-1
    )  # divided by 1
    torch.testing.assert_close(losses["classification"], everything)
    assert (logits != 0).all()


def test_an_unsigned_label_is_not_taken_for_the_ignored_one() -> None:
    """In uint8, -100 is 156."""
    labels = torch.tensor([[156, 200]], dtype=torch.uint8)
    pred, target = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    losses = RetinaNetLoss(200, beta=0.0)(torch.zeros(1, 2, 200), pred, labels, target)
    assert losses["box"].item() == 4.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_of_other_dtypes(dtype: torch.dtype) -> None:
    """Boxes are summed in float32: 40 positives with errors of 500 are beyond float16."""
    labels = torch.zeros(1, 40, dtype=torch.int64)
    pred, target = torch.zeros(1, 40, 4, dtype=dtype), torch.full((1, 40, 4), 500.0, dtype=dtype)
    tensors = {
        "class_logits": torch.zeros(1, 40, 2, dtype=dtype),
        "box_pred": pred,
        "class_targets": labels,
        "box_targets": target,
    }
    losses, logits, boxes = with_gradients(RetinaNetLoss(2, beta=0.0), tensors)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {losses["classification"].dtype, losses["box"].dtype} == {wide}
    assert losses["box"].item() == 2000.0
    assert logits.dtype == boxes.dtype == dtype and torch.equal(boxes, torch.full_like(pred, -0.3 / 40))


def test_any_leading_dimensions() -> None:
    tensors = batch()
    flat = {name: value.flatten(0, 1) for name, value in tensors.items()}
    losses, expected = RetinaNetLoss(CLASSES)(**flat), RetinaNetLoss(CLASSES)(**tensors)
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name])


def test_compiled_whole() -> None:
    """In one graph, so nothing in it reads a value on the host or has a shape that depends on one."""
    torch.compiler.reset()
    criterion = RetinaNetLoss(CLASSES, alpha=[0.1, 0.2, 0.3, 0.4, 0.5])
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    tensors = batch()
    assert_same(with_gradients(compiled, tensors), with_gradients(criterion, tensors), rtol=1e-6)


def test_what_it_shows_and_saves() -> None:
    criterion = RetinaNetLoss(80, gamma=1.5, box_weight=2, sync_positives=False, ignore_index=-1)
    text = repr(criterion)
    for shown in ("num_classes=80", "beta=0.111", "box_weight=2", "sync_positives=False", "gamma=1.5"):
        assert shown in text
    assert "ignore_index=-1" in text and "sync" not in repr(RetinaNetLoss(3))
    assert criterion.state_dict() == {} and not list(criterion.parameters())
    assert list(RetinaNetLoss(2, alpha=[0.2, 0.3]).state_dict()) == ["classification.alpha"]


# Over processes


def head() -> nn.Linear:
    torch.manual_seed(7)
    return nn.Linear(3, CLASSES + 4, dtype=torch.float64)


def images() -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and boxes of two images with 5 and 0 positives: alone, they would divide by 5 and by 1."""
    torch.manual_seed(8)
    labels = torch.full((2, 9), BACKGROUND)
    labels[0, :5], labels[1, 4] = torch.arange(5), IGNORED
    return torch.randn(2, 9, 3, dtype=torch.float64), labels, torch.randn(2, 9, 4, dtype=torch.float64)


def gradient(chosen: slice, **options) -> Tensor:
    model = head()
    features, labels, boxes = (tensor[chosen] for tensor in images())
    logits, pred = model(features).split([CLASSES, 4], -1)
    losses = RetinaNetLoss(CLASSES, **options)(logits, pred, labels, boxes)
    (losses["classification"] + losses["box"]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = slice(rank, rank + 1)
    torch.save([gradient(mine), gradient(mine, sync_positives=False)], Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo")
def test_the_mean_over_processes_is_the_gradient_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    of_ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    synced, own = (torch.stack(gradients).mean(0) for gradients in zip(*of_ranks, strict=True))
    expected = gradient(slice(0, 2))
    # The normalizer is a float32, and 5 / 2 is one exactly.
    torch.testing.assert_close(synced, expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(own, expected, rtol=0.1)


# Errors


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("class_logits", (2, 12, 6), r"class_logits of shape \[2, 12, 5\] .* got \[2, 12, 6\]"),
        ("class_logits", (2, 5, 12), r"class_logits of shape \[2, 12, 5\] .* got \[2, 5, 12\]"),
        ("box_pred", (2, 12, 20), r"box_pred of shape \[2, 12, 4\] .* got \[2, 12, 20\]"),
        ("box_targets", (12, 4), r"box_targets of shape \[2, 12, 4\] .* got \[12, 4\]"),
    ],
    ids=["classes", "order", "boxes-of-each-class", "one-image"],
)
def test_wrong_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^RetinaNetLoss: expected {message}; .*\\.$"):
        RetinaNetLoss(CLASSES)(**{**batch(), name: torch.zeros(shape)})


def test_dense_targets_are_refused() -> None:
    """The function would take them; what is positive could not be told."""
    tensors = batch()
    with pytest.raises(ValueError, match="RetinaNetLoss: expected class_logits of shape"):
        RetinaNetLoss(CLASSES)(**{**tensors, "class_targets": torch.zeros_like(tensors["class_logits"])})
    with pytest.raises(TypeError, match="integer dtype"):
        RetinaNetLoss(CLASSES)(**{**tensors, "class_targets": tensors["class_targets"].float()})


@pytest.mark.parametrize("name", ["class_logits", "box_pred", "class_targets", "box_targets"])
def test_lists_are_refused(name: str) -> None:
    tensors = batch()
    with pytest.raises(TypeError, match=f"RetinaNetLoss: expected {name} to be a tensor, got list; "):
        RetinaNetLoss(CLASSES)(**{**tensors, name: list(tensors[name])})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes >= 1, got 0"),
        ({"num_classes": 3.0}, TypeError, "num_classes to be an int, got float"),
        ({"num_classes": True}, TypeError, "num_classes to be an int, got bool"),
        ({"beta": -0.1}, ValueError, "beta >= 0"),
        ({"box_weight": math.inf}, ValueError, "box_weight >= 0 and finite"),
    ],
    ids=["none", "float", "bool", "beta", "box_weight"],
)
def test_wrong_options(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^RetinaNetLoss: expected {message}.*; .*\\.$"):
        RetinaNetLoss(**{"num_classes": 3, **arguments})


@pytest.mark.parametrize("option", [{"reduction": "mean"}, {"class_dim": 1}, {"normalizer": 3.0}], ids=str)
def test_what_the_loss_decides_itself_is_refused(option: dict) -> None:
    with pytest.raises(TypeError, match=next(iter(option))):
        RetinaNetLoss(3, **option)


# init_prior_bias_


@pytest.mark.parametrize("layer", [nn.Linear(3, 6), nn.Conv2d(3, 6, 1), nn.ConvTranspose1d(3, 6, 1)], ids=repr)
def test_the_sigmoid_starts_at_the_prior(layer: nn.Module) -> None:
    weight = layer.weight.clone()
    assert init_prior_bias_(layer) is layer
    torch.testing.assert_close(layer.bias.data, torch.full((6,), -math.log(0.99 / 0.01)))
    init_prior_bias_(layer, prior=0.3)
    torch.testing.assert_close(torch.sigmoid(layer.bias.data), torch.full((6,), 0.3))
    assert torch.equal(layer.weight, weight) and layer.bias.requires_grad and layer.bias.grad_fn is None


@pytest.mark.parametrize(
    "prior",
    [[0.01, 0.2, 0.5], torch.tensor([0.01, 0.2, 0.5]), torch.tensor([0.01, 0.2, 0.5], dtype=torch.float64)],
    ids=["list", "float32", "float64"],
)
def test_a_prior_for_each_class(prior: list[float] | Tensor) -> None:
    expected = torch.tensor([math.log(p / (1 - p)) for p in (0.01, 0.2, 0.5)])
    torch.testing.assert_close(init_prior_bias_(nn.Linear(2, 3), prior).bias.data, expected)
    packed = init_prior_bias_(nn.Conv2d(2, 4 * 3, 1), prior).bias.data
    torch.testing.assert_close(packed.view(4, 3), expected.expand(4, 3))


def test_a_small_prior_in_half_precision() -> None:
    """Rounded once, at the end: 1 - 1e-5 is 1 in float16."""
    bias = init_prior_bias_(nn.Linear(2, 3, dtype=torch.float16), 1e-5).bias
    assert torch.equal(bias.data, torch.full((3,), math.log(1e-5 / (1 - 1e-5)), dtype=torch.float16))


@pytest.mark.parametrize(
    ("layer", "prior", "error", "message"),
    [
        (nn.Linear(3, 6, bias=False), 0.01, ValueError, "a layer with a parameter named bias, got Linear"),
        (nn.ReLU(), 0.01, ValueError, "a layer with a parameter named bias, got ReLU"),
        (nn.Sequential(nn.Linear(3, 6)), 0.01, ValueError, "named bias, got Sequential without; pass the last layer"),
        (nn.LSTM(3, 6), 0.01, ValueError, "a layer with a parameter named bias, got LSTM"),
        (nn.LazyLinear(6), 0.01, ValueError, "a layer with a parameter named bias, got LazyLinear"),
        (nn.Linear(3, 6), 0.0, ValueError, r"prior in \(0, 1\), got 0.0"),
        (nn.Linear(3, 6), 1, ValueError, r"prior in \(0, 1\), got 1"),
        (nn.Linear(3, 6), math.nan, ValueError, r"prior in \(0, 1\), got nan"),
        (nn.Linear(3, 6), [0.1, 0.2, 1.5], ValueError, r"prior in \(0, 1\), got \[0.1, 0.2, 1.5\]"),
        (nn.Linear(3, 6), [0.1] * 4, ValueError, r"A \* C elements, got \[4\] for 6"),
        (nn.Linear(3, 6), [], ValueError, r"A \* C elements, got \[0\] for 6"),
        (nn.Linear(3, 6), [[0.1] * 6], ValueError, r"A \* C elements, got \[1, 6\] for 6"),
        (nn.Linear(3, 6), "0.01", TypeError, "prior to be a tensor or numbers, got str"),
    ],
    ids=["no-bias", "no-layer", "model", "lstm", "lazy", "0", "1", "nan", "1.5", "4-of-6", "none", "2-d", "str"],
)
def test_wrong_layers_and_priors(layer: nn.Module, prior: object, error: type[Exception], message: str) -> None:
    before = None if is_without(layer) else layer.bias.clone()
    with pytest.raises(error, match=f"^init_prior_bias_: expected .*{message}.*\\.$"):
        init_prior_bias_(layer, prior)
    assert before is None or torch.equal(layer.bias, before)


def is_without(layer: nn.Module) -> bool:
    return type(layer) is not nn.Linear or layer.bias is None
