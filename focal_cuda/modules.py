"""The losses as modules: their options once, tensors among them as buffers that move and save with the model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _values, _weights, functional, variants

__all__ = [
    "AsymmetricLoss",
    "GaussianFocalLoss",
    "NormalizedFocalLoss",
    "PolyFocalLoss",
    "QualityFocalLoss",
    "ReducedFocalLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
]

Alpha = float | Tensor | Sequence[float] | None

# What a call gives, as logits and targets are.
_OF_A_CALL = ("scores", "sample_weight", "mask", "normalizer")

# What other losses call an argument.
_ELSEWHERE = {
    "weight": "alpha", "class_weight": "alpha", "class_weights": "alpha", "smoothing": "label_smoothing",
    "ignore_label": "ignore_index", "size_average": "reduction", "dim": "class_dim", "axis": "class_dim",
    "avg_factor": "normalizer",
}  # fmt: skip


class _FocalLoss(nn.Module):
    """Keeps the arguments of ``function`` that stay the same from call to call, and calls it.

    Tensors, and sequences of numbers, become buffers: a number for each class, or a gamma that a schedule fills.
    """

    function = None

    def __init_subclass__(cls) -> None:
        # Positional and keyword arguments as the function has them, less those of a call.
        signature = inspect.signature(cls.function)
        kept = [p for name, p in signature.parameters.items() if name not in ("logits", "targets", *_OF_A_CALL)]
        if "normalizer" in signature.parameters:
            kept.append(signature.parameters["normalizer"])
        cls.__signature__ = signature.replace(parameters=kept, return_annotation=None)
        cls.function = staticmethod(cls.function)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        op = type(self).__name__
        arguments = _bound(op, self.__signature__, args, kwargs)
        shares = self.function is functional.sigmoid_focal_loss or arguments.get("activation") == "sigmoid"
        for name, value in arguments.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                value = torch.tensor(value, dtype=torch.get_default_dtype())
            if isinstance(value, Tensor):
                if value.dim() > 1:
                    raise ValueError(
                        f"{op}: expected {name} with one number, or one for each class, got shape {list(value.shape)}; "
                        f"logits and targets are for the call: {op}()(logits, targets)."
                    )
                if _values.on_cpu(value):  # on a GPU no call looks at them
                    _weights.check_class_numbers(op, name, value, shares and name == "alpha")
                self.register_buffer(name, value.detach().clone())
            else:
                setattr(self, name, value)

    def forward(self, logits: Tensor, targets: Tensor, *args: Tensor, **kwargs: object) -> Tensor:
        """The loss of logits. Further arguments: ``scores`` where the loss has them, by position or by name;
        ``sample_weight``, ``mask`` and ``normalizer`` by name. A normalizer takes the place of the module's for this
        call.
        """
        unknown = [name for name in kwargs if name not in _OF_A_CALL]
        if unknown:
            raise TypeError(
                f"{type(self).__name__}: expected sample_weight, mask, normalizer or scores in a call, got "
                f"{unknown[0]}; pass it to the constructor."
            )
        kept = {name: getattr(self, name) for name in self.__signature__.parameters}
        return type(self).function(logits, targets, *args, **{**kept, **kwargs})

    def extra_repr(self) -> str:
        """What is not as the function has it by default, and always its positional arguments."""
        shown = []
        for name, parameter in self.__signature__.parameters.items():
            value = getattr(self, name)
            always = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            if isinstance(value, Tensor):
                shown.append(f"{name}={f'tensor({list(value.shape)})' if value.dim() else f'tensor({value.item():g})'}")
            elif always or value != parameter.default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


def _bound(op: str, signature: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        known = signature.parameters
        unknown = [name for name in kwargs if name not in known]
        if not unknown:
            raise TypeError(
                f"{op}: expected arguments of {', '.join(known)}, got others: {error}; see help()."
            ) from None
        here = _ELSEWHERE.get(unknown[0], "")
        if unknown[0] in (*_OF_A_CALL, "logits", "targets"):
            remedy = "give it when you call the module"
        else:
            remedy = f"that is {here} here" if here in known else "see help()"
        raise TypeError(f"{op}: expected arguments of {', '.join(known)}, got {unknown[0]}; {remedy}.") from None
    bound.apply_defaults()
    return bound.arguments


class SigmoidFocalLoss(_FocalLoss):
    """:func:`focal_cuda.sigmoid_focal_loss` with its options kept; alpha, gamma and pos_weight may be sequences.

    ``SigmoidFocalLoss(reduction="sum", normalizer="positives")(logits, targets)`` is the loss of RetinaNet.
    """

    function = functional.sigmoid_focal_loss


class SoftmaxFocalLoss(_FocalLoss):
    """:func:`focal_cuda.softmax_focal_loss` with its options kept; alpha and gamma may be sequences.

    ``SoftmaxFocalLoss(ignore_index=255)(logits, masks)`` takes the place of ``nn.CrossEntropyLoss(ignore_index=255)``.
    """

    function = functional.softmax_focal_loss


class QualityFocalLoss(_FocalLoss):
    """:func:`focal_cuda.quality_focal_loss` with its options kept: ``loss(logits, labels, scores)``."""

    function = variants.quality_focal_loss


class VarifocalLoss(_FocalLoss):
    """:func:`focal_cuda.varifocal_loss` with its options kept: ``loss(logits, labels, scores)``."""

    function = variants.varifocal_loss


class GaussianFocalLoss(_FocalLoss):
    """:func:`focal_cuda.gaussian_focal_loss` with its options kept.

    ``GaussianFocalLoss(reduction="sum", normalizer="positives")(logits, heat_maps)`` is the loss of CenterNet.
    """

    function = variants.gaussian_focal_loss


class AsymmetricLoss(_FocalLoss):
    """:func:`focal_cuda.asymmetric_loss` with its options kept."""

    function = variants.asymmetric_loss


class PolyFocalLoss(_FocalLoss):
    """:func:`focal_cuda.poly_focal_loss` with its options kept."""

    function = variants.poly_focal_loss


class ReducedFocalLoss(_FocalLoss):
    """:func:`focal_cuda.reduced_focal_loss` with its options kept."""

    function = variants.reduced_focal_loss


class NormalizedFocalLoss(_FocalLoss):
    """:func:`focal_cuda.normalized_focal_loss` with its options kept."""

    function = variants.normalized_focal_loss
