"""What a dense detector needs around the focal loss: its whole loss, and the bias its training starts from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._arguments import check_number
from .modules import Alpha, SigmoidFocalLoss
from .weighting import as_numbers

__all__ = ["RetinaNetLoss", "init_prior_bias_"]

Layer = TypeVar("Layer", bound=nn.Module)


class RetinaNetLoss(nn.Module):
    r"""The loss of RetinaNet: focal loss of the classes, smooth L1 of the positive anchors' boxes.

    .. math:: L_{cls} = \frac{1}{N} \sum_{\text{anchors, classes}} FL(x, t), \quad
        L_{box} = \frac{w}{N} \sum_{\text{positive anchors}} \mathrm{smooth}_{L1}(b - \hat b), \quad
        N = \max(1, \text{number of positive anchors})

    Args:
        num_classes: C, the classes without background.
        alpha: as for :func:`focal_cuda.sigmoid_focal_loss`; also a sequence of C floats.
        gamma: as for :func:`focal_cuda.sigmoid_focal_loss`.
        beta: >= 0: where smooth L1 turns from a parabola into a line; 0 is L1.
        box_weight: >= 0: w, a factor of the box loss.
        sync_positives: N is the mean over the processes of ``torch.distributed``, where that is initialised, so that
            the gradients it averages are those of one process with all the images. Every process must make the same
            calls then; False, for example to evaluate on one of them alone, divides by the process's own count.
        options: ``background_index`` (C by default), ``ignore_index`` (-100), ``gradient``, ``validate`` and what else
            :class:`focal_cuda.SigmoidFocalLoss` takes; it is the submodule ``classification``.

    Call:
        ``class_logits [B, A, C]``, ``box_pred [B, A, 4]``, ``class_targets [B, A]`` (any integer dtype: the class of a
        positive anchor, background_index, or ignore_index) and ``box_targets [B, A, 4]``, of which only those of
        positive anchors are looked at; any leading dimensions in the place of ``B, A``.

    Returns:
        ``{"classification": ..., "box": ...}``: float32 scalars (float64 for float64), to be added. Without a positive
        anchor the box loss is 0, with zero gradient.

    Raises:
        TypeError: something is no tensor or number, or has a dtype of another kind.
        ValueError: a shape, device or value is out of place.
        IndexError: a class label is out of range.

    Numerics: as :func:`focal_cuda.sigmoid_focal_loss`; boxes of half types are subtracted and summed in float32. Boxes
    that are not positive anchors' get a gradient of exactly 0, even where they or their targets are NaN.

    Cost: one pass over the logits, a few over the boxes; nothing waits for the device. One integer is reduced over the
    processes.

    Equivalent to::

        positive = class_targets < C                           # nothing ignored
        n = positive.sum().clamp(min=1)
        t = F.one_hot(class_targets, C + 1)[..., :C].to(class_logits)
        classification = torchvision.ops.sigmoid_focal_loss(class_logits, t, alpha, gamma, "sum") / n
        box = F.smooth_l1_loss(box_pred[positive], box_targets[positive], reduction="sum", beta=beta) / n

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; beta as in detectron2, N over the processes as in
    Carion et al., End-to-End Object Detection with Transformers, 2020.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        beta: float = 1 / 9,
        box_weight: float = 1.0,
        *,
        sync_positives: bool = True,
        **options,
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise TypeError(
                f"RetinaNetLoss: expected num_classes to be an int, got {type(num_classes).__name__}; "
                "pass the number of classes without background."
            )
        if num_classes < 1:
            raise ValueError(
                f"RetinaNetLoss: expected num_classes >= 1, got {num_classes}; "
                "pass the number of classes without background."
            )
        self.num_classes = num_classes
        self.beta = check_number("RetinaNetLoss", "beta", beta, 0.0, math.inf, "0 is the L1 loss")
        self.box_weight = check_number("RetinaNetLoss", "box_weight", box_weight, 0.0, math.inf, "0 leaves boxes out")
        self.sync_positives = sync_positives
        self.classification = SigmoidFocalLoss(alpha, gamma, "sum", class_dim=-1, normalizer=None, **options)

    def forward(
        self, class_logits: Tensor, box_pred: Tensor, class_targets: Tensor, box_targets: Tensor
    ) -> dict[str, Tensor]:
        """The two losses; see the class."""
        self._check(class_logits, box_pred, class_targets, box_targets)
        positive = self._positive(class_targets)
        positives = self._count(positive)
        classification = self.classification(class_logits, class_targets, normalizer=positives)
        dtype = torch.promote_types(box_pred.dtype, torch.float32)
        # Chosen, not multiplied or indexed: 0 * NaN is NaN, and the number of positives is known to the device alone.
        error = torch.where(positive.unsqueeze(-1), box_pred.to(dtype) - box_targets.to(dtype), 0.0)
        box = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=self.beta)
        return {"classification": classification, "box": self.box_weight * box / positives}

    def _positive(self, class_targets: Tensor) -> Tensor:
        labels = class_targets.long()  # uint8 would be compared with 156 in the place of -100
        background = self.classification.background_index
        background = self.num_classes if background is None else background
        return (labels != background) & (labels != self.classification.ignore_index)

    def _count(self, positive: Tensor) -> Tensor:
        count = positive.sum()
        if self.sync_positives and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.to(torch.float32).clamp(min=1)

    def _check(self, class_logits: Tensor, box_pred: Tensor, class_targets: Tensor, box_targets: Tensor) -> None:
        given = {
            "class_logits": class_logits,
            "box_pred": box_pred,
            "class_targets": class_targets,
            "box_targets": box_targets,
        }
        for name, value in given.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"RetinaNetLoss: expected {name} to be a tensor, got {type(value).__name__}; "
                    "concatenate the levels of the pyramid and stack the images."
                )
        anchors = list(class_targets.shape)
        expected = {
            "class_logits": [*anchors, self.num_classes],
            "box_pred": [*anchors, 4],
            "class_targets": anchors,
            "box_targets": [*anchors, 4],
        }
        for name, value in given.items():
            if list(value.shape) != expected[name]:
                raise ValueError(
                    f"RetinaNetLoss: expected {name} of shape {expected[name]} (class_targets have {anchors}, the loss "
                    f"{self.num_classes} classes), got {list(value.shape)}; bring classes and coordinates to the end."
                )

    def extra_repr(self) -> str:
        shown = f"num_classes={self.num_classes}, beta={self.beta:g}, box_weight={self.box_weight:g}"
        return shown if self.sync_positives else f"{shown}, sync_positives=False"


