"""The mean of the hardest losses: which are chosen, their mean and its gradient, against a sort in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import dtypes
from compare import bits
from test_cpu_isa import python
from tolerance import assert_close, loss_bound, ulp
from torch import Tensor

from focal_cuda import _ohem
from focal_cuda._ohem import hardest_mean

# Around a warp, a block of the CPU's passes, a block of threads, a tile, a chunk, what is sorted and what is sampled.
SIZES = [0, 1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 2047, 2049, 4095, 4097, 65_535, 65_536, 65_537, 200_003]
SMALL = [1, 33, 257, 4097]
RULES = [(1e-9, None), (0.01, None), (0.25, None), (1.0, None), (None, 0.0), (None, 0.3), (0.25, 0.3), (0.25, 0.9)]
# What torch calls deprecated its compiler uses.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
both_dtypes = dtypes([torch.float32, torch.float64])
rules = pytest.mark.parametrize("rule", RULES, ids=str)


def with_specials(n: int) -> Tensor:
    x = torch.rand(n)
    for value in (torch.inf, torch.nan, -torch.nan, 0.0, -0.0):
        x[torch.rand(n) < 0.02] = value
    return x


KINDS: dict[str, Callable[[int], Tensor]] = {
    "a trained model's": lambda n: torch.rand(n) ** 8 * (torch.rand(n) < 0.9),
    "over all exponents": lambda n: (torch.randn(n) * 20).exp(),
    "few values": lambda n: torch.randint(0, 7, (n,)) / 7,
    "two values": lambda n: torch.randint(0, 2, (n,)).float(),
    "all equal": lambda n: torch.full((n,), 0.3),
    "all zero": lambda n: torch.zeros(n),
    "mostly ignored": lambda n: torch.rand(n) * (torch.rand(n) < 0.02),
    "rising": lambda n: torch.linspace(0, 1, n),
    "neighbours": lambda n: torch.nextafter(torch.full((n,), 0.3), torch.ones(n)) - torch.randint(0, 2, (n,)) * 2**-25,
    "denormal": lambda n: torch.rand(n) * 1e-40,
    "special": with_specials,
}


def make(kind: str, n: int, dtype: torch.dtype, device: str) -> Tensor:
    x = KINDS[kind](n).to(dtype)
    return (x * 1e-270 if kind == "denormal" and dtype == torch.float64 else x).to(device)


def number(value: float, device: str | torch.device) -> Tensor:
    return torch.tensor(value, device=device)


def oracle(losses: Tensor, counted: float, keep_ratio: float | None, threshold: float | None) -> tuple[Tensor, Tensor]:
    """The mean in float64, and which losses are kept."""
    flat = losses.detach().cpu().flatten()
    kept = torch.zeros(flat.shape, dtype=torch.bool)
    k = 0 if keep_ratio is None else min(max(1, int(counted * keep_ratio)), flat.numel())
    if threshold is not None:
        k = max(k, int(((flat > threshold) | flat.isnan()).sum()))
    if counted == 0 or k == 0:
        return torch.zeros((), dtype=torch.float64), kept.view(losses.shape)
    # torch too takes a NaN for the largest, whatever its sign.
    values, order = flat.double().sort(descending=True, stable=True)
    kept[order[:k]] = True
    return values[:k].sum() / k, kept.view(losses.shape)


def run(losses: Tensor, counted: Tensor, rule: tuple, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = losses.detach().requires_grad_()
    mean = hardest_mean(x, counted, *rule)
    return mean.detach(), torch.autograd.grad(mean, x, upstream)[0]


def bound_of(expected: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 mean is the float64 one, rounded."""
    return ulp(expected, dtype) if dtype == torch.float32 else loss_bound(expected, dtype)


def check(losses: Tensor, counted: float, rule: tuple) -> None:
    expected, kept = oracle(losses, counted, *rule)
    before, upstream = losses.clone(), torch.randn((), dtype=losses.dtype, device=losses.device) + 2
    mean, grad = run(losses, number(counted, losses.device), rule, upstream)
    assert mean.shape == () and mean.dtype == losses.dtype and grad.dtype == losses.dtype
    assert torch.equal(bits(losses), bits(before))
    assert_close(mean.cpu(), expected, bound_of(expected, losses.dtype), "mean")
    assert torch.equal(grad.cpu() != 0, kept), "others were kept"
    truth = kept * (upstream.double().cpu() / max(int(kept.sum()), 1))
    assert_close(grad.cpu(), truth, ulp(truth, losses.dtype), "gradient")


