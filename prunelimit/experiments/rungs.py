r"""The rungs between the formula and the cut: each gives one assumption back, and each is a rise of the loss by itself.

All of it is for networks small enough for the dense Hessian and works on flat float64 arrays. The step of the cut is
:math:`d = w(s) - w^*`, its length R(s); :math:`|H|` has the eigenvectors of H and the magnitudes of its eigenvalues.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh

from prunelimit.limit import exact_limit
from prunelimit.minima import affine_minimum, ball_minimum

#: Ridge on the eigenvalues, relative to mu = 2 epsilon / R^2: within R it adds a millionth of epsilon.
RIDGE = 1e-6

#: Share of the weights by which a search for a limit first moves away from its guess.
STRIDE = 1 / 64

Rise = Callable[[int], float]


class Rungs:
    """A trained network as a quadratic, and what the quadratic says about cutting its weights.

    Args:
        weights: ``(D,)`` trained weights w*.
        hessian: ``(D, D)`` Hessian of the loss there.
        gradient: ``(D,)`` gradient of the loss there.
        epsilon: Tolerated rise of the loss.

    Attributes:
        total: D.
        distance: ``(D + 1,)`` distances R, entry m with m weights removed.
    """

    def __init__(self, weights: np.ndarray, hessian: np.ndarray, gradient: np.ndarray, epsilon: float) -> None:
        self.weights, self.hessian, self.gradient, self.epsilon = weights, hessian, gradient, epsilon
        self.total = len(weights)
        self._order = np.argsort(np.abs(weights), kind="stable")
        self.distance = np.sqrt(np.concatenate([[0.0], np.cumsum(weights[self._order] ** 2)]))

    @functools.cached_property
    def _eigenpairs(self) -> tuple[np.ndarray, np.ndarray]:
        """All eigenvalues and ``(D, D)`` eigenvectors in columns; rows of H that are zero need no solver."""
        active = np.flatnonzero(self.hessian.any(axis=1))
        values, vectors = np.zeros(self.total), np.zeros((self.total, self.total))
        idle = np.setdiff1d(np.arange(self.total), active)
        values[: len(active)], found = eigh(self.hessian[np.ix_(active, active)], driver="evd", check_finite=False)
        vectors[np.ix_(active, np.arange(len(active)))] = found
        vectors[idle, np.arange(len(active), self.total)] = 1
        return values, vectors

    @property
    def eigenvalues(self) -> np.ndarray:
        """All D of them, in no particular order."""
        return self._eigenpairs[0]

    def step(self, removed: int) -> np.ndarray:
        """Return the step d that sets the smallest weights to zero."""
        d = np.zeros(self.total)
        d[self._order[:removed]] = -self.weights[self._order[:removed]]
        return d

    def kept(self, removed: int) -> np.ndarray:
        """Return the indices of the weights that are left."""
        return np.sort(self._order[removed:])

    # Subspaces through the sparse point

    def formula(self) -> float:
        """Solve the formula with all eigenvalues: the limit, as a sparsity."""
        return exact_limit(self.eigenvalues, self.distance, self.epsilon)

    def _lowest(self, removed: int, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """Minimise |H| over the sparse point plus a subspace, given by rows in the eigenbasis."""
        values, vectors = self._eigenpairs
        ridge = RIDGE * 2 * self.epsilon / self.distance[removed] ** 2
        return affine_minimum(np.abs(values) + ridge, rows, vectors.T @ self.step(removed))

    def rotated(self, removed: int, seed: int) -> float:
        """Minimise |H| over a uniformly random subspace of the kept dimension; those of one seed are nested."""
        rows = np.random.default_rng(seed).standard_normal((self.total - removed, self.total))
        return self._lowest(removed, rows)[0]

    def perpendicular(self, removed: int, seed: int) -> float:
        """The same for a random subspace perpendicular to the step, as the kept coordinates are; also nested."""
        rows = np.random.default_rng(seed).standard_normal((self.total - removed, self.total))
        turned = self._eigenpairs[1].T @ self.step(removed)
        turned /= np.linalg.norm(turned)
        return self._lowest(removed, rows - np.outer(rows @ turned, turned))[0]

    def shuffled(self, removed: int, seed: int) -> float:
        """Minimise |H| over as many coordinates as are kept, but drawn at random; those of one seed are nested."""
        chosen = np.random.default_rng(seed).permutation(self.total)[: self.total - removed]
        return self._lowest(removed, self._eigenpairs[1][np.sort(chosen)])[0]

    def pruned(self, removed: int) -> tuple[float, np.ndarray]:
        """Minimise |H| over the kept weights themselves; gives the minimum and the whole ``(D,)`` step to it."""
        kept, d = self.kept(removed), self.step(removed)
        value, d[kept] = self._lowest(removed, self._eigenpairs[1][kept])
        return value, d

    def ball(self, removed: int) -> tuple[float, np.ndarray]:
        """The same, with the kept weights moving by no more than R(s)."""
        values, vectors = self._eigenpairs
        kept, d = self.kept(removed), self.step(removed)
        rows, turned = vectors[kept] * np.abs(values), vectors.T @ d
        change, d[kept] = ball_minimum(rows @ vectors[kept].T, rows @ turned, self.distance[removed])
        return float(np.abs(values) @ turned**2) / 2 + change, d

    def signs(self, removed: int) -> tuple[float, np.ndarray]:
        """The same with H itself in place of |H|."""
        return self._signed(removed, np.zeros(self.total))

    def slope(self, removed: int) -> tuple[float, np.ndarray]:
        """The same with H and the gradient: the expansion of the loss."""
        return self._signed(removed, self.gradient)

    def _signed(self, removed: int, gradient: np.ndarray) -> tuple[float, np.ndarray]:
        kept, d = self.kept(removed), self.step(removed)
        start, curved = float(gradient @ d), self.hessian @ d
        matrix, linear = self.hessian[np.ix_(kept, kept)], gradient[kept] + curved[kept]
        start += float(d @ curved) / 2
        change, d[kept] = ball_minimum(matrix, linear, self.distance[removed])
        return start + change, d

    # The cut alone

    def expanded(self, step: np.ndarray) -> dict[str, float]:
        """Return three expansions of the rise of the loss along a step: by |H|, by H, and by H and the gradient."""
        values, vectors = self._eigenpairs
        signed = float(step @ (self.hessian @ step)) / 2
        absolute = float(np.abs(values) @ (vectors.T @ step) ** 2) / 2
        return {"absolute": absolute, "signed": signed, "sloped": signed + float(self.gradient @ step)}

    # Searching

    def bracket(self, rise: Rise, guess: float, tolerance: float) -> tuple[float, float]:
        """Find between which sparsities a rise passes epsilon, beginning near a guess.

        Args:
            rise: Maps a number of removed weights to a rise of the loss; presumed to pass epsilon once.
            guess: A sparsity.
            tolerance: Width of the bracket.

        Returns:
            The largest sparsity found to be within epsilon and the smallest found not to be.
        """
        low, high, width = 0, self.total, max(1, round(STRIDE * self.total))
        goal = max(1, math.floor(tolerance * self.total))
        below = above = False
        place = min(max(round(guess * self.total), 1), self.total - 1)
        while high - low > goal:
            if rise(place) <= self.epsilon:
                low, below = place, True
            else:
                high, above = place, True
            if below and above:
                place = (low + high) // 2
            else:
                place = min(low + width, high - 1) if below else max(high - width, low + 1)
                width *= 2
        return low / self.total, high / self.total


def directions(rungs: Rungs, removed: int, draws: int, seed: int) -> dict[str, list[np.ndarray]]:
    """Make steps as long as that of the cut, in other directions.

    Args:
        rungs: The network.
        removed: Number of weights that the cut removes.
        draws: Number of random steps of each kind.
        seed: Seed of the draws.

    Returns:
        Kind to ``(D,)`` steps of length R (``others``: at most R): ``cut`` is the step itself, ``opposite`` its negative;
        ``flipped`` has a random sign for every removed weight, ``support`` is a random direction among the removed weights,
        ``sphere`` one among all weights, and ``others`` removes weights in random order, each unless the distance forbids it.
    """
    generator = np.random.default_rng(seed)
    cut, radius = rungs.step(removed), float(rungs.distance[removed])
    gone = np.setdiff1d(np.arange(rungs.total), rungs.kept(removed))
    found: dict[str, list[np.ndarray]] = {"cut": [cut], "opposite": [-cut]}
    for kind in ("flipped", "support", "sphere", "others"):
        found[kind] = [_direction(kind, rungs, cut, gone, radius, generator) for _ in range(draws)]
    return found


def _direction(
    kind: str, rungs: Rungs, cut: np.ndarray, gone: np.ndarray, radius: float, generator: np.random.Generator
) -> np.ndarray:
    if kind == "flipped":
        return cut * generator.choice([-1.0, 1.0], len(cut))
    if kind == "others":
        step, left = np.zeros(rungs.total), radius**2
        for place in generator.permutation(rungs.total):
            if (square := float(rungs.weights[place] ** 2)) <= left:
                step[place], left = -rungs.weights[place], left - square
        return step
    step = np.zeros(rungs.total)
    place = gone if kind == "support" else np.arange(rungs.total)
    step[place] = generator.standard_normal(len(place))
    return step * (radius / np.linalg.norm(step))
