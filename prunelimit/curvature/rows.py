r"""Norms of every row of a symmetric operator from a few products, and which rows are exactly zero.

A row norm tells how strongly a weight takes part in the curvature. Taking a row at a time costs D products; here each
product of a random vector v tells something about all rows at once:

* order 2: with random signs (Rademacher), :math:`E (Hv)_i^2 = \|H_i\|_2^2`, with a variance of at most
  :math:`2 \|H_i\|_2^4`.
* order 1: with independent standard Cauchy entries, :math:`(Hv)_i` is :math:`\|H_i\|_1` times a standard Cauchy number
  (Indyk 2006). Its scale is found by maximum likelihood, with the bias correction of Li, Hastie and Church (2007).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from prunelimit.curvature.lanczos import SymmetricOperator, scrambled_seed
from prunelimit.errors import PruneLimitError
from prunelimit.progress import ProgressLine

#: Probability that a row's error bar holds the true norm.
LEVEL = 0.95

#: Rows or unit vectors that are handled at once, so that float64 copies stay small.
ROW_BLOCK, UNIT_BLOCK = 2**18, 16

#: Draws behind the error bars of order 1; they miss the level by less than 0.001.
PIVOT_DRAWS = 2**18

#: Newton steps of the maximum likelihood estimate, each kept inside a bracket.
NEWTON_STEPS = 40


@dataclasses.dataclass(frozen=True)
class RowNorms:
    """Estimated norms of all rows of a symmetric matrix.

    The error bars hold for each row alone, not for all rows together: about one row in twenty lies outside its own.
    Errors of different rows are correlated, because all rows see the same probes.

    Attributes:
        values: ``(D,)`` float64 norms, in units of the eigenvalues.
        low: ``(D,)`` lower ends of the error bars at ``LEVEL``.
        high: ``(D,)`` upper ends.
        zero: ``(D,)`` true where the row was exactly zero in every product; value, low and high are zero there. With
            random signs a row of few entries can cancel by chance, one of two equal entries with probability
            ``2 ** -probes``; :func:`zero_rows` draws normal numbers, where this has probability zero.
        probes: Random vectors.
        order: 1 for the sum of magnitudes, 2 for the Euclidean norm.
        products: Products with the operator that were made.
        shapes: Parameter name to shape, in the operator's order; empty if the operator has no parameters.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    zero: np.ndarray
    probes: int
    order: int
    products: int
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def by_parameter(self, field: str = "values") -> dict[str, Tensor]:
        """Cut one of the arrays into tensors with the shapes of the parameters.

        Args:
            field: ``"values"``, ``"low"``, ``"high"`` or ``"zero"``.

        Returns:
            Parameter name to a tensor of the parameter's shape: float64, for ``"zero"`` bool.

        Raises:
            PruneLimitError: If the field is unknown or the operator had no parameters.
        """
        if field not in ("values", "low", "high", "zero"):
            raise PruneLimitError(f"field={field!r} is unknown: choose values, low, high or zero.")
        if not self.shapes:
            raise PruneLimitError("operator has no parameters to cut by: make the norms from a network's operator.")
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.from_numpy(getattr(self, field).copy()).split(sizes)
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def row_norms(
    operator: SymmetricOperator, *, probes: int = 8, seed: int = 0, order: int = 2, progress: bool | None = None
) -> RowNorms:
    """Estimate the norms of all D rows of a symmetric operator from ``probes`` products.

    The relative standard error of a row is at most about ``1 / sqrt(2 probes)`` for order 2 (0.25 with 8 probes), and
    about ``sqrt(2 / probes)`` for order 1 (0.56 with 8). All rows see the same probes, and a few large eigenvalues
    couple them, so that sums over rows are hardly better: the sum of all norms of a small trained network is off by
    0.10 (order 2) and 0.4 (order 1) with 8 probes. The order of the rows comes out well, with a rank correlation of
    0.98. Order 2 is the more accurate one, and what :func:`row_norm_bound` needs.

    Error bars hold the norm with probability ``LEVEL``. Those of order 1 are exact up to the rounding of the products,
    because the law is exactly Cauchy. Those of order 2 take the squared products to be chi-square distributed. That is
    the limit of a row with many entries of like size, and has the largest variance of all rows, but with one or two
    probes a row of only two or three entries is covered less often.

    In float32, rows down to 1e-8 of the largest came out as in float64, to five digits, in spite of the huge entries of
    Cauchy vectors.

    Args:
        operator: Symmetric operator with D rows.
        probes: Random vectors, one product each; at least one for order 2 and two for order 1.
        seed: Seed of the probes. It is scrambled, as in ``lanczos.sphere_vector``, and no two seeds share a probe.
        order: 1 or 2, which norm.
        progress: Whether to show a progress line.

    Returns:
        The norms with error bars. Memory: ``probes * D`` numbers of the operator's type.

    Raises:
        PruneLimitError: If ``order`` or ``probes`` cannot be used.

    Example:
        >>> from prunelimit.curvature import HessianOperator
        >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.diag(torch.tensor([0.0, 2.0])), torch.zeros(2, 1))
        >>> row_norms(HessianOperator(model, torch.nn.functional.mse_loss, data)).values
        array([0., 4.])
    """
    if order not in (1, 2):
        raise PruneLimitError(f"order={order!r} must be 1 (sum of magnitudes) or 2 (Euclidean norm).")
    least = 2 if order == 1 else 1
    if probes < least:
        raise PruneLimitError(f"probes={probes!r} must be at least {least} for order={order}: each is one product.")
    products = torch.empty(probes, operator.dimension, dtype=operator.dtype, device=operator.device)
    with ProgressLine(f"Row norms, order {order}", probes, progress) as line:
        for probe in range(probes):
            products[probe] = operator @ _probe(operator, order, seed, probe)
            line.update(probe + 1)
    zero = (products == 0).all(0).cpu().numpy()
    blocks = [_estimate(part.T.double().abs().cpu().numpy(), order) for part in products.split(ROW_BLOCK, dim=1)]
    values = np.concatenate(blocks)
    values[zero] = 0.0
    lower, upper = _bars(probes, order)
    named = zip(getattr(operator, "names", ()), getattr(operator, "parameters", ()), strict=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in named}
    return RowNorms(values, values * lower, values * upper, zero, probes, order, probes, shapes)


