"""The networks of both papers, by name.

Weights start as in the released code (Kaiming normal, fan in, ReLU gain); the initial biases are zero. Only the weight
matrices of linear and convolution layers are prunable; see :func:`prunable_names`.
"""

from prunelimit.models.build import HIDDEN, MODELS, build_model
from prunelimit.models.parameters import match_masks, prunable_names
from prunelimit.models.plain import alexnet, mlp, vgg
from prunelimit.models.residual import BasicBlock, ProjectionBlock, cifar_resnet, projection_resnet

__all__ = [
    "HIDDEN",
    "MODELS",
    "BasicBlock",
    "ProjectionBlock",
    "alexnet",
    "build_model",
    "cifar_resnet",
    "match_masks",
    "mlp",
    "projection_resnet",
    "prunable_names",
    "vgg",
]
