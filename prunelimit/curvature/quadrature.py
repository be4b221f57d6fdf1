r"""From Lanczos coefficients to :math:`d(\mu) = \sum_i |\lambda_i| / (|\lambda_i| + \mu)`, with an interval.

No histogram is ever built: a rule is a handful of nodes and weights, and the integrand is summed over them. For positive
semi-definite H the Gauss rule over-estimates d and the Gauss-Radau rule with a node at zero under-estimates it: the even
derivatives of the integrand are negative, the odd ones positive. On an indefinite spectrum the integrand has a kink at
zero and Gauss swings to both sides from one step count to the next, so the interval looks at several.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from prunelimit.curvature.lanczos import SymmetricOperator, Tridiagonal, lanczos, sphere_vector
from prunelimit.errors import PruneLimitError
from prunelimit.progress import ProgressLine

#: Rules of so many last step counts are averaged: Gauss swings by the parity of the step.
TAIL = 12

#: Standard deviations of the probe's noise in the interval.
PROBE_SIGMAS = 2.0

Rule = tuple[np.ndarray, np.ndarray]


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
    return gauss_rule(np.append(alpha, node + beta[len(alpha) - 1] ** 2 * corner), beta)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What Lanczos found out about a spectrum, and the integrals over it.

    Attributes:
        dimension: Number of eigenvalues, D.
        probes: One tridiagonal matrix per random start vector.
        seed: Seed of the first start vector; probe p has seed + p.
    """

    dimension: int
    probes: tuple[Tridiagonal, ...]
    seed: int = 0

    @property
    def steps(self) -> int:
        """Products per probe; the fewest, if they differ."""
        return min(len(probe.alpha) for probe in self.probes)

    @functools.cached_property
    def _rules(self) -> list[list[tuple[Rule, Rule]]]:
        """Per probe, Gauss and Gauss-Radau rules of the last ``TAIL`` step counts, the longest first.

        A complete Krylov space has one rule, which is exact: shorter ones would only add their errors.
        """
        found = []
        for probe in self.probes:
            longest = len(probe.alpha)
            shortest = longest if probe.beta[-1] == 0 else max(longest - TAIL + 1, 1)
            counts = range(longest, shortest - 1, -1)
            parts = [(probe.alpha[:k], probe.beta[:k]) for k in counts]
            found.append([(gauss_rule(*part), radau_rule(*part)) for part in parts])
        return found

    @property
    def trace(self) -> float:
        """Estimate of the trace of H, exact for one vector in any number of steps."""
        return self.dimension * float(np.mean([probe.alpha[0] for probe in self.probes]))

    @property
    def largest(self) -> float:
        """Largest absolute Ritz value."""
        return max(float(np.abs(rules[0][0][0]).max()) for rules in self._rules)

    def effective_dimension(
        self, mu: float | Sequence[float] | np.ndarray, rule: str = "tail"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        r"""Estimate :math:`d(\mu) = \sum_i |\lambda_i| / (|\lambda_i| + \mu)` with an interval.

        The interval holds two errors. That of the rule lies between the lowest and the highest Gauss or Gauss-Radau
        value of the last ``TAIL`` step counts, because Gauss swings on an indefinite spectrum. That of the probe is two standard deviations; the variance of a uniformly random
        direction, :math:`2 D / (D + 2) (\mathrm{Tr} F^2 - (\mathrm{Tr} F)^2 / D)` with F the integrand, needs no second
        probe.

        Args:
            mu: One or many positive numbers, in units of the eigenvalues.
            rule: ``"tail"`` (mean of Gauss and Radau over the last steps), ``"gauss"`` or ``"radau"``.

        Returns:
            Value, low and high, each of the shape of ``mu``, between 0 and D.

        Raises:
            PruneLimitError: If a ``mu`` is not positive or the rule is unknown.
        """
        points = np.asarray(mu, dtype=float)
        if not np.all(points > 0):
            raise PruneLimitError(f"mu={mu!r} must be positive: it is 2 epsilon / R^2.")
        if rule not in ("tail", "gauss", "radau"):
            raise PruneLimitError(f"rule={rule!r} is unknown: choose tail, gauss or radau.")
        flat = points.reshape(-1)
        square = np.mean([_integrate(rules[0][0], flat, 2) for rules in self._rules], axis=0)
        # Per probe (step count, Gauss or Radau, mu) of Tr F / D; step counts may differ between probes.
        values = [np.array([[_integrate(r, flat, 1) for r in pair] for pair in rules]) for rules in self._rules]
        pick = {"tail": lambda v: v.mean((0, 1)), "gauss": lambda v: v[0, 0], "radau": lambda v: v[0, 1]}[rule]
        estimate = np.mean([pick(v) for v in values], axis=0)
        low = np.mean([v.min((0, 1)) for v in values], axis=0)
        high = np.mean([v.max((0, 1)) for v in values], axis=0)
        variance = 2 * np.maximum(square - np.clip(estimate, 0, 1) ** 2, 0) / ((self.dimension + 2) * len(self.probes))
        noise = PROBE_SIGMAS * np.sqrt(variance)
        bounds = [np.clip(x, 0, 1) * self.dimension for x in (estimate, low - noise, high + noise)]
        value = np.clip(bounds[0], bounds[1], bounds[2])
        return value.reshape(points.shape), bounds[1].reshape(points.shape), bounds[2].reshape(points.shape)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values from which :meth:`from_dict` builds the same spectrum."""
        probes = [{"alpha": p.alpha.tolist(), "beta": p.beta.tolist()} for p in self.probes]
        return {"dimension": self.dimension, "seed": self.seed, "probes": probes}

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Spectrum:
        """Rebuild a spectrum from :meth:`to_dict`."""
        probes = tuple(Tridiagonal(np.array(p["alpha"]), np.array(p["beta"])) for p in values["probes"])  # type: ignore[attr-defined]
        return cls(int(values["dimension"]), probes, int(values["seed"]))  # type: ignore[call-overload]


def _integrate(rule: Rule, mu: np.ndarray, power: int) -> np.ndarray:
    nodes, weights = np.abs(rule[0]), rule[1]
    return ((nodes / (nodes + mu[:, None])) ** power) @ weights


def spectrum(
    operator: SymmetricOperator, *, steps: int = 64, probes: int = 1, seed: int = 0, progress: bool | None = None
) -> Spectrum:
    """Probe the spectrum of an operator with stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    Args:
        operator: Symmetric operator with D rows, for example a :class:`HessianOperator`.
        steps: Products per probe.
        probes: Random start vectors, uniform on the sphere.
        seed: Seed of the first one.
        progress: Whether to show a progress line.

    Returns:
        The spectrum.

    Raises:
        PruneLimitError: If ``steps`` or ``probes`` is less than one.
    """
    if probes < 1:
        raise PruneLimitError(f"probes={probes!r} must be at least 1: each probe is one random start vector.")
    found = []
    for probe in range(probes):
        with ProgressLine(f"Lanczos, probe {probe + 1} of {probes}", steps, progress) as line:
            start = sphere_vector(operator.dimension, seed + probe)
            found.append(lanczos(operator, start, steps, progress=line))
    return Spectrum(operator.dimension, tuple(found), seed)
