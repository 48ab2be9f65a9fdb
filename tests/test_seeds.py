"""The recipes this project started from, S1 to S16: each written out from its formula gives the same numbers as the
public functions, loss and gradient, and its defect, shown on the recipe, is absent from them.

A recipe runs in float64 on the same logits, moderate ones, where its formula holds; its defects show in float32. One
long file: the recipes build on each other, and share what compares them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compare import loss_dtype, random_upstream
from tolerance import assert_close, grad_bound, loss_bound
from torch import Tensor, nn

import focal_cuda

GAMMAS = [0.0, 0.5, 1.0, 2.0, 5.0]
gammas = pytest.mark.parametrize("gamma", GAMMAS)
Loss = Callable[[Tensor], Tensor]


def gradient(loss: Loss, x: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf, upstream)[0]


def same(ours: Loss, recipe: Loss, x: Tensor, *, soft: bool = False, row_dim: int = 1) -> None:
    """Loss and gradient under a random upstream gradient. soft: the gradient cancels within its row."""
    with torch.no_grad():
        upstream = random_upstream(ours(x).shape, x)
    loss, grad = gradient(ours, x, upstream)
    expected, expected_grad = gradient(recipe, x.double(), upstream.double())
    assert loss.dtype == loss_dtype(x)
    factor = upstream.abs().max().item()
    # Where p = t gradients of soft targets cancel: relative to their row's largest.
    size = expected_grad.abs().amax(row_dim, keepdim=True).expand_as(expected_grad) if soft else None
    bound = grad_bound(expected_grad, x.dtype, factor, size=size)
    assert_close(loss, expected, loss_bound(expected, x.dtype), "loss")
    assert_close(grad, expected_grad, bound, "gradient")


def fine(loss: Loss, x: Tensor) -> None:
    value, grad = gradient(loss, x)
    assert value.isfinite().all() and grad.isfinite().all()


def broken(loss: Loss, x: Tensor) -> None:
    """The defect of a recipe: a loss or gradient that ends a training."""
    value, grad = gradient(loss, x)
    assert not (value.isfinite().all() and grad.isfinite().all())


def make_masks(device: str) -> tuple[Tensor, Tensor]:
    logits, targets = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    targets[torch.rand(2, 6, 7) < 0.2] = 255
    return logits.to(device), targets.to(device)


def make_rows(device: str, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    logits, targets = torch.randn(60, 5), torch.randint(0, 5, (60,))
    targets[torch.rand(60) < ignored] = -100
    return logits.to(device), targets.to(device)


def make_probabilities(device: str) -> tuple[Tensor, Tensor]:
    """Of 5 classes, with the class of each row."""
    return torch.softmax(torch.randn(60, 5), 1).to(device), torch.randint(0, 5, (60,)).to(device)


# --- S1, S2, S11: multi-class, weighted by class frequencies ----------------------------------------------------------


def multi_class(
    logits: Tensor,
    targets: Tensor,
    gamma: float,
    alpha: Tensor | None = None,
    reduction: str = "mean",
    ignore: int = -100,
) -> Tensor:
    """S1. Flatten, drop what is ignored, take the target's log-softmax, modulate, weigh."""
    if logits.dim() > 2:
        logits = logits.flatten(2).transpose(1, 2).reshape(-1, logits.shape[1])
        targets = targets.reshape(-1)
    kept = targets != ignore
    logits, targets = logits[kept], targets[kept]
    if targets.numel() == 0:
        return torch.tensor(0.0, device=logits.device)
    ce = -F.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze()
    loss = (1 - torch.exp(-ce)) ** gamma * ce
    if alpha is not None:
        loss = alpha[targets] * loss
    return {"mean": torch.mean, "sum": torch.sum, "none": lambda v: v}[reduction](loss)


@gammas
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_s1_multi_class(gamma: float, weighted: bool, reduction: str, device: str) -> None:
    for (x, targets), ignore in ((make_rows(device), -100), (make_masks(device), 255)):
        alpha = torch.rand(5, device=device) + 0.1 if weighted else None
        criterion = focal_cuda.SoftmaxFocalLoss(alpha, gamma, reduction, ignore_index=ignore).to(device)
        weights = None if alpha is None else alpha.double()
        same(
            lambda x, t=targets, f=criterion: f(x, t),
            lambda x, t=targets, i=ignore, w=weights: multi_class(x, t, gamma, w, reduction, i),
            x,
        )