def _generator(purpose: str, seed: int, probe: int = 0) -> torch.Generator:
    """Make a generator that no network is initialised from; see ``lanczos.scrambled_seed`` for why."""
    return torch.Generator().manual_seed(scrambled_seed(probe, f"{purpose} {seed}"))


def _probe(operator: SymmetricOperator, order: int, seed: int, probe: int) -> Tensor:
    """Draw random signs (order 2) or Cauchy numbers (order 1), on the CPU, so that devices agree."""
    generator = _generator(f"row norms {order}", seed, probe)
    if order == 2:
        vector = 2.0 * torch.randint(0, 2, (operator.dimension,), generator=generator) - 1
    else:
        uniform = torch.rand(operator.dimension, generator=generator, dtype=torch.float64)
        vector = torch.tan(math.pi * (uniform - 0.5))
    return vector.to(operator.device, operator.dtype)


def _estimate(magnitudes: np.ndarray, order: int) -> np.ndarray:
    """Estimate row norms from ``(rows, probes)`` magnitudes of products."""
    if order == 2:
        return np.sqrt(np.mean(magnitudes**2, axis=1))
    # The correction makes the mean right: exactly for two probes, within 2 percent for three, within one for more.
    return cauchy_scale(magnitudes) * (1 - 1 / magnitudes.shape[1])


