"""sight_limit: against dense truth, simulated subspaces, and the ball, where everything is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, predict_limit
from prunelimit.curvature import HessianOperator, Spectrum, lanczos, spectrum
from prunelimit.limit import PruningLimit, effective_dimension, formula_limit
from prunelimit.pruning import MagnitudePath
from prunelimit.sight import Sight, sight_along, sight_limit, sight_resolution


class Dense:
    """A symmetric matrix as an operator."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix, self.dimension = torch.from_numpy(matrix), len(matrix)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.matrix @ vectors


class Layer(nn.Module):
    """Weights without a network."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weights)[None])


def rotation(dimension: int, rng: np.random.Generator) -> np.ndarray:
    basis, triangle = np.linalg.qr(rng.standard_normal((dimension, dimension)))
    return basis * np.sign(np.diag(triangle))


def setting(
    eigenvalues: np.ndarray, seed: int, turned: bool = True
) -> tuple[Dense, MagnitudePath, np.ndarray, np.ndarray]:
    """A Hessian with given eigenvalues and random weights; gives its eigenvectors too."""
    rng = np.random.default_rng(seed)
    total = len(eigenvalues)
    vectors = rotation(total, rng) if turned else np.eye(total)
    layer = Layer(rng.laplace(size=total))
    return Dense(vectors * eigenvalues @ vectors.T), MagnitudePath(layer, ["weight"]), vectors, eigenvalues


def dense_rise(eigenvalues: np.ndarray, vectors: np.ndarray, step: np.ndarray, kept: float) -> float:
    """Least rise over a random subspace of so many dimensions through the sparse point, by its deterministic equivalent."""
    magnitudes, part = np.abs(eigenvalues), vectors.T @ step
    kappa = math.exp(brentq(lambda t: float(effective_dimension(eigenvalues, math.exp(t))) - kept, -50, 30))
    return float(kappa * (part**2 * magnitudes / (magnitudes + kappa)).sum() / 2)


def looking(operator: Dense | HessianOperator, path: MagnitudePath) -> Callable[[float], Sight]:
    return lambda sparsity: sight_along(operator, path.displacement(sparsity), operator.dimension)


def solve(operator: Dense, path: MagnitudePath, vectors: np.ndarray, epsilon: float, **options: object) -> PruningLimit:
    total = operator.dimension
    # The sum of all eigenvectors sees every eigenvalue alike: a probe without noise.
    found = Spectrum(total, (lanczos(operator, torch.from_numpy(vectors.sum(1)), total),))
    return sight_limit(looking(operator, path), found, path, epsilon, **options)  # type: ignore[arg-type]


SPECTRA = {
    "power law": 1 / np.arange(1, 301) ** 1.5,
    "outliers": np.concatenate([[50.0, 20.0, 10.0], np.full(297, 0.05)]),
    "indefinite": np.linspace(-0.3, 1, 300) ** 3,
    "null space": np.concatenate([np.geomspace(1e-4, 10, 150), np.zeros(150)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_at_the_limit_a_random_subspace_just_reaches_epsilon(name: str, epsilon: float) -> None:
    operator, path, vectors, eigenvalues = setting(SPECTRA[name], 0)
    limit = solve(operator, path, vectors, epsilon, subspace="cone", tolerance=1e-4)
    step = path.displacement(limit.sparsity).numpy()
    # Two weights more or less: the path has steps.
    around = [dense_rise(eigenvalues, vectors, step, 300 * limit.density + shift) for shift in (2.2, -2.2)]
    assert around[0] < epsilon < around[1]
    assert limit.interval[0] <= limit.sparsity <= limit.interval[1]
    assert limit.sparsity >= formula_limit(limit.spectrum, path.distance, epsilon).sparsity - 1e-3


@pytest.mark.parametrize("subspace", ["cone", "cut"])
@pytest.mark.parametrize("name", ["power law", "null space"])
def test_simulated_subspaces_agree(name: str, subspace: str) -> None:
    operator, path, vectors, eigenvalues = setting(SPECTRA[name], 1)
    epsilon, rng = 0.3, np.random.default_rng(2)
    limit = solve(operator, path, vectors, epsilon, subspace=subspace)
    step = vectors.T @ path.displacement(limit.sparsity).numpy()
    kept, rises = round(300 * limit.density), []
    for _ in range(40):
        columns = rng.standard_normal((300, kept))
        if subspace == "cut":
            columns -= np.outer(step, step @ columns) / (step @ step)
        basis = np.linalg.qr(columns)[0]
        slope, inner = basis.T @ (eigenvalues * step), basis.T @ (eigenvalues[:, None] * basis)
        rises.append((step @ (eigenvalues * step) - slope @ np.linalg.lstsq(inner, slope, rcond=1e-12)[0]) / 2)
    assert np.mean(rises) == pytest.approx(epsilon, rel=0.2)


def test_the_cut_of_randomly_turned_eigenvectors_is_what_it_says() -> None:
    gaps = []
    for seed in range(8):
        operator, path, vectors, _ = setting(SPECTRA["power law"], seed)
        limit = solve(operator, path, vectors, 0.3, subspace="cut")
        hessian, step = operator.matrix.numpy(), path.displacement(limit.sparsity).numpy()
        kept = step == 0
        inner = np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ step)
        rise = (step @ hessian @ step - (hessian[kept] @ step) @ inner) / 2
        gaps.append(math.log(rise / 0.3))
    assert abs(np.mean(gaps)) < 0.1  # the formula would be off by far more
    assert np.std(gaps) < 0.3


@given(seed=st.integers(0, 100), curvature=st.floats(0.1, 10), epsilon=st.floats(0.1, 10))
@settings(max_examples=20)
def test_a_ball_is_a_circular_cone(seed: int, curvature: float, epsilon: float) -> None:
    operator, path, *_ = setting(np.full(50, curvature), seed, turned=False)
    found = spectrum(operator, steps=3, seed=seed)
    for sparsity in (0.3, 0.6, 0.9):
        sight = sight_along(operator, path.displacement(sparsity), 3)
        ratio = 2 * epsilon / (curvature * path.radius(sparsity) ** 2)  # (r / R)^2
        # Inside nothing is needed; outside the cone's dimension is D sin^2 of its angle.
        assert sight.removable(found, epsilon)[0] == pytest.approx(min(ratio, 1), abs=1e-6)
        # Perpendicular to the step there is nothing to be found unless the sparse point itself is good.
        assert sight.removable(found, epsilon, "cut")[0] == pytest.approx(float(ratio >= 1), abs=1e-6)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), epsilon=st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_resolution_solves_its_equation(seed: int, scale: float, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    eigenvalues, step = scale * rng.exponential(size=20) ** 3, rng.standard_normal(20)
    radius = float(np.linalg.norm(step))

    def form(mu: float) -> float:
        return float((step**2 * eigenvalues / (eigenvalues + mu)).sum())

    def shares(mu: float) -> tuple[float, float]:
        return form(mu) / radius**2, 1 - form(mu) / radius**2

    mu = sight_resolution(shares, radius, epsilon, float(eigenvalues.max()))
    rise = float((step**2 * eigenvalues).sum()) / 2
    if math.isinf(mu):
        assert rise <= epsilon * (1 + 1e-6)
    else:
        assert mu * form(mu) == pytest.approx(2 * epsilon, rel=1e-6)
        assert mu >= 2 * epsilon / radius**2 * (1 - 1e-9)
        assert rise >= epsilon * (1 - 1e-6)


@given(seed=st.integers(0, 1000), condition=st.floats(1.1, 100), place=st.floats(0.02, 0.98))
@settings(max_examples=40)
def test_a_cut_on_a_well_conditioned_matrix_is_resolved(seed: int, condition: float, place: float) -> None:
    rng = np.random.default_rng(seed)
    eigenvalues, step = np.geomspace(1, condition, 60), rng.standard_normal(60)
    step /= np.linalg.norm(step)

    def psi(u: float) -> float:
        return float(1 / (step**2 / (eigenvalues + u)).sum() - u)

    u = float(place * condition)
    sight = sight_along(Dense(np.diag(eigenvalues)), torch.from_numpy(step), 60)
    assert sight.resolution(psi(u) / 2, "cut") == pytest.approx(u, rel=1e-5)
    assert math.isinf(sight.resolution(float(step**2 @ eigenvalues) / 2 * 1.01, "cut"))


def test_step_in_the_null_space_costs_nothing() -> None:
    operator, *_ = setting(np.concatenate([np.ones(5), np.zeros(15)]), 0, turned=False)
    step = torch.zeros(20, dtype=torch.float64)
    step[10:] = 1.0
    inside = sight_along(operator, step, 5, lambda vector: vector[:5])
    assert inside.measure is None
    assert inside.removable(spectrum(operator, steps=3), 0.1) == (1, 1, 1)


def network() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return model, (torch.randn(20, 30).double(), torch.randint(3, (20,)))


def test_prediction_is_the_same_in_the_row_space_of_the_inputs() -> None:
    model, data = network()
    loss = functional.cross_entropy
    small = predict_limit(model, loss, data, epsilon=0.02, method="cut", steps=300, probes=8)
    operator, path = HessianOperator(model, loss, data), MagnitudePath(model)
    whole = sight_limit(looking(operator, path), spectrum(operator, steps=300, probes=8), path, 0.02)
    assert small.sparsity == pytest.approx(whole.sparsity, abs=0.02)  # other probes
    assert small.method == "cut"
    assert small.total == path.total
    assert small.cost["products"] > 0


def test_sample_stretches_the_interval() -> None:
    model, data = network()
    limit = predict_limit(model, functional.cross_entropy, data, epsilon=0.02, method="cone", examples=10)
    assert limit.trend is not None
    assert limit.interval[0] <= limit.trend <= limit.interval[1]


@pytest.mark.parametrize(("name", "value"), [("tolerance", 0.0), ("epsilon", -1.0), ("subspace", "cutt")])
def test_bad_arguments_are_named(name: str, value: object) -> None:
    operator, path, *_ = setting(np.ones(10), 0, turned=False)
    options = {"epsilon": 0.1, name: value}
    with pytest.raises(PruneLimitError, match=name):
        sight_limit(looking(operator, path), spectrum(operator, steps=2), path, **options)


def test_a_step_in_the_null_space_is_free() -> None:
    # Once wrong: the logarithm of a largest eigenvalue of zero. The small weights, which leave first, have no part in the loss.
    total = 40
    eigenvalues = np.where(np.arange(total) < 30, 0.0, 5.0)
    layer = Layer(np.where(eigenvalues > 0, 3.0, 0.01) * (1 + np.arange(total) / total))
    operator, path = Dense(np.diag(eigenvalues)), MagnitudePath(layer, ["weight"])
    step = path.displacement(0.5)
    sight = sight_along(operator, step, 10)
    assert sight.resolution(0.01, "cut") == math.inf
    found = spectrum(operator, steps=total, progress=False)
    limit = sight_limit(lambda s: sight_along(operator, path.displacement(s), 10), found, path, 0.01, tried=[0.5])
    assert limit.sparsity >= 0.74
