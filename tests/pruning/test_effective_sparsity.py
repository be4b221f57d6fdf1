"""effective_sparsity: against its definition, from exact and from recorded distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunelimit.errors import PruneLimitError
from prunelimit.pruning.magnitude import MagnitudePath, effective_sparsity


def defined(weights: np.ndarray) -> float:
    return 1 - np.abs(weights).sum() ** 2 / (weights**2).sum() / len(weights)


def path_of(weights: np.ndarray) -> MagnitudePath:
    layer = nn.Linear(len(weights), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights)[None])
    return MagnitudePath(layer)


@given(seed=st.integers(0, 1000), power=st.floats(0.5, 4))
def test_exact_distances_give_the_definition(seed: int, power: float) -> None:
    drawn = np.random.default_rng(seed).standard_normal(50)
    weights = np.sign(drawn) * np.abs(drawn) ** power
    assert effective_sparsity(path_of(weights).distance, 50) == pytest.approx(defined(weights), abs=1e-6)


def test_equal_weights_all_count_and_a_single_one_counts_once() -> None:
    assert effective_sparsity(path_of(np.full(20, 0.3)).distance, 20) == pytest.approx(0, abs=1e-9)
    assert effective_sparsity(path_of(np.eye(20)[0]).distance, 20) == pytest.approx(0.95)


def test_a_recorded_curve_is_close() -> None:
    weights = np.random.default_rng(0).laplace(size=100_000) ** 3
    path = path_of(weights)
    recorded = path.distance[np.linspace(0, path.total, 1001).round().astype(int)]
    assert effective_sparsity(recorded, path.total) == pytest.approx(defined(weights), abs=0.01)


def test_no_weights_are_refused() -> None:
    with pytest.raises(PruneLimitError, match="distance"):
        effective_sparsity(np.zeros(11), 10)
