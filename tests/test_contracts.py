"""What torch expects of an operator: schemas, compilation, higher derivatives, functional transforms, autocast."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import Shape, make_dense, make_index, make_logits, make_trained_logits
from compare import numbers_of, run
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import focal_cuda
from focal_cuda import _ops, reference

# torch's compiler uses what torch itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

OPS = ["softmax_focal_loss", "sigmoid_focal_loss"]
ops = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def batch(size: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    targets = make_index(Shape(size), device=device)
    return make_trained_logits(Shape(size), targets, dtype), targets


def loss_of(op: str, x: Tensor, targets: Tensor, **kwargs) -> Tensor:
    return getattr(focal_cuda, op)(x, targets, **kwargs)


def value_and_grad(f, x: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    loss = f(x)
    (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss) * 0.7 if upstream is None else upstream)
    return loss.detach(), grad


def assert_same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=1e-30, check_stride=False)


# Every kind of problem an operator can be given: layouts, types, reductions, and which optional tensors.
PROBLEMS = {
    "rows": ((6, 5), torch.float32, "mean", ""),
    "columns": ((2, 5, 3, 4), torch.bfloat16, "none", "weights"),
    "channels_last": ((2, 5, 3, 4), torch.float32, "sum", "weights normalizer"),
    "sliced": ((6, 5), torch.float64, "positives", ""),
    "empty": ((0, 5), torch.float16, "mean", "normalizer sample_weight"),
    "a gamma for each class": ((6, 5), torch.float64, "mean", "gamma weights sample_weight"),
    "a gamma on the device": ((6, 5), torch.float32, "none", "0-d sample_weight"),
    "smoothed": ((2, 5, 3, 4), torch.float32, "mean", "smoothing gamma"),
    "dense": ((2, 5, 3, 4), torch.float32, "sum", "dense sample_weight"),
    "scores": ((6, 5), torch.float32, "none", "scores sample_weight"),
}
Operands = tuple[Tensor, Tensor, _ops.Parts, Tensor | None, _ops.Numbers]


def problem(op: str, kind: str) -> Operands:
    size, dtype, reduction, given = PROBLEMS[kind]
    logits, targets = batch(size, dtype)
    sigmoid = op == "sigmoid_focal_loss"
    if kind == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    if kind == "sliced":
        logits = torch.cat([logits, logits], 1)[:, :5]
    if "dense" in given:
        targets = make_dense(size, soft=True)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    like_loss = size if sigmoid else size[:1] + size[2:]
    parts = _ops.Parts(
        weights=torch.rand((2, 5) if sigmoid else (5,), dtype=compute) if "weights" in given else None,
        gamma=torch.rand(5 if "gamma" in given else (), dtype=compute) if "gamma" in given or "0-d" in given else None,
        sample_weight=torch.rand(1, dtype=compute).expand(like_loss) if "sample_weight" in given else None,
        scores=torch.rand(targets.shape) if sigmoid and "scores" in given else None,
    )
    loss = {"loss": "quality"} if parts.scores is not None else {}
    smoothing = 0.1 if "smoothing" in given else 0.0
    normalizer = torch.tensor(3.0) if "normalizer" in given else None
    weights = {"positive_weight": 0.3, "negative_weight": 0.7} if sigmoid else {}
    numbers = numbers_of(reduction=reduction, smoothing=smoothing, background_index=5, **weights, **loss)
    return logits, targets, parts, normalizer, numbers


every_problem = pytest.mark.parametrize("kind", PROBLEMS)


@ops
@every_problem
@pytest.mark.parametrize("with_gradient", [False, True])
def test_opcheck_of_the_forward_operators(op: str, kind: str, with_gradient: bool) -> None:
    logits, targets, parts, normalizer, numbers = problem(op, kind)
    with_gradient = with_gradient and numbers.reduction != _ops.REDUCTIONS["none"]
    operator = getattr(torch.ops.focal_cuda, op).default
    torch.library.opcheck(operator, (logits, targets, *parts, normalizer, 1.0, *numbers, with_gradient))


@ops
@every_problem
def test_opcheck_of_the_in_place_operators(op: str, kind: str) -> None:
    logits, targets, parts, normalizer, numbers = problem(op, kind)
    if numbers.reduction == _ops.REDUCTIONS["none"]:
        numbers = numbers._replace(reduction=_ops.REDUCTIONS["sum"])
    operator = getattr(torch.ops.focal_cuda, f"{op}_inplace").default
    torch.library.opcheck(operator, (logits, targets, *parts, normalizer, 1.0, *numbers))


@ops
@every_problem
@pytest.mark.parametrize("filled", [False, True])
def test_opcheck_of_the_backward_operators(op: str, kind: str, filled: bool) -> None:
    logits, targets, parts, normalizer, numbers = problem(op, kind)
    forward = getattr(torch.ops.focal_cuda, op).default
    made = filled and numbers.reduction != _ops.REDUCTIONS["none"]
    loss, scale, gradient = forward(logits, targets, *parts, normalizer, 1.0, *numbers, made)
    if not made:
        gradient = torch.empty_like(logits).zero_()
    operator = getattr(torch.ops.focal_cuda, f"{op}_backward").default
    grad_loss = torch.full_like(loss, 0.3)
    torch.library.opcheck(operator, (grad_loss, logits, targets, *parts, scale, *numbers, made, gradient))


def test_opcheck_of_the_probe() -> None:
    torch.library.opcheck(torch.ops.focal_cuda.margin_probe.default, (torch.randn(7), 1.5))


@ops
def test_meta_tensors_have_the_right_shapes(op: str) -> None:
    logits = torch.empty(2, 5, 3, 4, device="meta", dtype=torch.bfloat16)
    targets = torch.empty(2, 3, 4, device="meta", dtype=torch.int64)
    for reduction, shape in (("mean", ()), ("none", logits.shape if op.startswith("sigmoid") else targets.shape)):
        loss = loss_of(op, logits, targets, reduction=reduction)
        assert loss.is_meta and loss.shape == shape and loss.dtype == torch.float32


@pytest.mark.native
@ops
@pytest.mark.parametrize(
    ("reduction", "gradient", "dynamic"),
    [
        ("none", "auto", False),
        ("none", "auto", True),
        ("mean", "auto", False),
        ("mean", "auto", True),
        ("mean", "inplace", False),
        ("sum", "forward", False),
        ("sum", "backward", True),
    ],
)
def test_compile_without_a_graph_break(op: str, reduction: str, gradient: str, dynamic: bool, device: str) -> None:
    def f(x: Tensor, targets: Tensor) -> Tensor:
        return loss_of(op, x * 2, targets, reduction=reduction, gradient=gradient)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(f, fullgraph=True, backend=counter, dynamic=dynamic)
    compilations = set()
    for size in ((6, 5), (9, 5), (11, 5)) if dynamic else ((6, 5),):
        logits, targets = batch(size, device=device)
        before = logits.clone()
        expected = value_and_grad(lambda x, t=targets: f(x, t), logits)
        assert_same(value_and_grad(lambda x, t=targets: compiled(x, t), logits), expected)
        assert torch.equal(logits, before)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1, "another batch size compiled again"


@pytest.mark.native
@ops
@pytest.mark.parametrize("gradient", ["auto", "forward", "inplace"])
def test_a_compiled_forward_makes_no_gradient(op: str, gradient: str, device: str) -> None:
    """It would have to keep it for a backward that may come twice, or never."""
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append(graph)
        return make_boxed_func(graph)

    logits, targets = batch((6, 5), device=device)
    x = logits.requires_grad_()
    compiled = torch.compile(
        lambda x: loss_of(op, x * 2, targets, gradient=gradient), fullgraph=True, backend=aot_autograd(fw_compiler=keep)
    )
    compiled(x).backward()
    forward = [n for n in graphs[0].graph.nodes if n.target is _ops.FAMILIES[op].forward]
    assert len(forward) == 1 and forward[0].args[-1] is False


@pytest.mark.native
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_of_several_losses_in_one_graph(dynamic: bool, device: str) -> None:
    """What dynamo took up within the first loss, the second did not find."""

    def f(x: Tensor, targets: Tensor) -> Tensor:
        return sum(loss_of(op, x * 2, targets) for op in (*OPS, *OPS))

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    logits, targets = batch((6, 5), device=device)
    expected = value_and_grad(lambda x: f(x, targets), logits)
    assert_same(value_and_grad(lambda x: compiled(x, targets), logits), expected)


@pytest.mark.native
@ops
def test_compile_of_everything_at_once(op: str, device: str) -> None:
    """A vector of alpha, a normalizer on the device, channels last, half precision, through the real compiler."""
    targets = make_index(Shape((2, 5, 3, 4)), torch.uint8, device, ignore_index=255)
    logits = make_trained_logits(Shape((2, 5, 3, 4)), targets, torch.bfloat16)
    logits = logits.to(memory_format=torch.channels_last)
    alpha, normalizer = torch.rand(5, device=device), torch.tensor(7.0, device=device)

    def f(x: Tensor) -> Tensor:
        kwargs = {"reduction": "sum", "normalizer": normalizer, "ignore_index": 255}
        return loss_of(op, x.float().sin().to(x.dtype), targets, alpha=alpha, **kwargs).mul(3)

    loss, grad = value_and_grad(torch.compile(f, fullgraph=True), logits)
    expected_loss, expected_grad = value_and_grad(f, logits)
    torch.testing.assert_close(loss, expected_loss, rtol=2e-3, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-2, atol=1e-3)


@pytest.mark.native
@ops
def test_compile_of_a_module_in_training(op: str, device: str) -> None:
    name = {"softmax_focal_loss": "SoftmaxFocalLoss", "sigmoid_focal_loss": "SigmoidFocalLoss"}[op]
    criterion = getattr(focal_cuda, name)(alpha=[0.1, 0.2, 0.3, 0.4, 0.5], gamma=1.5).to(device)
    logits, targets = batch((6, 5), device=device)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    expected = value_and_grad(lambda x: criterion(x, targets), logits)
    assert_same(value_and_grad(lambda x: compiled(x, targets), logits), expected)


@ops
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
@pytest.mark.parametrize("size", [(3, 3), (1, 3, 2, 2)], ids=["rows", "columns"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(op: str, gamma: float, size: tuple, reduction: str, device: str) -> None:
    logits, targets = batch(size, torch.float64, device)
    alpha = torch.rand(3, dtype=torch.float64, device=device)

    def f(x: Tensor) -> Tensor:
        return loss_of(op, x, targets, alpha=alpha, gamma=gamma, reduction=reduction)

    x = logits.clamp(-4, 4).requires_grad_()
    assert torch.autograd.gradcheck(f, x, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(f, x, check_batched_grad=False)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_gradcheck_of_soft_targets(gamma: float, device: str) -> None:
    targets = make_dense((4, 3), torch.float64, device, soft=True)
    x = make_logits((4, 3), torch.float64, device).clamp(-4, 4).requires_grad_()

    def f(v: Tensor) -> Tensor:
        return focal_cuda.sigmoid_focal_loss(v, targets, 0.3, gamma)

    assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)


@ops
@pytest.mark.parametrize("gradient", ["auto", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_gradient_penalty(op: str, gradient: str, dtype: torch.dtype, device: str) -> None:
    logits, targets = batch((6, 5), dtype, device)
    kwargs = {"gamma": 1.5, "reduction": "sum", "normalizer": torch.tensor(3.0, device=device)}

    def penalty(f, x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_()
        loss = f(x)
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        (loss + grad.square().sum()).backward()
        return x.grad

    ours = penalty(lambda x: loss_of(op, x, targets, gradient=gradient, **kwargs), logits)
    alpha = {"sigmoid_focal_loss": 0.25, "softmax_focal_loss": None}[op]
    expected = penalty(lambda x: getattr(reference, op)(x, targets, alpha, **kwargs), logits.double())
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-6)


@ops
def test_a_first_order_backward_under_create_graph_then_a_plain_one(op: str, device: str) -> None:
    logits, targets = batch((6, 5), device=device)
    x = logits.requires_grad_()
    loss = loss_of(op, x, targets)
    (graphed,) = torch.autograd.grad(loss, x, create_graph=True)
    (plain,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert graphed.requires_grad and not plain.requires_grad
    assert_same((graphed.detach(),), (plain,))


@ops
@pytest.mark.parametrize(("reduction", "class_dim"), [("none", 1), ("none", 0), ("none", 2), ("mean", 1)])
def test_batched_gradients(op: str, reduction: str, class_dim: int, device: str) -> None:
    """Jacobians by one vectorised backward."""
    shape = Shape((5, 5, 5), class_dim=class_dim)
    targets = make_index(shape, device=device)
    x = make_trained_logits(shape, targets).requires_grad_()
    loss = loss_of(op, x, targets, reduction=reduction, class_dim=class_dim)
    upstreams = torch.randn(4, *loss.shape, device=device)
    (together,) = torch.autograd.grad(loss, x, upstreams, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(loss, x, u, retain_graph=True)[0] for u in upstreams]
    assert_same((together,), (torch.stack(one_by_one),))


@ops
def test_functional_transforms(op: str, device: str) -> None:
    """grad, per-sample grad, jacobians and hessians equal the reference's."""
    logits, targets = batch((6, 5), torch.float64, device)
    targets = torch.where(targets == -100, 0, targets)
    alpha = torch.rand(5, dtype=torch.float64, device=device)

    def ours(x: Tensor, t: Tensor = targets) -> Tensor:
        return loss_of(op, x, t, alpha=alpha, gamma=1.5, reduction="sum")

    def truth(x: Tensor, t: Tensor = targets) -> Tensor:
        return getattr(reference, op)(x, t, alpha, 1.5, "sum")

    func = torch.func
    transforms = [
        func.grad,
        func.hessian,
        lambda f: func.jacrev(f),
        lambda f: lambda x: func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda f: lambda x: func.vjp(f, x)[1](torch.tensor(0.3, dtype=x.dtype, device=x.device))[0],
        lambda f: lambda x: func.vmap(func.grad(lambda v, t: f(v[None], t[None])))(x, targets),
        lambda f: lambda x: func.vmap(lambda v, t: f(v[None], t[None]))(x, targets),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(ours)(logits), transform(truth)(logits), rtol=1e-9, atol=1e-15)


