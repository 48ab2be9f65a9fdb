"""Focal loss, softmax and sigmoid, as fused kernels for PyTorch."""

from . import reference
from ._ops import build_info, is_available
from ._version import __version__
from .detection import RetinaNetLoss, init_prior_bias_
from .functional import sigmoid_focal_loss, softmax_focal_loss
from .modules import SigmoidFocalLoss, SoftmaxFocalLoss
from .schedules import GammaSchedule
from .weighting import class_weights

__all__ = [
    "GammaSchedule",
    "RetinaNetLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "__version__",
    "build_info",
    "class_weights",
    "init_prior_bias_",
    "is_available",
    "reference",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
]
