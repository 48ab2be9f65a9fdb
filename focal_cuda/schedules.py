"""gamma as a function of the training step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._arguments import check_integer, check_number
from .modules import GaussianFocalLoss

__all__ = ["GammaSchedule"]

_MODES = ("staged", "linear", "cosine")


class GammaSchedule:
    r"""Raises gamma during training ("soft gamma"), as a learning rate scheduler lowers the learning rate.

    .. math:: \gamma(s) = \gamma_i + (\gamma_{i+1} - \gamma_i)\, w\Big(\frac{s - s_i}{s_{i+1} - s_i}\Big), \quad
        s_i \le s < s_{i+1}, \quad
        w(u) = 0 \text{ (staged)},\ u \text{ (linear)},\ (1 - \cos \pi u) / 2 \text{ (cosine)}

    ``GammaSchedule(criterion, {0: 0.0, 1000: 1.0, 5000: 2.0})`` starts with cross entropy, and so with a gradient
    for every sample. The constructor sets gamma of step 0; call :meth:`step` once per step (or epoch, if milestones
    count these), after ``optimizer.step()``.

    Args:
        module: a loss of this package, or a module or an iterable of modules that has some inside: every one with a
            ``gamma`` is set, and nothing else's (layer scales are called gamma, too). Another module with a ``gamma``
            is taken if it has no such loss inside. gamma is a number, or a 0-d tensor.
        milestones: ``{step: gamma}``, steps >= 0, gammas >= 0 and finite, in any order. Without a milestone 0, gamma as
            the module has it stands there. After the last, gamma stays.
        mode: ``"staged"``, ``"linear"`` or ``"cosine"``.

    Attributes:
        last_step: how often :meth:`step` was called.

    Raises:
        TypeError: a module, a step or a gamma is of another type.
        ValueError: there is nothing to set, no milestone, or a value is out of range.

    Cost: a number is assigned, and compiled code that has read it is compiled again for each new value. A tensor is
    filled in place, without waiting for the device, so that compiled code and captured CUDA graphs see it: give the
    loss ``gamma=torch.tensor(2.0, device=...)`` for ``"linear"`` and ``"cosine"``. The constructor reads it once, and
    waits.

    Source: the closed forms of torch.optim.lr_scheduler.MultiStepLR and CosineAnnealingLR, between milestones.
    """

    def __init__(
        self, module: nn.Module | Iterable[nn.Module], milestones: Mapping[int, float], mode: str = "staged"
    ) -> None:
        if mode not in _MODES:
            raise ValueError(
                f'GammaSchedule: expected mode to be "staged", "linear" or "cosine", got {mode!r}; choose one of them.'
            )
        self.milestones = _checked(milestones)
        self.mode = mode
        self._modules = _with_gamma(module)
        self.initial_gammas = [_read(module) for module in self._modules]
        self.last_step = 0
        self._apply()

    def step(self) -> None:
        """Counts one step and sets its gamma."""
        self.last_step += 1
        self._apply()

    def get_last_gamma(self) -> list[float]:
        """gamma as it was last set, for each module: they differ before the first milestone alone."""
        return list(self._last_gammas)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, and what it is: everything but the modules."""
        return {
            "last_step": self.last_step,
            "milestones": dict(self.milestones),
            "mode": self.mode,
            "initial_gammas": list(self.initial_gammas),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over the state of another schedule, and sets gamma as it was there.

        Raises:
            ValueError: the other schedule was of another number of modules.
        """
        initial = list(state_dict["initial_gammas"])
        if len(initial) != len(self._modules):
            raise ValueError(
                f"GammaSchedule: expected the state of {len(self._modules)} modules, got that of {len(initial)}; "
                "make the schedule with the modules it was saved with."
            )
        self.initial_gammas = initial
        self.milestones = dict(state_dict["milestones"])
        self.mode = state_dict["mode"]
        self.last_step = state_dict["last_step"]
        self._apply()

    def _apply(self) -> None:
        self._last_gammas = [self._gamma(initial) for initial in self.initial_gammas]
        for module, gamma in zip(self._modules, self._last_gammas, strict=True):
            if isinstance(module.gamma, Tensor):
                with torch.no_grad():
                    module.gamma.fill_(gamma)
            else:
                module.gamma = gamma

    def _gamma(self, initial: float) -> float:
        """gamma of last_step for a module that began with initial."""
        milestones = sorted(({0: initial} | self.milestones).items())
        after = bisect_right(milestones, self.last_step, key=lambda milestone: milestone[0])
        start, gamma = milestones[after - 1]
        if self.mode == "staged" or after == len(milestones):
            return gamma
        end, target = milestones[after]
        share = (self.last_step - start) / (end - start)
        if self.mode == "cosine":
            share = (1.0 - math.cos(math.pi * share)) / 2.0
        return gamma + (target - gamma) * share

    def __repr__(self) -> str:
        return (
            f"GammaSchedule({self.milestones}, mode={self.mode!r}, modules={len(self._modules)}, "
            f"last_step={self.last_step})"
        )


def _checked(milestones: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(milestones, Mapping):
        raise TypeError(
            f"GammaSchedule: expected milestones to be a dict, got {type(milestones).__name__}; pass {{step: gamma}}."
        )
    if not milestones:
        raise ValueError("GammaSchedule: expected at least one milestone, got none; pass {step: gamma}.")
    checked = {}
    for step, gamma in milestones.items():
        check_integer("GammaSchedule", "every step", step)
        if step < 0:
            raise ValueError(f"GammaSchedule: expected steps >= 0, got {step}; the first step is 0.")
        remedy = "gamma = 0 is cross entropy"
        checked[step] = check_number("GammaSchedule", f"gamma at step {step}", gamma, 0.0, math.inf, remedy)
    return checked


def _with_gamma(module: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """The modules whose gamma is meant, each once."""
    found: dict[int, nn.Module] = {}
    for given in [module] if isinstance(module, nn.Module) else module:
        if not isinstance(given, nn.Module):
            raise TypeError(
                f"GammaSchedule: expected modules, got {type(given).__name__}; pass the loss, or a list of losses."
            )
        losses = [part for part in given.modules() if _is_ours(part) and hasattr(part, "gamma")]
        if not losses and (isinstance(given, GaussianFocalLoss) or not hasattr(given, "gamma")):
            raise ValueError(
                f"GammaSchedule: expected a module with a gamma, got {type(given).__name__}, which has none and no "
                "focal loss inside; pass the loss."
            )
        found |= {id(part): part for part in losses or [given]}
    if not found:
        raise ValueError("GammaSchedule: expected at least one module, got none; pass the loss.")
    return list(found.values())


def _is_ours(module: nn.Module) -> bool:
    """Whether its class is of this package, or derived from one. The gamma of heat maps weighs negatives."""
    if isinstance(module, GaussianFocalLoss):
        return False
    return any(base.__module__.partition(".")[0] == __package__ for base in type(module).__mro__)


def _read(module: nn.Module) -> float:
    gamma = module.gamma
    if isinstance(gamma, Tensor):
        if gamma.dim():
            raise ValueError(
                f"GammaSchedule: expected gamma to be a number or a 0-d tensor, got shape {list(gamma.shape)} in "
                f"{type(module).__name__}; a schedule has one gamma for all classes."
            )
        gamma = gamma.item()
    return check_number("GammaSchedule", "the module's gamma", gamma, 0.0, math.inf, "gamma = 0 is cross entropy")