def test_s1_keeps_the_shape(device: str) -> None:
    """The recipe squeezes a single sample to a scalar, and forgets where a mask's values belong."""
    x, targets = make_rows(device, 0.0)
    assert multi_class(x[:1], targets[:1], 2.0, reduction="none").shape == ()
    assert focal_cuda.softmax_focal_loss(x[:1], targets[:1], reduction="none").shape == (1,)
    x, targets = make_masks(device)
    flat = multi_class(x.double(), targets, 2.0, reduction="none", ignore=255)
    ours = focal_cuda.softmax_focal_loss(x, targets, reduction="none", ignore_index=255)
    assert flat.dim() == 1 and ours.shape == targets.shape
    assert_close(ours[targets != 255], flat, loss_bound(flat, x.dtype), "loss")
    assert (ours[targets == 255] == 0).all()


def test_s1_trains_on_when_all_is_ignored(device: str) -> None:
    x, targets = torch.randn(4, 5, device=device, requires_grad=True), torch.full((4,), -100, device=device)
    with pytest.raises(RuntimeError, match="does not require grad"):
        multi_class(x, targets, 2.0).backward()
    loss = focal_cuda.softmax_focal_loss(x, targets)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()


def test_s1_has_a_gradient_below_gamma_1(device: str) -> None:
    """At a sample the model is sure of, the recipe forms inf * 0."""
    x, targets = torch.tensor([[60.0, 0, -60]], device=device), torch.tensor([0], device=device)
    broken(lambda x: multi_class(x, targets, 0.5), x)
    fine(lambda x: focal_cuda.softmax_focal_loss(x, targets, None, 0.5), x)


def test_s1_moves_its_weights(device: str) -> None:
    """alpha, an attribute in the recipe, is a buffer: it moves with the module and is saved with it."""
    criterion = focal_cuda.SoftmaxFocalLoss(torch.rand(5)).to(device)
    assert "alpha" in dict(criterion.named_buffers()) and criterion.alpha.device.type == torch.device(device).type


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_s2_class_weights(beta: float, device: str) -> None:
    rates = torch.tensor([0.7, 0.2, 0.06, 0.04], device=device)

    def recipe(rates: Tensor) -> Tensor:
        weights = 1.0 / rates**beta
        return weights / weights.mean()

    weights = focal_cuda.class_weights(rates, beta)
    assert weights.device == rates.device
    torch.testing.assert_close(weights, recipe(rates))
    torch.testing.assert_close(focal_cuda.class_weights(rates * 1000, beta), recipe(rates))
    # A class that never occurs makes all weights of the recipe useless.
    rates[2] = 0.0
    assert beta == 0 or not recipe(rates).isfinite().all()
    weights = focal_cuda.class_weights(rates, beta)
    assert weights.isfinite().all() and (weights >= 0).all()
    torch.testing.assert_close(weights.mean(), torch.ones_like(weights.mean()))


def test_s11_alpha_from_class_frequencies(device: str) -> None:
    x, targets = make_rows(device, 0.0)
    counts = torch.bincount(targets, minlength=5)
    weights = (1.0 / counts.double()) / (1.0 / counts.double()).mean()
    same(
        lambda x: focal_cuda.softmax_focal_loss(x, targets, focal_cuda.class_weights(counts)),
        lambda x: multi_class(x, targets, 2.0, weights),
        x,
    )


# --- S3, S4: one-vs-all of class labels, with the probability smoothed in the factor ----------------------------------


def one_vs_all(logits: Tensor, targets: Tensor, gamma: float, alpha=0.25, smooth: float = 0.001, ignore=-100) -> Tensor:
    """S3 with S4. A mean over the valid samples and all classes."""
    kept = targets != ignore
    targets, logits = targets[kept], logits[kept, :]
    t = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
    ce = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    p = torch.sigmoid(logits) * (1 - smooth) + smooth / 2
    loss = ce * (1 - (p * t + (1 - p) * (1 - t))) ** gamma
    if alpha is not None and alpha > 0:
        loss = (alpha * t + (1 - alpha) * (1 - t)) * loss
    return loss.mean()


