"""How the weights of a network are distributed, and how far the distributions of independent runs lie apart.

The total variation distance of two samples depends on the bins: the finer they are, the closer it comes to one, even if both
samples come from the same distribution. So every distance is recorded for several bin rules, each beside what it would be on
average if the two samples were thrown together and divided anew at random.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import nn

from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.runner import round_significant
from prunelimit.experiments.specs import TrainedSpec
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.pruning.magnitude import flatten, prunable_parameters
from prunelimit.threads import suited_threads
from prunelimit.training import TrainSpec, initial_network, train

EXPERIMENT = "distributions"

#: Magnitudes between which the recorded histogram has bins, each so many per factor of ten, for either sign. The grid is the
#: same for every network, so that any two can be compared later.
LOWEST, HIGHEST, PER_DECADE = 1e-12, 1e2, 20

#: Quantiles of the magnitudes that are recorded.
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)

#: Magnitudes below which the share of the weights is recorded.
THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

#: Ways to cut the pooled sample into bins.
RULES = ("equal width", "equal mass", "Freedman-Diaconis")

#: Pooled counts up to this one get their exact expectation, larger ones that of a normal distribution.
EXACT_COUNT = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionsSpec(TrainedSpec):
    """The weights of several runs that differ in their seed alone; ``train`` is the first of them.

    Attributes:
        seeds: Seeds of the runs.
        bins: Numbers of bins, of equal width and of equal mass, with which the runs are compared.
        draws: Random divisions of the pooled sample behind the standard deviation of a distance without difference.
        draw_bins: Comparisons with more occupied bins than this are not divided at random.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    bins: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 10_000)
    draws: int = 100
    draw_bins: int = 20_000

    def __post_init__(self) -> None:
        """Refuse seeds and bins that compare nothing."""
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or self.train.seed != self.seeds[0]:
            raise PruneLimitError(f"seeds={self.seeds!r} must be different and begin with that of train.")
        if not all(count >= 2 for count in self.bins):
            raise PruneLimitError(f"bins={self.bins!r} must be at least 2 each.")
        if self.draws < 2:
            raise PruneLimitError(f"draws={self.draws!r} must be at least 2: a standard deviation is taken.")

    def runs(self) -> list[TrainSpec]:
        """Return how each network is trained."""
        return [dataclasses.replace(self.train, seed=seed) for seed in self.seeds]

    def about(self) -> str:
        """Say which of its kind it is, in a few words."""
        others = ", ".join(map(str, self.seeds[1:]))
        return f"beside seed{'s' if len(self.seeds) > 2 else ''} {others}" if others else "alone"


def magnitude_edges() -> np.ndarray:
    """Return the edges of the recorded histogram's bins, from ``LOWEST`` to ``HIGHEST``."""
    low, high = round(math.log10(LOWEST)), round(math.log10(HIGHEST))
    return 10.0 ** (low + np.arange((high - low) * PER_DECADE + 1) / PER_DECADE)


def histogram(weights: np.ndarray) -> dict[str, Any]:
    """Count weights by sign and magnitude.

    Args:
        weights: Any numbers.

    Returns:
        Counts ``negative`` and ``positive``, one per bin of :func:`magnitude_edges`, and how many magnitudes are ``below``
        the lowest edge, zeros included, or ``above`` the highest.
    """
    edges = magnitude_edges()
    magnitudes = np.abs(weights)
    return {
        "negative": np.histogram(-weights[weights < 0], edges)[0].tolist(),
        "positive": np.histogram(weights[weights > 0], edges)[0].tolist(),
        "below": int((magnitudes < edges[0]).sum()),
        "above": int((magnitudes > edges[-1]).sum()),
    }


def statistics(weights: np.ndarray) -> dict[str, Any]:
    """Summarise weights.

    Args:
        weights: ``(D,)``.

    Returns:
        ``mean``, ``mean_magnitude``, ``rms``, ``kurtosis`` (3 for a normal distribution), ``largest`` magnitude, the share of
        exact ``zero``, the ``effective`` share of the weights (their effective number over D), ``quantiles`` of the
        magnitudes, and the share of the magnitudes ``below`` some thresholds.
    """
    values = np.asarray(weights, dtype=float)
    magnitudes = np.abs(values)
    square = float(np.mean(values**2))
    centred = (values - values.mean()) ** 2
    plain = {
        "mean": float(values.mean()),
        "mean_magnitude": float(magnitudes.mean()),
        "rms": math.sqrt(square),
        "kurtosis": float(np.mean(centred**2) / np.mean(centred) ** 2),
        "largest": float(magnitudes.max()),
        "zero": float((values == 0).mean()),
        "effective": float(magnitudes.mean() ** 2 / square),
    }
    quantiles = dict(zip(map(str, QUANTILES), round_significant(np.quantile(magnitudes, QUANTILES)), strict=True))
    return plain | {"quantiles": quantiles, "below": {str(t): float((magnitudes < t).mean()) for t in THRESHOLDS}}


