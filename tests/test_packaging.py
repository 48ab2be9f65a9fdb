"""What is built, from what, with what refusals, and what is shipped."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import focal_cuda

ROOT = Path(__file__).resolve().parent.parent


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "_build" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


config = _load("config")
backend = _load("backend")


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )


def succeed(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    result = run(*command, cwd=cwd, **env)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def tracked_files() -> set[str]:
    """What git knows, or, in an unpacked source distribution, what the compilers and the package need."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = succeed("git", "ls-files").split("\n")
        return {path for path in listed if path and (ROOT / path).exists()}
    folders = ("csrc", "focal_cuda", "tests", "_build")
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".cpp", ".cu", ".h", ".cuh", ".py", ".pyi", ".txt")
    }


# What belongs together


def test_every_source_is_listed_once():
    listed = [path for paths in config.sources().values() for path in paths]
    present = [str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    assert sorted(listed) == sorted(present)


def test_sources_stay_on_their_side_of_torch():
    sources = config.sources()
    for path in sources["cpu"] + sources["cuda"]:
        assert not re.search(r"#include\s*<(torch|ATen|c10|pybind11)/", (ROOT / path).read_text()), path
    assert all(path.endswith(".cu") for path in sources["cuda"])


@pytest.mark.parametrize("line", ["cpp csrc/x.cpp", "cpu", "cpu  csrc/x.cpp", "cpu csrc/x.cpp "])
def test_malformed_source_list_is_refused(tmp_path, line):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "sources.txt").write_text(f"# list\n\n{line}\n")
    with pytest.raises(config.BuildError, match=r"sources.txt:3: expected 'KIND PATH' .* got "):
        config.sources(tmp_path)


def test_version_is_the_same_everywhere():
    version = config.version()
    assert focal_cuda.__version__ == version
    assert focal_cuda.build_info()["version"] == version
    assert re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1) == version


def test_flags_that_numerics_depend_on_are_the_same_in_both_builds():
    setup, cmake = (ROOT / "setup.py").read_text(), (ROOT / "CMakeLists.txt").read_text()
    for flag in ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"):
        assert f'"{flag}"' in setup and flag in cmake, flag
    for text in (setup, cmake):
        assert "fast-math" not in re.sub(r"#.*", "", text)


def test_linters_are_pinned_alike():
    project, hooks = (ROOT / "pyproject.toml").read_text(), (ROOT / ".pre-commit-config.yaml").read_text()
    pins = re.search(r'^lint = \["ruff==(.+?)", "clang-format==(.+?)"\]', project, re.MULTILINE).groups()
    assert list(pins) == re.findall(r"rev: v(\S+)", hooks)


# Choosing what to build


def toolkit_in(home: Path, release: str = "13.0", missing: str = "") -> Path:
    """A folder that looks like a CUDA toolkit, less one file."""
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        if name != missing:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
            (home / name).chmod(0o755)
    return home


def nothing(name: str) -> None:
    return None


def test_mode_is_read_from_the_environment():
    assert config.requested_mode({}) == "auto"
    assert config.requested_mode({"FOCAL_CUDA_BUILD": ""}) == "auto"
    assert config.requested_mode({"FOCAL_CUDA_BUILD": "cpu"}) == "cpu"
    assert config.requested_mode({"FORCE_CUDA": "1"}) == "cuda"
    assert config.requested_mode({"FORCE_CUDA": "0"}) == "auto"


def test_unknown_mode_is_refused():
    with pytest.raises(config.BuildError, match="FOCAL_CUDA_BUILD to be auto, cpu or cuda, got 'gpu'; unset it"):
        config.requested_mode({"FOCAL_CUDA_BUILD": "gpu"})
    with pytest.raises(config.BuildError, match="FOCAL_CUDA_BUILD=cpu and FORCE_CUDA=1; unset one"):
        config.requested_mode({"FOCAL_CUDA_BUILD": "cpu", "FORCE_CUDA": "1"})


