"""The losses in plain torch operations, written from the papers: in float64 the oracle that the kernels are tested
against, in the type of the logits the composite behind double backward and ``torch.func``.

It must not share code with the kernels, raise on labels (callers check those) or branch on the data.
"""

from .losses import sigmoid_focal_loss, softmax_focal_loss
from .relatives import (
    asymmetric_loss,
    gaussian_focal_loss,
    normalized_focal_loss,
    poly_focal_loss,
    quality_focal_loss,
    reduced_focal_loss,
    varifocal_loss,
)

__all__ = [
    "asymmetric_loss",
    "gaussian_focal_loss",
    "normalized_focal_loss",
    "poly_focal_loss",
    "quality_focal_loss",
    "reduced_focal_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]
