"""Every loss in a training: mixed precision, evaluation, checkpointing, determinism, several processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import soak
import torch
import torch.distributed as dist
from calls import CALLS, FOCAL, UPSTREAM, call, calls
from cases import dtypes
from compare import Result, assert_bitwise
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

HALF = dtypes([torch.float16, torch.bfloat16])


class Operations(TorchDispatchMode):
    """What is made in memory of that size or more: by which operation, of which type."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.size and not function.is_view:
                self.seen.append((str(function), tensor.dtype))
        return result


@calls()
@HALF
def test_autocast(name: str, dtype: torch.dtype, device: str) -> None:
    """Half logits go in as they are, a float32 loss comes out, and no pass casts them on the way."""
    problem = call(name, device, dtype)
    plain = problem.value_and_grad()
    with torch.autocast(device, torch.bfloat16):
        with Operations(problem.logits.numel()) as large:
            loss, grad = problem.value_and_grad()
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    assert_bitwise(Result(loss, grad), Result(*plain))
    if "soft targets" not in name and "probabilities" not in name and "hardest" not in name:
        assert torch.float32 not in {kind for _, kind in large.seen}, large.seen


@calls()
def test_evaluation(name: str, device: str) -> None:
    """Without a gradient, and with logits that can have none, the same value."""
    problem = call(name, device)
    expected = problem.value_and_grad()[0]
    with torch.no_grad():
        without = problem.loss(problem.logits.clone().requires_grad_())
    with torch.inference_mode():
        inference = problem.loss(problem.logits * 1)
    assert inference.is_inference() and torch.equal(inference, without)
    torch.testing.assert_close(without, expected, rtol=1e-6, atol=0)


@calls()
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(name: str, reentrant: bool, device: str) -> None:
    problem = call(name, device)
    x, expected = problem.logits.clone().requires_grad_(), problem.value_and_grad()
    loss = checkpoint(problem.loss, x, use_reentrant=reentrant)
    loss.backward(torch.full_like(loss, UPSTREAM))
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)  # made without a gradient, if it is reentrant
    assert torch.equal(x.grad, expected[1])


@calls()
def test_deterministic_algorithms(name: str, device: str) -> None:
    """Every operation has such an algorithm, and what is not written would be a NaN."""
    problem = call(name, device, size=(2, 5, 7, 9))
    plain = problem.value_and_grad()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            assert_bitwise(Result(*problem.value_and_grad()), Result(*plain))
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_soak_of_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """As `make soak`, which takes minutes."""
    soak.main(["--minutes", "0.03", "--threads", "2"])
    assert "memory since the warm-up: " in capsys.readouterr().out


# --- several processes -----------------------------------------------------------------------------------------------

# Their sums are not those of their parts: every process gets the whole batch.
WHOLE = [name for name in CALLS if "hardest" in name or "normalized" in name]
ROWS, PROCESSES = 8, 2


def gradients(name: str, rank: int | None, wrap: Callable[[nn.Module], nn.Module]) -> Tensor:
    """Of a linear layer's parameters: by the share of a process, or by all that is to be learned if rank is None."""
    torch.manual_seed(3)
    problem = call(name, size=(ROWS, 5))
    features, layer = torch.randn(ROWS, 4), nn.Linear(4, 5)
    mine, options = slice(None), {}
    if name not in WHOLE:
        rows, total = ROWS // PROCESSES, torch.tensor(7.0)  # as all_reduce gives it to every process
        mine = slice(None) if rank is None else slice(rank * rows, (rank + 1) * rows)
        options = {"reduction": "sum", "normalizer": total if rank is None else total / PROCESSES}
    share = problem.rows(mine)
    model = wrap(layer)
    logits = model(features[mine])
    share.loss(logits.sigmoid() if "probabilities" in name else logits, **options).backward()
    grads = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in layer.parameters()]
    return torch.cat([grad.flatten() for grad in grads])


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    results = {name: gradients(name, rank, nn.parallel.DistributedDataParallel) for name in CALLS}
    results |= {f"sharded {name}": gradients(name, rank, lambda layer: fully_shard(layer, mesh=mesh)) for name in FOCAL}
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of several processes has in its parameters' gradients in the end."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_process, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@calls()
def test_processes_learn_what_one_does(name: str, processes: list[dict[str, Tensor]]) -> None:
    """Distributed data parallel, and parameters that are shared out (FSDP2)."""
    expected = gradients(name, None, lambda layer: layer)
    assert expected.abs().sum() > 0
    for results in processes:
        for kind in (name, f"sharded {name}") if name in FOCAL else (name,):
            torch.testing.assert_close(results[kind], expected, rtol=2e-5, atol=1e-8)
