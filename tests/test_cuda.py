"""What only a GPU can show: streams, graphs, devices, waiting, memory and labels that stop the device.

Everything about numbers is in the other files, whose tests run on CUDA as well.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from cases import DTYPES, Shape, dtypes, make_dense, make_index, make_trained_logits
from compare import assert_bitwise, bits, check, numbers_of, run
from torch import Tensor

import focal_cuda
from bench.timing import captured
from focal_cuda import _ops

GPU = torch.cuda.is_available() and focal_cuda.is_available("cuda")
pytestmark = pytest.mark.skipif(not GPU, reason="needs a GPU and a build for it")

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)
ENOUGH = 2**20
# Of a kernel that does nothing, on the fastest clock there is about a tenth of a second.
LONG = 200_000_000


@pytest.fixture(params=["cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


# One for each engine, and for each way it goes through memory.
ENGINES = {
    "sigmoid, whole vectors": ("sigmoid_focal_loss", Shape((301, 80))),
    "sigmoid, vectors across rows": ("sigmoid_focal_loss", Shape((301, 91))),
    "sigmoid, strided classes": ("sigmoid_focal_loss", Shape((2, 19, 13, 17))),
    "columns, two classes": ("softmax_focal_loss", Shape((2, 2, 33, 16))),
    "columns, in registers": ("softmax_focal_loss", Shape((2, 19, 33, 16))),
    "columns, odd": ("softmax_focal_loss", Shape((2, 21, 13, 17))),
    "columns, classes over warps": ("softmax_focal_loss", Shape((1, 150, 67, 4))),
    "columns, very many classes": ("softmax_focal_loss", Shape((1, 1000, 37))),
    "rows, short": ("softmax_focal_loss", Shape((129, 19))),
    "rows, of a warp": ("softmax_focal_loss", Shape((61, 128))),
    "rows, of a block": ("softmax_focal_loss", Shape((33, 4099))),
    "rows, of a cluster": ("softmax_focal_loss", Shape((5, 70_001))),
}
engines = pytest.mark.parametrize("engine", ENGINES)


def problem(engine: str, dtype: torch.dtype = torch.float32, device: str = "cuda") -> tuple[str, Tensor, Tensor]:
    op, shape = ENGINES[engine]
    targets = make_index(shape, device=device, background=shape.classes if op.startswith("sigmoid") else None)
    return op, make_trained_logits(shape, targets, dtype), targets


def large(op: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """128 MiB in float32: far more than a launch takes, and than what is not the gradient."""
    logits = torch.randn(8, 16, 512, 512, device=device, dtype=dtype)
    return logits, torch.randint(0, 16, (8, 512, 512), device=device)


def loss_of(op: str, x: Tensor, targets: Tensor, **kwargs) -> Tensor:
    return getattr(focal_cuda, op)(x, targets, **kwargs)


def step(op: str, x: Tensor, targets: Tensor, scale: float = 1.0, **kwargs) -> tuple[Tensor, Tensor]:
    loss = loss_of(op, x, targets, **kwargs)
    return loss.detach(), torch.autograd.grad(loss * scale if scale != 1.0 else loss, x)[0]


# --- every engine ----------------------------------------------------------------------------------------------------


@engines
@dtypes([torch.float32, torch.bfloat16])
def test_every_engine(engine: str, dtype: torch.dtype, device: str) -> None:
    """All modes of each: what compute-sanitizer watches."""
    op, logits, targets = problem(engine, dtype, device)
    shape = ENGINES[engine][1]
    alpha = torch.rand(shape.classes, device=device)
    for kwargs in ({}, {"gradient": "backward"}, {"reduction": "none"}, {"gradient": "inplace"}):
        reduction = kwargs.pop("reduction", "mean")
        check(op, logits, targets, alpha, 1.5, reduction, **kwargs)
    loss_of(op, logits, targets)  # without a gradient
    if op.startswith("sigmoid"):
        check(op, logits, make_dense(shape.size, device=device, soft=True), 0.25, 2.0, "sum")


@engines
@dtypes()
def test_the_same_bits_every_time(engine: str, dtype: torch.dtype, device: str) -> None:
    op, logits, targets = problem(engine, dtype, device)
    first = run(op, logits, targets, reduction="sum")
    for _ in range(10):
        assert_bitwise(run(op, logits, targets, reduction="sum"), first)


@ops
def test_the_same_bits_of_a_large_sum(op: str, device: str) -> None:
    """Thousands of blocks, which end in another order every time."""
    logits, targets = large(op, device)
    first = run(op, logits, targets)
    for _ in range(5):
        assert_bitwise(run(op, logits, targets), first)


# --- waiting ---------------------------------------------------------------------------------------------------------


@ops
@pytest.mark.parametrize("gradient", ["forward", "backward", "inplace"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_nothing_waits_for_the_device(op: str, gradient: str, scale: float, device: str) -> None:
    """Neither in a way that torch knows of, nor in any other: the calls return while the device is still busy."""
    leaf, targets = large(op, device)
    leaf.requires_grad_()
    normalizer = torch.tensor(7.0, device=device)
    alpha = torch.rand(16, device=device)
    kwargs = {"reduction": "sum", "normalizer": normalizer, "alpha": alpha, "gradient": gradient}
    step(op, leaf * 1, targets, scale, **kwargs)  # memory and modules are there from here on
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG)
        x = leaf * 1
        busy = torch.cuda.Event()
        busy.record()
        step(op, x, targets, scale, **kwargs)
        returned_early = not busy.query()
    finally:
        torch.cuda.set_sync_debug_mode(before)
        torch.cuda.synchronize()
    assert returned_early


@ops
def test_counting_positives_does_not_wait(op: str, device: str) -> None:
    logits, targets = large(op, device)
    kwargs = {"reduction": "sum", "normalizer": "positives", "background_index": 0}
    loss_of(op, logits, targets, **kwargs)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    busy = torch.cuda.Event()
    busy.record()
    loss_of(op, logits, targets, **kwargs)
    assert not busy.query()
    torch.cuda.synchronize()


# --- streams and graphs ----------------------------------------------------------------------------------------------


@ops
def test_another_stream(op: str, device: str) -> None:
    """Launched where the logits are still being made: on the wrong stream, or none, they would be read too early."""
    logits, targets = large(op, device)
    expected = run(op, logits, targets)
    arriving = torch.zeros_like(logits).requires_grad_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG // 4)
        with torch.no_grad():
            arriving.copy_(logits)
        loss, grad = step(op, arriving, targets)
        copies = loss.clone(), grad.clone()
    stream.synchronize()
    assert torch.equal(copies[0], expected.loss) and torch.equal(copies[1], expected.grad)


@ops
def test_many_streams_at_once(op: str, device: str) -> None:
    """What one call keeps for itself must not be another's."""
    problems = [large(op, device) for _ in range(4)]
    expected = [run(op, *p) for p in problems]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in problems]
    results: list[list[tuple[Tensor, Tensor]]] = [[] for _ in problems]
    for _ in range(5):
        for which, stream in enumerate(streams):
            logits, targets = problems[which]
            with torch.cuda.stream(stream):
                results[which].append(step(op, logits.detach().requires_grad_(), targets))
    torch.cuda.synchronize()
    for found, right in zip(results, expected, strict=True):
        for loss, grad in found:
            assert torch.equal(loss, right.loss) and torch.equal(grad, right.grad)


