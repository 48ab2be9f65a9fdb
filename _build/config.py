"""What to build and with what: decided here, in functions of their arguments, so that every refusal can be
tested without a build. setup.py and the PEP 517 backend are thin around it. Imports neither torch nor
setuptools."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_TORCH = (2, 11)
MINIMUM_SETUPTOOLS = 77  # the first to read license = "BSD-3-Clause" in pyproject.toml
# The LibTorch stable ABI of torch 2.11: what is built against it loads on every later torch too.
TORCH_TARGET = "0x020b000000000000"
SOURCE_KINDS = ("cpu", "torch", "bindings", "cuda", "torch_cuda")
DEFAULT_CUDA_HOME = Path("/usr/local/cuda")
# Relaxed constexpr: std::numeric_limits is used on the device as on the host.
NVCC_FLAGS = ["-O3", "--threads", "2", "-lineinfo", "--expt-relaxed-constexpr", "-Xcompiler", "-fvisibility=hidden"]


class BuildError(Exception):
    """The build cannot go on; the message says what is wrong and what to do."""


def version(root: Path = ROOT) -> str:
    # Read, not imported: importing the package would import torch and the extension that is being built.
    text = (root / "focal_cuda" / "_version.py").read_text()
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


def sources(root: Path = ROOT) -> dict[str, list[str]]:
    """Paths by kind, as listed in csrc/sources.txt."""
    listed: dict[str, list[str]] = {kind: [] for kind in SOURCE_KINDS}
    for number, line in enumerate((root / "csrc" / "sources.txt").read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        kind, _, path = line.partition(" ")
        if kind not in listed or not path or path != path.strip():
            raise BuildError(
                f"csrc/sources.txt:{number}: expected 'KIND PATH' with KIND one of "
                f"{', '.join(SOURCE_KINDS)}, got {line!r}."
            )
        listed[kind].append(path)
    return listed


def torch_search_path() -> list[str]:
    """Folders of the environment that is installed into: pip's build isolation hides them from sys.path.

    pip keeps sys.prefix while it isolates, so the environment is still found; `python -m build` and uv
    isolate in a real virtual environment, where nothing is found, rightly: they install torch for the build.
    """
    paths = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    if sys.prefix == sys.base_prefix:
        paths.append(site.getusersitepackages())
    else:
        settings = Path(sys.prefix, "pyvenv.cfg")
        text = settings.read_text() if settings.is_file() else ""
        if re.search(r"^include-system-site-packages\s*=\s*true\s*$", text, re.MULTILINE | re.IGNORECASE):
            base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
            paths += [sysconfig.get_path("platlib", vars=base), sysconfig.get_path("purelib", vars=base)]
            paths += [str(path) for path in Path(sys.base_prefix, "lib", "python3").glob("dist-packages")]
    return list(dict.fromkeys(paths))


def find_torch(search_path: Iterable[str]) -> Path | None:
    """The folder of the first torch on the path, without importing it."""
    for entry in search_path:
        candidate = Path(entry or ".", "torch")
        if (candidate / "version.py").is_file():
            return candidate
    return None


def check_torch_version(torch_version: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", torch_version)[:2])
    if numbers < MINIMUM_TORCH:
        raise BuildError(
            f"expected torch >= {'.'.join(map(str, MINIMUM_TORCH))}, got {torch_version}; "
            "upgrade it: python -m pip install --upgrade torch."
        )


def find_compiler(env: Mapping[str, str], which: Callable[[str], str | None] = shutil.which) -> str:
    """The C++ compiler: $CXX, else c++, as torch.utils.cpp_extension has it, else a lone g++ or clang++."""
    for candidate in [env["CXX"]] if env.get("CXX") else ["c++", "g++", "clang++"]:
        if which(shlex.split(candidate)[0]):
            return candidate
    asked = f"CXX={env['CXX']}, which is not there" if env.get("CXX") else "none of c++, g++, clang++"
    raise BuildError(
        f"expected a C++ compiler, got {asked}; install one "
        "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or set CXX."
    )


def check_python_headers(include: str) -> None:
    if not Path(include, "Python.h").is_file():
        raise BuildError(
            f"expected Python.h in {include}, got no such file; install Python's headers "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)."
        )


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit that can compile and link."""

    home: Path
    version: tuple[int, int]
    include_dirs: tuple[str, ...]
    library_dirs: tuple[str, ...]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def _output(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout + result.stderr


def _home_behind(nvcc: str) -> Path | None:
    """The toolkit that an nvcc belongs to. nvcc may be a small wrapper script in a folder of its own, so its
    parent proves nothing; a dry run compiles nothing and prints where the real one lives."""
    direct = Path(nvcc).resolve().parent.parent
    if _dirs_with(direct, "include", "cuda_runtime.h"):
        return direct
    match = re.search(r"^#\$ TOP=(.+)$", _output([nvcc, "--dryrun", "none.cu"]), re.MULTILINE)
    return Path(match.group(1)).resolve() if match else None


def _dirs_with(home: Path, folder: str, name: str) -> tuple[str, ...]:
    # Toolkits from conda and from wheels keep the files under targets/ only.
    found = [home / folder, *sorted(home.glob(f"targets/*/{folder}"))]
    return tuple(str(path) for path in found if (path / name).exists())


def inspect_toolkit(home: Path) -> Toolkit | str:
    """The toolkit in a folder, or what it lacks."""
    nvcc = home / "bin" / "nvcc"
    if not nvcc.exists():
        return f"{home} has no bin/nvcc"
    includes = _dirs_with(home, "include", "cuda_runtime.h")
    if not includes:
        return f"{home} has no include/cuda_runtime.h"
    libraries = _dirs_with(home, "lib64", "libcudart.so") or _dirs_with(home, "lib", "libcudart.so")
    if not libraries:
        return f"{home} has no lib64/libcudart.so"
    match = re.search(r"release (\d+)\.(\d+)", _output([str(nvcc), "--version"]))
    if not match:
        return f"{nvcc} --version does not run"
    return Toolkit(home, (int(match.group(1)), int(match.group(2))), includes, libraries)


def find_toolkit(
    env: Mapping[str, str],
    which: Callable[[str], str | None] = shutil.which,
    default_home: Path = DEFAULT_CUDA_HOME,
) -> Toolkit | str:
    """CUDA_HOME (or CUDA_PATH) if set, and then nothing else; else the toolkit of the nvcc on PATH; else the
    default folder. A real toolkit, or why there is none."""
    named = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    if named:
        return inspect_toolkit(Path(named))
    problems = []
    nvcc = which("nvcc")
    behind = _home_behind(nvcc) if nvcc else None
    for home in [behind] if behind else []:
        found = inspect_toolkit(home)
        if isinstance(found, Toolkit):
            return found
        problems.append(found)
    if default_home.exists():
        found = inspect_toolkit(default_home)
        if isinstance(found, Toolkit):
            return found
        problems.append(found)
    return "; ".join(problems) or f"no nvcc on PATH, no CUDA_HOME, no {default_home}"


@dataclass(frozen=True)
class Plan:
    toolkit: Toolkit | None  # None: a CPU build
    reason: str


def requested_mode(env: Mapping[str, str]) -> str:
    mode = env.get("FOCAL_CUDA_BUILD") or "auto"
    if mode not in ("auto", "cpu", "cuda"):
        raise BuildError(f"expected FOCAL_CUDA_BUILD to be auto, cpu or cuda, got {mode!r}; unset it.")
    forced = env.get("FORCE_CUDA", "0").lower() not in ("", "0", "false", "off", "no")
    if forced and mode == "cpu":
        raise BuildError("expected one choice, got FOCAL_CUDA_BUILD=cpu and FORCE_CUDA=1; unset one of them.")
    return "cuda" if forced else mode


def choose(mode: str, torch_cuda: str | None, toolkit: Toolkit | str) -> Plan:
    """CPU only, or CPU and CUDA. No GPU is asked for: images and CI build where none is visible.

    torch_cuda: torch.version.cuda, None for a CPU-only torch. The CUDA object can be built with such a torch
    as well (its glue needs headers only), but would never be opened by it, so that has to be asked for.
    """
    if mode == "cpu":
        return Plan(None, "FOCAL_CUDA_BUILD=cpu")
    if isinstance(toolkit, str):
        problem = f"no CUDA toolkit ({toolkit})"
    elif torch_cuda is not None and int(torch_cuda.split(".")[0]) != toolkit.version[0]:
        problem = f"CUDA {toolkit.version_text} in {toolkit.home} but a torch built with CUDA {torch_cuda}"
    else:
        problem = None
    if mode == "cuda":
        if problem:
            raise BuildError(
                f"expected a CUDA toolkit for FOCAL_CUDA_BUILD=cuda, got {problem}; install the toolkit "
                "(nvcc, headers and cudart) of torch's CUDA major version and set CUDA_HOME to its root, "
                "or build with FOCAL_CUDA_BUILD=cpu."
            )
        return Plan(toolkit, f"asked for, CUDA {toolkit.version_text} in {toolkit.home}")
    if torch_cuda is None:
        return Plan(None, "this torch is CPU-only; FOCAL_CUDA_BUILD=cuda builds the CUDA kernels even so")
    if problem:
        return Plan(None, problem)
    return Plan(toolkit, f"torch has CUDA {torch_cuda}, toolkit {toolkit.version_text} in {toolkit.home}")


def architectures(env: Mapping[str, str], toolkit: Toolkit, visible: Iterable[tuple[int, int]]) -> str:
    """TORCH_CUDA_ARCH_LIST: as set, else the visible GPUs, else a default. torch fails with an IndexError
    where the variable is unset and no GPU is visible, so it always gets an answer."""
    listed = env.get("TORCH_CUDA_ARCH_LIST")
    if listed and listed != "native":
        return listed
    capabilities = sorted(set(visible))
    if capabilities:
        return ";".join(f"{major}.{minor}" for major, minor in capabilities) + "+PTX"
    # Code for 8.0 runs on 8.6, 8.7 and 8.9 as well, that for 10.0 on 10.3, and that for 12.0 on 12.1.
    blackwell = ";10.0;12.0" if toolkit.version >= (12, 8) else ""
    return f"7.5;8.0;9.0{blackwell}+PTX"


def jobs(env: Mapping[str, str]) -> int:
    if env.get("MAX_JOBS"):
        return int(env["MAX_JOBS"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
