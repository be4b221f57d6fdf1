"""Pruning methods, all returning masks, and the limits that one measures by pruning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prunelimit.pruning.export import load_sparse, save_sparse
from prunelimit.pruning.heads import head_units
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks, export_pruning, magnitude_masks
from prunelimit.pruning.structured import UnitOrder

if TYPE_CHECKING:
    from prunelimit.pruning.layerwise import WandaOrder
    from prunelimit.pruning.semistructured import SemiStructuredOrder, is_semistructured
    from prunelimit.pruning.sparsegpt import SparseGPTOrder, SparseGPTPath

# They read activations, by way of the adapters and curvature.data, which import this package.
_HOME = {
    "SemiStructuredOrder": "semistructured",
    "SparseGPTOrder": "sparsegpt",
    "SparseGPTPath": "sparsegpt",
    "WandaOrder": "layerwise",
    "is_semistructured": "semistructured",
}

__all__ = [
    "MagnitudePath",
    "SemiStructuredOrder",
    "SparseGPTOrder",
    "SparseGPTPath",
    "UnitOrder",
    "WandaOrder",
    "apply_masks",
    "export_pruning",
    "head_units",
    "is_semistructured",
    "load_sparse",
    "magnitude_masks",
    "save_sparse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prunelimit.pruning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prunelimit.pruning.{_HOME[name]}"), name)
