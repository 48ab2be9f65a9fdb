"""Tensors so small that only the overhead of the call is left."""

from bench.scenario import Scenario

_CANDIDATES = {
    "softmax": (
        "focal_cuda",
        "focal_cuda.compat",
        "Python MultiClassFocalLoss",
        "Python cross-entropy based",
        "compile cross-entropy based",
        "F.cross_entropy",
    ),
    "sigmoid": (
        "focal_cuda",
        "focal_cuda.compat",
        "Python torchvision formula",
        "compile torchvision formula",
        "F.binary_cross_entropy",
    ),
}
_BASELINES = {"softmax": "Python MultiClassFocalLoss", "sigmoid": "Python torchvision formula"}
_COMPILED = {"softmax": "compile cross-entropy based", "sigmoid": "compile torchvision formula"}
_GRAPHS = {
    "softmax": ("focal_cuda, CUDA graph", "F.cross_entropy, CUDA graph"),
    "sigmoid": ("focal_cuda, CUDA graph",),
}


def _small(family: str, shape: tuple[int, ...], devices: tuple[str, ...], name: str = "", title: str = "") -> Scenario:
    return Scenario(
        name=f"small-{family}{name}",
        title=f"Call overhead, {family}{title}",
        family=family,
        shapes=dict.fromkeys((*devices, "quick"), shape),
        candidates=_CANDIDATES[family],
        baseline=_BASELINES[family],
        compiled=_COMPILED[family],
        latency=True,
        cuda_candidates=_GRAPHS[family],
    )


SCENARIOS = (
    _small("softmax", (8, 4), ("cpu", "cuda")),
    _small("sigmoid", (8, 4), ("cpu", "cuda")),
    # What a single image, or its anchors on the smallest level of a pyramid, come to.
    _small("softmax", (1, 19, 64, 64), ("cuda",), "-64", ", 64 x 64"),
    _small("sigmoid", (100, 80), ("cuda",), "-100", ", 100 anchors"),
)
