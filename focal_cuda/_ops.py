"""Everything between the public functions and the compiled operators: loading them, their shapes for tracing
(fakes), and their gradients. The one place that knows autograd; it knows no formula and checks no argument.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from . import _remedy, reference

NO_BACKGROUND = -(2**63)
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "positives": 3}


def _load() -> None:
    if _remedy.is_too_old(torch.__version__):
        raise ImportError(
            f"focal_cuda: expected torch >= {_remedy.MINIMUM_TORCH_TEXT}, got {torch.__version__}; upgrade torch. "
            f"{_remedy.ASK_THE_DOCTOR}"
        )
    remedy = f"{_remedy.rebuild(torch.__version__)} {_remedy.ASK_THE_DOCTOR}"
    try:
        from . import _C  # noqa: F401  importing it registers the operators
    except ImportError as error:
        raise ImportError(f"focal_cuda: its extension focal_cuda._C did not load ({error}). {remedy}") from error
    cuda_library = Path(__file__).with_name("_C_cuda.so")
    if torch.version.cuda is not None and cuda_library.exists():
        try:
            torch.ops.load_library(str(cuda_library))
        except OSError as error:
            raise ImportError(f"focal_cuda: its CUDA kernels did not load ({error}). {remedy}") from error


_load()


def is_available(device: str) -> bool:
    """Whether this build has kernels for a type of device ("cpu", "cuda")."""
    return device in DEVICES


def build_info() -> dict[str, object]:
    """How the package was built and what it runs on: versions, CUDA, the CPU instruction set in use."""
    from . import _C

    return {**_C.build_info(), "cpu_capability": _C.cpu_capability(), "torch": torch.__version__}


class Family(NamedTuple):
    """The operators of one activation."""

    forward: torch._ops.OpOverload
    inplace: torch._ops.OpOverload
    backward: torch._ops.OpOverload


FAMILIES = {
    name: Family(
        getattr(torch.ops.focal_cuda, name).default,
        getattr(torch.ops.focal_cuda, f"{name}_inplace").default,
        getattr(torch.ops.focal_cuda, f"{name}_backward").default,
    )
    for name in ("sigmoid_focal_loss", "softmax_focal_loss")
}


# Where a loss can be computed; "meta" is shapes alone.
DEVICES = {"cpu", "meta"} | {
    key.lower()
    for key in ("CUDA",)
    if torch._C._dispatch_has_kernel_for_dispatch_key("focal_cuda::softmax_focal_loss", key)
}


class Parts(NamedTuple):
    """The tensors of a call besides logits and targets, in the order of the operators' schemas; None where absent."""

    weights: Tensor | None = None
    gamma: Tensor | None = None
    sample_weight: Tensor | None = None
    scores: Tensor | None = None


NO_PARTS = Parts()


class Numbers(NamedTuple):
    """The plain numbers of a call, in the order of the operators' schemas."""

    positive_weight: float
    negative_weight: float
    gamma: float
    smoothing: float
    loss: int
    first: float
    second: float
    third: float
    fourth: float
    class_dim: int
    ignore_index: int
    background_index: int
    reduction: int


class Call(NamedTuple):
    """What a call consists of besides its tensors."""

    name: str  # of the public function
    family: str  # of the operators
    oracle: str  # the same loss in reference
    policy: str  # "forward", "backward" or "inplace"
    scale: float
    numbers: Numbers
    options: dict  # the caller's arguments of the composite

    def composite_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same loss out of torch operations, differentiable any number of times."""
        with torch.autocast(logits.device.type, enabled=False):
            return getattr(reference, self.oracle)(logits, targets, **self.options, dtype=None)


def _fake_outputs(family: str, logits: Tensor, targets: Tensor, dim: int, reduction: int) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape: tuple = ()
    if reduction == REDUCTIONS["none"]:
        shape = logits.shape if family.startswith("sigmoid") else logits.shape[:dim] + logits.shape[dim + 1 :]
    return logits.new_empty(shape, dtype=dtype), logits.new_empty((), dtype=torch.float64)


def _register_fakes(name: str) -> None:
    def forward(logits, targets, weights, gamma, sample, scores, normalizer, scale, *numbers_and_gradient):
        *numbers, gradient = numbers_and_gradient
        outputs = inplace(logits, targets, weights, gamma, sample, scores, normalizer, scale, *numbers)
        return (*outputs, torch.empty_like(logits) if gradient else logits.new_empty((0,)))

    def inplace(logits, targets, weights, gamma, sample, scores, normalizer, scale, *numbers):
        told = Numbers(*numbers)
        return _fake_outputs(name, logits, targets, told.class_dim, told.reduction)

    def backward(*_arguments) -> None:
        return None

    torch.library.register_fake(f"focal_cuda::{name}", forward)
    torch.library.register_fake(f"focal_cuda::{name}_inplace", inplace)
    torch.library.register_fake(f"focal_cuda::{name}_backward", backward)


for _name in FAMILIES:
    _register_fakes(_name)
torch.library.register_fake("focal_cuda::scale_", lambda gradient, factor: None)
torch.library.register_fake(
    "focal_cuda::margin_probe", lambda margin, gamma: (torch.empty_like(margin), torch.empty_like(margin))
)


def _second_order(call: Call, grad_loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient as a differentiable function of the logits and of the upstream gradient."""
    if call.policy == "inplace":
        raise RuntimeError(
            f'{call.name}: expected a single first-order backward with gradient="inplace", got create_graph=True, '
            'but the logits are overwritten; use gradient="auto".'
        )
    with torch.enable_grad():
        loss = call.composite_loss(logits, targets)
        return torch.autograd.grad(loss, logits, grad_loss, create_graph=True)[0]


