r"""From Lanczos coefficients to :math:`d(\mu) = \sum_i |\lambda_i| / (|\lambda_i| + \mu)`, with an interval.

No histogram is ever built: a rule is a handful of nodes and weights, and the integrand is summed over them.

Where the bounds come from. The Hessian is indefinite, the integrand has a kink at zero, and the Gauss rule of H swings to
both sides of the truth from one step count to the next. In :math:`x = \lambda^2` the same integrand is :math:`h(x) = \sqrt{x}
/ (\sqrt{x} + \mu) = 1 - \mu / (\sqrt{x} + \mu)`, and

.. math:: \frac{1}{\sqrt{x} + \mu} = \frac{1}{\pi} \int_0^\infty \frac{\sqrt{t}}{(t + \mu^2) (x + t)} dt ,

so all even derivatives of h are negative and all odd ones positive on x > 0. By the error formula of Gauss rules (Golub and
Meurant 1994), for the matrix :math:`H^2` the Gauss rule over-estimates d and the Gauss-Radau rule with a node at zero
under-estimates it, whatever the signs of the eigenvalues. And the rules of :math:`H^2` cost nothing: 2 k products with H
determine the moments of :math:`\lambda` up to degree 4 k, hence those of :math:`\lambda^2` up to 2 k, which is all that k steps
of Lanczos with :math:`H^2` would find out with as many products. The book proves it in full (The limit, How it is computed).

Rounding of the products moves eigenvalues by some :math:`\eta`, and the integrand by :math:`\eta / (\eta + \mu)` at most; the interval
holds that too. It is one rounding of the largest eigenvalue, ten where Lanczos took a small residual for the end of a Krylov space;
and squares, in float64, show nothing below 1e-7 of it.

Probes that share one Krylov space leave a block tridiagonal matrix instead of one matrix each; its rules and bounds are in
:mod:`prunelimit.curvature.block`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg

from prunelimit.curvature.block import BlockTridiagonal, Rule
from prunelimit.curvature.lanczos import END, Tridiagonal
from prunelimit.errors import PruneLimitError

#: Rules of so many last step counts are averaged: Gauss swings by the parity of the step.
TAIL = 12

#: The same for probes that share one Krylov space. Two are enough to take the mean of both parities; more only lag behind.
JOINT_TAIL = 2

#: Standard deviations of the probe's noise in the interval.
PROBE_SIGMAS = 2.0

#: Relative to the largest eigenvalue, what is lost in squares, which are taken in float64: the root of some forty roundings,
#: below which a residual of sixteen probes counts as none.
SQUARES = 1e-7

Integrand = Callable[[np.ndarray, np.ndarray], np.ndarray]


def gauss_rule(alpha: np.ndarray, beta: np.ndarray) -> Rule:
    """Compute the Gauss quadrature rule of a tridiagonal matrix (Golub and Welsch 1969).

    Args:
        alpha: ``(k,)`` diagonal.
        beta: Off-diagonal, of which the first k - 1 entries are used.

    Returns:
        ``(k,)`` nodes, the Ritz values, and ``(k,)`` weights that add up to one.
    """
    nodes, vectors = scipy.linalg.eigh_tridiagonal(alpha, beta[: len(alpha) - 1])
    return nodes, vectors[0] ** 2


def radau_rule(alpha: np.ndarray, beta: np.ndarray, node: float = 0.0) -> Rule:
    """Compute the Gauss-Radau rule that has a prescribed node (Golub 1973).

    Args:
        alpha: ``(k,)`` diagonal.
        beta: ``(k,)`` off-diagonal, the residual norm last.
        node: The prescribed node.

    Returns:
        ``(k + 1,)`` nodes and weights; the Gauss rule itself if the Krylov space is complete.
    """
    if not len(alpha):
        return np.array([node]), np.ones(1)
    if beta[len(alpha) - 1] == 0:
        return gauss_rule(alpha, beta)
    unit = np.zeros(len(alpha))
    unit[-1] = 1.0
    banded = np.zeros((3, len(alpha)))
    banded[0, 1:], banded[1], banded[2, :-1] = beta[: len(alpha) - 1], alpha - node, beta[: len(alpha) - 1]
    try:
        with np.errstate(all="ignore"):
            corner = scipy.linalg.solve_banded((1, 1), banded, unit)[-1]
    except np.linalg.LinAlgError:
        corner = np.inf
    if not np.isfinite(corner):  # the node is a Ritz value already: the rule that is asked for is Gauss
        return gauss_rule(alpha, beta)
    nodes, weights = gauss_rule(np.append(alpha, node + beta[len(alpha) - 1] ** 2 * corner), beta)
    # It is known: rounding would count once the rule of a square is turned into one of its root.
    nodes[np.argmin(np.abs(nodes - node))] = node
    return nodes, weights


def squared(found: Tridiagonal) -> tuple[np.ndarray, np.ndarray]:
    """Turn what Lanczos found out about H into what it would have found out about the square of H.

    Lanczos with the square of the tridiagonal matrix, from the first unit vector, meets the same moments as Lanczos with
    the square of H from the start vector, as long as it does not feel the end of the matrix.

    Args:
        found: m steps with H.

    Returns:
        Diagonal and off-diagonal of the matrix of the squares: ``((m + 1) // 2,)`` and ``(m // 2,)``. If m is odd the
        residual norm is missing, and one more moment serves the Gauss rule alone. A complete Krylov space gives a
        complete one, whose last off-diagonal entry is zero.
    """
    complete = found.complete
    # One more row, of which only the coupling is known; nothing below looks at its diagonal entry.
    alpha, beta = (found.alpha, found.beta[:-1]) if complete else (np.append(found.alpha, 0.0), found.beta)
    matrix = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
    products = len(found.alpha)
    diagonals = products if complete else (products + 1) // 2
    couplings = products if complete else products // 2
    basis = np.zeros((len(alpha), diagonals))
    basis[0, 0] = 1.0
    diagonal, coupling = np.zeros(diagonals), np.zeros(couplings)
    for k in range(diagonals):
        image = matrix @ basis[:, k]
        diagonal[k] = image @ image
        if k == couplings:
            break
        vector = matrix @ image
        for _ in range(2):
            vector -= basis[:, : k + 1] @ (basis[:, : k + 1].T @ vector)
        coupling[k] = np.linalg.norm(vector)
        if coupling[k] <= 1e-15 * diagonal.max() or (complete and k + 1 == diagonals):
            coupling[k] = 0.0
            return diagonal[: k + 1], coupling[: k + 1]
        if k + 1 < diagonals:
            basis[:, k + 1] = vector / coupling[k]
    return diagonal, coupling


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What Lanczos found out about a spectrum, and the integrals over it.

    Attributes:
        dimension: Number of eigenvalues, D.
        probes: One tridiagonal matrix per random start vector.
        seed: Seed of the first start vector; probe p has seed + p.
        nullity: Eigenvalues known to be zero; the probes are uniform on the sphere of the other coordinates.
        blocks: One block tridiagonal matrix per group of start vectors that share a Krylov space; ``probes`` has none of them.
        rounding: How far rounding may have moved an eigenvalue, relative to the largest one; zero if it was not noted.
    """

    dimension: int
    probes: tuple[Tridiagonal, ...]
    seed: int = 0
    nullity: int = 0
    blocks: tuple[BlockTridiagonal, ...] = ()
    rounding: float = 0.0

    def rounded(self, unit: float) -> Spectrum:
        """Note the rounding of the products.

        Args:
            unit: Relative rounding of a product, such as ``torch.finfo(torch.float32).eps``.

        Returns:
            The same spectrum with its ``rounding``, which also depends on how the processes ended.
        """
        ended = any(matrix.complete and matrix.rows < self.active for matrix in self._matrices)
        squares = SQUARES if not all(matrix.complete for matrix in self._matrices) else 0.0
        return dataclasses.replace(self, rounding=max(squares, (END if ended else 1) * unit))

    def slack(self, mu: float | np.ndarray) -> np.ndarray:
        """Bound what rounding may change in d(mu) / D.

        Args:
            mu: One or many positive numbers, in units of the eigenvalues.

        Returns:
            Shares between 0 and 1, of the shape of ``mu``.
        """
        moved = self.rounding * self.largest
        return moved / (moved + np.asarray(mu, dtype=float))

    @property
    def _matrices(self) -> tuple[Tridiagonal | BlockTridiagonal, ...]:
        return (*self.probes, *self.blocks)

    @property
    def steps(self) -> int:
        """Products per probe; the fewest, if they differ."""
        return min(len(matrix.alpha) for matrix in self._matrices)

    def truncated(self, steps: int) -> Spectrum:
        """Return what would be known after fewer products.

        Args:
            steps: Products per probe, at least one.

        Returns:
            The spectrum of the first so many steps.
        """
        probes = tuple(probe.truncated(steps) for probe in self.probes)
        return dataclasses.replace(self, probes=probes, blocks=tuple(block.truncated(steps) for block in self.blocks))

    @property
    def active(self) -> int:
        """Dimension of the sphere that the probes are drawn from, D less the nullity."""
        return self.dimension - self.nullity

    @property
    def _vectors(self) -> list[int]:
        """How many start vectors each matrix stands for."""
        return [matrix.vectors for matrix in self._matrices]

    def _mean(self, values: Any) -> Any:
        """Average over the start vectors what is known per matrix."""
        return np.average(values, axis=0, weights=self._vectors)

    @functools.cached_property
    def _rules(self) -> list[list[tuple[Rule, Rule]]]:
        """Per matrix, Gauss and Gauss-Radau rules of the last ``TAIL`` step counts, the longest first.

        A complete Krylov space has one rule, which is exact: shorter ones would only add their errors.
        """
        found = []
        for matrix in self._matrices:
            tail = JOINT_TAIL if isinstance(matrix, BlockTridiagonal) else TAIL
            longest = len(matrix.alpha)
            shortest = longest if matrix.complete else max(longest - tail + 1, 1)
            parts = [matrix.truncated(k) for k in range(longest, shortest - 1, -1)]
            found.append([_pair(part) for part in parts])
        return found

    @functools.cached_property
    def _enclosing(self) -> list[tuple[Rule, Rule]]:
        """Per matrix, the rules that bound d from below and from above, with nodes in units of the eigenvalues."""
        found = []
        for probe in self._matrices:
            if isinstance(probe, BlockTridiagonal):
                found.append(probe.enclosing())
                continue
            if probe.complete:  # the rule of H is exact, and squares would only cost digits
                exact = gauss_rule(probe.alpha, probe.beta)
                found.append((exact, exact))
                continue
            diagonal, coupling = squared(probe)
            rules = radau_rule(diagonal[: len(coupling)], coupling), gauss_rule(diagonal, coupling)
            low, high = ((np.sqrt(np.maximum(nodes, 0)), weights) for nodes, weights in rules)
            found.append((low, high))
        return found

    @property
    def trace(self) -> float:
        """Estimate of the trace of H, exact for one vector in any number of steps."""
        return self.active * float(self._mean([matrix.mean for matrix in self._matrices]))

    @property
    def largest(self) -> float:
        """Largest absolute Ritz value."""
        return max(float(np.abs(rules[0][0][0]).max()) for rules in self._rules)

    def effective_dimension(
        self, mu: float | Sequence[float] | np.ndarray, rule: str = "tail", bounds: str = "certified"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Estimate :math:`d(\mu) = \sum_i |\lambda_i| / (|\lambda_i| + \mu)` with an interval.

        The interval holds three errors. That of the rule is enclosed by the Gauss and the Gauss-Radau rule of the squared
        matrix, which is a theorem for the probe at hand (see the top of this module). That of the probe is two standard
        deviations; the variance of a uniformly random direction, :math:`2 D / (D + 2) (\mathrm{Tr} F^2 - (\mathrm{Tr} F)^2 /
        D)` with F the integrand, needs no second probe. That of rounding is bounded by :meth:`slack`.

        Args:
            mu: One or many positive numbers, in units of the eigenvalues.
            rule: ``"tail"`` (mean of Gauss and Radau of H over the last ``TAIL`` step counts, or ``JOINT_TAIL`` where
                probes share a Krylov space, the best guess),
                ``"gauss"`` or ``"radau"`` (one rule of H), ``"middle"`` (of the two bounds).
            bounds: ``"certified"``, or ``"tail"`` for the lowest and the highest of the rules behind the tail average:
                narrower, seen to hold on dense truth, not proved.

        Returns:
            Value, low and high, each of the shape of ``mu``, between 0 and D.

        Raises:
            PruneLimitError: If a ``mu`` is not positive or a name is unknown.
        """
        points, (estimate, low, high) = self._shares(mu, rule, bounds, _stiff)
        square = self._mean([_integrate(rules[0][0], points.reshape(-1), _square) for rules in self._rules])
        vectors = sum(self._vectors)
        variance = 2 * np.maximum(square - np.clip(estimate, 0, 1) ** 2, 0) / ((self.active + 2) * vectors)
        noise = PROBE_SIGMAS * np.sqrt(variance)
        value, low, high = (part * self.active for part in _ordered(estimate, low - noise, high + noise))
        return value.reshape(points.shape), low.reshape(points.shape), high.reshape(points.shape)

    def start_form(
        self, mu: float | Sequence[float] | np.ndarray, rule: str = "tail", *, complement: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Compute :math:`b^T |H| (|H| + \mu)^{-1} b` for the start vectors b, each of norm one, averaged over them.

        Use it for a vector that was chosen and not drawn: nothing is estimated, so the certified interval holds the error of
        the rule alone.

        Args:
            mu: One or many positive numbers, in units of the eigenvalues.
            rule: As for :meth:`effective_dimension`.
            complement: Whether to give one minus that, :math:`\mu\, b^T (|H| + \mu)^{-1} b`, without cancellation.

        Returns:
            Value, low and high, each of the shape of ``mu``, between 0 and 1.

        Raises:
            PruneLimitError: If a ``mu`` is not positive or a name is unknown.
        """
        points, shares = self._shares(mu, rule, "certified", _rest if complement else _stiff)
        value, low, high = (part.reshape(points.shape) for part in _ordered(*shares))
        return value, low, high

    def _shares(
        self, mu: float | Sequence[float] | np.ndarray, rule: str, bounds: str, integrand: Integrand
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Integrate over the measures of the start vectors; value and bounds for the points of mu, flat."""
        points = np.asarray(mu, dtype=float)
        if not np.all(points > 0):
            raise PruneLimitError(f"mu={mu!r} must be positive: it is 2 epsilon / R^2.")
        if rule not in ("tail", "gauss", "radau", "middle"):
            raise PruneLimitError(f"rule={rule!r} is unknown: choose tail, gauss, radau or middle.")
        if bounds not in ("certified", "tail"):
            raise PruneLimitError(f"bounds={bounds!r} is unknown: choose certified or tail.")
        flat = points.reshape(-1)
        # Per matrix (step count, Gauss or Radau, mu) of Tr F / D; step counts may differ between them.
        values = [np.array([[_integrate(r, flat, integrand) for r in pair] for pair in rules]) for rules in self._rules]
        pairs = np.array([[_integrate(r, flat, integrand) for r in pair] for pair in self._enclosing])
        if bounds == "tail":
            low, high = (self._mean([side(v, axis=(0, 1)) for v in values]) for side in (np.min, np.max))
        else:
            low, high = (self._mean(side(pairs, axis=1)) for side in (np.min, np.max))
        pick = {"tail": lambda v: v.mean((0, 1)), "gauss": lambda v: v[0, 0], "radau": lambda v: v[0, 1]}
        chosen = [pick[rule](v) for v in values] if rule in pick else list(pairs.mean(axis=1))
        slack = self.slack(flat)
        return points, (self._mean(chosen), low - slack, high + slack)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values from which :meth:`from_dict` builds the same spectrum."""
        probes = [{"alpha": p.alpha.tolist(), "beta": p.beta.tolist()} for p in self.probes]
        known = {"dimension": self.dimension, "nullity": self.nullity, "seed": self.seed, "probes": probes}
        known |= {"rounding": self.rounding} if self.rounding else {}
        return known | ({"blocks": [block.to_dict() for block in self.blocks]} if self.blocks else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spectrum:
        """Rebuild a spectrum from :meth:`to_dict`."""
        probes = tuple(Tridiagonal(np.array(p["alpha"]), np.array(p["beta"])) for p in values["probes"])
        blocks = tuple(BlockTridiagonal.from_dict(block) for block in values.get("blocks", ()))
        nullity, rounding = int(values.get("nullity", 0)), float(values.get("rounding", 0.0))
        return cls(int(values["dimension"]), probes, int(values["seed"]), nullity, blocks, rounding)


def _pair(matrix: Tridiagonal | BlockTridiagonal) -> tuple[Rule, Rule]:
    """Compute Gauss and Gauss-Radau rule of what so many steps left."""
    if isinstance(matrix, BlockTridiagonal):
        return matrix.gauss(), matrix.radau()
    return gauss_rule(matrix.alpha, matrix.beta), radau_rule(matrix.alpha, matrix.beta)


def _ordered(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep shares between 0 and 1, and the value between its bounds."""
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    return np.clip(value, low, high), low, high


def _stiff(nodes: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return nodes / (nodes + mu)


def _rest(nodes: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return mu / (nodes + mu)


def _square(nodes: np.ndarray, mu: np.ndarray) -> np.ndarray:
    return _stiff(nodes, mu) ** 2


def _integrate(rule: Rule, mu: np.ndarray, integrand: Integrand) -> np.ndarray:
    return integrand(np.abs(rule[0]), mu[:, None]) @ rule[1]
