"""What is installed, what it was built for and whether it computes the right numbers: ``python -m focal_cuda.doctor``.

It is there for machines where the package does not import, so it loads torch and the package only within functions,
and looks at each step that can fail by itself.
"""

from __future__ import annotations

import importlib.machinery
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import _remedy
from ._version import __version__

# The relative error that the losses' docstrings promise for float32.
PROMISED = 2e-5
_GAMMAS = (0.0, 0.5, 2.0)
# The one operator that CPU tensors never reach: it asks on the device whether there is anything to scale.
_CUDA_ONLY = ("scale_",)


@dataclass
class Facts:
    """What there is. A field keeps its default where what it tells of could not be looked at."""

    package: Path = Path(__file__).parent
    torch: str = ""  # its version
    torch_error: str = ""
    runtime: str | None = None  # the CUDA version torch was built with
    gpus: dict[str, tuple[int, int]] = field(default_factory=dict)  # that torch sees: compute capability by name
    driver: str = ""  # what nvidia-smi says
    toolkit: str = ""  # what nvcc says
    has_extension: bool = False  # a file this Python would load
    other_extensions: list[str] = field(default_factory=list)
    load_error: str = ""
    build: dict[str, object] = field(default_factory=dict)
    operators: dict[str, list[str]] = field(default_factory=dict)  # the devices that each has a kernel for
    self_tests: dict[str, float | str] = field(default_factory=dict)  # worst error, or what went wrong, by device
    seconds: float = 0.0  # that the self-tests took


def examine() -> Facts:
    """Looks at everything, as far as it goes."""
    facts = Facts(driver=_first_line(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]))
    nvcc = _nvcc()
    if nvcc and (release := re.search(r"release (\S+),", _output([nvcc, "--version"]))):
        facts.toolkit = f"{release[1]} ({nvcc})"
    names = [f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    facts.has_extension = any((facts.package / name).exists() for name in names)
    found = sorted(path.name for path in facts.package.glob("_C.*") if path.suffix in (".so", ".pyd"))
    facts.other_extensions = [name for name in found if name not in names]
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
        facts.torch_error = _told(error)
        return facts
    facts.torch, facts.runtime = torch.__version__, torch.version.cuda
    try:
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            facts.gpus[torch.cuda.get_device_name(index)] = torch.cuda.get_device_capability(index)
    except Exception as error:
        facts.self_tests["cuda"] = _told(error)
    try:
        from . import _ops
    except Exception as error:
        facts.load_error = _told(error.__cause__ or error)
        return facts
    facts.build = _ops.build_info()
    facts.operators = _registered()
    start = time.perf_counter()
    for device in sorted(_ops.DEVICES - {"meta"}):
        if device == "cpu" or facts.gpus:
            try:
                facts.self_tests[device] = worst_error(device)
            except Exception as error:
                facts.self_tests[device] = _told(error)
    facts.seconds = time.perf_counter() - start
    return facts


def worst_error(device: str) -> float:
    """The largest relative error of losses and gradients on a device against the float64 reference, for margins from
    -90 to 90; infinite if two calls differ in a bit."""
    import torch

    from . import functional, reference

    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for name, shape in (
        ("sigmoid_focal_loss", (61, 19)),
        ("softmax_focal_loss", (61, 19)),
        ("softmax_focal_loss", (2, 5, 23, 9)),
    ):
        logits = torch.empty(shape).uniform_(-45, 45, generator=generator)
        targets = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
        targets[0] = -100
        for dtype in (torch.float32, torch.bfloat16):
            x, t = logits.to(device, dtype), targets.to(device)
            for gamma in _GAMMAS:
                first, second = (_loss_and_gradient(getattr(functional, name), x, t, gamma) for _ in range(2))
                exact = _loss_and_gradient(getattr(reference, name), x.double(), t, gamma)
                for got, again, expected in zip(first, second, exact, strict=True):
                    if not torch.equal(got, again):
                        return float("inf")
                    if got.dtype != torch.bfloat16:  # a gradient in bfloat16 is rounded to 8 bits
                        worst = max(worst, _relative_error(got.double(), expected))
    return worst


def _loss_and_gradient(function, logits, targets, gamma: float) -> tuple:
    import torch

    logits = logits.detach().requires_grad_()
    unreduced = function(logits, targets, gamma=gamma, reduction="none")
    (gradient,) = torch.autograd.grad(function(logits, targets, gamma=gamma, reduction="sum"), logits)
    return unreduced.detach(), gradient


def _relative_error(got, expected) -> float:
    """The largest, less what float32 cannot hold of small numbers; infinite where one is NaN."""
    import torch

    error = ((got - expected).abs() - torch.finfo(torch.float32).tiny).clamp(min=0)
    return float(torch.where(error == 0, 0.0, error / expected.abs()).nan_to_num(torch.inf).max())


def _registered() -> dict[str, list[str]]:
    import torch

    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("focal_cuda::"))
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name.partition("::")[2]: [key.lower() for key in ("CPU", "CUDA") if has(name, key)] for name in names}


