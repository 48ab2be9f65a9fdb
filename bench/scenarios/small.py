"""A tensor so small that only the overhead of the call is left."""

from bench.scenario import Scenario

_SHAPES = {"cpu": (8, 4), "cuda": (8, 4), "quick": (8, 4)}

SCENARIOS = (
    Scenario(
        name="small-softmax",
        title="Call overhead, softmax",
        family="softmax",
        shapes=_SHAPES,
        candidates=(
            "focal_cuda",
            "focal_cuda.compat",
            "Python MultiClassFocalLoss",
            "Python cross-entropy based",
            "compile cross-entropy based",
            "F.cross_entropy",
        ),
        baseline="Python MultiClassFocalLoss",
        compiled="compile cross-entropy based",
        latency=True,
        cuda_candidates=("focal_cuda, CUDA graph", "F.cross_entropy, CUDA graph"),
    ),
    Scenario(
        name="small-sigmoid",
        title="Call overhead, sigmoid",
        family="sigmoid",
        shapes=_SHAPES,
        candidates=(
            "focal_cuda",
            "focal_cuda.compat",
            "Python torchvision formula",
            "compile torchvision formula",
            "F.binary_cross_entropy",
        ),
        baseline="Python torchvision formula",
        compiled="compile torchvision formula",
        latency=True,
        cuda_candidates=("focal_cuda, CUDA graph",),
    ),
)
