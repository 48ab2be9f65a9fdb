from __future__ import annotations

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


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
