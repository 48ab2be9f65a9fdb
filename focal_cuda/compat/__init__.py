"""The focal losses of other libraries: their names, arguments, defaults and denominators, on the kernels of this one.

Each module is named after the library whose calls it takes: ``from focal_cuda.compat.torchvision import
sigmoid_focal_loss``. None of the libraries is needed. :func:`focal_cuda.patch` puts these functions and classes where a
library has its own. An adapter maps arguments; the formulas are where they are for everyone. To the smallest call
([8, 4], forward and backward on the CPU: 55 to 80 us) that adds less than 10 us, unless a docstring says more.

What differs from the originals is named in the docstrings, and the same everywhere: labels and targets out of range are
errors, targets get no gradient, nothing to average over gives 0 instead of NaN, and gradients are finite at every
logit.
"""

from . import apex, detr, fvcore, keras, kornia, mmcv, mmdet, mmseg, monai, seeds, smp, timm, torchvision, ultralytics

__all__ = [
    "apex",
    "detr",
    "fvcore",
    "keras",
    "kornia",
    "mmcv",
    "mmdet",
    "mmseg",
    "monai",
    "seeds",
    "smp",
    "timm",
    "torchvision",
    "ultralytics",
]
