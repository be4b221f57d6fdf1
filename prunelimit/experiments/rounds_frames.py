"""From the records of iterative pruning to tidy data frames: how the limit moves from round to round, figure F3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.experiments.comparisons import Comparison, find_comparisons
from prunelimit.experiments.frames import fine_distance
from prunelimit.experiments.provenance_frames import missing_frame
from prunelimit.experiments.prune_frames import best_rows, origin_of, title_of
from prunelimit.experiments.ranks import spearman
from prunelimit.experiments.rounds import EXPERIMENT
from prunelimit.experiments.store import load_record
from prunelimit.limit import formula_limit

#: Columns of :func:`rounds_frame`.
COLUMNS = (
    *("title", "comparison", "profile", "seed", "round", "sparsity", "formula", "low", "high", "measured"),
    *("test_accuracy", "alive", "train_loss", "epsilon", "device", "torch", "commit"),
)

#: A network counts as dead once less than this share of the dense network's test accuracy is left: nearly everything can be
#: removed from one whose output is the same for every image, within epsilon of its own loss.
ALIVE = 0.5


def rounds_frame(
    comparisons: str | Sequence[str] | None = None, profile: str = "best", seeds: int | Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """Tabulate the limits of the networks that iterative pruning goes through; the formula's are solved now.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        profile: A profile, or ``"best"`` for the most faithful one of which a comparison has a record.
        seeds: Training seeds.

    Returns:
        One row per round: ``sparsity`` is what the rounds have removed, the limits ``formula`` with ``low`` and ``high`` and
        ``measured`` are fractions of all weights, those already removed included. ``alive`` is false once the network has
        lost more than half of the dense network's test accuracy: its limit says nothing.
    """
    rows = best_rows(comparisons, profile, seeds, _recorded)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"alive": bool})  # also where there is no row


def _recorded(one: Comparison, profile: str, seed: int) -> list[dict[str, Any]]:
    """Give the rounds of one comparison, profile and seed that have a record."""
    return [row for spec in one.rounds_specs(profile, seed) for row in _rows(one, profile, seed, spec)]


def _rows(one: Comparison, profile: str, seed: int, spec: Any) -> list[dict[str, Any]]:
    """Give the rounds of one recorded run."""
    record = load_record(EXPERIMENT, spec)
    if record is None:
        return []
    shared = {
        "title": title_of(one, profile),
        "comparison": one.name,
        "profile": profile,
        "seed": seed,
        "device": record["provenance"]["device"],
        "torch": record["provenance"]["torch"],
        "commit": (record["provenance"]["commit"] or "none")[:10],
    }
    rows = []
    dense = record["rounds"][0]["test_accuracy"]
    for found in record["rounds"]:
        epsilon = found["measured"]["epsilon"]
        limit = formula_limit(Spectrum.from_dict(found["spectrum"]), fine_distance(found), epsilon)
        rows.append(
            shared
            | {name: found[name] for name in ("round", "sparsity", "test_accuracy", "train_loss")}
            | {
                "formula": limit.sparsity,
                "low": limit.interval[0],
                "high": limit.interval[1],
                "measured": found["measured"]["sparsity"],
                "alive": found["test_accuracy"] >= ALIVE * dense,
                "epsilon": epsilon,
            }
        )
    return rows


def share_of_left(frame: pd.DataFrame, name: str) -> pd.Series:
    """Turn a limit into a fraction of the weights that the rounds have left.

    Args:
        frame: Output of :func:`rounds_frame`.
        name: Column of the limit, ``"formula"`` or ``"measured"``.

    Returns:
        The fractions. They have no floor, as the limit has: that cannot lie below what is removed already.
    """
    return (1 - (1 - frame[name]) / (1 - frame.sparsity)).round(9)  # equal ones shall be equal


def ends(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pick the dense network and the last round of every run.

    Args:
        frame: Output of :func:`rounds_frame`, the rounds that are alive.

    Returns:
        Both, one row per run.
    """
    runs = frame.groupby(["title", "seed"], sort=False)["round"]
    return frame.loc[runs.idxmin()], frame.loc[runs.idxmax()]


def rounds_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Say how far the limits move from the dense network to the last round that is alive, and how steadily.

    Args:
        frame: Output of :func:`rounds_frame`.

    Returns:
        One line per network and kind of limit: the limit at both ends (mean over seeds, per cent of all weights), the change in
        points, Spearman's rank correlation of round and limit, the same limit as a fraction of the weights left, the test
        accuracy at both ends, and how many rounds were left out because the network was dead.
    """
    rows = []
    for title, whole in frame.groupby("title", sort=False):
        here = whole[whole.alive]
        first, last = ends(here)
        accuracy = " to ".join(f"{100 * end.test_accuracy.mean():.1f}" for end in (first, last))
        for name, label in (("formula", "formula"), ("measured", "one-shot, measured")):
            left = share_of_left(here, name)
            means = [first[name].mean(), last[name].mean()]
            rows.append(
                {
                    "network, data, profile": title,
                    "limit": label,
                    "dense": f"{100 * means[0]:.1f}",
                    "last round": f"{100 * means[1]:.1f}",
                    "change (points)": f"{100 * (means[1] - means[0]):+.1f}",
                    "rank correlation": f"{spearman(here['round'], here[name])[0]:+.2f}",
                    "of what is left, dense": f"{100 * left[first.index].mean():.1f}",
                    "of what is left, last": f"{100 * left[last.index].mean():.1f}",
                    "its rank correlation": f"{spearman(here['round'], left)[0]:+.2f}",
                    "test accuracy": accuracy,
                    "dead, left out": f"{len(whole) - len(here)} of {len(whole)}",
                    "seeds": here.seed.nunique(),
                }
            )
    return pd.DataFrame(rows)


def rounds_origin(frame: pd.DataFrame) -> pd.DataFrame:
    """Say where the numbers come from.

    Args:
        frame: Output of :func:`rounds_frame`.

    Returns:
        One row per network: seeds, device, version of torch, commits and the command that makes the records again.
    """
    return origin_of(frame, "rounds")


def missing_rounds(
    comparisons: str | Sequence[str] | None = None, seeds: int | Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """List the runs that nobody has made yet, each with the command that does it.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``comparison``, ``profile``, ``seeds without a record`` and ``command``.
    """
    runs = [(one.name, one.rounds, one.rounds_specs) for one in find_comparisons(comparisons)]
    return missing_frame("rounds", EXPERIMENT, runs, seeds, kind="comparison")