def has_code_for(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether a build for a TORCH_CUDA_ARCH_LIST runs on a GPU: machine code serves later GPUs of the same generation
    (with a letter only the very one), PTX all later ones."""
    for major, minor, letter, ptx in re.findall(r"(\d+)\.(\d)([a-z]?)(\+PTX)?", architectures):
        built = int(major), int(minor)
        if capability == built or (built < capability and (ptx or (built[0] == capability[0] and not letter))):
            return True
    return False


def verdict(facts: Facts) -> tuple[bool, str]:
    """Whether the losses work wherever this torch does, and one line: the first thing that is wrong and its fix."""
    problem = next(_problems(facts), None)
    if problem:
        return False, problem
    works = "works on " + " and ".join(facts.self_tests)
    if not facts.gpus and facts.driver:
        if facts.runtime:
            return (
                True,
                f"{works}; torch sees no GPU, though nvidia-smi does: check the driver and CUDA_VISIBLE_DEVICES.",
            )
        return True, f"{works}; torch is CPU-only: for the GPU install a torch with CUDA, then build again."
    return True, f"{works}."


def _problems(facts: Facts) -> Iterator[str]:
    """In the order in which they are to be put right."""
    if facts.torch_error:
        yield (
            f"torch does not import ({facts.torch_error}): install it: "
            f"python -m pip install 'torch>={_remedy.MINIMUM_TORCH_TEXT}'."
        )
    elif _remedy.is_too_old(facts.torch):
        yield f"torch {facts.torch} is too old: upgrade it to >= {_remedy.MINIMUM_TORCH_TEXT}."
    elif facts.load_error:
        yield _not_loaded(facts)
    for name, capability in facts.gpus.items():
        wanted = "{}.{}".format(*capability)
        if not facts.build.get("with_cuda"):
            first = "" if facts.toolkit else f"install nvcc of CUDA {facts.runtime} and set CUDA_HOME, then: "
            rebuild = _remedy.rebuild(facts.torch, "FOCAL_CUDA_BUILD=cuda")
            yield f"torch sees {name}, but this is a CPU-only build: {first}{rebuild}"
        elif not has_code_for(str(facts.build["cuda_architectures"]), capability):
            rebuild = _remedy.rebuild(facts.torch, f"TORCH_CUDA_ARCH_LIST={wanted}")
            yield f"no kernels for {name}, of compute capability {wanted}: {rebuild}"
    for device in ("cpu", *(["cuda"] if facts.gpus else [])):
        wanted = [name for name in facts.operators if device == "cuda" or name not in _CUDA_ONLY]
        if missing := [name for name in wanted if device not in facts.operators[name]]:
            yield f"no {device} kernel for {', '.join(missing)}: {_remedy.rebuild(facts.torch)}"
    for device, result in facts.self_tests.items():
        if isinstance(result, str):
            rebuild = _remedy.rebuild(facts.torch)
            yield f"the self-test on {device} failed ({result}). If torch.ones(1, device='{device}') works: {rebuild}"
        elif not result <= PROMISED:
            yield f"wrong numbers on {device}, a relative error of {result:.0e}: please report it, with all of this."


def _not_loaded(facts: Facts) -> str:
    rebuild = _remedy.rebuild(facts.torch)
    if facts.has_extension:
        return f"the extension focal_cuda._C does not load ({facts.load_error}). {rebuild}"
    if facts.other_extensions:
        names = ", ".join(facts.other_extensions)
        return f"the extension is built for another Python ({names}; this is {sys.implementation.cache_tag}). {rebuild}"
    if (facts.package.parent / "setup.py").exists():
        return (
            f"the checkout {facts.package.parent} is not built: `make build` there. (If the package is installed as "
            "well, the checkout hides it: start Python in another folder.)"
        )
    return f"there is no extension focal_cuda._C in {facts.package}. {rebuild}"


def report(facts: Facts) -> str:
    """One line for each thing, then the verdict."""
    lines = [*_lines(facts), ("verdict", verdict(facts)[1])]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _lines(facts: Facts) -> Iterator[tuple[str, object]]:
    yield "focal_cuda", f"{__version__} in {facts.package}"
    yield "python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}"
    yield "torch", facts.torch or facts.torch_error
    yield "CUDA runtime of torch", facts.runtime or "none"
    yield "CUDA toolkit", facts.toolkit or "no nvcc found"
    yield "NVIDIA driver", facts.driver or "no nvidia-smi found"
    architectures = str(facts.build.get("cuda_architectures", ""))
    for name, capability in facts.gpus.items():
        served = "has" if has_code_for(architectures, capability) else "has NO"
        yield "GPU", f"{name}, compute capability {'{}.{}'.format(*capability)}: the build {served} code for it"
    if not facts.gpus:
        yield "GPU", "none that torch sees"
    for name, value in facts.build.items():
        if name not in ("torch", "version"):
            yield f"build: {name}", "none" if value in (None, "") else value
    for name in ("FOCAL_CUDA_CPU_ISA", "FOCAL_CUDA_VALIDATE"):
        if name in os.environ:
            yield name, os.environ[name]
    for name, devices in facts.operators.items():
        yield f"op {name}", ", ".join(devices) or ("for CUDA alone" if name in _CUDA_ONLY else "no kernel")
    for device, result in facts.self_tests.items():
        told = result if isinstance(result, str) else f"worst relative error {result:.1e} (promised {PROMISED:.0e})"
        yield f"self-test on {device}", f"{told}; all took {facts.seconds:.1f} s"


def _nvcc() -> str | None:
    """The compiler a build would take: that of CUDA_HOME, else the one on PATH, else the usual folder's."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places: Iterable[str | None] = [f"{home}/bin"] if home else [None, "/usr/local/cuda/bin"]
    return next((found for place in places if (found := shutil.which("nvcc", path=place))), None)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _first_line(command: list[str]) -> str:
    return next(iter(_output(command).splitlines()), "")


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> int:
    """Prints the report; 0 if the losses work wherever this torch does."""
    facts = examine()
    print(report(facts))
    return 0 if verdict(facts)[0] else 1


if __name__ == "__main__":
    sys.exit(main())
