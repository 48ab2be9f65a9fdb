"""Whether an installed package works: python tests/smoke.py, from a folder without a checkout."""

import importlib.metadata
from pathlib import Path

import torch
import torch.nn.functional as F

import focal_cuda


def main() -> None:
    assert importlib.metadata.version("focal-cuda") == focal_cuda.__version__ == focal_cuda.build_info()["version"]
    assert (Path(focal_cuda.__file__).parent / "py.typed").exists()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() and focal_cuda.is_available("cuda") else "cpu"
    x, t = torch.randn(64, 5, 3, 7, device=device, requires_grad=True), torch.randint(0, 5, (64, 3, 7), device=device)
    torch.testing.assert_close(focal_cuda.softmax_focal_loss(x, t, gamma=0.0), F.cross_entropy(x, t))
    dense = F.one_hot(t, 5).movedim(-1, 1).float()
    plain = F.binary_cross_entropy_with_logits(x, dense)
    torch.testing.assert_close(focal_cuda.sigmoid_focal_loss(x, t, alpha=None, gamma=0.0), plain)

    features, layer = torch.randn(64, 8, device=device), torch.nn.Linear(8, 5, device=device)
    criterion = focal_cuda.SoftmaxFocalLoss(alpha=[0.1, 0.2, 0.3, 0.4, 0.5]).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(criterion(layer(features), t[:, 0, 0]))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    print(f"{focal_cuda.__file__}: {focal_cuda.build_info()}")


if __name__ == "__main__":
    main()
