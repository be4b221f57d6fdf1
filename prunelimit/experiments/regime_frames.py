"""From the records of the grids to tidy data frames."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.experiments.catalogue import find_profiles
from prunelimit.experiments.regime_grids import GRIDS, Grid, GridSettings, find_grid
from prunelimit.experiments.regime_specs import RegimeSpec
from prunelimit.experiments.regimes import EXPERIMENT, run_regimes
from prunelimit.experiments.store import load_record
from prunelimit.landscape.diagrams import normalised_error

#: What identifies a cell of an averaged grid.
CELL = ["grid", "profile", "network", "dataset", "distribution", "value", "density"]

#: What is measured in each cell. Errors are fractions, losses nats.
MEASURES = [
    "dense_error",
    "dense_train_error",
    "dense_train_loss",
    "error",
    "error_spread",
    "train_error",
    "lmc",
    "lmc_loss",
    "cka",
    "achieved",
]

COLUMNS = [*CELL, "seed", *MEASURES, "key"]

#: Share of a grid's cells with which a more faithful profile stands for it, in place of one that is whole.
ENOUGH = 0.5


def regime_frame(
    grid: str,
    profile: str = "best",
    *,
    network: str | None = None,
    distribution: str | None = None,
    run_missing: bool = False,
) -> pd.DataFrame:
    """Tabulate the recorded cells of a grid.

    Args:
        grid: A name of ``GRIDS``.
        profile: One of ``PROFILES``, or ``"best"`` for the most faithful one of which half of the cells are recorded; if there
            is none, that of which most are.
        network: Another network than the catalogue's.
        distribution: Another way to spread the density over the layers than the catalogue's.
        run_missing: Whether to run the cells without a record now; meant for the quick profile.

    Returns:
        One row per value, density and dense seed, in the order of the grid, with the columns in ``COLUMNS``: ``error`` is the
        test error of the children, mean over them and over the last epochs of their retraining; ``lmc``, ``lmc_loss`` and
        ``cka`` are means over their pairs. No rows if nothing is recorded.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    chosen, best, most = find_grid(grid), [], 0.0
    for name in find_profiles(profile):
        if name in chosen.profiles or profile != "best":
            rows, cells = _rows(chosen, name, network, distribution, run_missing)
            if (share := min(len(rows) / cells, ENOUGH)) > most:
                best, most = rows, share
            if most >= ENOUGH:  # the less faithful ones are neither read nor run
                break
    return pd.DataFrame(best, columns=COLUMNS)


def _rows(
    grid: Grid, profile: str, network: str | None, distribution: str | None, run_missing: bool
) -> tuple[list[dict[str, Any]], int]:
    """Describe the recorded cells, and count all of them."""
    settings = grid.settings(profile).varied(network, distribution)
    cells = [(cell, settings.spec(*cell)) for cell in settings.cells()]
    if run_missing:
        label = {"grid": grid.name, "profile": profile}
        records = dict(run_regimes([spec for _, spec in cells], label=label))
    else:
        records = {spec: record for _, spec in cells if (record := load_record(EXPERIMENT, spec))}
    return [_row(grid, profile, cell, spec, records[spec]) for cell, spec in cells if spec in records], len(cells)


def _row(
    grid: Grid, profile: str, cell: tuple[float, float, int], spec: RegimeSpec, record: dict[str, Any]
) -> dict[str, Any]:
    """Describe one cell; similarities of networks that give the same for all images are missing."""
    (value, density, seed), parent = cell, record["parent"]
    errors = np.array([child["test_error"] for child in record["children"]])
    pairs = pd.DataFrame(record["pairs"])[["lmc", "lmc_loss", "cka"]].astype(float).mean()
    return {
        "grid": grid.name,
        "profile": profile,
        "network": spec.train.model,
        "dataset": spec.train.dataset,
        "distribution": spec.distribution,
        "value": value,
        "density": density,
        "seed": seed,
        "dense_error": 1 - parent["test_accuracy"],
        "dense_train_error": 1 - parent["train_accuracy"],
        "dense_train_loss": parent["train_loss"],
        "error": errors.mean(),
        "error_spread": errors.std(ddof=1),
        "train_error": np.mean([1 - child["train_accuracy"] for child in record["children"]]),
        "lmc": pairs["lmc"],
        "lmc_loss": pairs["lmc_loss"],
        "cka": pairs["cka"],
        "achieved": record["kept"] / record["total"],
        "key": spec.hash,
    }


