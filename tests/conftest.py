from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from simt import build
from simt.emulation import Emulation

# Every test that takes `device` runs on each of these. "simt": the CUDA kernels, emulated on the CPU.
DEVICES = ["cpu"] + (["simt"] if build.compiler() else []) + (["cuda"] if torch.cuda.is_available() else [])

_emulation = pytest.StashKey[Emulation]()
_emulated = pytest.StashKey["Emulated"]()

# Derandomised: a failure must not depend on the day. No deadline: the first call of an op is a slow one.
settings.register_profile(
    "focal_cuda",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
    max_examples=200,
)
settings.load_profile("focal_cuda")
# `make fuzz`: other examples on every run. A failure says how to repeat it, and the next run begins with it.
settings.register_profile(
    "fuzz", derandomize=False, print_blob=True, max_examples=int(os.environ.get("FUZZ_EXAMPLES", 2000))
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--devices", metavar="NAMES", help="run only the tests that take `device`, on these: cpu,simt,cuda"
    )


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = (config.getoption("--devices") or "").split(",")
    kept, left = [], []
    for item in items:
        chosen = item.callspec.params if hasattr(item, "callspec") else {}
        backend = chosen.get("backend") or chosen.get("raising_backend")
        backend = "simt" if "emulation" in getattr(item, "fixturenames", ()) else backend
        emulated_in_vain = backend == "simt" and item.get_closest_marker("native")
        (left if emulated_in_vain or (wanted != [""] and backend not in wanted) else kept).append(item)
        # What takes a module of tests long to make is made by one worker of pytest-xdist.
        fixtures = getattr(item, "_fixtureinfo", None)
        if fixtures and any(made[-1].scope == "module" for made in fixtures.name2fixturedefs.values()):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    """Without another choice by -m, the tests that need many gigabytes wait for `pytest -m large`."""
    if not config.option.markexpr:
        config.option.markexpr = "not large"
    if worker := getattr(config, "workerinput", None):  # of pytest-xdist: they share the cores
        torch.set_num_threads(max(torch.get_num_threads() // worker["workercount"], 1))


class Emulated(NamedTuple):
    """What the emulation has run, in this process or in all workers."""

    launches: int = 0
    launched: frozenset[str] = frozenset()
    kernels: frozenset[str] = frozenset()
    seed: int = 0

    def __add__(self, other: Emulated) -> Emulated:
        return Emulated(
            self.launches + other.launches, self.launched | other.launched, self.kernels | other.kernels, other.seed
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if ran := session.config.stash.get(_emulation, None):
        emulated = Emulated(ran.launches, frozenset(ran.kernels(launched=True)), frozenset(ran.kernels()), ran.seed)
        session.config.stash[_emulated] = emulated
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["emulated"] = pickle.dumps(emulated).hex()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended."""
    if told := getattr(node, "workeroutput", {}).get("emulated"):
        stash = node.config.stash
        stash[_emulated] = stash.get(_emulated, Emulated()) + pickle.loads(bytes.fromhex(told))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if ran := config.stash.get(_emulated, None):
        kernels = f"{len(ran.launched)} of {len(ran.kernels)} CUDA kernels"
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