def test_auto_wants_torch_and_toolkit_to_have_cuda(tmp_path):
    toolkit = config.find_toolkit({"CUDA_HOME": str(toolkit_in(tmp_path))})
    assert config.choose("auto", "13.0", toolkit).toolkit == toolkit
    for torch_cuda, found, reason in [
        (None, toolkit, "torch is CPU-only"),
        ("13.0", "no nvcc on PATH", "no nvcc on PATH"),
        ("12.8", toolkit, "13.0 in .* but a torch built with CUDA 12.8"),
    ]:
        plan = config.choose("auto", torch_cuda, found)
        assert plan.toolkit is None and re.search(reason, plan.reason)


def test_cuda_needs_no_cuda_torch_but_a_toolkit(tmp_path):
    toolkit = config.find_toolkit({"CUDA_HOME": str(toolkit_in(tmp_path))})
    assert config.choose("cuda", None, toolkit).toolkit == toolkit
    assert config.choose("cpu", "13.0", toolkit).toolkit is None
    for torch_cuda, found, got in [
        (None, "no nvcc on PATH", "no nvcc"),
        ("12.8", toolkit, "built with CUDA 12.8"),
    ]:
        with pytest.raises(config.BuildError, match=rf"FOCAL_CUDA_BUILD=cuda, got .*{got}.*; install the toolkit"):
            config.choose("cuda", torch_cuda, found)


@pytest.mark.parametrize("missing", ["bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"])
def test_half_a_toolkit_is_none(tmp_path, missing):
    home = toolkit_in(tmp_path, missing=missing)
    # CUDA_HOME is believed: a working toolkit elsewhere is not taken in its stead.
    found = config.find_toolkit({"CUDA_HOME": str(home)}, default_home=toolkit_in(tmp_path / "other"))
    assert found == f"{home} has no {missing}"


def test_toolkit_is_found_behind_a_wrapper(tmp_path):
    home = toolkit_in(tmp_path / "cuda")
    wrapper = tmp_path / "tools" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={home}/bin/..' >&2\n")
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    found = config.find_toolkit({}, which=lambda name: str(wrapper), default_home=tmp_path / "none")
    assert (found.home, found.version) == (home, (13, 0))


def test_toolkit_in_the_default_folder_and_nowhere(tmp_path):
    home = toolkit_in(tmp_path / "cuda", release="12.6")
    assert config.find_toolkit({}, which=nothing, default_home=home).version == (12, 6)
    found = config.find_toolkit({}, which=nothing, default_home=tmp_path / "none")
    assert found.startswith("no nvcc on PATH, no CUDA_HOME")


def test_architectures_are_never_empty(tmp_path):
    old = config.find_toolkit({"CUDA_HOME": str(toolkit_in(tmp_path / "old", release="12.6"))})
    new = config.find_toolkit({"CUDA_HOME": str(toolkit_in(tmp_path / "new"))})
    assert config.architectures({"TORCH_CUDA_ARCH_LIST": "8.0"}, new, [(9, 0)]) == "8.0"
    assert config.architectures({}, new, [(9, 0), (8, 0), (9, 0)]) == "8.0;9.0+PTX"
    assert config.architectures({"TORCH_CUDA_ARCH_LIST": "native"}, new, []).endswith("12.0+PTX")
    assert config.architectures({}, old, []).endswith("9.0+PTX")


def test_missing_compiler_is_named():
    assert config.find_compiler({}, which=lambda name: name if name == "clang++" else None) == "clang++"
    assert config.find_compiler({"CXX": "ccache g++"}, which=str) == "ccache g++"
    with pytest.raises(config.BuildError, match=r"C\+\+ compiler, got none of c\+\+.*apt install g\+\+"):
        config.find_compiler({}, which=nothing)
    with pytest.raises(config.BuildError, match="CXX=none/c, which is not there; install one"):
        config.find_compiler({"CXX": "none/c"}, which=nothing)


def test_missing_python_headers_are_named(tmp_path):
    with pytest.raises(config.BuildError, match="expected Python.h in .*apt install python3-dev"):
        config.check_python_headers(str(tmp_path))


def test_old_torch_is_refused():
    for version in ("2.11.0", "2.13.0+cpu", "3.0.0a0+git1"):
        config.check_torch_version(version)
    for version in ("2.10.1+cu128", "1.13.1"):
        with pytest.raises(config.BuildError, match=rf"torch >= 2.11, got {re.escape(version)}; upgrade it"):
            config.check_torch_version(version)


