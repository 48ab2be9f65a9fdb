"""What lies between the operators and the kernels of a GPU: what is launched, in which order, and on what condition;
what is said of a wrong target. In the emulation, and on the CPU where it promises the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import ENGINES, INDEX_DTYPES, dtypes, make_dense, make_index, make_trained_logits
from compare import bits, check, loss_dtype, numbers_of, run
from simt.emulation import Emulation
from torch import Tensor

import focal_cuda
from focal_cuda import _ops

SOFTMAX, SIGMOID = "softmax_focal_loss", "sigmoid_focal_loss"

engines = pytest.mark.parametrize("engine", ENGINES)


def problem(engine: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[str, Tensor, Tensor]:
    op, shape = ENGINES[engine]
    targets = make_index(shape, device=device)
    return op, make_trained_logits(shape, targets, dtype), targets


@engines
@dtypes([torch.float32, torch.bfloat16, torch.float64])
def test_in_place(engine: str, dtype: torch.dtype, device: str) -> None:
    op, logits, targets = problem(engine, device, dtype)
    for upstream in (None, torch.ones((), dtype=loss_dtype(logits), device=device)):
        check(op, logits, targets, gradient="inplace", upstream=upstream)


@engines
@pytest.mark.parametrize("upstream", [1.0, 0.3])
@dtypes([torch.float32, torch.bfloat16, torch.float64])
def test_a_gradient_that_is_there_already(
    engine: str, upstream: float, dtype: torch.dtype, device: str, operators
) -> None:
    """For an upstream of 1 its memory is not touched; for any other it is made again there, whatever it held."""
    op, logits, targets = problem(engine, device, dtype)
    numbers = numbers_of(background_index=logits.shape[1])
    loss, scale, made = getattr(operators, op)(logits, targets, *_ops.NO_PARTS, None, 1.0, *numbers, True)
    backward = getattr(operators, f"{op}_backward")
    factor = torch.full_like(loss, upstream)
    memory = torch.full_like(logits, 7)
    backward(factor, logits, targets, *_ops.NO_PARTS, scale, *numbers, True, memory)
    if upstream == 1:
        assert (memory == 7).all()
    afresh = torch.empty_like(logits)
    backward(factor, logits, targets, *_ops.NO_PARTS, scale, *numbers, False, afresh)
    assert torch.equal(bits(afresh), bits(made if upstream == 1 else memory))


@pytest.mark.parametrize("ignored", [0, 1, 1000, 33 * 80 - 1])
@pytest.mark.parametrize("size", [(33, 80), (2, 33, 40)], ids=str)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@dtypes()
def test_the_mean_of_dense_targets(ignored: int, size: tuple, strided: bool, dtype: torch.dtype, device: str) -> None:
    """A GPU's gradient is made as if all of them counted, and made again where some do not."""
    targets = make_dense(size, device=device)
    targets.view(-1)[torch.randperm(targets.numel(), device=device)[:ignored]] = -1
    logits = torch.randn(size, device=device).to(dtype)
    logits = logits.mT.contiguous().mT if strided else logits
    for upstream in (torch.tensor(1.0), torch.tensor(-0.7)):
        upstream = upstream.to(device, loss_dtype(logits))
        check(SIGMOID, logits, targets, 0.3, ignore_index=-1, gradient="forward", upstream=upstream)


SCALED = {
    "scalar": lambda: torch.randn(()),
    "vectors and a tail": lambda: torch.randn(9001),
    "off the boundary": lambda: torch.randn(9002)[1:],
    "images": lambda: torch.randn(2, 5, 33, 31),
    "classes last": lambda: torch.randn(2, 33, 31, 5).movedim(-1, 1),
    "every second": lambda: torch.randn(7, 5, 62)[..., ::2],
    "nothing": lambda: torch.randn(0, 5),
}


