"""Time against size: where the overhead of a call ends and memory begins."""

from bench.scenario import Scenario


def _sigmoid(anchors: int) -> Scenario:
    return Scenario(
        name=f"size-sigmoid-{anchors}",
        title=f"Detection, {anchors} anchors",
        family="sigmoid",
        shapes={"cpu": (anchors, 80), "cuda": (anchors * 10, 80), "quick": (max(anchors // 1000, 1), 80)},
        candidates=("focal_cuda", "Python torchvision formula", "compile torchvision formula", "copy_"),
        baseline="Python torchvision formula",
        compiled="compile torchvision formula",
        group="size-sigmoid",
        latency=True,
    )


def _softmax(edge: int) -> Scenario:
    return Scenario(
        name=f"size-softmax-{edge}",
        title=f"Segmentation, 19 classes, {edge} x {edge}",
        family="softmax",
        shapes={"cpu": (1, 19, edge, edge), "cuda": (4, 19, edge, edge), "quick": (1, 19, 8, 8)},
        candidates=("focal_cuda", "Python MultiClassFocalLoss", "compile cross-entropy based", "copy_"),
        baseline="Python MultiClassFocalLoss",
        compiled="compile cross-entropy based",
        group="size-softmax",
        latency=True,
    )


SCENARIOS = (
    *(_sigmoid(anchors) for anchors in (10, 100, 1000, 10_000, 100_000)),
    *(_softmax(edge) for edge in (16, 64, 256, 1024)),
)
