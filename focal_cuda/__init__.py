"""Focal loss, softmax and sigmoid, as fused kernels for PyTorch."""

from . import reference
from ._ops import build_info, is_available
from ._version import __version__
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
    "gaussian_focal_loss",
    "init_prior_bias_",
    "is_available",
    "normalized_focal_loss",
    "poly_focal_loss",
    "quality_focal_loss",
    "reduced_focal_loss",
    "reference",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]