@pytest.mark.parametrize("kind", SCALED)
@dtypes()
def test_scaling_in_place(kind: str, dtype: torch.dtype, device: str, backend: str, operators) -> None:
    """What a GPU does to a gradient in place once it knows the upstream: every element of a view once, no other."""
    if backend == "cpu":
        pytest.skip("the CPU knows the upstream before")
    view = SCALED[kind]()
    whole = torch.randn(view.untyped_storage().nbytes() // 4).to(device, dtype)
    x = whole.as_strided(view.size(), view.stride(), view.storage_offset())
    for factor in (1.0, -0.37):
        factor = torch.tensor(factor, device=device, dtype=loss_dtype(x))
        expected = whole.clone()
        scaled = expected.as_strided(x.size(), x.stride(), x.storage_offset())
        scaled.copy_(x.to(factor.dtype) * factor)
        operators.scale_(x, factor)
        assert torch.equal(bits(whole), bits(expected))


# --- wrong targets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def both(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """What the CPU and the emulation of a GPU say of a call that must fail: the type of the error and its text."""

    def said(op: str, *args, **kwargs) -> list[tuple[type, str]]:
        answers = []
        for use in (lambda patch: None, emulation.use):
            with monkeypatch.context() as patch, pytest.raises((IndexError, ValueError)) as error:
                use(patch)
                getattr(focal_cuda, op)(*args, **kwargs)
            answers.append((error.type, str(error.value).splitlines()[0]))
        return answers

    yield said


@engines
@pytest.mark.parametrize("kwargs", [{}, {"reduction": "none"}, {"gradient": "backward"}], ids=str)
def test_a_bad_label_is_named_as_by_the_cpu(engine: str, kwargs: dict, both) -> None:
    """Wherever it is, by any thread of any block."""
    op, logits, targets = problem(engine, "cpu")
    for requires_grad in (False, True):
        for place in (0, targets.numel() // 3, targets.numel() - 1):
            wrong = targets.clone()
            wrong.view(-1)[place] = -7
            cpu, simt = both(op, logits.requires_grad_(requires_grad), wrong, **kwargs)
            assert simt == cpu and cpu[0] is IndexError and "= -7;" in cpu[1]


@engines
@dtypes([d for d in INDEX_DTYPES if d != torch.bool], "index_dtype")
def test_bad_labels_of_every_type(engine: str, index_dtype: torch.dtype, both) -> None:
    op, logits, _ = problem(engine, "cpu")
    few = logits[:, :3]
    targets = torch.zeros(few.shape[:1] + few.shape[2:], dtype=index_dtype)
    targets.view(-1)[targets.numel() // 2] = 101
    for x in (few, few.contiguous()):
        cpu, simt = both(op, x, targets)
        assert simt == cpu and cpu[0] is IndexError and "= 101;" in cpu[1]


def test_labels_beyond_32_bits(both) -> None:
    """Cut to 32 bits, all of these would be a class or ignored."""
    for engine in ENGINES:
        op, logits, targets = problem(engine, "cpu")
        for label in (2**32, 2**32 + 1, -(2**32), 2**32 - 100, 2**63 - 1, -(2**63)):
            wrong = targets.clone()
            wrong.view(-1)[1] = label
            cpu, simt = both(op, logits, wrong)
            assert simt == cpu and f"= {label};" in cpu[1]


@pytest.mark.parametrize("value", [1.5, -0.1, 2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kwargs", [{}, {"reduction": "none"}, {"gradient": "backward"}], ids=str)
def test_a_bad_dense_target_is_named_as_by_the_cpu(value: float, kwargs: dict, both) -> None:
    for size in ((33, 80), (2, 19, 13, 17), ()):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            targets = torch.zeros(size, dtype=dtype)
            targets.view(-1)[targets.numel() // 2] = value
            logits = torch.zeros(size)
            for layout in (lambda t: t, lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() else t):
                cpu, simt = both(SIGMOID, logits, layout(targets), **kwargs)
                assert simt == cpu and cpu[0] is ValueError


def test_labels_in_views_are_named_by_their_index(both) -> None:
    mask = torch.zeros(3, 5, 7, dtype=torch.int64)
    mask[1, 3, 2] = 99
    views = [mask.permute(2, 1, 0).contiguous().permute(2, 1, 0), mask.repeat(1, 1, 2)[..., :7]]
    views.append(torch.stack([mask, mask + 1], -1)[..., 0])
    for op in (SOFTMAX, SIGMOID):
        for view in views:
            cpu, simt = both(op, torch.zeros(3, 4, 5, 7), view)
            assert simt == cpu and "targets[1, 3, 2] = 99;" in cpu[1]


# --- strides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [SOFTMAX, SIGMOID])
def test_more_nested_strides_than_a_kernel_takes(op: str, device: str, backend: str) -> None:
    """Sizes of 2 at strides of powers of 3, so that no two dimensions are one."""

    def nested(rank: int) -> Tensor:
        strides = tuple(3**k for k in reversed(range(rank)))
        return torch.randn(3**rank, device=device).as_strided((2,) * rank, strides)

    def targets_of(x: Tensor) -> Tensor:
        return torch.randint(0, 2, x.shape[:1] + x.shape[2:], device=device)

    logits = nested(12)
    check(op, logits, targets_of(logits), reduction="none")
    check(op, logits, targets_of(logits))
    logits = nested(14)
    if backend == "cpu":
        check(op, logits, targets_of(logits))
        return
    for kwargs in ({}, {"reduction": "none"}):
        with pytest.raises(ValueError, match=r"12 nested strides.*\.contiguous\(\)"):
            getattr(focal_cuda, op)(logits, targets_of(logits), **kwargs)
    assert torch.isfinite(run(op, logits.contiguous(), targets_of(logits)).loss)