def _batched(call: Call, grad_loss: Tensor, logits: Tensor, targets: Tensor, applied: Tensor, *parts: Tensor) -> Tensor:
    """The gradient for upstream gradients under vmap (is_grads_batched): it is linear in them."""
    computing = torch.float64 if logits.dtype == torch.float64 else torch.float32
    total = call.numbers._replace(reduction=REDUCTIONS["sum"])
    logits_, family = logits.detach().to(computing), FAMILIES[call.family]
    unit = family.forward(logits_, targets, *parts, None, 1.0, *total, True)[2]
    unreduced = call.numbers.reduction == REDUCTIONS["none"]
    if grad_loss.dim() == logits.dim() - 1 and unreduced:
        grad_loss = grad_loss.unsqueeze(call.numbers.class_dim)
    return (unit * (grad_loss if unreduced else applied * grad_loss)).to(logits.dtype)


_NO_GRADIENTS = (None,) * 7  # targets, the parts, normalizer, call


class FocalFunction(torch.autograd.Function):
    """Ties forward and backward operators together, under the gradient policies of the public functions.

    "forward": the gradient for an upstream of 1 is made with the loss. It is kept as a plain attribute and handed out
    by the first backward as the only reference to it, so that autograd takes it over instead of copying it. The
    backward operator returns at once if the upstream is 1, and otherwise makes the gradient again in that memory.
    "backward": made by the backward, and by any backward after the first.
    "inplace": as "forward", in the memory of the logits. Their version counter moves, so a node that saved them
    raises instead of computing with a gradient.
    """

    @staticmethod
    def forward(ctx, logits, targets, weights, gamma, sample_weight, scores, normalizer, call):
        family = FAMILIES[call.family]
        parts = (weights, gamma, sample_weight, scores)
        ctx.call = call
        ctx.gradient = None
        if call.policy == "inplace":
            loss, applied = family.inplace(logits, targets, *parts, normalizer, call.scale, *call.numbers)
            increment_version(logits)
            ctx.spent = False
        else:
            made = call.policy == "forward"
            loss, applied, gradient = family.forward(
                logits, targets, *parts, normalizer, call.scale, *call.numbers, made
            )
            if made:
                ctx.gradient = gradient
        ctx.save_for_backward(logits, targets, applied, *parts)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        call = ctx.call
        batched = is_batched(grad_loss)
        if call.policy == "inplace" and (batched or ctx.spent):
            raise RuntimeError(
                f'{call.name}: expected one plain backward with gradient="inplace", got a second or batched one, but '
                'there is only one copy of the gradient; use gradient="auto", where retain_graph works.'
            )
        if batched:
            return _batched(call, grad_loss, *ctx.saved_tensors), *_NO_GRADIENTS
        gradient = ctx.gradient
        ctx.gradient = None
        filled = gradient is not None
        create_graph = torch.is_grad_enabled()
        if filled and not create_graph and _is_one(grad_loss):
            return gradient, *_NO_GRADIENTS  # as the operator would, 5 us sooner
        logits, targets, applied, *parts = ctx.saved_tensors
        if create_graph:
            gradient = _second_order(call, grad_loss, logits, targets)
        elif call.policy == "inplace":
            ctx.spent = True
            gradient = logits.detach()
            if not grad_loss.is_cpu:
                torch.ops.focal_cuda.scale_(gradient, grad_loss)  # asks on the device whether there is anything to do
            elif not _is_one(grad_loss):
                gradient.mul_(grad_loss)
        else:
            if not filled:
                gradient = torch.empty_like(logits)
            family = FAMILIES[call.family]
            family.backward(grad_loss, logits, targets, *parts, applied, *call.numbers, filled, gradient)
        return gradient, *_NO_GRADIENTS


_is_wrapped = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


def is_batched(grad_loss: Tensor) -> bool:
    """Whether is_grads_batched has wrapped it in what only operations with a batching rule take."""
    return not torch.compiler.is_compiling() and _is_wrapped(grad_loss)


def _is_one(grad_loss: Tensor) -> bool:
    """Whether it is 1, where that is known for nothing: what is traced, and what is fake, has no value to ask for."""
    known = type(grad_loss) is Tensor and grad_loss.is_cpu and not torch.compiler.is_compiling()
    return known and grad_loss.item() == 1.0


_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def transformed() -> bool:
    """Whether more than reverse-mode derivatives may be wanted, which the operators would silently not give."""
    return _functorch_active() or forward_ad._current_level >= 0


# Function.apply less what it does for functorch, which never comes here: 2.2 us instead of 3.6.
_apply = super(torch.autograd.Function, FocalFunction).apply


def focal_loss(logits: Tensor, targets: Tensor, parts: Parts, normalizer: Tensor | None, call: Call) -> Tensor:
    """The loss by the cheapest route that gives the gradients asked for."""
    if transformed():
        return call.composite_loss(logits, targets)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        forward = FAMILIES[call.family].forward
        return forward(logits, targets, *parts, normalizer, call.scale, *call.numbers, False)[0]
    if torch.compiler.is_compiling():
        # A graph cannot hand memory from forward to backward for good: recomputing moves less than a scaled copy.
        # + 0: dynamo takes up every number here, not within the first Function, where a second one would not find it.
        numbers = Numbers(*[number + 0 for number in call.numbers])
        call = call._replace(policy="backward", scale=call.scale + 0, numbers=numbers)
        return FocalFunction.apply(logits, targets, *parts, normalizer, call)
    return _apply(logits, targets, *parts, normalizer, call)