def test_refusal_is_one_line_and_spares_metadata():
    result = run(sys.executable, "setup.py", "build_ext", "--inplace", FOCAL_CUDA_BUILD="gpu")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("error: focal_cuda: expected FOCAL_CUDA_BUILD to be")
    assert "Traceback" not in result.stderr
    assert succeed(sys.executable, "setup.py", "--version", FOCAL_CUDA_BUILD="gpu").strip() == config.version()


# Building


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_torch_is_a_build_requirement_only_where_there_is_none(tmp_path, monkeypatch, hook):
    monkeypatch.setattr(backend.build_meta, hook, lambda settings: ["other"])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(backend.config, "torch_search_path", lambda: [str(tmp_path / "site")])
    assert getattr(backend, hook)() == ["other", "torch>=2.11"]
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site" / "torch" / "version.py").touch()
    assert getattr(backend, hook)() == ["other"]


def test_environment_of_an_isolated_build_is_searched():
    # Isolation replaces sys.path but keeps sys.prefix, which is all that is looked at.
    found = config.find_torch(config.torch_search_path())
    assert found is not None and found.samefile(Path(torch.__file__).parent)


TOOLKIT = config.find_toolkit(os.environ)
HAS_TOOLKIT = isinstance(TOOLKIT, config.Toolkit)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; sys.path.insert(0, '_build'); import backend; backend.build_sdist(sys.argv[1])"
    succeed(sys.executable, "-c", code, folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory) -> Path:
    """The wheel of the source distribution, with CUDA where there is a toolkit: that takes neither a GPU nor
    a torch with CUDA. One architecture, and hardly optimized, to be quick."""
    target = tmp_path_factory.mktemp("installed")
    succeed(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--target", target, sdist),
        FOCAL_CUDA_BUILD="cuda" if HAS_TOOLKIT else "cpu",
        TORCH_CUDA_ARCH_LIST="9.0",
        NVCC_APPEND_FLAGS="--Ofast-compile=max" if HAS_TOOLKIT and TOOLKIT.version >= (13, 0) else "",
    )
    return target


@pytest.mark.build
def test_sdist_holds_every_source_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not tracked_files() - names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc")) or name.startswith(("build/", ".venv/"))]


@pytest.mark.build
def test_wheel_of_the_sdist_imports_and_runs(installed, tmp_path):
    said = succeed(sys.executable, ROOT / "tests" / "smoke.py", cwd=tmp_path, PYTHONPATH=str(installed))
    assert said.startswith(str(installed)) and f"'with_cuda': {HAS_TOOLKIT}" in said
    top = {path.name for path in installed.iterdir()} - {"bin"}
    assert top == {"focal_cuda", f"focal_cuda-{config.version()}.dist-info"}


def undefined(library: Path) -> list[str]:
    lines = succeed("nm", "--dynamic", "--demangle", "--undefined-only", library).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines]


@pytest.mark.build
@pytest.mark.skipif(not HAS_TOOLKIT, reason=f"no CUDA toolkit: {TOOLKIT}")
def test_cuda_object_is_complete_and_free_of_python(installed):
    library = installed / "focal_cuda" / "_C_cuda.so"
    names = undefined(library)
    assert any(name.startswith("__cudaRegisterFatBinary") for name in names)  # device code is in it
    assert any(name.startswith("aoti_torch_") for name in names)  # and glue, on the stable ABI
    assert not [name for name in names if re.match(r"_?Py[A-Z_]", name)]
    assert not [name for name in names if re.search(r"\b(at|c10|torch)::", name)]
    needed = succeed("readelf", "-d", library)
    assert re.search(r"libcudart\.so", needed) and re.search(r"\[libtorch\.so\]", needed)
    assert not re.search(r"libtorch_python|libc10|libpython", needed)


@pytest.mark.build
def test_cpu_object_depends_on_no_torch_version(installed):
    (library,) = (installed / "focal_cuda").glob("_C.*.so")
    assert not re.search(r"libtorch_python|libc10|cudart", succeed("readelf", "-d", library))
    assert not [name for name in undefined(library) if re.search(r"\b(at|c10|torch)::", name)]
