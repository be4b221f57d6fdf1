"""Block Lanczos: the joint Krylov space, its rules and bounds, against dense truth and one process per probe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.curvature import Spectrum, lanczos, spectrum
from prunelimit.curvature.block import BlockLanczosRun
from prunelimit.curvature.quadrature import gauss_rule, radau_rule
from prunelimit.errors import PruneLimitError

Operator = Callable[[Tensor], object]

MU = np.array([1e-4, 1e-2, 1.0])


def rotated(eigenvalues: np.ndarray, seed: int = 0) -> Tensor:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    return torch.from_numpy((rotation * eigenvalues) @ rotation.T)


def starts(probes: int, dimension: int, seed: int = 0) -> Tensor:
    vectors = np.random.default_rng(seed).standard_normal((probes, dimension))
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def integral(rule: tuple[np.ndarray, np.ndarray], mu: np.ndarray = MU) -> np.ndarray:
    magnitudes = np.abs(rule[0])
    return (magnitudes / (magnitudes + mu[:, None])) @ rule[1]


def exact_form(matrix: Tensor, vectors: Tensor, mu: np.ndarray = MU) -> np.ndarray:
    values, basis = np.linalg.eigh(matrix.numpy())
    return integral((values, np.square(vectors.numpy() @ basis).mean(0)), mu)


def outlying(dimension: int, negative: float, zeros: float, seed: int) -> np.ndarray:
    """Draw a bulk with outliers, negative eigenvalues and an atom at zero."""
    generator = np.random.default_rng(seed)
    values = 10 ** generator.uniform(-5, -1, dimension)
    values[: dimension // 20] = generator.uniform(0.5, 5, dimension // 20)
    values *= np.where(generator.random(dimension) < negative, -1, 1)
    values[generator.random(dimension) < zeros] = 0
    return values


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_matrix_is_the_projection_of_the_operator(matrix_operator: Operator, steps: int) -> None:
    matrix, vectors = rotated(np.linspace(-1, 3, 60)), starts(4, 60)
    run = BlockLanczosRun(matrix_operator(matrix), vectors).extend(steps)
    basis = run._basis[: run._filled]
    torch.testing.assert_close(basis @ basis.T, torch.eye(4 * steps, dtype=torch.float64))
    projected = (basis @ matrix @ basis.T).numpy()
    np.testing.assert_allclose(run.found.matrix(), projected, atol=1e-12)
    np.testing.assert_allclose(run.found.start.T @ basis[:4].numpy(), vectors.numpy(), atol=1e-12)


def test_rules_integrate_polynomials_exactly(matrix_operator: Operator) -> None:
    matrix, vectors, steps = rotated(np.linspace(-1, 1, 50)), starts(3, 50), 4
    found = BlockLanczosRun(matrix_operator(matrix), vectors).extend(steps).found
    for rule, degree in ((found.gauss(), 2 * steps - 1), (found.radau(), 2 * steps)):
        for power in range(degree + 1):
            moment = np.trace(vectors.numpy() @ np.linalg.matrix_power(matrix.numpy(), power) @ vectors.numpy().T) / 3
            assert rule[0] ** power @ rule[1] == pytest.approx(moment, abs=1e-12)
    nodes, weights = found.radau()
    assert np.sum(np.abs(nodes) < 1e-12) == 3
    assert weights.sum() == pytest.approx(1)


def test_one_start_vector_gives_the_rules_of_lanczos(matrix_operator: Operator) -> None:
    operator, vector = matrix_operator(rotated(outlying(80, 0.3, 0.1, 0))), starts(1, 80)
    found, scalar = BlockLanczosRun(operator, vector).extend(9).found, lanczos(operator, vector[0], 9)
    for block, single in ((found.gauss(), gauss_rule), (found.radau(), radau_rule)):
        nodes, weights = single(scalar.alpha, scalar.beta)
        np.testing.assert_allclose(block[0], nodes, atol=1e-10)
        np.testing.assert_allclose(block[1], weights, atol=1e-10)
    apart = Spectrum(80, (scalar,)).start_form(MU, "middle")
    np.testing.assert_allclose(Spectrum(80, (), blocks=(found,)).start_form(MU, "middle"), apart, atol=3e-4)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 100),
    probes=st.integers(1, 6),
    steps=st.integers(1, 12),
    negative=st.sampled_from([0.0, 0.1, 0.5]),
    zeros=st.sampled_from([0.0, 0.4]),
)
def test_enclosing_rules_bound_the_form_of_the_start_vectors(
    matrix_operator: Operator, seed: int, probes: int, steps: int, negative: float, zeros: float
) -> None:
    matrix, vectors = rotated(outlying(60, negative, zeros, seed), seed), starts(probes, 60, seed)
    low, high = BlockLanczosRun(matrix_operator(matrix), vectors).extend(steps).found.enclosing()
    truth = exact_form(matrix, vectors)
    assert np.all(integral(low) <= truth + 1e-9)
    assert np.all(truth <= integral(high) + 1e-9)


def test_bounds_close_with_more_products(matrix_operator: Operator) -> None:
    matrix, vectors = rotated(outlying(300, 0.3, 0.0, 0)), starts(4, 300)
    found = BlockLanczosRun(matrix_operator(matrix), vectors).extend(40).found
    widths = []
    for steps in (1, 2, 3, 10, 11, 40):
        low, high = found.truncated(steps).enclosing()
        widths.append(integral(high) - integral(low))
    assert np.all(np.diff(widths, axis=0) <= 1e-9)
    assert np.all(widths[-1] < 0.5 * widths[0])


@pytest.mark.parametrize("dimension", [12, 13, 15])
def test_complete_space_is_exact(matrix_operator: Operator, dimension: int) -> None:
    matrix, vectors = rotated(np.linspace(-1, 2, dimension)), starts(4, dimension)
    found = BlockLanczosRun(matrix_operator(matrix), vectors).extend(20).found
    assert found.complete
    assert len(found.matrix()) == dimension
    for rule in (found.gauss(), found.radau(), *found.enclosing()):
        np.testing.assert_allclose(integral(rule), exact_form(matrix, vectors), atol=1e-10)


def test_blocks_shrink_where_few_eigenvalues_differ(matrix_operator: Operator) -> None:
    matrix = rotated(np.repeat([0.0, 1.0, -3.0], [90, 8, 2]))
    vectors = starts(5, 100)
    found = BlockLanczosRun(matrix_operator(matrix), vectors).extend(10).found
    # 5 directions for 0, 5 for 1 and 2 for -3: no start vector sees more.
    assert len(found.matrix()) == 12
    np.testing.assert_allclose(integral(found.gauss()), exact_form(matrix, vectors), atol=1e-9)


def test_dependent_start_vectors_are_one(matrix_operator: Operator) -> None:
    matrix, vectors = rotated(outlying(60, 0.3, 0.0, 0)), starts(2, 60)
    twice = BlockLanczosRun(matrix_operator(matrix), torch.cat([vectors, 3 * vectors[:1]])).extend(8).found
    once = BlockLanczosRun(matrix_operator(matrix), vectors).extend(8).found
    assert len(twice.matrix()) == len(once.matrix())
    np.testing.assert_allclose(np.linalg.eigvalsh(twice.matrix()), np.linalg.eigvalsh(once.matrix()), atol=1e-9)


def test_null_vector_among_the_starts_leaves_the_bounds_bounds(matrix_operator: Operator) -> None:
    # The Gauss rule in place of Radau would be no lower bound: the other start vector's space is not complete.
    eigenvalues = np.random.default_rng(0).standard_normal(200)
    eigenvalues[:20] = 0
    matrix, vectors = torch.diag(torch.from_numpy(eigenvalues)), starts(2, 200)
    vectors[0] = torch.eye(200, dtype=torch.float64)[0]
    truth = exact_form(matrix, vectors)
    for steps in (3, 6, 10):
        low, high = (
            integral(r) for r in BlockLanczosRun(matrix_operator(matrix), vectors).extend(steps).found.enclosing()
        )
        assert (low < truth).all()
        assert (truth < high).all()


def test_zero_operator(matrix_operator: Operator) -> None:
    found = spectrum(matrix_operator(torch.zeros(30, 30)), steps=5, probes=3, joint=True)
    assert np.all(found.effective_dimension(MU)[0] == 0)


def test_zero_start_vector_is_refused(matrix_operator: Operator) -> None:
    with pytest.raises(PruneLimitError, match="start is the zero vector"):
        BlockLanczosRun(matrix_operator(torch.eye(5)), torch.zeros(2, 5))


def test_products_of_the_start_vectors_are_used(matrix_operator: Operator) -> None:
    matrix, vectors = rotated(outlying(60, 0.3, 0.0, 0)), starts(3, 60)
    known = BlockLanczosRun(matrix_operator(matrix), 2 * vectors, first=2 * vectors @ matrix).extend(6).found
    fresh = BlockLanczosRun(matrix_operator(matrix), vectors).extend(6).found
    np.testing.assert_allclose(known.matrix(), fresh.matrix(), atol=1e-9)


def test_extending_goes_on(matrix_operator: Operator) -> None:
    operator, vectors = matrix_operator(rotated(outlying(60, 0.3, 0.0, 0))), starts(3, 60)
    told: list[int] = []
    run = BlockLanczosRun(operator, vectors).extend(2, told.append).extend(4, told.append)
    assert told == [1, 2, 1, 2, 3, 4]
    assert run.steps == 6
    np.testing.assert_array_equal(run.found.matrix(), BlockLanczosRun(operator, vectors).extend(6).found.matrix())


def test_single_precision_keeps_the_basis_orthogonal(matrix_operator: Operator) -> None:
    values = np.concatenate([np.geomspace(1e-7, 1e-2, 390), np.linspace(1, 100, 10)])
    run = BlockLanczosRun(matrix_operator(rotated(values).float()), starts(8, 400).float()).extend(30)
    basis = run._basis[: run._filled].double()
    assert float((basis @ basis.T - torch.eye(len(basis), dtype=torch.float64)).abs().max()) < 1e-5


@pytest.mark.parametrize("negative", [0.0, 0.4])
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_joint_interval_covers_the_truth_and_is_narrower(
    matrix_operator: Operator, negative: float, zeros: float
) -> None:
    values = outlying(600, negative, zeros, 1)
    operator, mu = matrix_operator(torch.diag(torch.from_numpy(values))), np.array([1e-4, 1e-2])
    truth = (np.abs(values) / (np.abs(values) + mu[:, None])).sum(1)
    joint, apart = (spectrum(operator, steps=24, probes=8, joint=flag) for flag in (True, False))
    value, low, high = joint.effective_dimension(mu)
    assert np.all((low <= truth) & (truth <= high))
    assert np.all((low <= value) & (value <= high))
    _, lower, higher = apart.effective_dimension(mu)
    assert np.all(high - low < 0.8 * (higher - lower))
    assert np.all(np.abs(value / truth - 1) < 0.2)
    assert joint.trace == pytest.approx(apart.trace, rel=1e-6)
    assert joint.largest == pytest.approx(np.abs(values).max())


@pytest.mark.parametrize("size", [15, 60])
def test_record_builds_the_same_spectrum(matrix_operator: Operator, size: int) -> None:
    found = spectrum(matrix_operator(rotated(np.linspace(-1, 2, size))), steps=10, probes=4, seed=7, joint=True)
    again = Spectrum.from_dict(found.to_dict())
    assert (again.steps, again.seed, again.dimension) == (found.steps, 7, size)
    assert again.blocks[0].complete == (size == 15)
    np.testing.assert_array_equal(again.effective_dimension(MU), found.effective_dimension(MU))


def test_truncated_is_what_fewer_products_give(matrix_operator: Operator) -> None:
    operator = matrix_operator(rotated(outlying(90, 0.3, 0.0, 0)))
    fewer, cut = (spectrum(operator, steps=k, probes=3, joint=True) for k in (5, 9))
    np.testing.assert_allclose(cut.truncated(5).effective_dimension(MU), fewer.effective_dimension(MU), rtol=1e-9)


def test_groups_that_memory_forces_count_by_their_vectors(
    matrix_operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = matrix_operator(rotated(outlying(90, 0.3, 0.0, 0)))
    monkeypatch.setattr("prunelimit.curvature.slq._probes_at_once", lambda *_: 2)
    groups = spectrum(operator, steps=6, probes=3, joint=True)
    assert [block.vectors for block in groups.blocks] == [2, 1]
    parts = [Spectrum(90, (), blocks=(block,)).start_form(MU, "gauss")[0] for block in groups.blocks]
    np.testing.assert_allclose(groups.start_form(MU, "gauss")[0], (2 * parts[0] + parts[1]) / 3)


@pytest.mark.parametrize("more", [{"low_memory": True}, {"folder": "x"}])
def test_what_joint_cannot_do_is_refused(matrix_operator: Operator, more: dict[str, object]) -> None:
    with pytest.raises(PruneLimitError, match="joint=True"):
        spectrum(matrix_operator(torch.eye(5)), joint=True, **more)


def test_watch_sees_what_is_known(matrix_operator: Operator) -> None:
    seen: list[int] = []

    def watch(known: Spectrum) -> dict[str, int]:
        seen.append(known.steps)
        return {}

    spectrum(matrix_operator(rotated(np.linspace(1, 2, 40))), steps=3, probes=2, joint=True, watch=watch, progress=True)
    assert seen