@gammas
@pytest.mark.parametrize("alpha", [0.25, None])
@pytest.mark.parametrize("smooth", [0.001, 0.0], ids=["S4", "S3"])
def test_s3_s4_one_vs_all(gamma: float, alpha: float | None, smooth: float, device: str) -> None:
    x, targets = make_rows(device)
    same(
        lambda x: focal_cuda.sigmoid_focal_loss(x, targets, alpha, gamma, probability_smoothing=smooth),
        lambda x: one_vs_all(x, targets, gamma, alpha, smooth),
        x,
    )


def test_s3_takes_masks_and_weights_of_each_class(device: str) -> None:
    """The recipe documents a tensor alpha and refuses one; it takes nothing but [N, C]."""
    x, targets = make_rows(device)
    alpha = torch.rand(5, device=device)
    with pytest.raises(RuntimeError, match="ambiguous"):
        one_vs_all(x, targets, 2.0, alpha)
    t = F.one_hot(targets[targets >= 0], 5).double()
    weight = alpha.double() * t + (1 - alpha.double()) * (1 - t)

    def weighted(x: Tensor) -> Tensor:
        x = x[targets >= 0]
        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        return (weight * ce * torch.sigmoid(torch.where(t == 1, -x, x)) ** 2).mean()

    same(lambda x: focal_cuda.sigmoid_focal_loss(x, targets, alpha), weighted, x)
    masks, labels = make_masks(device)
    with pytest.raises(IndexError):
        one_vs_all(masks, labels, 2.0, ignore=255)
    same(
        lambda x: focal_cuda.sigmoid_focal_loss(x, labels, ignore_index=255, probability_smoothing=0.001),
        lambda x: one_vs_all(x.movedim(1, -1).reshape(-1, 5), labels.reshape(-1), 2.0, ignore=255),
        masks,
    )


def test_s4_needs_no_smoothing_below_gamma_1(device: str) -> None:
    """What the smoothing is for, a gradient at saturated logits, is there without it, and without its price: a factor
    that does not fall below (s / 2)**gamma, so that easy samples keep 2 % of their weight."""
    x, targets = torch.tensor([[200.0, -200, -200]], device=device), torch.tensor([0], device=device)
    broken(lambda x: one_vs_all(x, targets, 0.5, smooth=0.0), x)
    fine(lambda x: focal_cuda.sigmoid_focal_loss(x, targets, gamma=0.5), x)
    fine(lambda x: focal_cuda.sigmoid_focal_loss(x, targets, gamma=0.5, probability_smoothing=0.001), x)
    easy = torch.tensor([[12.0, -12, -12]], device=device)
    smoothed = focal_cuda.sigmoid_focal_loss(easy, targets, None, 0.5, probability_smoothing=0.001)
    exact = focal_cuda.sigmoid_focal_loss(easy, targets, None, 0.5)
    ce = focal_cuda.sigmoid_focal_loss(easy, targets, None, 0.0)
    assert exact / ce < 0.003 < 0.0005**0.5 < smoothed / ce


# --- S5, S8, S9: from probabilities, with smoothed labels, of the hardest samples -------------------------------------


def of_probabilities(y: Tensor, p: Tensor, gamma: float, alpha: float = 0.25) -> Tensor:
    """S5. For each sample."""
    p = p.clamp(1e-7, 1 - 1e-7)
    return (alpha * (1 - p) ** gamma * -y * p.log()).sum(-1)


def one_hot(labels: Tensor, classes: int = 5) -> Tensor:
    return F.one_hot(labels, classes).double()


@gammas
def test_s5_probabilities(gamma: float, device: str) -> None:
    p, labels = make_probabilities(device)
    y = one_hot(labels)
    for targets in (labels, y.float()):
        same(
            lambda p, t=targets: focal_cuda.softmax_focal_loss(p, t, 0.25, gamma, "none", from_probabilities=True),
            lambda p: of_probabilities(y, p, gamma),
            p,
        )
    soft = torch.rand(60, 5, device=device)
    same(
        lambda p: focal_cuda.softmax_focal_loss(p, soft, 0.25, gamma, "none", from_probabilities=True),
        lambda p: of_probabilities(soft.double(), p, gamma),
        p,
        soft=True,
    )


