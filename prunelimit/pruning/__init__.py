"""Pruning methods, all returning masks, and the limits that one measures by pruning."""

from prunelimit.pruning.magnitude import MagnitudePath, apply_masks, export_pruning, magnitude_masks

__all__ = ["MagnitudePath", "apply_masks", "export_pruning", "magnitude_masks"]
