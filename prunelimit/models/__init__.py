"""The networks of both papers, by name.

Weights start as in the released code of the fundamental-limit paper (Kaiming normal, fan in, ReLU gain); the initial biases
are zero. The networks of the three-regime paper start as in its code, see :func:`draw_regime_weights`. Only the weight
matrices of linear and convolution layers are prunable; see :func:`prunable_names`.
"""

from prunelimit.models.build import HIDDEN, MODELS, build_model
from prunelimit.models.parameters import match_masks, prunable_names
from prunelimit.models.plain import alexnet, mlp, vgg
from prunelimit.models.regimes import DenseLayer, PreactivationBlock, densenet, draw_regime_weights, preresnet
from prunelimit.models.residual import BasicBlock, ProjectionBlock, cifar_resnet, projection_resnet

__all__ = [
    "HIDDEN",
    "MODELS",
    "BasicBlock",
    "DenseLayer",
    "PreactivationBlock",
    "ProjectionBlock",
    "alexnet",
    "build_model",
    "cifar_resnet",
    "densenet",
    "draw_regime_weights",
    "match_masks",
    "mlp",
    "preresnet",
    "projection_resnet",
    "prunable_names",
    "vgg",
]