def test_s5_punishes_negatives_and_hopeless_positives(device: str) -> None:
    """The recipe has the positive term alone, so as a binary loss a sure false alarm costs nothing; and its clipping
    takes the gradient from what is most wrong."""
    p, nothing = torch.tensor([[0.99]], device=device), torch.zeros(1, 1, device=device)
    assert of_probabilities(nothing, p, 2.0) == 0
    loss, grad = gradient(lambda p: focal_cuda.sigmoid_focal_loss(p, nothing, None, from_probabilities=True), p)
    assert loss > 4 and grad > 0
    p, y = torch.tensor([[0.0, 1.0]], device=device), torch.tensor([[1.0, 0.0]], device=device)
    assert (gradient(lambda p: of_probabilities(y, p, 2.0).sum(), p)[1] == 0).all()
    loss, grad = gradient(lambda p: focal_cuda.softmax_focal_loss(p, y, from_probabilities=True), p)
    assert loss.isfinite() and grad[0, 0] < -1e6 and grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
@gammas
def test_s8_label_smoothing(smoothing: float, gamma: float, device: str) -> None:
    x, labels = make_rows(device, 0.0)
    y = one_hot(labels) * (1 - smoothing) + smoothing / 5
    for targets in (labels, one_hot(labels).float()):
        kwargs = {"alpha": 0.25, "gamma": gamma, "reduction": "none", "label_smoothing": smoothing}
        same(
            lambda x, t=targets, k=kwargs: focal_cuda.softmax_focal_loss(x, t, **k),
            lambda x: of_probabilities(y, torch.softmax(x, 1), gamma),
            x,
            soft=True,
        )
        same(
            lambda p, t=targets, k=kwargs: focal_cuda.softmax_focal_loss(p, t, from_probabilities=True, **k),
            lambda p: of_probabilities(y, p, gamma),
            torch.softmax(x, 1),
            soft=True,
        )


def hardest(losses: Tensor, keep_ratio: float) -> Tensor:
    """S9."""
    return losses.topk(int(losses.numel() * keep_ratio)).values.mean()


@pytest.mark.parametrize("keep_ratio", [0.3, 0.75, 1.0])
@gammas
def test_s9_hardest_samples(keep_ratio: float, gamma: float, device: str) -> None:
    p, labels = make_probabilities(device)
    y = one_hot(labels)
    kwargs = {"alpha": 0.25, "gamma": gamma, "ohem_keep_ratio": keep_ratio}
    same(
        lambda p: focal_cuda.softmax_focal_loss(p, labels, from_probabilities=True, **kwargs),
        lambda p: hardest(of_probabilities(y, p, gamma), keep_ratio),
        p,
    )
    same(
        lambda x: focal_cuda.softmax_focal_loss(x, labels, **kwargs),
        lambda x: hardest(0.25 * multi_class(x, labels, gamma, reduction="none"), keep_ratio),
        p.log() * 2,
    )


def test_s9_keeps_one_of_a_few(device: str) -> None:
    """int(3 * 0.3) is 0, and a mean over none is NaN."""
    p, labels = make_probabilities(device)
    p, labels = p[:3], labels[:3]
    losses = of_probabilities(one_hot(labels), p.double(), 2.0)
    assert hardest(losses, 0.3).isnan()
    kwargs = {"alpha": 0.25, "ohem_keep_ratio": 0.3, "from_probabilities": True}
    same(
        lambda p: focal_cuda.softmax_focal_loss(p, labels, **kwargs),
        lambda p: of_probabilities(one_hot(labels), p, 2.0).max(),
        p,
    )


# --- S6: one-hot targets and a list of class weights ------------------------------------------------------------------


def keras(y: Tensor, pred: Tensor, gamma: float, alpha: list[float] | None, from_logits: bool, twice: bool) -> Tensor:
    """S6. twice: as it stands, with a cross entropy that takes the softmax of probabilities."""
    p = F.softmax(pred, -1) if from_logits else pred
    ce = -(y * (F.log_softmax(p, -1) if twice else p.log())).sum(-1)
    factor = (1 - (y * p).sum(-1)) ** gamma
    if alpha is not None:
        factor = factor * (torch.tensor(alpha, dtype=y.dtype, device=y.device) * y).sum(-1)
    return factor * ce


