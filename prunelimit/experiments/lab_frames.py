"""What the lab sheet's tables should say: computed for its key, from records or in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from torch.nn.functional import cross_entropy

from prunelimit.checks import positives
from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import find_tasks
from prunelimit.experiments.diagram_frames import grid_diagram
from prunelimit.experiments.frames import limits_frame, load_cells
from prunelimit.experiments.path_frames import cell_pairs
from prunelimit.experiments.quadratic import FAMILIES, family_wells
from prunelimit.experiments.quadratic_frames import prediction_frame, success_frame
from prunelimit.experiments.regime_frames import regime_frame
from prunelimit.experiments.regime_grids import find_grid
from prunelimit.experiments.regimes import EXPERIMENT
from prunelimit.experiments.store import load_record
from prunelimit.landscape.connectivity import Connectivity
from prunelimit.landscape.regimes import classify_regime
from prunelimit.predict import SPECTRAL, predict_limit
from prunelimit.training import train

#: Methods of the table about a network, in its order.
LAB_METHODS = ("formula", "directional", "measured")

#: Task whose quick profile trains fc5-quick on digits.
LAB_TASK = "fc5-cifar10"

#: Grid of the two children.
LAB_GRID = "epochs"

#: Quadratics that the lab speaks of, and their number of weights.
LAB_FAMILIES, LAB_DIMENSION = ("flat", "outliers", "power"), 240

#: Classes of the digits.
CLASSES = 10

#: Column to its heading and its format.
LOOKS = {
    "epsilon": ("ε", "{:.4g}"),
    "name": ("spectrum", "{}"),
    "run": ("images", "{}"),
    "method": ("method", "{}"),
    "formula": ("formula", "{:.1%}"),
    "directional": ("directional", "{:.1%}"),
    "measured": ("measured", "{:.1%}"),
    "random": ("random", "{:.1%}"),
    "coordinates": ("cut", "{:.1%}"),
    "sparsity": ("limit", "{:.1%}"),
    "low": ("from", "{:.1%}"),
    "high": ("to", "{:.1%}"),
    "resolved": ("resolved", "{}"),
    "value": ("epochs", "{:g}"),
    "density": ("density", "{:g}"),
    "seed": ("seed", "{}"),
    "lmc": ("LMC", "{:.3f}"),
    "barrier": ("barrier", "{:.3f}"),
    "cka": ("CKA", "{:.3f}"),
    "independent": ("CKA if independent", "{:.3f}"),
    "regime": ("regime", "{}"),
}


def quadratic_answers(epsilons: Sequence[float]) -> pd.DataFrame:
    """Answer the table about quadratics.

    Args:
        epsilons: Tolerated rises.

    Returns:
        One row per epsilon and family: ``epsilon``, ``name``, ``formula``, and where half of the trials succeed: ``random`` and
        ``coordinates``, the zeros of a cut.
    """
    parts = []
    for epsilon in positives("epsilons", epsilons):
        every = family_wells(LAB_DIMENSION, epsilon)
        wells = {FAMILIES[family]: every[FAMILIES[family]] for family in LAB_FAMILIES}
        parts.append(prediction_frame(wells, success_frame(wells)).assign(epsilon=epsilon))
    return pd.concat(parts, ignore_index=True)[["epsilon", "name", "formula", "random", "coordinates"]]


def network_answers(examples: int) -> pd.DataFrame:
    """Answer the tables about a network, by what ``prunelimit predict --model fc5-quick --data digits`` computes.

    The command takes all images for the tolerance of the formula and a sample for its curvature. The other methods see nothing but
    the sample, and their tolerance is that of the sample.

    Args:
        examples: Images of the sample.

    Returns:
        One row per method of ``LAB_METHODS`` and ``run``, ``"all"``, ``"sample"`` or ``"sample, ε of all"``: ``sparsity``,
        ``low``, ``high``, ``epsilon`` and whether the interval is ``resolved``.
    """
    spec = find_tasks(LAB_TASK)[0].spec("quick", 0).train
    dataset = load_dataset(spec.dataset)
    network = train(spec, dataset=dataset, progress=False).model.eval()
    split = dataset.on_device("train")
    rows: list[dict[str, object]] = []
    tolerance: float | None = None
    for run, count in (("all", None), ("sample", examples), ("sample, ε of all", examples)):
        for method in LAB_METHODS:
            spectral = method in SPECTRAL
            limit = predict_limit(
                network,
                cross_entropy,
                split.tensors(None if spectral else count),
                method=method,
                examples=count if spectral else None,
                epsilon=tolerance if run.endswith("of all") else None,
                progress=False,
            )
            tolerance = limit.epsilon if tolerance is None else tolerance
            low, high = limit.interval
            found = {"sparsity": limit.sparsity, "low": low, "high": high}
            rows.append({"run": run, "method": method, **found, "epsilon": limit.epsilon, "resolved": limit.resolved})
    return pd.DataFrame(rows)


def recorded_networks() -> pd.DataFrame:
    """Tabulate the recorded limits of the lab's network and of those from other first weights.

    Returns:
        One row per recorded seed: ``seed`` and the methods in ``LAB_METHODS``.
    """
    return limits_frame(load_cells(LAB_TASK, "quick")).reindex(columns=["seed", *LAB_METHODS])


def regime_answers(values: Sequence[float], densities: Sequence[float]) -> pd.DataFrame:
    """Answer the table about regimes, from the records of the quick grid over epochs.

    Args:
        values: Epochs of the grid.
        densities: Of the grid, fractions of weights that are kept.

    Returns:
        One row per value, density and dense seed: ``value``, ``density``, ``seed``; ``lmc`` and ``barrier``, from the errors at
        the recorded points of the line; ``cka``, and ``independent``, which two classifiers with the same training errors would
        have if they erred independently; ``regime``, by the thresholds of the whole grid.

    Raises:
        PruneLimitError: If a cell is not recorded.
    """
    settings = find_grid(LAB_GRID).settings("quick")
    parted = grid_diagram(LAB_GRID, regime_frame(LAB_GRID, "quick")).parted
    rows = []
    for value, density in cell_pairs(values, densities):
        for seed in settings.seeds:
            record = load_record(EXPERIMENT, settings.spec(value, density, seed))
            if record is None:
                raise PruneLimitError(
                    f"values={values!r}, densities={densities!r}: {value!r} with {density!r} is not recorded. "
                    f"Choose from {settings.values} and {settings.densities}."
                )
            pair = record["pairs"][0]
            errors = tuple(pair["errors"])
            line = Connectivity(tuple(np.linspace(0, 1, len(errors))), errors, "error")
            regime = classify_regime(line.lmc, pair["cka"], lmc_threshold=parted.lmc, cka_threshold=parted.cka)
            key = {"value": value, "density": density, "seed": seed, "lmc": line.lmc, "barrier": line.barrier}
            independent = independent_similarity(errors[0], errors[-1])
            rows.append(key | {"cka": pair["cka"], "independent": independent, "regime": str(regime)})
    return pd.DataFrame(rows)


def independent_similarity(first: float, second: float, classes: int = CLASSES) -> float:
    """Return the CKA of two classifiers that err independently (the proposition on independent errors in the book).

    Args:
        first: Error of the one, a fraction.
        second: Error of the other.
        classes: Number of classes, equally frequent.

    Returns:
        The similarity of their one-hot answers, for many examples.
    """
    share = classes / (classes - 1)
    return float((1 - share * first) ** 2 * (1 - share * second) ** 2)


def styled(table: pd.DataFrame) -> Styler:
    """Give a table of this module the headings and formats that a reader sees."""
    heads = {column: LOOKS[column][0] for column in map(str, table)}
    forms: dict[Any, Any] = {head: LOOKS[column][1] for column, head in heads.items()}
    styler = table.rename(columns=heads).style.hide(axis="index").format(forms)
    # A glued table stands in no cell of its own, whose look the theme would give it.
    return styler.set_table_attributes('class="table"')
