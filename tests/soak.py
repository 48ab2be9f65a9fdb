"""Trains, saves, loads and compares in several threads for minutes: the same numbers every time, and memory stays flat.

python tests/soak.py [--minutes 10] [--threads 4] [--device cpu]
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from test_modules import MODULES, module_and_batch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

POLICIES = ("auto", "forward", "backward", "inplace")
KINDS = [(n, p) for n in MODULES for p in POLICIES if (n, p) != ("NormalizedFocalLoss", "inplace")]
STEPS = 20
WARM_UP = 0.2  # of the time: until then caches and heaps of threads may grow
MAY_GROW = 16  # MiB, from then on


class Training(nn.Module):
    """A linear layer, a loss, an optimizer and a batch."""

    def __init__(self, name: str, gradient: str, device: str) -> None:
        super().__init__()
        self.criterion, _, x, self.targets, self.given = module_and_batch(name, device)
        self.criterion.gradient = gradient
        self.features, self.layer = torch.randn(len(x), 8, device=device), nn.Linear(8, x.shape[1], device=device)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.05, momentum=0.9)

    def run(self) -> Tensor:
        """Losses, and in the end the weights."""
        losses = []
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            loss = self.criterion(self.layer(self.features), self.targets, **self.given)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.cat([torch.stack(losses), self.layer.weight.detach().flatten()])

    def saved_and_loaded(self) -> Training:
        """Another of what a file keeps."""
        file = io.BytesIO()
        torch.save({"model": self.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        other = copy.deepcopy(self)
        for tensor in other.state_dict().values():
            tensor.zero_()
        other.optimizer = torch.optim.SGD(other.layer.parameters(), lr=1.0)
        other.load_state_dict(state["model"])
        other.optimizer.load_state_dict(state["optimizer"])
        return other


def life(training: Training) -> Tensor:
    """What a training comes to, half of it after a file."""
    first = training.run()
    resumed = training.saved_and_loaded()
    second = training.run()
    assert second.isfinite().all() and not torch.equal(first, second), "nothing was learned"
    assert torch.equal(resumed.run(), second), "a saved training goes on in another way"
    return torch.cat([first, second])


def megabytes() -> float:
    """Of this process, in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    told = parser.parse_args(arguments)
    began = said = time.monotonic()
    expected: dict[tuple[str, str], Tensor] = {}
    lives, warm = 0, None
    with ThreadPoolExecutor(told.threads) as pool:
        for kind in itertools.cycle(KINDS):
            torch.manual_seed(20171007)
            trainings = [Training(*kind, told.device)]
            trainings += [copy.deepcopy(trainings[0]) for _ in range(told.threads - 1)]
            for result in pool.map(life, trainings):
                assert torch.equal(result, expected.setdefault(kind, result)), f"{kind}: another result than before"
            lives += told.threads
            now = time.monotonic()
            spent = (now - began) / 60 / told.minutes
            if warm is None and spent > WARM_UP and len(expected) == len(KINDS):
                warm = megabytes()
            if now - said > 10 or spent >= 1:
                said = now
                print(
                    f"{now - began:5.0f} s  {lives} trainings of {2 * STEPS} steps  {megabytes():.0f} MiB", flush=True
                )
            if spent >= 1 and warm is not None:
                break
    grown = megabytes() - warm
    assert grown < MAY_GROW, f"expected memory to grow by less than {MAY_GROW} MiB after the warm-up, got {grown:.1f}"
    print(f"memory since the warm-up: {grown:+.1f} MiB")


if __name__ == "__main__":
    main()
