"""How far can a neural network be pruned? Estimates of the limit, and the book that explains them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunelimit.datasets import load_dataset
    from prunelimit.errors import PruneLimitError
    from prunelimit.layers import LayerLimits, layer_limits
    from prunelimit.limit import PruningLimit
    from prunelimit.models import build_model
    from prunelimit.predict import predict_limit
    from prunelimit.pruning import apply_masks, magnitude_masks
    from prunelimit.report import Report, limit_report
    from prunelimit.training import TrainSpec, train

__version__ = "0.1.0"

_HOME = {
    "LayerLimits": "layers",
    "PruneLimitError": "errors",
    "PruningLimit": "limit",
    "Report": "report",
    "TrainSpec": "training",
    "apply_masks": "pruning",
    "build_model": "models",
    "layer_limits": "layers",
    "limit_report": "report",
    "load_dataset": "datasets",
    "magnitude_masks": "pruning",
    "predict_limit": "predict",
    "train": "training",
}

__all__ = [
    "LayerLimits",
    "PruneLimitError",
    "PruningLimit",
    "Report",
    "TrainSpec",
    "apply_masks",
    "build_model",
    "layer_limits",
    "limit_report",
    "load_dataset",
    "magnitude_masks",
    "predict_limit",
    "train",
]


def __getattr__(name: str) -> Any:
    # Importing torch takes a second, which `prunelimit --help` should not have to wait for.
    if name not in _HOME:
        raise AttributeError(f"module 'prunelimit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prunelimit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
