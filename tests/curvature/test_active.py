"""An operator without its zero rows has the same spectrum, less the zeros."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prunelimit.curvature import HessianOperator, Spectrum, lanczos
from prunelimit.curvature.active import ActiveOperator
from prunelimit.curvature.lanczos import sphere_vector
from prunelimit.curvature.rows import zero_rows
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp


@pytest.fixture
def dense(matrix_operator: Callable[[Tensor], Any]) -> Any:
    matrix = torch.randn(120, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return matrix_operator(matrix + matrix.T)


def test_the_spectrum_is_as_it_was(reference_hessian: Any) -> None:
    torch.manual_seed(3)
    model, inputs, targets = mlp([5, 6, 3]), torch.randn(40, 5), torch.arange(40) % 3
    inputs[:, 2] = 0  # a pixel that is always zero, and a dead unit
    with torch.no_grad():
        model[1].bias[4] = -100.0
    operator = HessianOperator(copy.deepcopy(model).double(), functional.cross_entropy, (inputs.double(), targets))
    zero = zero_rows(operator)
    active = ActiveOperator(operator, ~zero)
    assert (active.nullity, active.dimension) == (int(zero.sum()), int((~zero).sum())) == (6 + 4 + 3, 35)
    assert active.shape == (active.dimension, active.dimension)
    assert (active.dtype, active.device) == (operator.dtype, operator.device)
    # Lanczos from the same vector makes the same matrix.
    start = sphere_vector(active.dimension, 0).double()
    inside, outside = lanczos(active, start, 8), lanczos(operator, active.expand(start), 8)
    np.testing.assert_allclose(inside.alpha, outside.alpha, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(inside.beta, outside.beta, rtol=1e-9, atol=1e-12)
    # A full Krylov space has all eigenvalues but the removed zeros.
    exact = torch.linalg.eigvalsh(reference_hessian(model, functional.cross_entropy, (inputs, targets))).abs()
    mu = 1e-3
    probes = tuple(lanczos(active, sphere_vector(active.dimension, seed), active.dimension) for seed in range(40))
    found = Spectrum(operator.dimension, probes, nullity=active.nullity)
    value, low, high = found.effective_dimension(mu)
    assert low <= float((exact / (exact + mu)).sum()) <= high
    assert high - low < 0.2 * value


def test_blocks_are_multiplied_gathered_and_scattered(dense: Any) -> None:
    mask = torch.arange(120) % 3 > 0
    active = ActiveOperator(dense, mask)
    block = torch.randn(active.dimension, 4, dtype=torch.float64)
    torch.testing.assert_close(active @ block, dense.matrix[mask][:, mask] @ block)
    torch.testing.assert_close(active @ block[:, 0], dense.matrix[mask][:, mask] @ block[:, 0])
    for rows in (block.T, block[:, 0], block.T.reshape(2, 2, -1)):
        whole = active.expand(rows)
        assert whole.shape == (*rows.shape[:-1], 120)
        assert not whole[..., ~mask].any()
        assert torch.equal(active.restrict(whole), rows)


def test_vectors_of_another_type_are_converted(dense: Any) -> None:
    active = ActiveOperator(dense, torch.arange(120) > 0)
    assert (active @ torch.ones(119)).dtype == torch.float64


@pytest.mark.parametrize("active", [torch.zeros(120, dtype=torch.bool), torch.ones(120), torch.ones(3).bool()])
def test_a_bad_mask_is_refused(dense: Any, active: Tensor) -> None:
    with pytest.raises(PruneLimitError, match="active"):
        ActiveOperator(dense, active)


@pytest.mark.parametrize("shape", [(3,), (120,), (119, 2, 2), ()])
def test_bad_shapes_are_refused(dense: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(PruneLimitError, match="vectors has shape"):
        ActiveOperator(dense, torch.arange(120) > 0) @ torch.ones(shape)