def cauchy_scale(magnitudes: np.ndarray) -> np.ndarray:
    r"""Estimate the scale d of Cauchy numbers by maximum likelihood, without bias correction.

    The likelihood equation :math:`\sum_p y_p^2 / (d^2 + y_p^2) = m / 2` says that the mean of
    :math:`\tanh(\log |y_p| - \log d)` is zero. It has one root, between the smallest and the largest magnitude.

    Args:
        magnitudes: ``(rows, m)`` magnitudes, m numbers of the same scale in each row.

    Returns:
        ``(rows,)`` scales, in units of the magnitudes.
    """
    logs = np.log(np.maximum(magnitudes, np.finfo(float).tiny))
    low, high = logs.min(1), logs.max(1)
    root = np.median(logs, axis=1)
    for _ in range(NEWTON_STEPS):
        slopes = np.tanh(logs - root[:, None])
        mean = slopes.mean(1)
        low, high = np.where(mean > 0, root, low), np.where(mean < 0, root, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = root + mean / (1 - slopes**2).mean(1)
        inside = (step >= low) & (step <= high)
        following = np.where(mean == 0, root, np.where(inside, step, (low + high) / 2))
        moved = np.abs(following - root).max(initial=0.0)
        root = following
        if moved < 1e-13:
            break
    return np.exp(root)


@functools.lru_cache(maxsize=32)
def _bars(probes: int, order: int) -> tuple[float, float]:
    """Give the factors from an estimate to the ends of its error bar."""
    tails = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if order == 2:
        low, high = scipy.stats.chi2.ppf(tails, probes) / probes
        return 1 / math.sqrt(high), 1 / math.sqrt(low)
    # The estimate over the true norm has one law for all rows, which is drawn from here.
    draws = np.abs(np.random.default_rng(20060101).standard_cauchy((PIVOT_DRAWS, probes)))
    low, high = np.quantile(_estimate(draws, 1), tails)
    return 1 / float(high), 1 / float(low)


def exact_rows(operator: SymmetricOperator, indices: Sequence[int] | Tensor | np.ndarray) -> Tensor:
    """Compute rows exactly, by products with unit vectors: a check on a sample of the estimated norms.

    Args:
        operator: Symmetric operator with D rows.
        indices: ``(k,)`` which rows, one product each.

    Returns:
        ``(k, D)`` the rows, of the operator's type.

    Raises:
        PruneLimitError: If there is no index or one is not in ``[0, D)``.
    """
    chosen = torch.as_tensor(indices).reshape(-1)
    if not len(chosen) or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise PruneLimitError(f"indices={indices!r} must be at least one whole number: the rows to compute.")
    if int(chosen.min()) < 0 or int(chosen.max()) >= operator.dimension:
        raise PruneLimitError(f"indices must lie in [0, {operator.dimension}): the operator has that many rows.")
    rows = []
    for part in chosen.to(operator.device).split(UNIT_BLOCK):
        units = torch.zeros(operator.dimension, len(part), dtype=operator.dtype, device=operator.device)
        units[part, torch.arange(len(part), device=operator.device)] = 1
        rows.append((operator @ units).T)
    return torch.cat(rows)


def zero_rows(operator: SymmetricOperator, product: Tensor | None = None, seed: int = 0) -> Tensor:
    """Find the rows that are exactly zero, such as those of dead units and of pixels that are always zero.

    For a normal random v, ``(Hv)_i`` is zero with probability zero unless row i is. In floating point a row that is not
    zero could only be missed by underflow or by an exact cancellation of its rounding errors, and a row that is zero
    without being computed as zero, such as by symmetry, is not found.

    Args:
        operator: Symmetric operator with D rows.
        product: ``(D,)`` or ``(D, k)`` product of the operator with normal random vectors, if one was made already,
            such as the first product of Lanczos; otherwise one is made here.
        seed: Seed of that random vector, scrambled.

    Returns:
        ``(D,)`` bool, true where the row is zero.

    Raises:
        PruneLimitError: If the product does not have D rows.
    """
    if product is None:
        vector = torch.randn(operator.dimension, generator=_generator("zero rows", seed))
        product = operator @ vector.to(operator.device, operator.dtype)
    if product.ndim not in (1, 2) or len(product) != operator.dimension:
        raise PruneLimitError(
            f"product has shape {tuple(product.shape)}: give ({operator.dimension},) or ({operator.dimension}, k)."
        )
    return (product.reshape(operator.dimension, -1) == 0).all(1)


def row_norm_bound(values: Any, mu: Any) -> np.ndarray:
    r"""Bound :math:`d(\mu)` from above by the row norms: :math:`d(\mu) \le \sum_i \|H_i\|_2 / (\|H_i\|_2 + \mu)`.

    Proof: :math:`h(x) = \sqrt{x} / (\sqrt{x} + \mu)` is concave, :math:`d(\mu) = \mathrm{Tr}\, h(H^2)`, and by Jensen
    with weights :math:`u_{ij}^2` from the eigenvectors

    .. math::

        h(H^2)_{ii} = \sum_j u_{ij}^2 h(\lambda_j^2) \le h\Big(\sum_j u_{ij}^2 \lambda_j^2\Big)
        = h((H^2)_{ii}) = h(\|H_i\|_2^2) .

    It needs no Lanczos process, and zero rows add nothing, but it is loose where rows share their eigenvectors: on a
    small trained network it is 1.6 to 10 times d. It is a bound for the exact norms; estimated ones make the sum too
    small on average, since the summand is concave in the norm, by half a percent to a few percent with 8 probes.

    Args:
        values: ``(D,)`` norms of order 2, exact or ``RowNorms.values``; ``RowNorms.high`` for more safety.
        mu: One or many positive numbers, in units of the eigenvalues.

    Returns:
        The bound, of the shape of ``mu``, between 0 and D.

    Raises:
        PruneLimitError: If a ``mu`` is not positive or a norm is negative or NaN.
    """
    norms, points = np.asarray(values, dtype=float).reshape(-1), np.asarray(mu, dtype=float)
    if not np.all(points > 0):
        raise PruneLimitError(f"mu={mu!r} must be positive: it is 2 epsilon / R^2.")
    if not np.all(norms >= 0):
        raise PruneLimitError("values has negative or NaN entries: give the Euclidean norms of the rows.")
    return np.array([np.sum(norms / (norms + m)) for m in points.reshape(-1)]).reshape(points.shape)
