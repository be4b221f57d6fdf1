"""An operator without its zero rows."""

from __future__ import annotations

import torch
from torch import Tensor

from prunelimit.curvature.lanczos import SymmetricOperator
from prunelimit.errors import PruneLimitError


class ActiveOperator:
    r"""A symmetric operator restricted to some coordinates, such as those whose rows are not zero.

    A row of zeros is a column of zeros as well: if all rows outside are zero, the restriction has the eigenvalues of the
    whole, less ``nullity`` zeros. Then :math:`d(\mu)` is the same, and quadrature need not spend a node on these zeros.

    Args:
        operator: Symmetric operator with D rows.
        active: ``(D,)`` bool, the coordinates to keep: those whose row is not exactly zero.

    Attributes:
        dimension: Number of coordinates kept.
        nullity: Number of coordinates left out.
        shape: ``(dimension, dimension)``.
        indices: ``(dimension,)`` which coordinates are kept.
        dtype: Type of the products.
        device: Where the products are made.

    Raises:
        PruneLimitError: If ``active`` is not a bool tensor of D entries or keeps none.
    """

    def __init__(self, operator: SymmetricOperator, active: Tensor) -> None:
        mask = torch.as_tensor(active)
        if mask.dtype != torch.bool or tuple(mask.shape) != (operator.dimension,):
            raise PruneLimitError(
                f"active has type {mask.dtype} and shape {tuple(mask.shape)}: "
                f"give a bool tensor ({operator.dimension},)."
            )
        self.operator, self.dtype, self.device = operator, operator.dtype, operator.device
        self.indices = mask.to(operator.device).nonzero().reshape(-1)
        self.dimension = len(self.indices)
        if not self.dimension:
            raise PruneLimitError("active keeps no coordinate: the operator is zero and has no spectrum to look at.")
        self.nullity = operator.dimension - self.dimension
        self.shape = (self.dimension, self.dimension)

    def restrict(self, rows: Tensor) -> Tensor:
        """Gather the kept entries of ``(..., D)`` vectors, ``(..., dimension)``."""
        return rows[..., self.indices]

    def expand(self, rows: Tensor) -> Tensor:
        """Scatter ``(..., dimension)`` vectors among zeros, ``(..., D)``."""
        whole = torch.zeros(*rows.shape[:-1], self.operator.dimension, dtype=rows.dtype, device=rows.device)
        whole[..., self.indices] = rows
        return whole

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply by a vector or a block of vectors.

        Args:
            vectors: ``(dimension,)`` or ``(dimension, p)``.

        Returns:
            The product, of the same shape.

        Raises:
            PruneLimitError: If the number of rows is not ``dimension``.
        """
        if vectors.ndim not in {1, 2} or len(vectors) != self.dimension:
            raise PruneLimitError(
                f"vectors has shape {tuple(vectors.shape)}: give ({self.dimension},) or ({self.dimension}, p)."
            )
        whole = torch.zeros((self.operator.dimension, *vectors.shape[1:]), dtype=self.dtype, device=self.device)
        whole[self.indices] = vectors.to(whole)
        return (self.operator @ whole)[self.indices]
