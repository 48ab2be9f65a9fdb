"""class_weights: from how often a class occurs to its weight."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from torch import Tensor

from focal_cuda import class_weights, softmax_focal_loss

COUNTS = [1000.0, 10.0, 250.0, 1.0]
METHODS = [("inverse", 1.0), ("inverse", 0.5), ("effective_number", 0.99), ("balanced", 1.0)]
methods = pytest.mark.parametrize(("method", "beta"), METHODS, ids=[f"{m}-{b:g}" for m, b in METHODS])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def counts(values: list[float] = COUNTS) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_inverse_is_the_power_over_its_mean(beta: float) -> None:
    expected = 1.0 / counts() ** beta
    close(class_weights(counts(), beta), expected / expected.mean())
    close(class_weights(counts() / counts().sum(), beta), expected / expected.mean())  # of rates, too


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number(beta: float) -> None:
    expected = torch.tensor([(1 - beta) / (1 - beta**n) for n in COUNTS], dtype=torch.float64)
    close(class_weights(counts(), beta, "effective_number"), expected / expected.mean())


def test_effective_number_approaches_the_inverse() -> None:
    weights = class_weights(counts(), 1 - 1e-13, "effective_number")
    torch.testing.assert_close(weights, class_weights(counts()), rtol=1e-9, atol=0)


def test_balanced_is_that_of_scikit_learn() -> None:
    expected = sum(COUNTS) / (len(COUNTS) * counts())
    close(class_weights(counts(), method="balanced"), expected / expected.mean())


@methods
def test_the_mean_is_one_and_the_rarer_is_heavier(method: str, beta: float) -> None:
    weights = class_weights(counts(), beta, method)
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-14)
    assert weights.argsort(descending=True).tolist() == [3, 1, 2, 0]


@methods
def test_an_empty_class_has_the_rarest_weight_and_changes_no_ratio(method: str, beta: float) -> None:
    without = class_weights(counts([1000, 10, 250]), beta, method)
    weights = class_weights(counts([0, 1000, 10, 0, 250]), beta, method)
    torch.testing.assert_close(weights[[1, 2, 4]] / weights[1], without / without[0])
    assert weights[0] == weights[3] == weights.max()
    torch.testing.assert_close(weights.mean(), weights.new_ones(()))


@pytest.mark.parametrize(
    ("values", "beta", "method"),
    [
        ([1e300, 1e-300], 1.0, "inverse"),
        ([1e9, 1e8], 100.0, "inverse"),
        ([2.0**62, 1e-20], 0.9999, "effective_number"),
        ([1e300, 1e-300], 1.0, "balanced"),
    ],
    ids=["rates", "beta", "effective-number", "balanced"],
)
def test_nothing_overflows(values: list[float], beta: float, method: str) -> None:
    weights = class_weights(values, beta, method)
    assert weights.isfinite().all() and weights[1] > weights[0] >= 0


@pytest.mark.parametrize(
    "values",
    [
        [1000, 10],
        (1000, 10),
        np.array([1000, 10]),
        torch.tensor([1000, 10]),
        torch.tensor([1000.0, 10.0], dtype=torch.float16),
        torch.tensor([1000.0, 10.0], requires_grad=True),
    ],
    ids=["list", "tuple", "numpy", "int64", "float16", "requires-grad"],
)
def test_what_counts_may_be(values: object) -> None:
    weights = class_weights(values)
    torch.testing.assert_close(weights, torch.tensor([10.0, 1000.0]) / 505)
    assert weights.dtype == torch.float32 and not weights.requires_grad
    assert class_weights(counts()).dtype == torch.float64


def test_the_argument_is_left_alone() -> None:
    mine = counts([0, 3, 5])
    class_weights(mine)
    assert torch.equal(mine, counts([0, 3, 5]))


def test_the_loss_takes_them() -> None:
    """With gamma = 0 each class then has the same total weight."""
    labels = torch.tensor([0] * 8 + [1] * 2)
    alpha = class_weights(torch.bincount(labels))
    losses = softmax_focal_loss(torch.zeros(10, 2), labels, alpha, 0.0, "none")
    torch.testing.assert_close(losses[labels == 0].sum(), losses[labels == 1].sum())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([3, -1],), ValueError, "got -1 for class 1"),
        (([3, float("nan"), 1],), ValueError, "got nan for class 1"),
        (([3, float("inf")],), ValueError, "got inf for class 1"),
        (([0, 0, 0],), ValueError, "only zeros for 3 classes"),
        (([[1, 2]],), ValueError, r"of shape \[C\], got \[1, 2\]"),
        ((7,), ValueError, r"of shape \[C\], got \[\]"),
        (([],), ValueError, r"of shape \[C\], got \[0\]"),
        (([1, 2], 1.0, "inverted"), ValueError, "expected method .* got 'inverted'"),
        (([1, 2], -0.5), ValueError, "expected beta >= 0"),
        (([1, 2], float("nan")), ValueError, "expected beta"),
        (([1, 2], 1.0, "effective_number"), ValueError, r"expected beta in \[0, 1\)"),
        (([1, 2], -0.1, "effective_number"), ValueError, "expected beta"),
        (([1, 2], 0.5, "balanced"), ValueError, "expected no beta"),
        (([0.2, 0.8], 0.9, "effective_number"), ValueError, "got rates"),
        (([1, 2], "1"), TypeError, "expected beta to be a number"),
        ((collections.Counter("aab"),), TypeError, "got Counter"),
        ((None,), TypeError, "got NoneType"),
        ((torch.tensor([1j, 2]),), TypeError, "to be real"),
    ],
    ids=[
        *("negative", "nan", "infinite", "all-empty", "2-d", "0-d", "no-class", "method", "beta", "beta-nan"),
        *("effective-beta-1", "effective-beta", "balanced-beta", "effective-rates", "beta-type"),
        *("counter", "none", "complex"),
    ],
)
def test_errors(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^class_weights: .*{message}.*; .*\\.$"):
        class_weights(*arguments)
