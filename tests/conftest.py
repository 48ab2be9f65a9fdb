from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from simt import build
from simt.emulation import Emulation

# Every test that takes `device` runs on each of these. "simt": the CUDA kernels, emulated on the CPU.
DEVICES = ["cpu"] + (["simt"] if build.compiler() else []) + (["cuda"] if torch.cuda.is_available() else [])

_emulation = pytest.StashKey[Emulation]()

# Derandomised: a failure must not depend on the day. No deadline: the first call of an op is a slow one.
settings.register_profile(
    "focal_cuda",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=100,
)
settings.load_profile("focal_cuda")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--devices", metavar="NAMES", help="run only the tests that take `device`, on these: cpu,simt,cuda"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = (config.getoption("--devices") or "").split(",")
    kept, left = [], []
    for item in items:
        chosen = item.callspec.params if hasattr(item, "callspec") else {}
        backend = chosen.get("backend") or chosen.get("raising_backend")
        backend = "simt" if "emulation" in getattr(item, "fixturenames", ()) else backend
        emulated_in_vain = backend == "simt" and item.get_closest_marker("native")
        (left if emulated_in_vain or (wanted != [""] and backend not in wanted) else kept).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    """Without another choice by -m, the tests that need many gigabytes wait for `pytest -m large`."""
    if not config.option.markexpr:
        config.option.markexpr = "not large"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if ran := config.stash.get(_emulation, None):
        kernels = f"{len(ran.kernels(launched=True))} of {len(ran.kernels())} CUDA kernels"
        terminalreporter.write_line(f"simt: {ran.launches} launches of {kernels}, emulated with seed {ran.seed}")
    elif "simt" not in DEVICES:
        terminalreporter.write_line("simt: no C++ compiler, so no CUDA kernel was emulated")


@pytest.fixture(scope="session")
def emulation(pytestconfig: pytest.Config) -> Emulation:
    """The emulation of the CUDA kernels, built if it has to be."""
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    try:
        pytestconfig.stash[_emulation] = Emulation()
    except build.BuildFailed as error:
        pytest.exit(str(error), returncode=1)  # it would be said of a thousand tests
    return pytestconfig.stash[_emulation]


@pytest.fixture(params=DEVICES)
def backend(request: pytest.FixtureRequest) -> str:
    """Whose kernels the test runs; "simt" and "cpu" take the same tensors."""
    return request.param


def _use(backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Has the public functions run the kernels of a backend, and yields the device of its tensors."""
    if backend != "simt":
        yield backend
        return
    monkeypatch, threads = request.getfixturevalue("monkeypatch"), torch.get_num_threads()
    request.getfixturevalue("emulation").use(monkeypatch)
    # The emulation is one thread, and torch's own would wait for each other at every small tensor of the oracle.
    torch.set_num_threads(1)
    yield "cpu"
    torch.set_num_threads(threads)


@pytest.fixture
def device(backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the test puts its tensors. The public functions run the kernels of the backend on them."""
    yield from _use(backend, request)


@pytest.fixture(params=[name for name in DEVICES if name != "cuda"])
def raising_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """For targets that end in an exception; on a GPU they take the process's access to it with them."""
    yield from _use(request.param, request)


@pytest.fixture
def reorder(backend: str, request: pytest.FixtureRequest) -> Iterator[Callable[[int], None]]:
    """Has the emulation run threads in another order; other backends have a new one each time anyway."""
    emulation = request.getfixturevalue("emulation") if backend == "simt" else None
    before = emulation and emulation.seed
    yield lambda number: setattr(emulation, "seed", number) if emulation else None
    if emulation:
        emulation.seed = before


@pytest.fixture
def operators(backend: str, request: pytest.FixtureRequest) -> torch._ops._OpNamespace:
    """torch.ops.focal_cuda, or what stands for it in the emulation."""
    return request.getfixturevalue("emulation").operators if backend == "simt" else torch.ops.focal_cuda


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20171007)


@pytest.fixture(autouse=True)
def _gpu_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault inside a kernel takes the process's access to the GPU with it, and every later test would fail for it."""
    yield
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if hasattr(request.config, "workerinput"):  # pytest-xdist starts another worker
            os._exit(3)
        pytest.exit(f"the GPU was lost in {request.node.nodeid}: {error}", returncode=3)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