Counts = tuple[np.ndarray, np.ndarray]


def freedman_diaconis_bins(sample: np.ndarray) -> int | None:
    """Count the bins of width 2 IQR / n^(1/3) between the ends of a sample (Freedman and Diaconis 1981).

    Args:
        sample: Sorted numbers.

    Returns:
        The number of bins; ``None`` if half of the sample is one number, so that the rule gives no width.
    """
    places = np.clip(np.round(np.array([0.25, 0.75]) * (len(sample) - 1)).astype(int), 0, len(sample) - 1)
    first, third = (float(v) for v in sample[places])
    width = 2 * (third - first) / len(sample) ** (1 / 3)
    return max(math.ceil((float(sample[-1]) - float(sample[0])) / width), 2) if width > 0 else None


def equal_width_counts(first: np.ndarray, second: np.ndarray, bins: int) -> Counts:
    """Count two samples in bins of equal width between the ends of the pooled one.

    Args:
        first: Sorted numbers.
        second: Sorted numbers.
        bins: How many bins; there may be far more than numbers.

    Returns:
        Counts of both, in the bins where there are any.
    """
    low, high = (float(end(first[at], second[at])) for end, at in ((min, 0), (max, -1)))
    if not high > low:
        return np.array([len(first)]), np.array([len(second)])
    scale = bins / (high - low)
    places = [np.minimum((sample.astype(float) - low) * scale, bins - 1).astype(np.int64) for sample in (first, second)]
    both = np.sort(np.concatenate(places), kind="stable")
    keys = both[np.r_[True, both[1:] != both[:-1]]]
    one, other = (np.diff(np.searchsorted(p, keys, "left"), append=len(p)) for p in places)
    return one, other


def equal_mass_counts(first: np.ndarray, second: np.ndarray, bins: int) -> Counts:
    """Count two samples in bins that hold equally many of the pooled one, as far as equal numbers allow.

    Args:
        first: Sorted numbers.
        second: Sorted numbers.
        bins: How many bins, of which those that would be empty are left out.

    Returns:
        Counts of both.
    """
    pooled = np.sort(np.concatenate([first, second]), kind="stable")
    inner = np.unique(pooled[np.linspace(0, len(pooled), bins + 1)[1:-1].astype(int)])
    one, other = (np.diff([0, *np.searchsorted(sample, inner, "left"), len(sample)]) for sample in (first, second))
    there = one + other > 0
    return one[there], other[there]


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Return half the sum of the differences between two histograms, as shares.

    Args:
        first: Counts.
        second: Counts in the same bins.

    Returns:
        The distance, between 0 and 1.
    """
    return 0.5 * float(np.abs(first / first.sum() - second / second.sum()).sum())


def approximate_null(first: np.ndarray, second: np.ndarray) -> float:
    r"""Approximate the mean distance of two samples of one distribution, by normal counts.

    .. math:: \tfrac12 \sum_j \sqrt{\tfrac{2}{\pi} p_j (1 - p_j) (1 / n_1 + 1 / n_2)},

    with the pooled shares p; for equal sizes D it is :math:`\sum_j \sqrt{p_j (1 - p_j) / (\pi D)}`. It falls short of
    the truth where bins hold hardly any weights.

    Args:
        first: Counts.
        second: Counts in the same bins.

    Returns:
        The mean distance.
    """
    sizes = float(first.sum()), float(second.sum())
    shares = (first + second) / sum(sizes)
    return 0.5 * float(np.sqrt(2 / math.pi * shares * (1 - shares) * (1 / sizes[0] + 1 / sizes[1])).sum())


def expected_null(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the mean distance if the pooled sample is divided anew at random.

    A bin with m pooled counts gets a hypergeometric number of them in the first sample, so its mean depends on m alone. It
    is exact up to ``EXACT_COUNT``; above, the hypergeometric distribution is taken for a normal one.

    Args:
        first: Counts.
        second: Counts in the same bins.

    Returns:
        The mean distance.
    """
    sizes = int(first.sum()), int(second.sum())
    together, apart = sum(sizes), 1 / first.sum() + 1 / second.sum()
    counts, times = np.unique(first + second, return_counts=True)
    shares = counts / together
    variance = shares * (1 - shares) * sizes[0] * sizes[1] / max(together - 1, 1)
    means = np.sqrt(2 / math.pi * variance) * apart
    small = counts[counts <= EXACT_COUNT]
    # Of each small count all numbers that the first sample may get, one after the other, so that one call serves all.
    starts = np.cumsum(small + 1) - (small + 1)
    pooled = np.repeat(small, small + 1)
    drawn = np.arange(len(pooled)) - np.repeat(starts, small + 1)
    chances = np.exp(
        _log_choose(sizes[0], drawn) + _log_choose(sizes[1], pooled - drawn) - _log_choose(together, pooled)
    )
    terms = chances * np.abs(drawn * apart - pooled / sizes[1])
    means[: len(small)] = np.add.reduceat(terms, starts) if len(small) else 0
    return 0.5 * float(times @ means)


