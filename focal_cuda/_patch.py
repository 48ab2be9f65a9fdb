"""Other libraries made to use the losses of this one: focal_cuda.compat in the place of their own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from . import compat

__all__ = ["Patch", "patch", "unpatch"]


class _Library(NamedTuple):
    """Where a library has what, and what takes its place."""

    adapters: ModuleType
    homes: dict[str, tuple[str, ...]]  # the module that defines names, and these
    users: tuple[str, ...] = ()  # further packages that import the names from it
    registry: str | None = None  # module:attribute, of OpenMMLab

    @property
    def package(self) -> str:
        return next(iter(self.homes)).partition(".")[0]


_LIBRARIES = {
    "apex": _Library(compat.apex, {"apex.contrib.focal_loss.focal_loss": ("focal_loss",)}),
    "fvcore": _Library(compat.fvcore, {"fvcore.nn.focal_loss": tuple(compat.fvcore.__all__)}, users=("detectron2",)),
    "kornia": _Library(compat.kornia, {"kornia.losses.focal": tuple(compat.kornia.__all__)}),
    "mmcv": _Library(compat.mmcv, {"mmcv.ops.focal_loss": tuple(compat.mmcv.__all__)}, users=("mmdet", "mmseg")),
    "mmdet": _Library(
        compat.mmdet,
        {
            "mmdet.models.losses.focal_loss": ("FocalLoss",),
            "mmdet.models.losses.gfocal_loss": ("QualityFocalLoss",),
            "mmdet.models.losses.varifocal_loss": ("VarifocalLoss",),
            "mmdet.models.losses.gaussian_focal_loss": ("GaussianFocalLoss",),
        },
        registry="mmdet.registry:MODELS",
    ),
    "mmseg": _Library(
        compat.mmseg, {"mmseg.models.losses.focal_loss": ("FocalLoss",)}, registry="mmseg.registry:MODELS"
    ),
    "monai": _Library(compat.monai, {"monai.losses.focal_loss": ("FocalLoss",)}),
    "segmentation_models_pytorch": _Library(compat.smp, {"segmentation_models_pytorch.losses.focal": ("FocalLoss",)}),
    "timm": _Library(compat.timm, {"timm.loss.asymmetric_loss": tuple(compat.timm.__all__)}),
    "torchvision": _Library(compat.torchvision, {"torchvision.ops.focal_loss": ("sigmoid_focal_loss",)}),
    "transformers": _Library(compat.detr, {"transformers.loss.loss_for_object_detection": ("sigmoid_focal_loss",)}),
    "ultralytics": _Library(compat.ultralytics, {"ultralytics.utils.loss": tuple(compat.ultralytics.__all__)}),
}


class _Pair(NamedTuple):
    name: str
    original: Any
    replacement: Any


class Patch:
    """A library under :func:`patch`: a context manager, at whose end it has its own losses again.

    ``library``: its name. ``replaced``: the names that were replaced, wherever the library had them.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self._pairs = _pairs(library)
        self._depth = 0
        self.replaced: tuple[str, ...] = ()

    def _apply(self) -> None:
        if not self._depth:
            self.replaced = _exchange(self.library, lambda name, value: _match(self._pairs, name, value, True))
        self._depth += 1

    def _undo(self, wholly: bool) -> None:
        self._depth = 0 if wholly else max(self._depth - 1, 0)
        if not self._depth and _active.pop(self.library, None):
            _exchange(self.library, lambda name, value: _match(self._pairs, name, value, False))

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo(wholly=False)

    def __repr__(self) -> str:
        return f"Patch({self.library!r}: {', '.join(self.replaced)})"


_active: dict[str, Patch] = {}


