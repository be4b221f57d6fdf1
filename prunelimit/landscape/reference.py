"""The phase diagrams that the three-regime paper published (Zhou et al. 2023), read off its figure."""

from __future__ import annotations

import importlib.resources

import pandas as pd

#: What every number of :func:`reference_frame` has to be quoted as.
SOURCE = "digitised from the published figure"

#: How far a digitised value may be off: about 1/256 of the range of its heat map.
RESOLUTION = {"error": 5e-4, "normalised_error": 5e-4, "lmc": 3e-3, "cka": 5e-4}

#: Column of the frame to its table.
_FILES = {
    "error": "test_error_digitized.csv",
    "normalised_error": "normalized_test_error_digitized.csv",
    "lmc": "lmc_digitized.csv",
    "cka": "cka_output_digitized.csv",
}


def reference_frame() -> pd.DataFrame:
    """Return the published phase diagrams of PreResNet-20 on CIFAR-10 over training epochs and density.

    The values are digitised from the published figure, its heat maps read pixel by pixel; :data:`RESOLUTION` says how
    exactly. The paper's recipe: the parents are early-stopped checkpoints of one run of 160 epochs, pruned by magnitude at
    one density for every convolution and retrained for 160 epochs. A value is a mean over 3 dense seeds and 3 retraining
    seeds each.

    Returns:
        One row per cell, ordered by value and density: ``value`` (epochs of dense training), ``density`` (fraction of the
        prunable weights kept), ``error`` (test error, fraction), ``normalised_error`` (the same minus the lowest at this
        density, a heat map of its own), ``lmc`` (training error, 0 is connected) and ``cka`` (softmax outputs).
    """
    folder = importlib.resources.files("prunelimit.landscape") / "reference"
    columns = {}
    for name, file in _FILES.items():
        with (folder / file).open(encoding="utf-8") as lines:
            table = pd.read_csv(lines, index_col=0)
        table.columns = pd.Index([float(density) / 100 for density in table.columns])
        columns[name] = table.rename_axis("value").rename_axis("density", axis="columns").stack()
    return pd.DataFrame(columns).reset_index().sort_values(["value", "density"], ignore_index=True)