def _log_choose(total: int, chosen: np.ndarray) -> np.ndarray:
    """Return the logarithm of the binomial coefficient; minus infinity where more is chosen than there is."""
    left = total - chosen
    value = gammaln(total + 1.0) - gammaln(chosen + 1.0) - gammaln(np.maximum(left, 0) + 1.0)
    return np.where(left >= 0, value, -np.inf)


def drawn_null(first: np.ndarray, second: np.ndarray, draws: int) -> np.ndarray:
    """Divide the pooled sample anew at random, many times.

    Args:
        first: Counts.
        second: Counts in the same bins.
        draws: How many times.

    Returns:
        ``(draws,)`` distances.
    """
    pooled, generator = first + second, np.random.default_rng(0)
    parts = generator.multivariate_hypergeometric(pooled, int(first.sum()), size=draws, method="marginals")
    return np.array([total_variation(part, pooled - part) for part in parts])


def compare(first: np.ndarray, second: np.ndarray, spec: DistributionsSpec) -> list[dict[str, Any]]:
    """Measure the distance of two samples with every bin rule.

    Args:
        first: Sorted numbers.
        second: Sorted numbers.
        spec: With which bins.

    Returns:
        One row per rule and number of bins: ``occupied`` bins, the ``distance``, its mean without difference (``expected``,
        ``approximate`` and, of random draws, ``drawn`` with its standard ``deviation``; ``None`` if there are too many bins).
    """
    pooled = np.sort(np.concatenate([first, second]), kind="stable")
    settings: list[tuple[str, int]] = [(rule, bins) for rule in RULES[:2] for bins in spec.bins]
    if (chosen := freedman_diaconis_bins(pooled)) is not None:
        settings.append((RULES[2], chosen))
    rows = []
    for rule, bins in settings:
        one, other = (equal_mass_counts if rule == "equal mass" else equal_width_counts)(first, second, bins)
        draws = drawn_null(one, other, spec.draws) if len(one) <= spec.draw_bins else None
        rows.append(
            {
                "rule": rule,
                "bins": bins,
                "occupied": len(one),
                "distance": total_variation(one, other),
                "expected": expected_null(one, other),
                "approximate": approximate_null(one, other),
                "drawn": None if draws is None else float(draws.mean()),
                "deviation": None if draws is None else float(draws.std(ddof=1)),
            }
        )
    return rows


def sorted_weights(model: nn.Module) -> np.ndarray:
    """Return the prunable weights of a network in increasing order."""
    return np.sort(flatten(list(prunable_parameters(model).values())).cpu().numpy())


def run_distributions(
    spec: DistributionsSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of the weight distributions of several runs, or return the one there is.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to train.
        deadline: Value of ``time.monotonic()`` after which training is not continued.
        progress: Whether to show the progress of the training.

    Returns:
        The record, or ``None`` if the deadline passed during training.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    dataset = load_dataset(spec.train.dataset)
    weights: dict[tuple[str, int], np.ndarray] = {}
    for run in spec.runs():
        trained = train(run, device=device, dataset=dataset, deadline=deadline, progress=progress)
        if len(trained.history) < run.epochs:
            return None
        weights["trained", run.seed] = sorted_weights(trained.model)
        weights["initial", run.seed] = sorted_weights(initial_network(run, dataset))
        with suited_threads(trained.model):
            source = provenance(device, torch.get_num_threads())
    start = time.perf_counter()
    networks = [
        {"state": state, "seed": seed, "statistics": statistics(values), "histogram": histogram(values)}
        for (state, seed), values in weights.items()
    ]
    comparisons = _compare_all(weights, spec)
    record = {
        "label": label or {},
        "data": dataset.digests,
        "provenance": source,
        "seconds": {"compare": round(time.perf_counter() - start, 2)},
        "total": len(next(iter(weights.values()))),
        "grid": {"lowest": LOWEST, "highest": HIGHEST, "per_decade": PER_DECADE},
        "networks": networks,
        "comparisons": {name: [row[name] for row in comparisons] for name in comparisons[0]},
    }
    return save_record(EXPERIMENT, spec, record)


def _compare_all(weights: dict[tuple[str, int], np.ndarray], spec: DistributionsSpec) -> list[dict[str, Any]]:
    """Compare trained with trained, initial with initial, and trained with initial weights of the same run."""
    pairs: list[tuple[str, Sequence[tuple[str, int]]]] = [
        (state, [(state, a), (state, b)]) for state in ("trained", "initial") for a, b in combinations(spec.seeds, 2)
    ]
    pairs += [("change", [("trained", seed), ("initial", seed)]) for seed in spec.seeds]
    return [
        {"kind": kind, "first": first[1], "second": second[1], **row}
        for kind, (first, second) in pairs
        for row in compare(weights[first], weights[second], spec)
    ]
