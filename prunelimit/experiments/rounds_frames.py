"""From the records of iterative pruning to tidy data frames: how the limit moves from round to round, figure F3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy import stats

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.experiments.comparisons import Comparison, find_comparisons
from prunelimit.experiments.frames import fine_distance
from prunelimit.experiments.prune_frames import best_rows, origin_of, title_of
from prunelimit.experiments.rounds import EXPERIMENT
from prunelimit.experiments.store import load_record
from prunelimit.limit import formula_limit

#: Columns of :func:`rounds_frame`.
COLUMNS = (
    *("title", "comparison", "profile", "seed", "round", "sparsity", "formula", "low", "high", "measured"),
    *("test_accuracy", "train_loss", "epsilon", "device", "torch", "commit"),
)


def rounds_frame(
    comparisons: str | Sequence[str] | None = None, profile: str = "best", seeds: Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """Tabulate the limits of the networks that iterative pruning goes through; the formula's are solved now.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        profile: A profile, or ``"best"`` for the most faithful one of which a comparison has a record.
        seeds: Training seeds.

    Returns:
        One row per round: ``sparsity`` is what the rounds have removed, the limits ``formula`` with ``low`` and ``high`` and
        ``measured`` are fractions of all weights, those already removed included.
    """
    return pd.DataFrame(best_rows(comparisons, profile, seeds, _recorded), columns=list(COLUMNS))


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
                "epsilon": epsilon,
            }
        )
    return rows


def rounds_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Say how far the limits move from the dense network to the last round, and how steadily.

    Args:
        frame: Output of :func:`rounds_frame`.

    Returns:
        One line per network and kind of limit: the limit at both ends (mean over seeds, per cent of all weights), the change in
        points, Spearman's rank correlation of round and limit, and the same limit as a fraction of the weights left.
    """
    rows = []
    for title, here in frame.groupby("title", sort=False):
        first, last = here[here["round"] == 0], here[here["round"] == here["round"].max()]
        for name, label in (("formula", "formula"), ("measured", "one-shot, measured")):
            left = 1 - (1 - here[name]) / (1 - here.sparsity)
            ends = [first[name].mean(), last[name].mean()]
            rows.append(
                {
                    "network, data, profile": title,
                    "limit": label,
                    "dense": f"{100 * ends[0]:.1f}",
                    "last round": f"{100 * ends[1]:.1f}",
                    "change (points)": f"{100 * (ends[1] - ends[0]):+.1f}",
                    "rank correlation": f"{stats.spearmanr(here['round'], here[name]).statistic:+.2f}",
                    "of what is left, dense": f"{100 * left[first.index].mean():.1f}",
                    "of what is left, last": f"{100 * left[last.index].mean():.1f}",
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


def missing_rounds(comparisons: str | Sequence[str] | None = None, seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """List the runs that nobody has made yet, each with the command that does it.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``comparison``, ``profile``, ``seeds without a record`` and ``command``.
    """
    rows = []
    for one in find_comparisons(comparisons):
        for profile in one.rounds:
            absent = [
                seed for seed in seeds for spec in one.rounds_specs(profile, seed) if not load_record(EXPERIMENT, spec)
            ]
            if absent:
                command = f"prunelimit rounds {one.name} --profile {profile} --seeds {len(seeds)}"
                text = ", ".join(map(str, absent))
                rows.append(
                    {"comparison": one.name, "profile": profile, "seeds without a record": text, "command": command}
                )
    return pd.DataFrame(rows, columns=["comparison", "profile", "seeds without a record", "command"])