@pytest.mark.parametrize("n", SIZES)
@rules
@both_dtypes
def test_sizes(n: int, rule: tuple, dtype: torch.dtype, device: str) -> None:
    check(make("a trained model's", n, dtype, device), n, rule)


@pytest.mark.parametrize("kind", KINDS)
@rules
@both_dtypes
def test_kinds(kind: str, rule: tuple, dtype: torch.dtype, device: str) -> None:
    for n in [*SMALL, 20_011]:
        check(make(kind, n, dtype, device), n, rule)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_ratio", [1e-9, 0.01, 0.25, 0.999, 1.0])
@both_dtypes
def test_many_on_the_cpu(kind: str, keep_ratio: float, dtype: torch.dtype) -> None:
    """As many as are sampled, and several chunks."""
    check(make(kind, 300_007, dtype, "cpu"), 300_007, (keep_ratio, None))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.24, 0.25, 0.2501, 0.26, 0.9, 2.0])
def test_the_larger_of_two_sets_on_the_cpu(threshold: float) -> None:
    """Which of them is looked for first is what the sample suggests."""
    check(torch.rand(200_003), 200_003, (0.75, threshold))
    check(1 - torch.randint(0, 5, (200_003,)) / 4, 200_003, (0.6, threshold))


@pytest.mark.parametrize("counted", [0, 1, 2, 1000, 4096])
@rules
def test_fewer_count_than_there_are(counted: int, rule: tuple, device: str) -> None:
    losses = make("over all exponents", 4097, torch.float32, device)
    losses[torch.randperm(4097, device=device)[counted:]] = 0
    check(losses, counted, rule)
    as_float = hardest_mean(losses, number(float(counted), device).double(), *rule)
    assert torch.equal(as_float, hardest_mean(losses, number(counted, device), *rule))


@pytest.mark.parametrize("size", [(), (7, 5), (2, 3, 11, 13)], ids=str)
@both_dtypes
def test_shapes(size: tuple, dtype: torch.dtype, device: str) -> None:
    losses = torch.randint(0, 4, size, device=device).to(dtype)
    check(losses, losses.numel(), (0.4, None))
    check(losses.mT if losses.dim() > 1 else losses, losses.numel(), (0.4, None))


@pytest.mark.parametrize("offset", [1, 2, 3])
@both_dtypes
def test_off_the_boundaries_of_vectors(offset: int, dtype: torch.dtype, device: str) -> None:
    """The same bits as from memory on them."""
    losses = make("a trained model's", 9001, dtype, device)
    moved = torch.cat([losses.new_zeros(offset), losses])[offset:]
    check(moved, 9001, (0.1, None))
    assert torch.equal(*(hardest_mean(x, number(9001, device), 0.1, None) for x in (losses, moved)))


@pytest.mark.parametrize("k", [1, 2, 4999, 5000, 5001, 9999, 10_000])
def test_of_equal_losses_the_first_are_kept(k: int, device: str) -> None:
    equal = torch.full((10_000,), 0.7, device=device)
    _, grad = run(equal, number(10_000, device), (k / 10_000, None), number(1.0, device))
    assert torch.equal(grad.nonzero().flatten().cpu(), torch.arange(k))
    # The same between larger and smaller ones.
    mixed = torch.cat([torch.rand(5000, device=device) * 0.5, equal, 1 + torch.rand(5000, device=device)])
    _, grad = run(mixed, number(20_000, device), ((5000 + k) / 20_000, None), number(1.0, device))
    assert torch.equal(grad[:15_000].nonzero().flatten().cpu(), torch.arange(5000, 5000 + k))
    assert (grad[15_000:] != 0).all()


def sampled(n: int) -> Tensor:
    """The places that csrc/cpu/selection.cpp looks at first."""
    mask, size = 2**64 - 1, 2**14
    places = []
    for i in range(size):
        z = (i + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        begin, end = i * n // size, (i + 1) * n // size
        places.append(begin + ((z ^ z >> 31) >> 32) % (end - begin))
    return torch.tensor(places)


@pytest.mark.parametrize("value", [0.0, 2.0])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.5, 0.9])
def test_a_sample_that_misleads(value: float, keep_ratio: float) -> None:
    losses = torch.rand(200_003)
    losses[sampled(200_003)] = value * torch.rand(2**14)
    check(losses, 200_003, (keep_ratio, None))
    losses[sampled(200_003)] = value
    check(losses, 200_003, (keep_ratio, None))


