"""Data frames of the synthesis: does the limit of a dense network, known before any retraining, tell regime and error?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.checks import pick_names
from prunelimit.curvature.quadrature import Spectrum
from prunelimit.experiments.catalogue import PROFILES
from prunelimit.experiments.frames import fine_distance
from prunelimit.experiments.regime_frames import regime_frame
from prunelimit.experiments.regime_grids import GRIDS, find_grid, find_grids
from prunelimit.experiments.store import load_record
from prunelimit.experiments.synthesis import EXPERIMENT, parent_spec, parent_specs
from prunelimit.landscape.diagrams import own_thresholds
from prunelimit.landscape.regimes import LMC_THRESHOLD, REGIMES, classify_regime
from prunelimit.limit import formula_side, solve_limit

#: Limits of the dense parent, known before anything is retrained, and what tables call them.
LIMITS = {
    "formula": "formula",
    "formula_common": "formula, one ε for the grid",
    "directional": "directional",
    "refit": "refit",
    "refit_free": "refit, no control",
    "emp": "EMP: no curvature",
    "measured": "one-shot, measured",
}

#: What a prediction with curvature has to beat: it is known for nothing.
RIVALS = {
    "dense_error": "dense test error",
    "dense_train_loss": "dense training loss",
    "epsilon": "tolerance ε",
    "temperature": "temperature",
    "density": "density",
}

#: With fewer dense parents there is nothing to correlate.
PARENTS = 5

#: How all grids together are called.
POOLED = "all grids"

#: A parent's training loss, measured on this machine and by the grid, may differ by this share of itself.
SAME = 1e-3


def parent_limits(record: dict[str, Any], epsilon: float | None = None) -> dict[str, float]:
    """Read all limits of a record.

    Args:
        record: Of one dense parent.
        epsilon: For ``formula_common``: a tolerance that all parents share.

    Returns:
        Name, as in :data:`LIMITS`, to fraction removed; NaN where it is not recorded.
    """
    found = {name: float(record[name]["sparsity"]) for name in ("formula", "directional", "measured")}
    found["emp"] = float(record["emp"])
    for name, control in (("refit", "stationary"), ("refit_free", "none")):
        found[name] = float(record["refit"].get(control, {}).get("sparsity", np.nan))
    found["formula_common"] = np.nan
    if epsilon is not None:
        spectrum = Spectrum.from_dict(record["formula"]["spectrum"])
        found["formula_common"] = solve_limit(fine_distance(record), formula_side(spectrum, 0, epsilon))
    return found


def _records(cells: pd.DataFrame) -> dict[tuple[str, float, int], dict[str, Any]]:
    """Load the records of the dense parents of some cells of one grid, those that there are."""
    found = {}
    for row in cells.drop_duplicates(["profile", "value", "seed"]).itertuples():
        profile, value, seed = str(row.profile), float(row.value), int(row.seed)  # type: ignore[arg-type]
        cell = find_grid(str(row.grid)).settings(profile).spec(value, float(row.density), seed)  # type: ignore[arg-type]
        if record := load_record(EXPERIMENT, parent_spec(cell, profile)):
            found[profile, value, seed] = record
    return found


def connected_limit(density: Sequence[float] | pd.Series, lmc: Sequence[float] | pd.Series, threshold: float) -> float:
    """Find how far one parent can be pruned before its children are in regime I.

    Args:
        density: Densities of its cells.
        lmc: Connectivity of their children.
        threshold: Connected means at least so much.

    Returns:
        The largest sparsity up to which all cells are connected; zero if the densest is not. Only the densities of the grid
        are looked at, so it is too low by up to a step of the grid.
    """
    table = pd.Series(np.asarray(lmc), index=np.asarray(density, dtype=float)).dropna().sort_index(ascending=False)
    held = (table >= threshold).cummin()
    return float(1 - held[held].index.min()) if held.any() else 0.0


def synthesis_frame(grid: str, profile: str = "best") -> pd.DataFrame:
    """Put the limits of the dense parents beside what became of their children.

    Args:
        grid: A key of ``GRIDS``.
        profile: A profile, or ``"best"`` for the most faithful recorded one.

    Returns:
        The cells of :func:`~prunelimit.experiments.regime_frames.regime_frame` whose parents have recorded limits, with
        those limits (:data:`LIMITS`), ``formula_low`` and ``formula_high``, ``epsilon``, ``temperature`` (hotter is higher),
        ``cluster`` and ``parent`` (names of the value and of the network), ``regime``, ``connected``, ``similar`` (NaN in
        regime I), ``connected_limit``, ``mean_error``, and ``same``: whether limits and children belong to the very same network.
        Thresholds are those of the grid, averaged over seeds.
    """
    cells = regime_frame(grid, profile)
    found = {} if cells.empty else _records(cells)
    if not found:
        return pd.DataFrame()
    shared = float(np.median([record["epsilon"] for record in found.values()]))
    rows = []
    for (name, value, seed), record in found.items():
        low, high = record["formula"]["interval"]
        own = {"formula_low": low, "formula_high": high, "epsilon": record["epsilon"], "parent": record["hash"]}
        loss = {"limits_train_loss": record["dense"]["train_loss"]}
        rows.append({"profile": name, "value": value, "seed": seed} | parent_limits(record, shared) | own | loss)
    cells = cells.merge(pd.DataFrame(rows), on=["profile", "value", "seed"])
    cells["same"] = np.isclose(cells.dense_train_loss, cells.limits_train_loss, rtol=SAME)
    cells["temperature"] = find_grid(grid).hotter * cells.value
    cells["cluster"] = [f"{grid} {value:g}" for value in cells.value]
    cells = _classified(cells)
    keys = ["profile", "value", "seed"]
    summary: list[list[Any]] = []
    for place, part in cells.groupby(keys):
        # A mean over other densities than those of its neighbours would compare apples with oranges.
        whole = part.error.notna().sum() == cells.density.nunique()
        outcome = connected_limit(part.density, part.lmc, LMC_THRESHOLD), part.error.mean()
        summary.append([*place, *(outcome if whole else (np.nan, np.nan))])
    parents = pd.DataFrame(summary, columns=[*keys, "connected_limit", "mean_error"])
    return cells.merge(parents, on=keys)


def _classified(cells: pd.DataFrame) -> pd.DataFrame:
    """Add the regimes, by the thresholds of the averaged grid."""
    means = cells.groupby(["value", "density"], as_index=False)[["lmc", "cka"]].mean()
    parted = own_thresholds(means)
    regime = np.asarray(
        classify_regime(cells.lmc, cells.cka, lmc_threshold=parted.lmc, cka_threshold=parted.cka), dtype=object
    )
    similar = pd.Series(regime, index=cells.index).map({REGIMES[1]: 0.0, REGIMES[2]: 1.0})
    known = (cells.lmc >= parted.lmc).astype(float).where(cells.lmc.notna())
    return cells.assign(regime=regime, connected=known, similar=similar.astype(float))


def all_cells(
    profiles: str | Sequence[str] = PROFILES, grids: str | Sequence[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Collect the cells of all grids that have both records.

    Args:
        profiles: Profiles to look for.
        grids: Names of grids; ``None`` for all.

    Returns:
        Title to the cells of one grid in one profile, of which at least :data:`PARENTS` parents have records. Several grids of one profile, network and data set are followed by all of
        them together, every network once; temperature is missing there, because epochs and rates have no common scale,
        and ``formula_common`` has one tolerance for all of them.

    Raises:
        PruneLimitError: If a grid or a profile is unknown.
    """
    found: dict[str, pd.DataFrame] = {}
    for profile in pick_names("profile", profiles, PROFILES):
        names = [grid.name for grid in find_grids(grids) if profile in grid.profiles]
        parts = {name: synthesis_frame(name, profile) for name in names}
        parts = {name: cells for name, cells in parts.items() if len(parents_frame(cells)) >= PARENTS}
        found |= {f"{find_grid(name).title} ({profile})": cells for name, cells in parts.items()}
        if len(parts) > 1 and len({(cells.network.iloc[0], cells.dataset.iloc[0]) for cells in parts.values()}) == 1:
            pooled = pd.concat(parts.values(), ignore_index=True).drop_duplicates(["parent", "density"])
            found[f"{POOLED} ({profile})"] = _one_tolerance(pooled).assign(temperature=np.nan)
    return found


