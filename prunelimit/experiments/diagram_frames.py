"""Phase diagrams of the recorded grids: from one row per network to a table over temperature and density."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from prunelimit.checks import pick_names
from prunelimit.experiments.catalogue import PROFILES
from prunelimit.experiments.regime_frames import regime_frame, regime_means, regime_missing, regime_origin, regime_title
from prunelimit.experiments.regime_grids import find_grid, find_grids
from prunelimit.landscape.diagrams import Diagram, rank_correlation


def load_frames(
    grids: str | Sequence[str] | None = None,
    profiles: str | Sequence[str] = ("best",),
    *,
    network: str | None = None,
    distribution: str | None = None,
) -> list[tuple[str, pd.DataFrame]]:
    """Load the recorded cells of some grids.

    Args:
        grids: Names of grids; ``None`` for all.
        profiles: Profiles, or ``"best"`` for the most faithful one that has records.
        network: Another network than the catalogue's.
        distribution: Another way to spread the density over the layers than the catalogue's.

    Returns:
        Grid names and their frames, a pair for every profile that has records. A grid without any has an empty frame.

    Raises:
        PruneLimitError: If a grid or a profile is unknown.
    """
    profiles = pick_names("profile", profiles, [*PROFILES, "best"])
    found = []
    for grid in find_grids(grids):
        name = grid.name
        known: dict[str, pd.DataFrame] = {}
        for profile in profiles:
            if profile == "best" or profile in grid.profiles:
                frame = regime_frame(name, profile, network=network, distribution=distribution)
                known |= {frame.profile.iloc[0]: frame} if len(frame) else {}
        found += [(name, frame) for frame in known.values()] or [(name, regime_frame(name).iloc[:0])]
    return found


def grid_diagram(name: str, frame: pd.DataFrame) -> Diagram:
    """Arrange the recorded cells of one grid, averaged over seeds.

    Args:
        name: The grid.
        frame: Output of ``regime_frame``, of one profile.

    Returns:
        The diagram, its threshold of similarity by the rule of the median. Cells of the grid that are not recorded are
        there, without values, unless none is recorded.
    """
    grid = find_grid(name)
    if frame.empty:
        columns = ["value", "density", "error", "lmc", "cka"]
        return Diagram("no record", grid.title, grid.hotter, pd.DataFrame(columns=columns, dtype=float))
    settings = grid.settings(frame.profile.iloc[0])
    cells = pd.DataFrame(itertools.product(settings.values, settings.densities), columns=["value", "density"])
    means = cells.merge(regime_means(frame), on=["value", "density"], how="left")
    return Diagram(regime_title(frame), grid.title, grid.hotter, means)


def corners_frame(diagrams: Sequence[Diagram]) -> pd.DataFrame:
    """Put the corners of each grid side by side: hot and cold, sparse and dense.

    Args:
        diagrams: The grids.

    Returns:
        Up to four rows per grid: ``title``, ``axis``, ``corner``, ``value``, ``density``, and what was measured there; NaN
        where it is not known. The ends are those of the cells that are recorded.
    """
    measured = ["dense_error", "dense_train_error", "error", "error_spread", "train_error", "lmc", "cka"]
    rows = []
    for diagram in diagrams:
        known = diagram.frame.dropna(subset=["lmc"])
        for end, density in (("sparse", known.density.min()), ("dense", known.density.max())):
            # The hottest comes first.
            column = known[known.density == density].sort_values("value", ascending=diagram.hotter < 0)
            for heat, place in (("hot", 0), ("cold", -1)):
                if len(column):
                    row = {"title": diagram.title, "axis": diagram.axis, "corner": f"{heat}, {end}"}
                    rows.append(row | column.iloc[place].reindex(["value", "density", *measured]).to_dict())
    return pd.DataFrame(rows, columns=["title", "axis", "corner", "value", "density", *measured])


def agreement_frame(frames: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Compare the maps that single dense seeds give: what they do not agree on is noise.

    Args:
        frames: Output of :func:`load_frames`.

    Returns:
        One row per grid with at least two seeds: ``title``, ``axis``, ``seeds``; ``lmc``, ``cka`` and ``error``, Spearman's
        rank correlation over the cells between two seeds; ``same``, the share of cells to which both give the same class,
        by the thresholds of the averaged grid; and ``chance``, what that would be if each seed's classes were shuffled. All are
        means over the pairs of seeds.
    """
    rows = []
    for name, frame in frames:
        if frame.empty:
            continue
        whole = grid_diagram(name, frame)
        seeds = sorted(frame.seed.unique())
        parts = [grid_diagram(name, frame[frame.seed == seed]) for seed in seeds]
        pairs = []
        for one, other in itertools.combinations(parts, 2):
            row = {name: rank_correlation(one.frame[name], other.frame[name]) for name in ("lmc", "cka", "error")}
            classes = pd.DataFrame({k: d.classes(whole.parted).stack() for k, d in enumerate((one, other))})
            known = classes[(classes != "").all(axis=1)]
            shares = [known[k].value_counts(normalize=True) for k in (0, 1)]
            pairs.append(row | {"same": (known[0] == known[1]).mean(), "chance": (shares[0] * shares[1]).sum()})
        if pairs:
            keys = {"title": whole.title, "axis": whole.axis, "seeds": len(seeds)}
            rows.append(keys | pd.DataFrame(pairs).mean().to_dict())
    return pd.DataFrame(rows, columns=["title", "axis", "seeds", "lmc", "cka", "error", "same", "chance"])


def pruning_frame(grid: str, profile: str = "best") -> pd.DataFrame:
    """Compare the two ways to spread a density over the layers, on the cells of a grid that have records of both.

    Args:
        grid: A name of ``GRIDS``.
        profile: One of ``PROFILES``, or ``"best"`` for the most faithful one that has records of both.

    Returns:
        One row per density: ``density``, ``cells``; ``error_uniform`` and ``error_global``, means over temperatures and seeds;
        ``gain``, by how much the first exceeds the second, with its standard error over the cells ``gain_error``; and ``lmc_``
        and ``cka_`` the same two ways.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    names = [name for name in PROFILES if name in find_grid(grid).profiles] if profile == "best" else [profile]
    for name in names:
        parts = [regime_frame(grid, name, distribution=way) for way in ("uniform", "global")]
        both = parts[0].merge(parts[1], on=["value", "density", "seed"], suffixes=("_uniform", "_global"))
        if len(both):
            break
    both["gain"] = both.error_uniform - both.error_global
    columns = [f"{measure}_{way}" for measure in ("error", "lmc", "cka") for way in ("uniform", "global")]
    means = both.astype(dict.fromkeys(columns, float)).groupby("density")[[*columns, "gain"]].mean()
    grouped = both.groupby("density").gain
    return means.assign(gain_error=grouped.sem(), cells=grouped.size()).reset_index()


def diagrams_missing(grids: str | Sequence[str] | None = None) -> pd.DataFrame:
    """List what is not recorded of some grids, with the command that fills it: :func:`~.regime_frames.regime_missing`."""
    parts = [regime_missing(grid.name) for grid in find_grids(grids)]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def diagrams_origin(frames: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Say where the numbers of :func:`load_frames` come from; without records, an empty table."""
    return regime_origin(*(frame for _, frame in frames))