@both_dtypes
@rules
def test_in_place(rule: tuple, dtype: torch.dtype, device: str, operators) -> None:
    """The gradient may overwrite the losses."""
    losses = make("few values", 9001, dtype, device)
    ratio, threshold = rule[0] or 0.0, -1.0 if rule[1] is None else rule[1]
    mean, kept = operators.hardest(losses, number(9001, device), ratio, threshold)
    upstream, apart = torch.full_like(mean, 0.7), torch.empty_like(losses)
    operators.hardest_backward(upstream, losses, kept, apart)
    operators.hardest_backward(upstream, losses, kept, losses)
    assert torch.equal(losses, apart)


@pytest.mark.parametrize("kind", ["a trained model's", "few values", "special"])
@both_dtypes
def test_the_same_bits_in_any_order_of_threads(kind: str, dtype: torch.dtype, device: str, reorder: Callable) -> None:
    losses, upstream = make(kind, 60_001, dtype, device), torch.ones((), dtype=dtype, device=device)
    for rule in ((0.25, None), (None, 0.5), (0.25, 0.5)):
        results = []
        for order in range(4):
            reorder(order)
            results.append(run(losses, number(60_001, device), rule, upstream))
        for mean, grad in results[1:]:
            assert torch.equal(bits(mean), bits(results[0][0])) and torch.equal(bits(grad), bits(results[0][1]))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", ["a trained model's", "few values", "special"])
def test_the_same_bits_for_any_number_of_threads(kind: str) -> None:
    losses, upstream = make(kind, 1_000_003, torch.float32, "cpu"), torch.ones(())
    for rule in ((0.25, None), (None, 0.5), (0.9, 0.5)):
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(run(losses, number(1_000_003, "cpu"), rule, upstream))
        for mean, grad in results[1:]:
            assert torch.equal(bits(mean), bits(results[0][0])) and torch.equal(bits(grad), bits(results[0][1]))


ON_EVERY_PROCESSOR = """
import torch, test_ohem
for kind in ("over all exponents", "few values", "special"):
    for dtype in (torch.float32, torch.float64):
        for n in (33, 4097, 300_007):
            torch.manual_seed(n)
            losses = test_ohem.make(kind, n, dtype, "cpu")
            test_ohem.check(losses, n, (0.25, None))
            print(test_ohem.hardest_mean(losses, torch.tensor(n), 0.25, None).item())
"""


def test_the_same_bits_from_every_instruction_set() -> None:
    results = [done for isa in ("base", "v3", "v4") if (done := python(ON_EVERY_PROCESSOR, isa)).returncode == 0]
    assert results, python(ON_EVERY_PROCESSOR, "base").stderr
    assert {result.stdout for result in results} == {results[0].stdout}


def test_without_a_gradient_nothing_is_saved(device: str) -> None:
    losses = torch.rand(100, device=device)
    assert hardest_mean(losses, number(100, device), 0.5, None).grad_fn is None
    with torch.no_grad():
        assert hardest_mean(losses.requires_grad_(), number(100, device), 0.5, None).grad_fn is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", [(0.25, None), (None, 0.3), (0.25, 0.3)], ids=str)
def test_a_captured_graph_chooses_anew(rule: tuple) -> None:
    losses, counted = make("few values", 60_001, torch.float32, "cuda"), number(60_001, "cuda")
    run(losses, counted, rule, number(1.0, "cuda"))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(losses, counted, rule, torch.ones((), device="cuda"))
    for kind in ("a trained model's", "special"):
        losses.copy_(make(kind, 60_001, torch.float32, "cuda"))
        graph.replay()
        for got, expected in zip(captured, run(losses, counted, rule, number(1.0, "cuda")), strict=True):
            assert torch.equal(bits(got), bits(expected))


# torch's expectations