def _one_tolerance(cells: pd.DataFrame) -> pd.DataFrame:
    """Solve the formula for all dense networks of several grids with the median of all their tolerances."""
    records = [record for _, part in cells.groupby("grid") for record in _records(part).values()]
    shared = float(np.median([record["epsilon"] for record in records]))
    limits = {record["hash"]: parent_limits(record, shared)["formula_common"] for record in records}
    return cells.assign(formula_common=cells.parent.map(limits))


def parents_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """Reduce cells to one row per dense parent; columns that belong to one density mean nothing any more."""
    return cells.drop_duplicates(["cluster", "seed"]) if len(cells) else cells


def rule_frame(cells: pd.DataFrame) -> pd.DataFrame:
    """Take each limit at its word: cells within it are connected, those beyond it are in regime I.

    Args:
        cells: Output of :func:`synthesis_frame`.

    Returns:
        One row per limit: the share of the cells for which that is ``right``, the share ``majority`` of the more frequent
        answer, and by how many ``points`` the limit lies above the sparsity at which regime I begins, mean over the parents
        of which it begins inside the grid, ``borders`` in number; NaN without any. Where the children are connected at all
        densities, or not even at the highest, there is no border to compare with.
    """
    rows = []
    for predictor in LIMITS if len(cells) else ():
        known = cells[cells.connected.notna() & cells[predictor].notna()]
        if known.empty:
            continue
        within = known[predictor] - (1 - known.density) >= 0
        parents = parents_frame(known)
        parents = parents[(parents.connected_limit > 0) & (parents.connected_limit < 1 - cells.density.min())]
        share = float(known.connected.mean())
        rows.append(
            {
                "predictor": predictor,
                "right": float((within == (known.connected > 0.5)).mean()),
                "majority": max(share, 1 - share),
                "points": 100 * float((parents[predictor] - parents.connected_limit).mean()),
                "borders": len(parents),
            }
        )
    return pd.DataFrame(rows, columns=["predictor", "right", "majority", "points", "borders"])


