r"""Block Lanczos: all probes share one Krylov space.

p start vectors and k products with each span up to p k dimensions. A process per probe has to find every outlying eigenvalue
again and resolves the bulk with what is left of its k steps; together they find each outlier once. The quadrature forms of
the start vectors then come from one block tridiagonal matrix: its Gauss rule, and the Gauss-Radau rule with p nodes at zero
(Zimmerling, Druskin and Simoncini 2025, who also show why the mean of the two serves dense spectra).

For the square of H the two rules bound :math:`b^T (H^2 + t)^{-1} b` for every t > 0 and so d(mu), as for one probe. Gauss is
the Galerkin approximation and cannot exceed it. Radau replaces all that follows the k-th block of the whole tridiagonal matrix
by the smallest one that leaves it positive semi-definite, :math:`B_k T_k^{-1} B_k^T`, and cannot fall below it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from prunelimit.curvature.lanczos import END, SECOND_PASS, SymmetricOperator, start_norms

#: Rows of a block that are multiplied in float64 at a time.
_PIECE = 2**16

Rule = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BlockTridiagonal:
    """The matrix that block Lanczos leaves of an operator and p start vectors.

    Attributes:
        start: ``(b, p)`` coordinates of the start vectors, each of norm one, in the first block of the basis.
        alpha: k symmetric blocks of the diagonal.
        beta: k blocks below the diagonal, ``(b', b)``; b' is smaller where the Krylov space grew by fewer directions, and the
            last one has no rows if it is complete.
    """

    start: np.ndarray
    alpha: tuple[np.ndarray, ...]
    beta: tuple[np.ndarray, ...]

    @property
    def vectors(self) -> int:
        """Number of start vectors, p."""
        return self.start.shape[1]

    @property
    def complete(self) -> bool:
        """Whether the Krylov space is complete, so that the Gauss rule is exact."""
        return not len(self.beta[-1])

    @property
    def rows(self) -> int:
        """Dimension of the Krylov space so far."""
        return sum(len(block) for block in self.alpha)

    @property
    def mean(self) -> float:
        """Mean of the start vectors' Rayleigh quotients."""
        return float(np.einsum("ip,ij,jp->", self.start, self.alpha[0], self.start)) / self.vectors

    def truncated(self, steps: int) -> BlockTridiagonal:
        """Return what the first so many steps left."""
        return BlockTridiagonal(self.start, self.alpha[:steps], self.beta[:steps])

    def matrix(self, corner: np.ndarray | None = None) -> np.ndarray:
        """Assemble the matrix.

        Args:
            corner: One more diagonal block, below the last coupling.

        Returns:
            The symmetric matrix of all blocks.
        """
        blocks = self.alpha if corner is None else (*self.alpha, corner)
        ends = np.cumsum([0, *(len(block) for block in blocks)])
        whole = np.zeros((ends[-1], ends[-1]))
        for k, block in enumerate(blocks):
            rows = slice(ends[k], ends[k + 1])
            whole[rows, rows] = block
            if k + 1 < len(blocks):
                below = slice(ends[k + 1], ends[k + 2])
                whole[below, rows], whole[rows, below] = self.beta[k], self.beta[k].T
        return whole

    def gauss(self) -> Rule:
        """Compute the Gauss rule.

        Returns:
            Nodes, the Ritz values, and weights for the mean over the start vectors, which add up to one.
        """
        nodes, vectors = np.linalg.eigh(self.matrix())
        return nodes, self._weights(vectors)

    def radau(self) -> Rule:
        """Compute the Gauss-Radau rule with nodes at zero, as many as the last block has rows.

        Returns:
            Nodes and weights; the Gauss rule if the Krylov space is complete.
        """
        if self.complete:
            return self.gauss()
        whole, last = self.matrix(), len(self.alpha[-1])
        try:
            with np.errstate(all="ignore"):
                corner = np.linalg.solve(whole, np.eye(len(whole))[:, -last:])[-last:]
        except np.linalg.LinAlgError:
            # Zero is a Ritz value: this one is still the smallest block that keeps a square positive semi-definite.
            corner = np.linalg.pinv(whole, hermitian=True)[-last:, -last:]
        if not np.isfinite(corner).all():
            return self.gauss()
        corner = self.beta[-1] @ corner @ self.beta[-1].T
        nodes, vectors = np.linalg.eigh(self.matrix((corner + corner.T) / 2))
        # They are known: rounding would count once the rule of a square is turned into one of its root.
        nodes[np.argsort(np.abs(nodes))[: len(corner)]] = 0
        return nodes, self._weights(vectors)

    def _weights(self, vectors: np.ndarray) -> np.ndarray:
        return np.square(self.start.T @ vectors[: len(self.start)]).mean(0)

    def enclosing(self) -> tuple[Rule, Rule]:
        """Compute the rules that bound d(mu) from below and above, whatever the signs of the eigenvalues.

        They are those of the square of H, at no further product: see :func:`prunelimit.curvature.quadrature.squared`.

        Returns:
            The lower and the upper rule, with nodes in units of the eigenvalues.
        """
        if self.complete:
            exact = self.gauss()
            return exact, exact
        # The last coupling is known, the diagonal block below it is not, and nothing below looks at it.
        matrix = torch.from_numpy(self.matrix(np.zeros((len(self.beta[-1]),) * 2)))
        run = BlockLanczosRun(_Square(matrix), torch.eye(len(matrix), dtype=matrix.dtype)[: len(self.start)])
        products = len(self.alpha)
        square = run.extend((products + 1) // 2).found
        square = dataclasses.replace(square, start=square.start @ self.start)
        upper = square.gauss()
        # After an odd number of products the last block serves the Gauss rule alone: its coupling is not known.
        lower = square.truncated(products // 2).radau() if products > 1 else (np.zeros(1), np.ones(1))
        return _rooted(lower), _rooted(upper)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values from which :meth:`from_dict` builds the same matrix."""
        return {
            "start": self.start.tolist(),
            "alpha": [block.tolist() for block in self.alpha],
            "beta": [block.tolist() for block in self.beta],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a matrix from :meth:`to_dict`."""
        alpha = tuple(np.array(block) for block in values["alpha"])
        beta = tuple(np.array(b).reshape(-1, len(a)) for a, b in zip(alpha, values["beta"], strict=True))
        return cls(np.array(values["start"]), alpha, beta)


def _rooted(rule: Rule) -> Rule:
    return np.sqrt(np.maximum(rule[0], 0)), rule[1]


class _Square:
    """The square of a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.dimension, self.dtype, self.device = matrix, len(matrix), matrix.dtype, matrix.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.matrix @ (self.matrix @ vectors)


class BlockLanczosRun:
    """A block Lanczos process (Golub and Underwood 1977) with full reorthogonalisation.

    Args:
        operator: Symmetric operator with D rows.
        starts: ``(p, D)`` start vectors; they need not have norm one.
        first: Products of the start vectors, of their shape, if they are at hand.

    Raises:
        PruneLimitError: If a start vector is zero.
    """

    def __init__(self, operator: SymmetricOperator, starts: Tensor, *, first: Tensor | None = None) -> None:
        self.operator = operator
        rows = starts.to(operator.device, operator.dtype)
        norms = start_norms(rows)
        self.current, coordinates = _factored(rows / norms.to(rows), END * torch.finfo(rows.dtype).eps)
        self._start = coordinates.cpu().numpy()
        self._first = None
        if first is not None and len(self.current) == len(rows):
            known = first.to(rows) / norms.to(rows)
            self._first = torch.linalg.solve(coordinates.T.to(rows), known)
        self._basis = rows.new_empty((0, operator.dimension))
        self._filled, self._scale = 0, 0.0
        self._alpha: list[np.ndarray] = []
        self._beta: list[np.ndarray] = []

    @property
    def steps(self) -> int:
        """Products made so far per start vector."""
        return len(self._alpha)

    @property
    def found(self) -> BlockTridiagonal:
        """What is known so far."""
        return BlockTridiagonal(self._start, tuple(self._alpha), tuple(self._beta))

    def extend(self, steps: int, told: Callable[[int], None] | None = None) -> Self:
        """Make more steps; fewer are made if the Krylov space is complete.

        Args:
            steps: Products per start vector.
            told: Called after each with the number made in this call.

        Returns:
            The run itself.
        """
        room = min(self._filled + steps * len(self.current), self.operator.dimension)
        if room > len(self._basis):
            grown = self._basis.new_empty((room, self.operator.dimension))
            grown[: self._filled] = self._basis[: self._filled]
            self._basis = grown
        for number in range(steps):
            if not len(self.current):
                break
            self._step()
            if told is not None:
                told(number + 1)
        return self

    def _step(self) -> None:
        """Make one product per direction of the current block."""
        current = self.current
        products = (self.operator @ current.T).T if self._first is None else self._first
        self._first = None
        before = slice(self._filled - len(self._beta[-1].T), self._filled) if self._beta else slice(0, 0)
        end = self._filled + len(current)
        self._basis[self._filled : end] = current
        known = self._basis[:end]
        alpha = _gram(products, current)
        alpha = (alpha + alpha.T) / 2
        rest = products - alpha.to(current) @ current
        if self._beta:
            rest -= torch.from_numpy(self._beta[-1]).to(current) @ self._basis[before]
        rest -= (rest @ known.T) @ known
        size = float(products.norm(dim=1).max())
        self._scale = max(self._scale, size)
        # What is left after a complete Krylov space is rounding: it must not become a direction.
        floor = END * torch.finfo(rest.dtype).eps * len(current) ** 0.5 * self._scale
        following, coupling = _factored(rest, floor)
        if len(following) and float(torch.linalg.svdvals(coupling).min()) < SECOND_PASS * size:
            following -= (following @ known.T) @ known
            following, again = _factored(following, SECOND_PASS)
            coupling = again @ coupling
        following = following[: self.operator.dimension - end]
        self._filled, self.current = end, following
        self._alpha.append(alpha.cpu().numpy())
        self._beta.append(coupling[: len(following)].cpu().numpy())


def _factored(rows: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Factor ``(b, D)`` rows into orthonormal ones and float64 coordinates ``(b', b)``, without directions below a floor."""
    orthonormal, triangle = torch.linalg.qr(rows.T)
    orthonormal, triangle = orthonormal.T.contiguous(), triangle.double()
    left, sizes, right = torch.linalg.svd(triangle)
    kept = int((sizes > floor).sum())
    if kept == len(sizes):
        return orthonormal, triangle
    return left[:, :kept].T.to(rows) @ orthonormal, sizes[:kept, None] * right[:kept]


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """Multiply ``(b, D)`` by the transpose of ``(b', D)``, adding up in float64 in pieces."""
    total = torch.zeros(len(one), len(other), dtype=torch.float64, device=one.device)
    for left, right in zip(one.split(_PIECE, 1), other.split(_PIECE, 1), strict=True):
        total += left.double() @ right.double().T
    return total
