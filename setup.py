"""Builds two shared objects on the LibTorch stable ABI: focal_cuda._C (pybind11 module: schemas, CPU kernels,
build information) and focal_cuda/_C_cuda.so (CUDA kernels; no Python in it, opened by torch.ops.load_library
where torch has CUDA). csrc/sources.txt lists the sources, _build/config.py makes the choices.

    FOCAL_CUDA_BUILD=auto|cpu|cuda   auto: CUDA where torch and a real toolkit have it, GPU or not
    TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, MAX_JOBS   as for every torch extension
"""

import contextlib
import os
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build"))

import config  # noqa: E402

if int(setuptools.__version__.split(".")[0]) < config.MINIMUM_SETUPTOOLS:
    sys.exit(
        f"focal_cuda: expected setuptools >= {config.MINIMUM_SETUPTOOLS}, got {setuptools.__version__}; "
        "upgrade it: python -m pip install --upgrade setuptools."
    )

# The loops are written for these: errno and floating point traps are what keep gcc from vectorising selects.
# Never -ffast-math, which flips a process to flush-to-zero; never -std, torch sets what its headers need.
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Python's own flags bring -fwrapv, under which int indices of two terms vectorise to gathers and scatters: the
    # softmax columns took three times as long.
    "-fno-wrapv",
    "-fopenmp-simd",
    "-fvisibility=hidden",
    "-fvisibility-inlines-hidden",
]


def load_torch():
    """torch, or None and why. It may be yet to come: pip asks for metadata before it installs anything."""
    search_path = [*sys.path, *config.torch_search_path()]
    found = config.find_torch(search_path)
    if found and str(found.parent) not in sys.path:
        sys.path.append(str(found.parent))  # at the end: build isolation's own packages come first
    try:
        import torch
    except (ImportError, OSError) as error:
        return None, f"one in {found} that does not import ({error})" if found else "none"
    return torch, ""


def visible_gpus(torch):
    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]


def prepare(torch, problem):
    """The plan, with the environment that torch's build helper will read. Raises config.BuildError."""
    if torch is None:
        raise config.BuildError(
            f"expected torch to build with, got {problem}; install it: python -m pip install 'torch>=2.11'."
        )
    config.check_torch_version(torch.__version__)
    mode = config.requested_mode(os.environ)
    toolkit = config.find_toolkit(os.environ) if mode != "cpu" else "not looked for"
    plan = config.choose(mode, torch.version.cuda, toolkit)
    if plan.toolkit:
        # Before torch.utils.cpp_extension is imported: it takes the parent of the nvcc on PATH on trust.
        os.environ["CUDA_HOME"] = str(plan.toolkit.home)
        visible = visible_gpus(torch)
        os.environ["TORCH_CUDA_ARCH_LIST"] = config.architectures(os.environ, plan.toolkit, visible)
    os.environ["MAX_JOBS"] = str(config.jobs(os.environ))
    with contextlib.suppress(ImportError):  # without ninja the build is serial, and complete all the same
        import ninja

        # torch asks PATH for ninja, where the package is not found unless its environment is activated.
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    return plan


def text(value):
    return f'"{value}"'