@gammas
def test_s6_one_hot(gamma: float, device: str) -> None:
    x, labels = make_rows(device, 0.0)
    y, alpha = one_hot(labels), [0.1, 0.25, 0.5, 0.75, 1.0]
    for from_logits in (True, False):
        criterion = focal_cuda.SoftmaxFocalLoss(alpha, gamma, "none", from_probabilities=not from_logits).to(device)
        same(
            lambda v, f=criterion: f(v, y.float()),
            lambda v, from_logits=from_logits: keras(y, v, gamma, alpha, from_logits, twice=False),
            x if from_logits else torch.softmax(x, 1),
        )
    # The second softmax leaves a sample that could not be better a loss, and hides one that could not be worse.
    ends = torch.tensor([[80.0, 0, 0, 0, 0], [-80.0, 0, 0, 0, 0]], device=device)
    y = one_hot(torch.zeros(2, dtype=torch.int64, device=device))
    literal = keras(y, ends.double(), 0.0, None, True, twice=True)
    ours = focal_cuda.softmax_focal_loss(ends, y.float(), None, 0.0, "none")
    assert literal[0] > 0.9 and literal[1] < 2
    assert ours[0] < 1e-30 and ours[1] > 80


def test_s6_soft_labels(device: str) -> None:
    """Each class has its own factor, as in Keras's own loss; the recipe has one for all, of the expected p."""
    x, y = make_rows(device)[0], torch.softmax(torch.randn(60, 5, device=device), 1)

    def recipe(x: Tensor) -> Tensor:
        p = torch.softmax(x, 1)
        return -(y.double() * (1 - p) ** 2 * p.log()).sum(-1)

    same(lambda x: focal_cuda.softmax_focal_loss(x, y, reduction="none"), recipe, x, soft=True)


# --- S7, S12: the loss and the first bias of RetinaNet ----------------------------------------------------------------


def test_s7_classes_and_boxes(device: str) -> None:
    """Focal loss of all anchors and smooth L1 of those with an object, both per object; S7 leaves them as stubs."""
    logits, boxes, box_targets = (torch.randn(2, 30, k, device=device) for k in (4, 4, 4))
    labels = torch.randint(0, 5, (2, 30), device=device)  # 4 is background
    labels[:, ::7] = -100
    positive = (labels >= 0) & (labels < 4)
    criterion = focal_cuda.RetinaNetLoss(num_classes=4)

    def classification(x: Tensor) -> Tensor:
        kept = labels >= 0
        t = F.one_hot(labels[kept], 5)[:, :4].double()
        ce = F.binary_cross_entropy_with_logits(x[kept], t, reduction="none")
        factor = torch.sigmoid(torch.where(t == 1, -x[kept], x[kept])) ** 2
        return ((0.25 * t + 0.75 * (1 - t)) * factor * ce).sum() / positive.sum()

    def box(b: Tensor) -> Tensor:
        target = box_targets[positive].to(b.dtype)
        return F.smooth_l1_loss(b[positive], target, beta=1 / 9, reduction="sum") / positive.sum()

    same(lambda x: criterion(x, boxes, labels, box_targets)["classification"], classification, logits)
    loss, grad = gradient(lambda b: criterion(logits, b, labels, box_targets)["box"], boxes)
    expected, expected_grad = gradient(box, boxes)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)
    # An image without objects has a loss, of its anchors, and none of boxes.
    loss = criterion(logits, boxes, torch.full_like(labels, 4), box_targets)
    assert loss["classification"].isfinite() and loss["box"] == 0


def test_s12_first_bias(device: str) -> None:
    """b = -log((1 - pi) / pi): at first every anchor has an object with probability pi."""
    for layer, prior in ((nn.Conv2d(3, 8, 1), 0.01), (nn.Linear(3, 8), 0.2)):
        layer = layer.to(device)
        assert focal_cuda.init_prior_bias_(layer, prior) is layer
        expected = torch.full((8,), -math.log((1 - prior) / prior), device=device)
        torch.testing.assert_close(layer.bias.detach(), expected)
        torch.testing.assert_close(torch.sigmoid(layer.bias.detach()), torch.full((8,), prior, device=device))
    assert torch.sigmoid(focal_cuda.init_prior_bias_(nn.Linear(3, 1)).bias).item() == pytest.approx(0.01)


# --- S10: gamma raised in stages --------------------------------------------------------------------------------------


