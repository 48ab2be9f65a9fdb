"""What the adapters share: the checks, the dtypes and the denominators of the libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import _arguments, _values

# No label: the ignore_index of libraries that ignore none.
NOTHING = -(2**62)


def check_dense(op: str, inputs: Tensor, targets: Tensor, floating: bool = False, rank: int = 0) -> None:
    """Targets of the logits' shape, which has at least `rank` dimensions; floating: as F.binary_cross_entropy asks."""
    _arguments.check_tensors(op, inputs, targets)
    if targets.shape != inputs.shape:
        raise ValueError(
            f"{op}: expected targets of the logits' shape {list(inputs.shape)}, got {list(targets.shape)}; nothing is "
            "broadcast: reshape them, or make class indices one-hot."
        )
    if floating and not targets.is_floating_point():
        raise TypeError(f"{op}: expected floating targets, got {targets.dtype}; convert them: targets.float().")
    if inputs.dim() < rank:
        raise ValueError(
            f"{op}: expected logits of at least {rank} dimensions, got {list(inputs.shape)}; add the missing ones."
        )


def check_indices(op: str, inputs: Tensor, targets: Tensor) -> None:
    """Class indices, where this project's own losses would take dense targets as well."""
    _arguments.check_tensors(op, inputs, targets)
    if targets.dim() >= inputs.dim():
        raise ValueError(
            f"{op}: expected class index targets, of the logits' shape {list(inputs.shape)} without the classes, got "
            f"{list(targets.shape)}; squeeze them, or take argmax of one-hot ones."
        )


def check_rows(op: str, inputs: Tensor, targets: Tensor) -> None:
    """Logits [N, C] and class indices [N]."""
    _arguments.check_tensors(op, inputs, targets)
    if inputs.dim() != 2 or targets.shape != inputs.shape[:1]:
        raise ValueError(
            f"{op}: expected logits [N, C] and class index targets [N], got {list(inputs.shape)} and "
            f"{list(targets.shape)}; flatten the positions."
        )


def check_choice(op: str, name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(
            f"{op}: expected {name} to be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got {value!r}; "
            "choose one of them."
        )


def check_sigmoid(op: str, use_sigmoid: object) -> None:
    if use_sigmoid is not True:
        raise ValueError(
            f"{op}: expected use_sigmoid=True, the only form there is, got {use_sigmoid!r}; "
            "use focal_cuda.SoftmaxFocalLoss for softmax."
        )


def check_class_weight(op: str, name: str, weight: object, classes: int) -> None:
    if weight is not None and (not isinstance(weight, Tensor) or weight.shape != (classes,)):
        got = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{op}: expected {name} to be a tensor [{classes}], got {got}; pass one number per class.")


def keep(module: nn.Module, name: str, value: object, persistent: bool = False) -> None:
    """A tensor as a buffer, which moves with the module, a parameter as it is; all else, None too, as what is found
    sooner: a plain attribute."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value, persistent=persistent)
    else:
        setattr(module, name, value)


def number(value: object) -> object:
    """A number in the place of a tensor that holds one."""
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


def alpha_or_none(alpha: object) -> object:
    """Of libraries for which a negative alpha is none."""
    alpha = number(alpha)
    return None if isinstance(alpha, (int, float)) and alpha < 0 else alpha


def logits_of(probabilities: Tensor) -> Tensor:
    """Finite ones: a probability of 1 is taken for the number before it, one below 1e-12 for that."""
    p = probabilities.to(_arguments.computing_dtype(probabilities))
    return torch.logit(p.clamp(1e-12, 1 - torch.finfo(p.dtype).eps / 2))


def over(reduction: str, count: int) -> dict[str, object]:
    """A mean that divides by `count`, whatever is ignored; other reductions as they are."""
    return {"reduction": "sum", "normalizer": max(count, 1)} if reduction == "mean" else {"reduction": reduction}


def in_dtype(loss: Tensor, *operands: object) -> Tensor:
    """The loss in the dtype of the tensors a library would multiply; autocast has all of them return float32."""
    dtype = operands[0].dtype
    for operand in operands[1:]:
        if isinstance(operand, Tensor) and operand.dtype != dtype:
            dtype = torch.promote_types(dtype, operand.dtype)
    if loss.dtype == dtype or torch.is_autocast_enabled(loss.device.type):
        return loss
    return loss.to(dtype)


def along_classes(weight: Tensor | None, logits: Tensor) -> Tensor | None:
    """A number for each class of dim 1, as a weight of elements."""
    return None if weight is None else weight.view(1, -1, *(1,) * (logits.dim() - 2))


def product(*factors: Tensor | float | None) -> Tensor | float | None:
    """Of what there is."""
    result = None
    for factor in factors:
        if factor is not None:
            result = factor if result is None else result * factor
    return result


def background_alpha(alpha: float | None, logits: Tensor, weight: Tensor | None = None) -> Tensor | float | None:
    """[1 - alpha, alpha, alpha, ...] by class of dim 1, the first one being background, times a weight of the class."""
    if alpha is None:
        return weight
    return product(constant(logits, first_and_rest, 1 - alpha, alpha, logits.shape[1]), weight)


def first_and_rest(first: float, rest: float, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    vector = torch.full((count,), rest, dtype=dtype, device=device)
    vector[:1] = first
    return vector


def constant(logits: Tensor, make: Callable[..., Tensor], *numbers: object) -> Tensor:
    """make(*numbers, dtype, device) for these logits; on the CPU made once, since a tensor costs a small call 5 us and
    more. What is traced, or runs in a stream, gets its own."""
    key = (make, *numbers, _arguments.computing_dtype(logits), logits.device)
    if type(logits) not in (Tensor, nn.Parameter) or not _values.on_cpu(logits):
        return make(*key[1:])
    made = _CONSTANTS.get(key)
    if made is None:
        with torch.inference_mode(False):  # whose tensors later calls could not save for their backward
            made = make(*key[1:])
        if type(made) is Tensor and len(_CONSTANTS) < 100:
            _CONSTANTS[key] = made
    return made


def filled(shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, value, dtype=dtype, device=device)


_CONSTANTS: dict[tuple, Tensor] = {}


def where_refused(call: Callable[[Tensor], Tensor], labels: Tensor, mapped: Callable[[Tensor], Tensor]) -> Tensor:
    """The loss of labels, and of mapped ones where some are out of range: if the CPU, which looks, says so, or nobody
    looks in time."""
    if _values.on_cpu(labels):
        try:
            return call(labels)
        except IndexError:
            pass
    return call(mapped(labels))


def spread(losses: Tensor, targets: Tensor, logits: Tensor) -> Tensor:
    """Losses of positions at the class of each in a map of the logits' shape, which is 0 elsewhere."""
    at = targets.long().clamp(0, logits.shape[1] - 1).unsqueeze(1)  # an ignored label is out of range, and its loss 0
    return losses.new_zeros(logits.shape).scatter_(1, at, losses.unsqueeze(1))
