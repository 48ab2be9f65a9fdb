"""Classification: softmax over contiguous rows, from ten classes to a language model's vocabulary."""

from bench.scenario import Scenario

_PEERS = (
    "Python MultiClassFocalLoss",
    "Python cross-entropy based",
    "compile cross-entropy based",
    "F.cross_entropy",
    "clone",
    "copy_",
)


def _rows(classes: int, cuda: int, cpu: int | None = None, more: tuple[str, ...] = ()) -> Scenario:
    shapes = {"cuda": (cuda, classes), "quick": (16, min(classes, 1000))}
    if cpu is not None:
        shapes["cpu"] = (cpu, classes)
    return Scenario(
        name=f"rows-{classes}",
        title=f"Classification, {classes} classes",
        family="softmax",
        shapes=shapes,
        candidates=("focal_cuda", "focal_cuda inplace", *more, *_PEERS),
        baseline="Python MultiClassFocalLoss",
        compiled="compile cross-entropy based",
        cuda_candidates=("Liger CE", "QuACK CE") if classes >= 1000 else (),
    )


SCENARIOS = (
    _rows(10, cpu=262_144, cuda=262_144, more=("Python scattered one-hot", "kornia", "MONAI")),
    _rows(81, cuda=1_000_000),
    _rows(1000, cpu=8192, cuda=32_768, more=("Python scattered one-hot", "kornia", "MONAI")),
    _rows(1203, cuda=32_768),
    _rows(32_000, cpu=1024, cuda=8192),
    _rows(50_257, cuda=8192),
    _rows(128_256, cpu=256, cuda=8192),
    _rows(256_000, cuda=4096),
)