def test_s10_gamma_in_stages(device: str) -> None:
    x, targets = make_rows(device)
    criterion = focal_cuda.SoftmaxFocalLoss().to(device)
    schedule = focal_cuda.GammaSchedule(criterion, {0: 0.0, 2: 1.0, 4: 2.0})
    for gamma in (0.0, 0.0, 1.0, 1.0, 2.0, 2.0):
        assert float(criterion.gamma) == gamma
        same(lambda x: criterion(x, targets), lambda x, g=gamma: multi_class(x, targets, g), x)
        schedule.step()
    criterion = focal_cuda.SoftmaxFocalLoss().to(device)
    schedule = focal_cuda.GammaSchedule(criterion, {0: 0.0, 4: 2.0}, mode="linear")
    for gamma in (0.0, 0.5, 1.0, 1.5, 2.0, 2.0):
        assert float(criterion.gamma) == pytest.approx(gamma)
        schedule.step()


def test_s10_goes_on_where_it_was_saved(device: str) -> None:
    stages = {0: 0.0, 2: 1.0, 4: 2.0}
    first = focal_cuda.GammaSchedule(focal_cuda.SoftmaxFocalLoss().to(device), stages)
    for _ in range(3):
        first.step()
    criterion = focal_cuda.SoftmaxFocalLoss().to(device)
    second = focal_cuda.GammaSchedule(criterion, stages)
    second.load_state_dict(first.state_dict())
    assert float(criterion.gamma) == 1.0
    second.step()
    assert float(criterion.gamma) == 2.0


# --- S13: binary, from logits or probabilities ------------------------------------------------------------------------


def binary(
    inputs: Tensor, t: Tensor, gamma: float, alpha: float = 1.0, logits: bool = False, reduce: bool = True
) -> Tensor:
    """S13. p_t as exp(-BCE), one alpha for both outcomes."""
    of = F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy
    ce = of(inputs, t, reduction="none")
    loss = alpha * (1 - torch.exp(-ce)) ** gamma * ce
    return loss.mean() if reduce else loss