@ops
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_autocast_changes_nothing(op: str, dtype: torch.dtype, device: str) -> None:
    """Half logits are read as they are and float32 ones are not rounded: the loss is float32 in any case."""
    logits, targets = batch((6, 5), dtype, device)
    plain = value_and_grad(lambda x: loss_of(op, x, targets), logits)
    with torch.autocast(device, torch.bfloat16):
        mixed = value_and_grad(lambda x: loss_of(op, x, targets), logits)
        x = logits.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(op, x, targets), x, create_graph=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, mixed, strict=True))
    assert plain[0].dtype == torch.float32 and plain[1].dtype == dtype and grad.dtype == dtype


@ops
def test_a_mixed_precision_training_step(op: str, device: str) -> None:
    """autocast and a gradient scaler of 65536: the gradients come out as in float32."""
    features, targets = torch.randn(64, 8, device=device), make_index(Shape((64, 5)), device=device)
    torch.manual_seed(3)
    layer = torch.nn.Linear(8, 5, device=device)
    expected = torch.autograd.grad(loss_of(op, layer(features), targets), list(layer.parameters()))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=65536.0)
    with torch.autocast(device, torch.float16):
        logits = layer(features)
        loss = loss_of(op, logits, targets)
    assert logits.dtype == torch.float16
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=2e-2, atol=2e-5)
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(layer.weight, before)


@ops
def test_calls_from_several_threads(op: str, device: str) -> None:
    problems = [batch((500, 7), device=device) for _ in range(4)]
    expected = [run(op, x, t) for x, t in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = list(pool.map(lambda p: run(op, *p), problems))
            for result, right in zip(results, expected, strict=True):
                assert torch.equal(result.loss, right.loss) and torch.equal(result.grad, right.grad)