def extensions(torch, plan):
    from torch.utils import cpp_extension

    sources = config.sources()
    target = [("TORCH_TARGET_VERSION", config.TORCH_TARGET)]
    toolkit = plan.toolkit
    build_info = [
        ("FOCAL_CUDA_VERSION", text(config.version())),
        ("FOCAL_CUDA_BUILT_WITH_TORCH", text(torch.__version__)),
        ("FOCAL_CUDA_CUDA_VERSION", text(toolkit.version_text if toolkit else "")),
        ("FOCAL_CUDA_CXX_FLAGS", text(" ".join(CXX_FLAGS))),
        ("FOCAL_CUDA_NVCC_FLAGS", text(" ".join(config.NVCC_FLAGS) if toolkit else "")),
        ("FOCAL_CUDA_CUDA_ARCHITECTURES", text(os.environ["TORCH_CUDA_ARCH_LIST"] if toolkit else "")),
    ]

    def extension(name, kinds, macros, **paths):
        result = cpp_extension.CppExtension(
            name,
            [path for kind in kinds for path in sources[kind]],
            include_dirs=[str(ROOT / "csrc"), *paths.pop("include_dirs", [])],
            define_macros=target + macros,
            extra_compile_args={"cxx": CXX_FLAGS, "nvcc": config.NVCC_FLAGS},
            **paths,
        )
        # The stable ABI lives in torch_cpu; a link to torch_python or c10 would tie the file to one torch.
        result.libraries = [library for library in result.libraries if library not in ("torch_python", "c10")]
        return result

    built = [extension("focal_cuda._C", ["bindings", "torch", "cpu"], build_info)]
    if toolkit:
        # None where torch has no CUDA, and then BuildExtension refuses .cu files.
        cpp_extension.CUDA_HOME = str(toolkit.home)
        built.append(
            # Not CUDAExtension: that links c10_cuda and torch_cuda, which a CPU-only torch does not have.
            # Linked to all of libtorch, the file pulls them in by itself where they exist.
            extension(
                "focal_cuda._C_cuda",
                ["torch_cuda", "cuda"],
                [("USE_CUDA", None)],
                include_dirs=list(toolkit.include_dirs),
                library_dirs=list(toolkit.library_dirs),
                libraries=["cudart"],
                extra_link_args=["-Wl,--no-as-needed", "-ltorch"],
            )
        )
    return built


torch, torch_problem = load_torch()
try:
    plan, refusal = prepare(torch, torch_problem), None
    ext_modules = extensions(torch, plan)
    from torch.utils.cpp_extension import BuildExtension
except config.BuildError as error:
    # Kept until something is really built: metadata and source distributions need no compiler and no torch.
    plan, refusal = None, error
    ext_modules = [Extension("focal_cuda._C", [])]
    BuildExtension = build_ext


class FocalBuildExt(BuildExtension):
    def run(self):
        if refusal:
            raise SetupError(f"focal_cuda: {refusal}")
        try:
            compiler = config.find_compiler(os.environ)
            config.check_python_headers(sysconfig.get_path("include"))
        except config.BuildError as error:
            raise SetupError(f"focal_cuda: {error}") from None
        os.environ["CXX"] = compiler
        devices = f"CPU + CUDA for {os.environ['TORCH_CUDA_ARCH_LIST']}" if plan.toolkit else "CPU only"
        print(
            f"focal_cuda: building {devices} ({plan.reason}); torch {torch.__version__}, {compiler}, "
            f"{os.environ['MAX_JOBS']} jobs",
            flush=True,
        )
        # What is up to date is for ninja to say: setuptools knows neither headers nor changed flags.
        self.force = True
        if self.editable_mode:
            # An editable install would compile everything again in a temporary folder; this one is shared
            # with `setup.py build_ext --inplace`, so that each reuses the other's objects.
            platform = f"{self.plat_name}-{sys.implementation.cache_tag}"
            self.build_temp = str(ROOT / "build" / f"temp.{platform}")
        if not plan.toolkit:
            self.remove_cuda_object()
        super().run()

    def remove_cuda_object(self):
        """A CPU build after a CUDA build must not leave the other's object to be loaded or packed."""
        in_place = [ROOT] if self.inplace or self.editable_mode else []
        for folder in [Path(self.build_lib), *in_place]:
            (folder / "focal_cuda" / "_C_cuda.so").unlink(missing_ok=True)

    def get_ext_filename(self, fullname):
        # No Python symbols in it, so no Python version in its name.
        if fullname.rpartition(".")[2] == "_C_cuda":
            return os.path.join("focal_cuda", "_C_cuda.so") if "." in fullname else "_C_cuda.so"
        return super().get_ext_filename(fullname)


setup(version=config.version(), ext_modules=ext_modules, cmdclass={"build_ext": FocalBuildExt})
