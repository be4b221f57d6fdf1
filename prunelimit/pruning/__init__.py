"""Pruning methods, all returning masks, and the limits that one measures by pruning."""

from prunelimit.pruning.export import load_sparse, save_sparse
from prunelimit.pruning.magnitude import MagnitudePath, apply_masks, export_pruning, magnitude_masks
from prunelimit.pruning.structured import UnitOrder, structured_masks

__all__ = [
    "MagnitudePath",
    "UnitOrder",
    "apply_masks",
    "export_pruning",
    "load_sparse",
    "magnitude_masks",
    "save_sparse",
    "structured_masks",
]
