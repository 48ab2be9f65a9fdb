from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Every test that takes `device` runs on each of these.
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

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
    parser.addoption("--devices", metavar="NAMES", help="run only the tests that take `device`, on these: cpu,cuda")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (wanted := config.getoption("--devices")):
        return
    kept, left = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        (kept if params.get("device") in wanted.split(",") else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    """Without another choice by -m, the tests that need many gigabytes wait for `pytest -m large`."""
    if not config.option.markexpr:
        config.option.markexpr = "not large"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


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