@gammas
@pytest.mark.parametrize("logits", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("reduce", [True, False], ids=["mean", "none"])
def test_s13_binary(gamma: float, logits: bool, reduce: bool, device: str) -> None:
    reduction = "mean" if reduce else "none"
    for size in ((60,), (60, 1), (12, 5)):
        x, t = torch.randn(size, device=device), (torch.rand(size) < 0.3).float().to(device)
        for factor in (1.0, 0.6):
            same(
                lambda v, t=t, a=factor: (
                    a * focal_cuda.sigmoid_focal_loss(v, t, None, gamma, reduction, from_probabilities=not logits)
                ),
                lambda v, t=t, a=factor: binary(v, t.double(), gamma, a, logits, reduce),
                x if logits else torch.sigmoid(x),
            )


def test_s13_has_a_gradient_below_gamma_1(device: str) -> None:
    """At a sample that could not be better exp(-BCE) is 1, and the recipe forms inf * 0."""
    t = torch.tensor([1.0, 0.0], device=device)
    for values, logits in ((torch.tensor([60.0, -120.0], device=device), True), (t, False)):
        broken(lambda v, logits=logits: binary(v, t, 0.5, logits=logits), values)
        fine(lambda v, p=not logits: focal_cuda.sigmoid_focal_loss(v, t, None, 0.5, from_probabilities=p), values)


# --- S14: softmax, then its logarithm ---------------------------------------------------------------------------------


def softmax_then_log(x: Tensor, targets: Tensor, gamma: float, alpha: Tensor, mean: bool = True) -> Tensor:
    """S14. alpha is [C, 1]."""
    mask = torch.zeros_like(x).scatter_(1, targets.view(-1, 1), 1.0)
    p = (F.softmax(x, 1) * mask).sum(1).view(-1, 1)
    loss = -alpha[targets.view(-1)] * (1 - p) ** gamma * p.log()
    return loss.mean() if mean else loss.sum()


@gammas
@pytest.mark.parametrize("size_average", [True, False])
def test_s14_softmax_then_log(gamma: float, size_average: bool, device: str) -> None:
    x, targets = make_rows(device, 0.0)
    reduction = "mean" if size_average else "sum"
    for alpha in (None, torch.rand(5, device=device) + 0.1):
        column = torch.ones(5, 1, device=device) if alpha is None else alpha.view(-1, 1)
        same(
            lambda x, a=alpha: focal_cuda.softmax_focal_loss(x, targets, a, gamma, reduction),
            lambda x, a=column: softmax_then_log(x, targets, gamma, a.double(), size_average),
            x,
        )


def test_s14_at_a_gap_of_120(device: str) -> None:
    """There p underflows, its logarithm is -inf and the gradient NaN; ours is what float64 says."""
    x, targets = torch.tensor([[0.0, 120.0, -3.0]], device=device), torch.tensor([0], device=device)
    broken(lambda x: softmax_then_log(x, targets, 2.0, torch.ones(3, 1, device=device)), x)
    same(lambda x: focal_cuda.softmax_focal_loss(x, targets), lambda x: multi_class(x, targets, 2.0), x)


def test_s14_weighs_each_sample_once(device: str) -> None:
    """A plain [C] of weights, which the recipe asks for, it broadcasts to a table of every sample by every other."""
    x, targets = make_rows(device, 0.0)
    alpha = torch.tensor([0.1, 0.2, 5.0, 0.4, 0.5], device=device)
    literal = softmax_then_log(x.double(), targets, 2.0, alpha.double(), mean=False)
    ours = focal_cuda.softmax_focal_loss(x, targets, alpha, reduction="sum")
    assert literal > 10 * ours


# --- S15, S16: in the place of cross entropy --------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_s15_gamma_0_is_cross_entropy(reduction: str, device: str) -> None:
    for (x, targets), ignore in ((make_rows(device), -100), (make_masks(device), 255)):
        kwargs = {"reduction": reduction, "ignore_index": ignore}
        for alpha in (None, 1.0):
            same(
                lambda x, t=targets, k=kwargs, a=alpha: focal_cuda.softmax_focal_loss(x, t, a, 0.0, **k),
                lambda x, t=targets, k=kwargs: F.cross_entropy(x, t, **k),
                x,
            )
        same(
            lambda x, t=targets, k=kwargs: focal_cuda.softmax_focal_loss(x, t, None, 0.0, **k),
            lambda x, t=targets, k=kwargs: F.nll_loss(torch.log(F.softmax(x, 1)), t, **k),
            x,
        )


@gammas
def test_s16_trains_like_cross_entropy(gamma: float, device: str) -> None:
    """One line changes: the criterion. The model's gradients are those of the formula."""
    model, images = nn.Conv2d(3, 5, 3, padding=1).to(device), torch.randn(2, 3, 6, 7, device=device)
    targets = make_masks(device)[1]
    for criterion in (
        nn.CrossEntropyLoss(ignore_index=255),
        focal_cuda.SoftmaxFocalLoss(gamma=gamma, ignore_index=255),
    ):
        model.zero_grad()
        loss = criterion(model(images), targets)
        loss.backward()
        assert loss.shape == () and loss.item() > 0 and all(p.grad.abs().sum() > 0 for p in model.parameters())
    x = model(images).detach()
    same(lambda x: criterion(x, targets), lambda x: multi_class(x, targets, gamma, ignore=255), x)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_s16_takes_what_cross_entropy_takes(reduction: str, device: str) -> None:
    """Rows, masks and volumes; class probabilities; smoothed labels: by the arguments' own names."""
    for size in ((9, 4), (3, 4, 5), (2, 4, 3, 5), (2, 4, 3, 2, 5)):
        x = torch.randn(size, device=device)
        labels = torch.randint(0, 4, size[:1] + size[2:], device=device)
        labels.view(-1)[::5] = 255
        soft = torch.softmax(torch.randn(size, device=device), 1)
        for targets, smoothing in ((labels, 0.0), (labels, 0.1), (soft, 0.0), (soft, 0.1)):
            kwargs = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": 255}
            criterion = focal_cuda.SoftmaxFocalLoss(gamma=0.0, **kwargs)
            theirs = (
                nn.CrossEntropyLoss(**kwargs)
                if targets is labels
                else nn.CrossEntropyLoss(**kwargs | {"ignore_index": -100})
            )
            same(
                lambda x, f=criterion, t=targets: f(x, t),
                lambda x, f=theirs, t=targets: f(x, t.double() if t.is_floating_point() else t),
                x,
                soft=True,
            )
