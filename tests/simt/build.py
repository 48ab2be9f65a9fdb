"""Builds the CUDA kernels and their glue as C++, for the emulation: build/simt/libfocal_simt.so, which registers the
operators a second time, in the namespace focal_cuda_simt for CPU tensors. Never shipped.

    python tests/simt/build.py     builds it and says where it is
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SIMT = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "simt"

# Kernels are many instances of templates, and each runs on small inputs: what counts is the time to compile.
FLAGS = ["-O1", "-g0", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-U_FORTIFY_SOURCE"]
FLAGS += [
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-sign-compare",
    "-fmax-errors=5",
]
# The macros of torch's STABLE_TORCH_LIBRARY make the operators' namespace out of this one word.
DEFINES = ["-DFOCAL_SIMT", "-Dfocal_cuda=focal_cuda_simt"]


class BuildFailed(Exception):
    """No library; the message says why."""


def _config():
    spec = importlib.util.spec_from_file_location("_focal_simt_config", ROOT / "_build" / "config.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


config = _config()


def compiler() -> str | None:
    """The C++ compiler, None where there is none."""
    try:
        return config.find_compiler(os.environ)
    except config.BuildError:
        return None


def _ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
        if not found:
            raise BuildFailed("the emulation needs ninja to be built: python -m pip install ninja.") from None
        return found


def _build_file(cxx: str, root: Path, only: tuple[str, ...]) -> str:
    sources = config.sources(root)
    torch_home = Path(torch.__file__).parent
    include = [f"-I{SIMT}", f"-I{root / 'csrc'}"]
    # As a system's headers: what torch's own warn of is not ours.
    glue = [f"-isystem{torch_home / 'include'}", f"-DTORCH_TARGET_VERSION={config.TORCH_TARGET}"]
    kernels = [root / path for path in sources["cuda"]]
    schemas = [path for path in sources["torch"] if Path(path).name == "schemas.cpp"]
    others = [*(root / path for path in schemas + sources["torch_cuda"]), SIMT / "exports.cpp"]

    def escape(text: str) -> str:
        return text.replace("$", "$$")

    def quoted(words: list[str]) -> str:
        return escape(shlex.join(words))

    def path(name: Path) -> str:
        return escape(str(name)).replace(" ", "$ ").replace(":", "$:")

    lines = [
        "ninja_required_version = 1.5",
        "rule compile",
        f"  command = {escape(cxx)} {quoted(FLAGS + DEFINES + include)} $more -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
        "rule link",
        f"  command = {escape(cxx)} -shared -o $out $in -L{quoted([str(torch_home / 'lib')])} -Wl,--no-as-needed "
        "-ltorch_cpu",
        "  description = $out",
    ]
    objects = []
    for source in kernels + others:
        name = f"{source.stem}{source.suffix.replace('.', '_')}.o"
        objects.append(name if not only or source.name in only else path(FOLDER / name))
        if objects[-1] != name:
            continue
        lines += [f"build {objects[-1]}: compile {path(source)}"]
        lines += [] if source in kernels else [f"  more = {quoted(glue)}"]
    lines += [f"build libfocal_simt.so: link {' '.join(objects)}", "default libfocal_simt.so", ""]
    return "\n".join(lines)


def library(root: Path = ROOT, folder: Path = FOLDER, only: tuple[str, ...] = ()) -> Path:
    """The library, made anew where a source, a header or a flag has changed. Raises BuildFailed.

    only: names of the sources to take from root; of all others the objects of this checkout's library, which is there.
    """
    cxx = compiler()
    if cxx is None:
        raise BuildFailed("the emulation needs a C++ compiler (Debian, Ubuntu: apt install g++), or CXX to name one.")
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / "build.ninja"
    text = _build_file(cxx, root, only)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once must not build in one folder
        if not description.exists() or description.read_text() != text:
            description.write_text(text)
        ninja = [_ninja(), "-C", str(folder), f"-j{config.jobs(os.environ)}"]
        result = subprocess.run(ninja, capture_output=True, text=True)
    if result.returncode != 0:
        start = max(result.stdout.find("FAILED:"), 0)
        problem = result.stdout[start : start + 6000] + result.stderr
        raise BuildFailed(f"the CUDA kernels do not compile as C++ for the emulation:\n{problem}")
    return folder / "libfocal_simt.so"


if __name__ == "__main__":
    try:
        print(library())
    except BuildFailed as error:
        sys.exit(str(error))
