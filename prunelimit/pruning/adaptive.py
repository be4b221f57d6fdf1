"""A sweep over sparsities with the resolution of 1,000 points where it matters, at the price of a few dozen.

One cut after the other is evaluated: a coarse grid; bisection of the knee, where the training loss leaves the dense loss
by more than epsilon; every grid point around it; and then always the middle of the gap across which straight lines are
expected to miss the curves by most, which is where they bend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import MagnitudePath
from prunelimit.pruning.measured import Memo, SweepPoint, no_memo, sweep

#: Points of the grid that the sweep is a part of.
GRID = 1000

#: Distance of the first points, and how many neighbours of the knee are evaluated on either side, in steps of the grid.
COARSE, BAND = 50, 6

#: Fewest evaluations: the coarse grid, the bisection and the neighbours.
LEAST = GRID // COARSE + 1 + COARSE.bit_length() + 2 * BAND


def adaptive_sweep(
    model: nn.Module,
    train: DeviceSplit,
    test: DeviceSplit,
    epsilon: float,
    evaluations: int = 80,
    path: MagnitudePath | None = None,
    memo: Memo = no_memo,
) -> list[SweepPoint]:
    """Prune to well-chosen sparsities and evaluate, without any retraining.

    Args:
        model: The network; not changed.
        train: Training split, un-augmented.
        test: Test split.
        epsilon: Rise of the training loss that marks the knee, in nats.
        evaluations: Cuts that may be evaluated, at least ``LEAST``.
        path: The network's sorted magnitudes, if they are at hand.
        memo: Remembers each evaluation, so that an interrupted sweep goes on.

    Returns:
        One point per cut, with growing sparsities, multiples of 1/1000. The knee lies between two neighbours on that grid.

    Raises:
        PruneLimitError: If there are too few evaluations to find the knee.
    """
    if evaluations < LEAST:
        raise PruneLimitError(f"evaluations={evaluations!r} must be at least {LEAST}: fewer do not resolve the knee.")
    path = path or MagnitudePath(model)
    points: dict[int, SweepPoint] = {}

    def look(place: int) -> SweepPoint:
        if place not in points:
            points[place] = sweep(model, train, test, [place / GRID], path, memo)[0]
        return points[place]

    for place in (*range(0, GRID, COARSE), GRID - 1):
        look(place)
    knee = _find_knee(points, look, points[0].train_loss + epsilon)
    if knee is not None:
        for place in range(max(knee - BAND, 0), min(knee + BAND + 2, GRID)):
            look(place)
    while len(points) < evaluations and (gap := _widest_error(points)):
        look(sum(gap) // 2)
    return [points[place] for place in sorted(points)]


def _find_knee(points: dict[int, SweepPoint], look: Callable[[int], SweepPoint], allowed: float) -> int | None:
    """Find the grid point before the first rise above what is allowed, by bisection; ``None`` if there is no rise."""
    for low, high in itertools.pairwise(sorted(points)):
        if points[low].train_loss <= allowed < points[high].train_loss:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if look(middle).train_loss <= allowed else (low, middle)
            return low
    return None


def _widest_error(points: dict[int, SweepPoint]) -> tuple[int, int] | None:
    """Find the gap across which a straight line is expected to miss a curve by most; ``None`` if no gap is left.

    Across a gap of width h a line misses a smooth curve by :math:`h^2 |f''| / 8` at most. Second differences with the
    points beside the gap stand for f''. A part of the rise itself is added, for steps narrower than the gaps.
    """
    places = np.array(sorted(points))
    values = np.array([[points[k].train_loss, points[k].test_accuracy] for k in places])
    span = np.ptp(values, axis=0)
    values = values / np.where(span > 0, span, 1)
    gaps = np.diff(places)
    rises = np.diff(values, axis=0)
    slopes = rises / gaps[:, None]
    bends = np.abs(np.diff(slopes, axis=0)) / (gaps[1:] + gaps[:-1])[:, None] * 2
    beside = np.zeros_like(slopes)
    beside[:-1], beside[1:] = bends, np.maximum(beside[1:], bends)
    errors = (gaps[:, None] ** 2 * beside / 8 + np.abs(rises) / 16).max(axis=1)
    errors[gaps == 1] = -1
    worst = int(errors.argmax())
    return None if errors[worst] < 0 else (int(places[worst]), int(places[worst + 1]))
