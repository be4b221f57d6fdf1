"""Data frames of the distances between weight distributions: table T8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from prunelimit.experiments.distribution_frames import Weights
from prunelimit.experiments.distributions import expected_null, total_variation


def variation_frame(found: Sequence[Weights]) -> pd.DataFrame:
    """Stack the recorded distances between weight distributions.

    Args:
        found: Output of :func:`load_distributions`.

    Returns:
        One row per network, pair, rule and number of bins, as :func:`~prunelimit.experiments.distributions.compare` has them,
        with ``title``, ``kind``, ``first``, ``second`` and ``excess``, the distance over its expectation without difference.
    """
    parts = [
        pd.DataFrame(w.record["comparisons"]).assign(title=w.title, profile=w.profile, total=w.record["total"])
        for w in found
    ]
    if not parts:
        return pd.DataFrame(columns=["title", "profile", "total", "kind", "first", "second", "rule", "bins", "excess"])
    frame = pd.concat(parts, ignore_index=True)
    numbers = ["distance", "expected", "approximate", "drawn", "deviation"]
    frame[numbers] = frame[numbers].astype(float)
    return frame.assign(excess=frame.distance - frame.expected)


def across_frame(found: Sequence[Weights]) -> pd.DataFrame:
    """Compare the weights of different networks, in the bins of the recorded histogram.

    Args:
        found: Output of :func:`load_distributions`.

    Returns:
        One row per pair of records: ``first``, ``second`` (titles), the mean ``distance`` over all pairs of different seeds,
        its mean ``expected`` without difference, and how many ``pairs``; a record with itself if it has two seeds.
    """
    rows = []
    for number, one in enumerate(found):
        for other in found[number:]:
            pairs = [
                (one.counts("trained", a), other.counts("trained", b))
                for a in one.spec.seeds
                for b in other.spec.seeds
                if a < b or (a > b and one is not other)
            ]
            if not pairs:
                pairs = [] if one is other else [(one.counts("trained", 0), other.counts("trained", 0))]
            if pairs:
                distance, expected = (np.mean([f(*pair) for pair in pairs]) for f in (total_variation, expected_null))
                rows.append({"first": one.title, "second": other.title, "distance": distance, "expected": expected})
                rows[-1]["pairs"] = len(pairs)
    return pd.DataFrame(rows, columns=["first", "second", "distance", "expected", "pairs"])


#: What is compared with what, in words.
KINDS = {
    "trained": "two runs",
    "initial": "two initial networks",
    "change": "trained and initial",
}

NAMED_RULE = "Freedman-Diaconis"


def variation_table(frame: pd.DataFrame, rule: str = NAMED_RULE, bins: int | None = None) -> pd.DataFrame:
    """Put the distances by one rule into words, in per cent.

    Args:
        frame: Output of :func:`variation_frame`.
        rule: One of :data:`~prunelimit.experiments.distributions.RULES`.
        bins: Number of bins; ``None`` for all that there are, which is one if the rule chooses it.

    Returns:
        One row per network and kind of pair: means over the pairs, with the lowest and the highest where there are several;
        ``deviations`` is the least number of standard deviations by which a distance exceeds that of random divisions.
    """
    chosen = frame[(frame.rule == rule) & ((frame.bins == bins) if bins else True)]
    rows = []
    for (title, kind), part in chosen.groupby(["title", "kind"], sort=False):
        few, many = int(part.bins.min()), int(part.bins.max())
        drawn = part[part.drawn.notna()]
        rows.append(
            {
                "network, data, profile": title,
                "compared": KINDS[str(kind)],
                "pairs": len(part),
                "bins": f"{few:,}" if few == many else f"{few:,} – {many:,}",
                "distance": _span(part.distance),
                "no difference: exact": f"{100 * part.expected.mean():.2f}",
                "normal counts": f"{100 * part.approximate.mean():.2f}",
                "random divisions": f"{100 * drawn.drawn.mean():.2f} ± {100 * drawn.deviation.mean():.2f}"
                if len(drawn)
                else "—",
                "excess": _span(part.excess),
                "deviations": f"{((drawn.distance - drawn.drawn) / drawn.deviation).min():+.1f}" if len(drawn) else "—",
            }
        )
    names = ["network, data, profile", "compared", "pairs", "bins", "distance", "no difference: exact", "normal counts"]
    return pd.DataFrame(rows, columns=[*names, "random divisions", "excess", "deviations"])


def _span(values: pd.Series) -> str:
    """Write the mean in per cent and, of several, the lowest and the highest."""
    low, mean, high = (100 * float(v) for v in (values.min(), values.mean(), values.max()))
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({low:.2f} – {high:.2f})"


def bins_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the distances of trained weights by the number of bins, each beside its mean without difference.

    Args:
        frame: Output of :func:`variation_frame`.

    Returns:
        One row per network and rule, one column per number of bins: both numbers in per cent, means over the pairs.
    """
    part = frame[(frame.kind == "trained") & (frame.rule != NAMED_RULE)]
    rows = []
    for (title, rule), group in part.groupby(["title", "rule"], sort=False):
        means = group.groupby("bins")[["distance", "expected"]].mean()
        cells = {f"{bins:,} bins": f"{100 * d:.1f} | {100 * e:.1f}" for bins, d, e in means.itertuples()}
        rows.append({"network, data, profile": title, "bins of": rule} | cells)
    return pd.DataFrame(rows, columns=None if rows else ["network, data, profile", "bins of"])


def across_table(across: pd.DataFrame) -> pd.DataFrame:
    """Lay out the distances between networks as a matrix, in per cent, each beside its mean without difference.

    Args:
        across: Output of :func:`across_frame`.

    Returns:
        One row and one column per network; on the diagonal two runs of the same. Every pair stands in the upper half.
    """
    titles = list(dict.fromkeys([*across["first"], *across["second"]]))
    table = pd.DataFrame("", index=titles, columns=[str(number + 1) for number in range(len(titles))])
    for row in across.itertuples():
        here, there = titles.index(str(row.first)), titles.index(str(row.second))
        table.iloc[here, there] = f"{100 * float(str(row.distance)):.1f} | {100 * float(str(row.expected)):.1f}"
    table.insert(0, "network, data, profile", [f"{number + 1}. {title}" for number, title in enumerate(titles)])
    return table.reset_index(drop=True)
