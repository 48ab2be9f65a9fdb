"""What to do about an installation that does not work: errors and the doctor say the same. Needs no torch."""

from __future__ import annotations

MINIMUM_TORCH = (2, 11)
MINIMUM_TORCH_TEXT = ".".join(map(str, MINIMUM_TORCH))
ASK_THE_DOCTOR = "`python -m focal_cuda.doctor` tells what is wrong and what to do."


def is_too_old(torch_version: str) -> bool:
    return tuple(int(part) for part in torch_version.split(".")[:2]) < MINIMUM_TORCH


def rebuild(torch_version: str, settings: str = "") -> str:
    """How to build the package again, with environment variables in front of the command."""
    settings += " " if settings else ""
    return (
        f"Reinstall it against this torch ({torch_version}): `{settings}pip install --no-build-isolation "
        f"--force-reinstall --no-deps focal_cuda`, or `{settings}make build` in a checkout."
    )