@engines
@pytest.mark.parametrize("gradient", ["forward", "backward"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_graph_of_loss_and_gradient(engine: str, gradient: str, scale: float, device: str) -> None:
    """Captured once, replayed with other logits, targets, weights and normalizers in the same memory."""
    op, logits, targets = problem(engine)
    classes = ENGINES[engine][1].classes
    x, t = logits.clone().requires_grad_(), targets.clone()
    alpha, normalizer = torch.rand(classes, device=device), torch.tensor(3.0, device=device)
    kwargs = {"alpha": alpha, "normalizer": normalizer, "reduction": "sum", "gradient": gradient}
    graph, (loss, grad) = captured(lambda: step(op, x, t, scale, **kwargs))
    for _ in range(3):
        _, new_logits, new_targets = problem(engine)
        with torch.no_grad():
            x.copy_(new_logits)
        t.copy_(new_targets)
        alpha.uniform_()
        normalizer.uniform_(1, 9)
        graph.replay()
        replayed = loss.clone(), grad.clone()
        expected = step(op, new_logits.clone().requires_grad_(), new_targets, scale, **kwargs)
        assert torch.equal(replayed[0], expected[0]) and torch.equal(bits(replayed[1]), bits(expected[1]))


@ops
def test_a_graph_of_a_counting_normalizer(op: str, device: str) -> None:
    """The count is made in every replay."""
    shape = Shape((129, 19))
    x, t = make_trained_logits(shape, make_index(shape, device=device)), make_index(shape, device=device)
    kwargs = {"reduction": "sum", "normalizer": "positives", "background_index": 0}
    graph, (loss,) = captured(lambda: (loss_of(op, x, t, **kwargs),))
    for _ in range(3):
        t.copy_(make_index(shape, device=device, background=0))
        graph.replay()
        replayed = loss.clone()
        assert torch.equal(replayed, loss_of(op, x, t, **kwargs))


@ops
def test_compiled_with_graphs(op: str, device: str) -> None:
    """reduce-overhead captures the compiled loss: nothing in it forbids that, and replays are right."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    shape = Shape((4, 19, 33, 32))
    compiled = torch.compile(lambda v, t: loss_of(op, v.mul(1.5), t), mode="reduce-overhead", fullgraph=True)
    for _ in range(5):
        targets = make_index(shape, device=device)
        logits = make_trained_logits(shape, targets)
        results = []
        for f in (lambda v, t: loss_of(op, v.mul(1.5), t), compiled):
            torch.compiler.cudagraph_mark_step_begin()
            x = logits.clone().requires_grad_()
            loss = f(x, targets)
            (loss * 0.7).backward()
            results.append((loss.detach().clone(), x.grad.clone()))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=2e-5, atol=0)
        torch.testing.assert_close(results[1][1], results[0][1], rtol=2e-5, atol=1e-9)
    assert counters["inductor"]["cudagraph_skips"] == 0


# --- devices ---------------------------------------------------------------------------------------------------------

second = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@second
@engines
def test_a_device_that_is_not_the_current_one(engine: str, device: str) -> None:
    op, logits, targets = problem(engine)
    expected = run(op, logits, targets)
    assert torch.cuda.current_device() == 0
    result = run(op, logits.to("cuda:1"), targets.to("cuda:1"))
    assert result.loss.device == result.grad.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    # The same bits where both are of one kind: chunks depend on the shape alone.
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert torch.equal(result.loss.cpu(), expected.loss.cpu())
        assert torch.equal(bits(result.grad).cpu(), bits(expected.grad).cpu())
    else:
        torch.testing.assert_close(result.grad.cpu(), expected.grad.cpu(), rtol=1e-4, atol=1e-8)


@second
@ops
def test_tensors_on_two_gpus(op: str, device: str) -> None:
    logits, targets = torch.zeros(4, 3, device="cuda:0"), torch.zeros(4, dtype=torch.int64, device="cuda:1")
    with pytest.raises(ValueError, match="targets on the logits' device cuda:0, got cuda:1"):
        loss_of(op, logits, targets)


@ops
def test_tensors_on_different_devices(op: str, device: str) -> None:
    """Named are both; torch's 0-d exception for CPU tensors is none here, since reading one would wait."""
    logits, targets = torch.zeros(4, 3, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    cases = [
        ("targets on the logits' device cuda:0, got cpu", (logits, targets.cpu()), {}),
        ("targets on the logits' device cpu, got cuda:0", (logits.cpu(), targets), {}),
        ("alpha on the logits' device cuda:0, got cpu", (logits, targets, torch.ones(3)), {}),
        (
            "normalizer on the logits' device cuda:0, got cpu",
            (logits, targets),
            {"reduction": "sum", "normalizer": torch.tensor(2.0)},
        ),
    ]
    for message, arguments, kwargs in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            loss_of(op, *arguments, **kwargs)


# --- memory and the gradient that is there already -------------------------------------------------------------------


@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("gradient", "scale", "gradients"),
    [("forward", 1.0, 1), ("forward", 0.3, 1), ("backward", 0.3, 1), ("inplace", 1.0, 0), ("inplace", 0.3, 0)],
)
def test_peak_memory(op: str, dtype: torch.dtype, gradient: str, scale: float, gradients: int, device: str) -> None:
    """The gradient, and what is small whatever the logits: partial sums, scalars."""
    leaf, targets = large(op, device, dtype)
    leaf.requires_grad_()
    for _ in range(2):  # what the first call sets up for good does not count
        x = leaf * 1
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = step(op, x, targets, scale, gradient=gradient)
        extra = torch.cuda.max_memory_allocated() - before
        del result
    assert gradients * leaf.nbytes <= extra <= gradients * leaf.nbytes + ENOUGH


@ops
def test_nothing_is_left_behind(op: str, device: str) -> None:
    logits, targets = large(op, device)
    run(op, logits, targets)
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        run(op, logits, targets)
    assert torch.cuda.memory_allocated() == before


@ops
@dtypes([d for d in DTYPES if d != torch.float16])
def test_an_upstream_of_one_leaves_the_gradient_alone(op: str, dtype: torch.dtype, device: str) -> None:
    """The device reads the upstream and returns at once: a sentinel in the gradient's memory stays. Any other makes the
    gradient anew, in the same memory."""
    shape = Shape((2, 19, 13, 17))
    targets = make_index(shape, device=device)
    x = make_trained_logits(shape, targets, dtype).requires_grad_()
    expected = run(op, x.detach(), targets, upstream=torch.tensor(0.5, device=device)).grad
    for upstream in (1.0, 0.5):
        loss = loss_of(op, x, targets, gradient="forward")
        made = loss.grad_fn.gradient
        made.fill_(7)
        (grad,) = torch.autograd.grad(loss, x, torch.tensor(upstream, device=device, dtype=loss.dtype))
        assert grad.data_ptr() == made.data_ptr()
        assert bool((grad == 7).all()) if upstream == 1.0 else torch.equal(bits(grad), bits(expected))


@engines
def test_two_backwards_with_different_upstreams(engine: str, device: str) -> None:
    op, logits, targets = problem(engine)
    x = logits.requires_grad_()
    for gradient in ("forward", "backward"):
        loss = loss_of(op, x, targets, gradient=gradient)
        upstreams = [torch.tensor(value, device=device) for value in (1.0, 3.0, 1.0, -0.5)]
        grads = [torch.autograd.grad(loss, x, upstream, retain_graph=True)[0] for upstream in upstreams]
        assert len({g.data_ptr() for g in grads}) == len(grads)
        assert torch.equal(bits(grads[0]), bits(grads[2]))
        for upstream, grad in zip(upstreams, grads, strict=True):
            torch.testing.assert_close(grad, grads[0] * upstream, rtol=1e-5, atol=torch.finfo(grad.dtype).tiny)


# --- labels out of range ---------------------------------------------------------------------------------------------

# At the end the C library's own buffer is flushed, where a device's lines are when the output is no terminal.
PROGRAM = """
import ctypes, torch, focal_cuda
torch.manual_seed(0)
logits = torch.randn({size}, device="cuda", requires_grad=True)
targets = torch.zeros({positions}, dtype=torch.{dtype}, device="cuda")
targets{place} = {value}
loss = focal_cuda.{op}(logits, targets, {arguments})
loss.sum().backward()
try:
    torch.cuda.synchronize()
except RuntimeError as error:
    print("stopped:", type(error).__name__, flush=True)
else:
    print("went on", flush=True)
ctypes.CDLL(None).fflush(None)
"""


def out_of_range(op: str, size: tuple, place: tuple, value: float, dtype: str = "int64", arguments: str = "") -> str:
    """What a process prints whose targets are wrong in one place; an error there would reach all later tests here."""
    positions = size if dtype.startswith("float") else size[:1] + size[2:]
    program = PROGRAM.format(**{**locals(), "place": list(place)})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "stopped:" in done.stdout, done.stdout + done.stderr
    return done.stdout


@ops
@pytest.mark.parametrize(
    ("size", "place", "value", "dtype", "arguments"),
    [
        ((2, 19, 33, 16), (1, 32, 15), 77, "int64", ""),
        ((2, 19, 13, 17), (1, 3, 2), 200, "uint8", "reduction='none'"),
        ((100_000, 80), (70_003,), -5, "int32", "gradient='backward'"),
        ((3, 50_000), (2,), 2**40, "int64", ""),
    ],
    ids=["masks", "bytes", "rows", "beyond 32 bits"],
)
def test_a_label_out_of_range_stops_with_one_line(
    op: str, size: tuple, place: tuple, value: int, dtype: str, arguments: str, device: str
) -> None:
    """It names the value, its place, the range and the remedy, as the CPU's IndexError does."""
    printed = out_of_range(op, size, place, value, dtype, arguments)
    lines = [line for line in printed.splitlines() if "focal_cuda" in line]
    assert len(lines) == 1, printed
    (line,) = lines
    assert re.search(rf"\[0, {size[1]}\).*got targets{re.escape(str(list(place)))} = {value}; .*ignore_index", line), (
        line
    )


def test_a_dense_target_out_of_range_stops_with_one_line(device: str) -> None:
    printed = out_of_range("sigmoid_focal_loss", (40, 80), (2, 1), 1.5, "float32")
    lines = [line for line in printed.splitlines() if "sigmoid_focal_loss: " in line]
    assert len(lines) == 1, printed
    assert re.search(r"\[0, 1\].*got targets\[2, 1\] = 1\.5; ", lines[0]), lines[0]


@ops
def test_validate_raises_before_anything_stops(op: str, device: str) -> None:
    targets = torch.zeros(40, dtype=torch.int64, device=device)
    targets[7] = 99
    with pytest.raises(IndexError, match=r"\[0, 19\).*got targets\[7\] = 99"):
        loss_of(op, torch.zeros(40, 19, device=device), targets, validate=True)
    torch.cuda.synchronize()


# --- what torch expects ----------------------------------------------------------------------------------------------


@engines
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_opcheck(engine: str, reduction: str, device: str) -> None:
    """Schema, fakes and autograd registration, of forward and backward operators on the device."""
    op, logits, targets = problem(engine)
    numbers = numbers_of(background_index=ENGINES[engine][1].classes, reduction=reduction)
    forward = getattr(torch.ops.focal_cuda, op).default
    tensors = (logits, targets, *_ops.NO_PARTS)
    torch.library.opcheck(forward, (*tensors, None, 1.0, *numbers, reduction != "none"))
    loss, scale, _ = forward(*tensors, None, 1.0, *numbers, False)
    backward = getattr(torch.ops.focal_cuda, f"{op}_backward").default
    arguments = (torch.full_like(loss, 0.3), *tensors, scale, *numbers, False, torch.zeros_like(logits))
    torch.library.opcheck(backward, arguments)


def test_the_build_is_for_this_gpu(device: str) -> None:
    info = focal_cuda.build_info()
    assert info["with_cuda"]
    major, minor = torch.cuda.get_device_capability()
    listed = re.findall(r"(\d+)\.(\d+)", str(info["cuda_architectures"]))
    ptx = "PTX" in str(info["cuda_architectures"])
    assert any(int(a) == major and int(b) <= minor for a, b in listed) or ptx