def problem(device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Losses that are all different."""
    return (torch.randperm(40, device=device).double() + 1) / 7, number(40, device)


def test_gradcheck(device: str) -> None:
    losses, counted = problem(device)
    for rule in ((0.3, None), (None, 2.0), (0.3, 2.0)):

        def f(x: Tensor, rule: tuple = rule) -> Tensor:
            return hardest_mean(x.square(), counted, *rule)

        assert torch.autograd.gradcheck(f, losses.requires_grad_())
        assert torch.autograd.gradgradcheck(f, losses)


def test_batched_gradients(device: str) -> None:
    losses, counted = problem(device)
    mean = hardest_mean(losses.requires_grad_(), counted, 0.3, None)
    upstreams = torch.randn(4, dtype=torch.float64, device=device)
    (together,) = torch.autograd.grad(mean, losses, upstreams, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(mean, losses, u, retain_graph=True)[0] for u in upstreams]
    torch.testing.assert_close(together, torch.stack(one_by_one))


@pytest.mark.parametrize("rule", [(0.3, None), (None, 2.0), (0.3, 2.0)], ids=str)
def test_functional_transforms(rule: tuple, device: str) -> None:
    losses, counted = problem(device)
    mean, grad = run(losses, counted, rule, torch.ones_like(losses[0]))
    torch.testing.assert_close(torch.func.grad(lambda x: hardest_mean(x, counted, *rule))(losses), grad)
    batch = torch.stack([losses, losses.flip(0), losses * 2])
    means = torch.func.vmap(lambda x: hardest_mean(x, counted, *rule))(batch)
    torch.testing.assert_close(means, torch.stack([hardest_mean(x, counted, *rule) for x in batch]))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_composite_is_the_same(kind: str, rule: tuple) -> None:
    for n in (0, 1, 257):
        losses = make(kind, n, torch.float64, "cpu")
        for counted in (0, n // 2, n):
            expected, _ = oracle(losses, counted, *rule)
            mean = _ohem.composite(losses, number(counted, "cpu"), *rule)
            assert_close(mean, expected, bound_of(expected, torch.float64), "mean")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_graph_break(dynamic: bool, device: str) -> None:
    torch.compiler.reset()

    def f(x: Tensor, counted: Tensor) -> Tensor:
        return hardest_mean(x * 2, counted, 0.3, 0.9) * 3

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (40, 41, 57) if dynamic else (40,):
        x, counted = torch.rand(n, device=device, requires_grad=True), number(n, device)
        expected, got = f(x, counted), compiled(x, counted)
        assert torch.equal(got, expected)
        assert torch.equal(*(torch.autograd.grad(mean, x)[0] for mean in (got, expected)))


def test_compile_with_the_real_compiler() -> None:
    torch.compiler.reset()
    x, counted = torch.rand(400, requires_grad=True), number(400, "cpu")

    def f(x: Tensor) -> Tensor:
        return hardest_mean(x.sin(), counted, 0.3, None) * 3

    mean, expected = torch.compile(f, fullgraph=True)(x), f(x)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(*(torch.autograd.grad(m, x)[0] for m in (mean, expected)))


@pytest.mark.parametrize("n", [0, 1, 500])
@both_dtypes
def test_opcheck(n: int, dtype: torch.dtype) -> None:
    losses, counted, upstream = torch.rand(n, dtype=dtype), number(n, "cpu"), torch.tensor(0.3, dtype=dtype)
    operators = torch.ops.focal_cuda
    for rule in ((0.25, -1.0), (0.0, 0.5), (0.25, 0.5)):
        torch.library.opcheck(operators.hardest.default, (losses, counted, *rule))
        _, kept = operators.hardest(losses, counted, *rule)
        torch.library.opcheck(operators.hardest_backward.default, (upstream, losses, kept, torch.zeros_like(losses)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": torch.rand(4).half()}, "contiguous float32 or float64"),
        ({"losses": torch.rand(4, 4).mT}, "contiguous float32 or float64"),
        ({"counted": torch.tensor([1, 2])}, "one int64 or float64"),
        ({"counted": torch.tensor(1.0)}, "one int64 or float64"),
        ({"keep_ratio": 1.5}, r"in \(0, 1\]"),
        ({"keep_ratio": 0.0}, "must be given"),
    ],
)
def test_operators_refuse_what_they_cannot_read(change: dict, message: str, operators) -> None:
    arguments = {"losses": torch.rand(4), "counted": torch.tensor(4), "keep_ratio": 0.5, "threshold": -1.0, **change}
    with pytest.raises((RuntimeError, ValueError), match=message):
        operators.hardest(*arguments.values())


@pytest.mark.large
def test_more_than_2_31(device: str, backend: str, operators) -> None:
    if backend == "simt":
        pytest.skip("hours")
    n = 2**31 + 2**20
    losses = torch.zeros(n, device=device)
    losses[-3:] = torch.tensor([3.0, 1.0, 1.0])
    mean, kept = operators.hardest(losses, number(n, device), 2 / n * 1.0001, -1.0)
    assert mean.item() == 2
    operators.hardest_backward(torch.ones_like(mean), losses, kept, losses)
    assert losses[-3:].tolist() == [0.5, 0.5, 0.0] and losses.count_nonzero() == 2