def patch(library: str) -> Patch:
    """Has a library use the losses of :mod:`focal_cuda.compat`, until :func:`unpatch` or the end of a ``with``.

    Functions and classes are replaced in every module of the library that has them, and in its registry; modules that
    it loads later get the replacements. What was made, or imported into other packages, before the call stays as it is.

    Args:
        library: ``"apex"``, ``"fvcore"``, ``"kornia"``, ``"mmcv"``, ``"mmdet"``, ``"mmseg"``, ``"monai"``,
            ``"segmentation_models_pytorch"``, ``"timm"``, ``"torchvision"``, ``"transformers"`` or ``"ultralytics"``.

    Returns:
        What was done: ``.replaced`` names it. A context manager that undoes it; of nested calls the outermost.

    Raises:
        ValueError: the library is not known.
        ImportError: it is not installed, or does not import.

    Example::

        with focal_cuda.patch("kornia") as patched:
            print(patched.replaced)
            loss = kornia.losses.FocalLoss(alpha=0.25)(logits, targets)
    """
    _check_known("patch", library)
    if library not in _active:
        _active[library] = Patch(library)
    _active[library]._apply()
    return _active[library]


def unpatch(library: str | None = None) -> None:
    """Gives a library its own losses back, or all of them. One that is not patched stays as it is.

    Raises:
        ValueError: the library is not known.
    """
    if library is not None:
        _check_known("unpatch", library)
    for name in [library] if library is not None else list(_active):
        if name in _active:
            _active[name]._undo(wholly=True)


def _check_known(op: str, library: object) -> None:
    if library not in _LIBRARIES:
        raise ValueError(f"{op}: expected one of {', '.join(_LIBRARIES)}, got {library!r}; choose one of them.")


def _pairs(name: str) -> list[_Pair]:
    library = _LIBRARIES[name]
    if importlib.util.find_spec(library.package) is None:
        installed = [n for n, other in _LIBRARIES.items() if importlib.util.find_spec(other.package)]
        raise ImportError(
            f"patch: expected an installed library, got {name!r}, which is not; known are {', '.join(_LIBRARIES)}, "
            f"installed {', '.join(installed) or 'none of them'}. Install it, or call focal_cuda.compat."
        )
    pairs = []
    for home, names in library.homes.items():
        try:
            module = importlib.import_module(home)
        except Exception as error:
            raise ImportError(
                f"patch: expected {home} to import, got {type(error).__name__}: {error}; repair {name}, or call "
                "focal_cuda.compat."
            ) from error
        for attribute in names:
            if hasattr(module, attribute):  # else the library is older than that
                pairs.append(_Pair(attribute, getattr(module, attribute), getattr(library.adapters, attribute)))
    for pair in pairs:
        _warn_of_other_defaults(name, pair)
    return pairs


def _warn_of_other_defaults(library: str, pair: _Pair) -> None:
    """A default that another version of the library has is another loss."""
    try:
        theirs = inspect.signature(pair.original).parameters
    except (TypeError, ValueError):  # compiled
        return
    ours = inspect.signature(pair.replacement).parameters
    changed = [name for name, p in theirs.items() if name not in ours or ours[name].default != p.default]
    if changed:
        warnings.warn(
            f"patch: {library}'s {pair.name} has other defaults, or arguments, than focal_cuda.compat was made for: "
            f"{', '.join(changed)}; pass them.",
            stacklevel=5,
        )


def _match(pairs: list[_Pair], name: str, value: object, forward: bool) -> object:
    """What takes the place of a value, or None; of two with one replacement, the one of this name."""
    found = [(p.name, p.replacement if forward else p.original) for p in pairs if value is p[1 if forward else 2]]
    return dict(found).get(name, found[0][1]) if found else None


def _exchange(name: str, instead: Callable[[str, object], object]) -> tuple[str, ...]:
    places = []
    for where, namespace in _namespaces(_LIBRARIES[name]):
        for key, value in list(namespace.items()):
            other = instead(key, value)
            if other is not None:
                namespace[key] = other
                places.append(where.format(key))
    return tuple(sorted(places))


def _namespaces(library: _Library) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every loaded module of the library and its users, and the library's registry."""
    packages = {library.package, *library.users}
    for name, module in list(sys.modules.items()):
        if module is not None and name.partition(".")[0] in packages:
            yield f"{name}.{{}}", vars(module)
    if library.registry:
        module, _, attribute = library.registry.partition(":")
        yield f"{module}.{attribute}[{{!r}}]", getattr(importlib.import_module(module), attribute).module_dict