def synthesis_command(grid: str, profile: str) -> str:
    """Return the command that makes the records of a grid's dense parents."""
    return f"prunelimit synthesis {grid} --profile {profile}"


def synthesis_missing() -> pd.DataFrame:
    """List how many dense parents of each grid and profile have no recorded limits, with the command that fills them."""
    rows = []
    for grid in GRIDS.values():
        for profile, settings in grid.profiles.items():
            specs = parent_specs(settings, profile)
            absent = sum(load_record(EXPERIMENT, spec) is None for spec in specs)
            if absent:
                rows.append((grid.name, profile, absent, len(specs), synthesis_command(grid.name, profile)))
    return pd.DataFrame(rows, columns=["grid", "profile", "parents without a record", "of", "command"])


def synthesis_origin(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Say where the limits come from.

    Args:
        found: Output of :func:`all_cells`.

    Returns:
        One row per grid, profile and commit: the number of dense ``parents``, how many are ``the same network`` as the one
        whose children the grid measured, device, torch, products for the formula, seconds in all, and the command.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for cells in found.values():
        # A grid has temperatures; all grids together have none, and their parents are counted already.
        for cell in parents_frame(cells[cells.temperature.notna()]).to_dict("records"):
            name, profile = cell["grid"], cell["profile"]
            spec = parent_spec(
                find_grid(name).settings(profile).spec(cell["value"], cell["density"], cell["seed"]), profile
            )
            record = load_record(EXPERIMENT, spec)
            assert record is not None  # the row comes from it
            source = record["provenance"]
            commit = (source["commit"] or "none")[:10] + (" and changes" if source["changed"] else "")
            keys: dict[str, Any] = {"grid": name, "profile": profile, "parents": 0, "the same network": 0}
            keys |= {
                "device": source["device"],
                "torch": source["torch"],
                "commit": commit,
                "products": 0,
                "seconds": 0.0,
            }
            row = rows.setdefault((name, profile, commit), keys | {"command": synthesis_command(name, profile)})
            row["parents"] += 1
            row["the same network"] += int(cell["same"])
            row["products"] += record["formula"]["cost"]["products"]
            row["seconds"] += sum(record["seconds"].values())
    return pd.DataFrame(list(rows.values()))
