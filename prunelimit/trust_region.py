"""One trust-region step: where conjugate gradients stop, and how far the real loss lets them go.

Source of the path: Steihaug (1983) and Toint (1981); of the test: Nocedal and Wright (2006), Algorithm 4.1.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor

#: A step counts if the loss falls by at least this share of what the quadratic promises.
ACCEPTED = 0.25

#: From this share on, a step that the radius stopped earns a larger radius.
GOOD = 0.75

#: What a rejected and a good step do to the radius.
SHRINK, GROW = 0.25, 2.0

#: Rejections in a row after which no step is better than any other.
REJECTIONS = 20


@dataclasses.dataclass(frozen=True)
class _Segment:
    """One straight piece of the path, start + u (end - start), and the quadratic along it; u may pass one at the end."""

    start: Tensor
    end: Tensor
    value: float
    slope: float
    curvature: float

    def at_radius(self, radius: float) -> tuple[Tensor, float]:
        """Walk to the sphere; gives the point and the quadratic there."""
        z, p = self.start, self.end - self.start
        zz, zp, pp = float(z @ z), float(z @ p), float(p @ p)
        u = (math.sqrt(max(0.0, zp * zp + pp * (radius * radius - zz))) - zp) / pp
        return z + u * p, self.value + u * self.slope + u * u * self.curvature / 2


class SteihaugPath:
    r"""Approximate minimisers of :math:`m(z) = b^T z + z^T A z / 2` over balls of any radius, A symmetric.

    Conjugate gradients from z = 0 move away from zero in every iteration, so that the same iterates serve every radius:
    a ball cuts the path where it leaves. A direction without positive curvature is followed to the sphere. Within a
    ball the value is at least as low as at the Cauchy point, and for positive definite A the decrease is at least half
    of the best one (Yuan, 2000). All iterates are kept: one vector per product.

    Args:
        multiply: Maps a ``(D,)`` vector to A times it.
        slope: ``(D,)`` vector b.
        accuracy: Norm of the gradient of m, relative to that of b, at which the iteration ends.
        limit: Most products that are made.

    Attributes:
        products: Products made so far.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
        >>> path = SteihaugPath(lambda v: matrix @ v, torch.tensor([2.0, 0.0], dtype=torch.float64))
        >>> [float(path.step(radius)[1]) for radius in (1.0, 5.0)]
        [-1.5, -2.0]
    """

    def __init__(
        self, multiply: Callable[[Tensor], Tensor], slope: Tensor, *, accuracy: float = 0.01, limit: int = 200
    ) -> None:
        self._multiply, self._limit = multiply, limit
        self._end = torch.zeros_like(slope)
        self._residual, self._direction = -slope, -slope
        self._square = float(slope @ slope)
        self._goal, self._value = accuracy * accuracy * self._square, 0.0
        self._segments: list[_Segment] = []
        self._norms = [0.0]
        self._finished = self._square == 0
        self.products = 0

    def _advance(self) -> None:
        """Make one iteration of conjugate gradients."""
        product = self._multiply(self._direction)
        self.products += 1
        curvature = float(self._direction @ product)
        curved = curvature <= 0  # then the path goes on to the sphere, however far that is
        length = 1.0 if curved else self._square / curvature
        start, self._end = self._end, self._end + length * self._direction
        change = -length * self._square, length * length * curvature
        self._segments.append(_Segment(start, self._end, self._value, *change))
        self._norms.append(math.inf if curved else float(self._end.norm()))
        self._finished = curved
        if curved:
            return
        self._value += change[0] + change[1] / 2
        self._residual = self._residual - length * product
        square = float(self._residual @ self._residual)
        self._direction = self._residual + square / self._square * self._direction
        self._square = square
        self._finished = square <= self._goal or self.products >= self._limit

    def step(self, radius: float) -> tuple[Tensor, float, bool]:
        """Return the step for one radius.

        Args:
            radius: Largest norm of the step, at least zero.

        Returns:
            The ``(D,)`` step, the value m there (at most zero), and whether the radius stopped it.
        """
        while not self._finished and self._norms[-1] <= radius:
            self._advance()
        number = bisect_right(self._norms, radius)
        if number == len(self._norms):
            return self._end, self._value, False
        return (*self._segments[number - 1].at_radius(radius), True)


def trusted_step(
    path: SteihaugPath, radius: float, reduction: Callable[[Tensor], float]
) -> tuple[Tensor | None, float, float]:
    """Shrink the radius until the quadratic can be trusted, by comparing its promise with the real reduction.

    Args:
        path: Steps for every radius.
        radius: First radius to try.
        reduction: Maps a step to the reduction that is really reached; NaN counts as none.

    Returns:
        The step (``None`` if no radius earns one), the change that the quadratic promised for it, and the radius with
        which the next expansion should begin.
    """
    for _ in range(REJECTIONS):
        step, change, stopped = path.step(radius)
        if not change < 0:
            break
        ratio = reduction(step) / -change
        if ratio >= ACCEPTED:  # false for NaN
            return step, change, radius * (GROW if stopped and ratio > GOOD else 1)
        radius = SHRINK * float(step.norm())
    return None, 0.0, radius