def regime_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Average a grid over the dense seeds.

    Args:
        frame: Output of :func:`regime_frame`.

    Returns:
        One row per value and density: the columns of ``CELL`` and ``MEASURES``, ``seeds``, the number of dense networks, and
        ``normalised_error``, the test error above the lowest one of any value at the same density. A similarity is missing
        only if it is missing for all seeds.
    """
    means = frame.groupby(CELL, sort=False, as_index=False)[MEASURES].mean()
    means["seeds"] = frame.groupby(CELL, sort=False)["seed"].nunique().to_numpy()
    means["normalised_error"] = normalised_error(means, [name for name in CELL if name != "value"])
    return means


def regime_title(frame: pd.DataFrame) -> str:
    """Name the network of a grid, its data and profile, and how it is pruned if not layer by layer.

    Args:
        frame: Output of :func:`regime_frame`, with at least one row.

    Returns:
        The name.
    """
    first = frame.iloc[0]
    other = "" if first.distribution == "uniform" else f", {first.distribution} pruning"
    return f"{first.network} on {first.dataset} ({first.profile}){other}"


def regime_missing(grid: str | None = None) -> pd.DataFrame:
    """List how many cells of each profile have no record, with the command that fills them.

    Args:
        grid: A name of ``GRIDS``; ``None`` for all.

    Returns:
        Columns ``grid``, ``profile``, ``cells without a record``, ``of`` and ``command``.
    """
    rows = []
    for one in [find_grid(grid)] if grid else GRIDS.values():
        for profile, settings in one.profiles.items():
            specs = [settings.spec(*cell) for cell in settings.cells()]
            absent = sum(load_record(EXPERIMENT, spec) is None for spec in specs)
            if absent:
                rows.append((one.name, profile, absent, len(specs), regime_command(one.name, profile)))
    return pd.DataFrame(rows, columns=["grid", "profile", "cells without a record", "of", "command"])


def regime_command(grid: str, profile: str) -> str:
    """Return the command that makes the records of a grid."""
    return f"prunelimit regimes {grid} --profile {profile}"


def _options(settings: GridSettings, network: str, distribution: str) -> str:
    """Write what a command needs for another network, or another way to prune, than the catalogue's."""
    other = [("network", network, settings.base.model), ("distribution", distribution, settings.distribution)]
    return "".join(f" --{name} {value}" for name, value, usual in other if value != usual)


def regime_origin(*frames: pd.DataFrame) -> pd.DataFrame:
    """Say where the numbers of some grids come from.

    Args:
        *frames: Outputs of :func:`regime_frame`; without any, or if all are empty, there are no rows.

    Returns:
        One row per grid, profile and commit: cells, device, torch, seconds of retraining and measuring, and the command.
    """
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in itertools.chain.from_iterable(frame.to_dict("records") for frame in frames):
        name, profile = cell["grid"], cell["profile"]
        network, distribution = cell["network"], cell["distribution"]
        settings = find_grid(name).settings(profile)
        wanted = settings.varied(network, distribution)
        record = load_record(EXPERIMENT, wanted.spec(cell["value"], cell["density"], cell["seed"]))
        assert record is not None  # the row comes from it
        source = record["provenance"]
        commit = (source["commit"] or "none")[:10]
        row = rows.setdefault(
            (name, profile, network, distribution, commit),
            {"grid": name, "profile": profile, "network": network, "pruned": distribution, "cells": 0}
            | {"device": source["device"], "torch": source["torch"], "commit": commit, "seconds": 0.0}
            | {"command": regime_command(name, profile) + _options(settings, network, distribution)},
        )
        row["cells"] += 1
        row["seconds"] += sum(record["seconds"].values())
    return pd.DataFrame(list(rows.values()))
