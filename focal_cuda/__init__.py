"""Focal loss, softmax and sigmoid, as fused kernels for PyTorch."""

import sys

from ._version import __version__

try:
    from . import compat, reference
    from ._ops import build_info, is_available
    from ._patch import patch, unpatch
    from .detection import RetinaNetLoss, init_prior_bias_
    from .functional import sigmoid_focal_loss, softmax_focal_loss
    from .modules import (
        AsymmetricLoss,
        GaussianFocalLoss,
        NormalizedFocalLoss,
        PolyFocalLoss,
        QualityFocalLoss,
        ReducedFocalLoss,
        SigmoidFocalLoss,
        SoftmaxFocalLoss,
        VarifocalLoss,
    )
    from .schedules import GammaSchedule
    from .variants import (
        asymmetric_loss,
        gaussian_focal_loss,
        normalized_focal_loss,
        poly_focal_loss,
        quality_focal_loss,
        reduced_focal_loss,
        varifocal_loss,
    )
    from .weighting import class_weights
except Exception:
    # `python -m focal_cuda.doctor` imports this first, and is to say why it does not load. "-m": still looked for.
    if not (sys.argv[:1] == ["-m"] and any(word.endswith("focal_cuda.doctor") for word in sys.orig_argv)):
        raise

__all__ = [
    "AsymmetricLoss",
    "GammaSchedule",
    "GaussianFocalLoss",
    "NormalizedFocalLoss",
    "PolyFocalLoss",
    "QualityFocalLoss",
    "ReducedFocalLoss",
    "RetinaNetLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "__version__",
    "asymmetric_loss",
    "build_info",
    "class_weights",
    "compat",
    "gaussian_focal_loss",
    "init_prior_bias_",
    "is_available",
    "normalized_focal_loss",
    "patch",
    "poly_focal_loss",
    "quality_focal_loss",
    "reduced_focal_loss",
    "reference",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "unpatch",
    "varifocal_loss",
]