def init_prior_bias_(layer: Layer, prior: float | Tensor | Sequence[float] = 0.01) -> Layer:
    r"""Sets a layer's bias so that the sigmoid of its outputs starts at a prior, in place.

    .. math:: b = -\log \frac{1 - \pi}{\pi}

    Without it, a hundred thousand easy negatives start at p = 0.5, and their loss drowns the rare positives'.

    Args:
        layer: ``nn.Linear``, ``nn.Conv2d`` or anything with a parameter ``bias``: the last layer of the classes. Its
            weight is left as it is; RetinaNet draws it from a normal distribution of standard deviation 0.01.
        prior: pi, in (0, 1): a number, or C of them, one for each class. With C priors the bias may have A * C
            elements, the classes of the first anchor before those of the second: ``[A, C]``, as in RetinaNet's head.

    Returns:
        The layer.

    Raises:
        TypeError: prior is no number.
        ValueError: the layer has no bias, a prior is not in (0, 1), or there are too many or too few of them.

    Cost: for the setup of a training: it reads the priors, and so waits for their device.

    Equivalent to::

        nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4.1.
    """
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, nn.Parameter) or is_lazy(bias):
        inside = isinstance(layer, nn.Module) and next(layer.children(), None) is not None
        remedy = "pass the last layer in it" if inside else "make it with bias=True, and run a lazy layer once before"
        raise ValueError(
            f"init_prior_bias_: expected a layer with a parameter named bias, got {type(layer).__name__} without; "
            f"{remedy}."
        )
    priors = as_numbers("init_prior_bias_", "prior", prior)
    if priors.dim() > 1 or not priors.numel() or bias.numel() % priors.numel():
        raise ValueError(
            f"init_prior_bias_: expected one prior, or C of them for a bias of A * C elements, got "
            f"{list(priors.shape)} for {bias.numel()}; pass one per class."
        )
    if not bool(((priors > 0) & (priors < 1)).all()):
        raise ValueError(
            f"init_prior_bias_: expected prior in (0, 1), got {prior}; RetinaNet's is 0.01, the share of positives."
        )
    with torch.no_grad():
        bias.copy_(torch.logit(priors).reshape(-1).repeat(bias.numel() // priors.numel()).view_as(bias))
    return layer
