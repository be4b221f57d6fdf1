"""lanczos: exactness, orthogonality and breakdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.curvature import Tridiagonal, gauss_rule, lanczos
from prunelimit.curvature.lanczos import LanczosRun, basis_bytes, sphere_vector
from prunelimit.errors import PruneLimitError

Operator = Callable[[Tensor], object]


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix of given eigenvalues in a random orthonormal basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64))[
        0
    ]
    matrix = basis * eigenvalues @ basis.T
    return (matrix + matrix.T) / 2


def ritz_values(found: Tridiagonal) -> np.ndarray:
    return scipy.linalg.eigh_tridiagonal(found.alpha, found.beta[:-1])[0]


@given(dimension=st.integers(2, 12), seed=st.integers(0, 10**6))
def test_complete_run_finds_every_eigenvalue(matrix_operator: Operator, dimension: int, seed: int) -> None:
    # Evenly spaced but for a random shift, so that the Krylov space is complete only at the last step.
    eigenvalues = torch.linspace(-1, 1, dimension, dtype=torch.float64) + seed / 10**6
    operator = matrix_operator(symmetric(eigenvalues, seed))
    found = lanczos(operator, sphere_vector(dimension, seed + 1).double(), dimension)
    np.testing.assert_allclose(ritz_values(found), eigenvalues.numpy(), atol=1e-8)


def test_more_steps_than_dimensions_are_cut(matrix_operator: Operator) -> None:
    found = lanczos(matrix_operator(symmetric(torch.arange(6, dtype=torch.float64))), torch.ones(6), 50)
    assert found.alpha.shape == found.beta.shape == (6,)
    assert found.beta[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_basis_stays_orthonormal_beside_a_large_outlier(matrix_operator: Operator, dtype: torch.dtype) -> None:
    # Without reorthogonalisation a converged outlier comes back as a ghost within a few dozen steps.
    eigenvalues = torch.cat([torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([1e4], dtype=torch.float64)])
    operator = matrix_operator(symmetric(eigenvalues).to(dtype))
    start = sphere_vector(200, 3).double()
    lanczos(operator, start / start.norm(), 80)
    basis = torch.stack(operator.seen, 1).double()
    tolerance = 200 * torch.finfo(dtype).eps
    assert basis.shape == (200, 80)
    torch.testing.assert_close(basis.T @ basis, torch.eye(80, dtype=torch.float64), rtol=0, atol=tolerance)


def test_outlier_has_one_ritz_value_and_no_ghost(matrix_operator: Operator) -> None:
    eigenvalues = torch.cat(
        [torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([100.0], dtype=torch.float64)]
    )
    found = lanczos(matrix_operator(symmetric(eigenvalues).float()), sphere_vector(200, 0), 60)
    assert (ritz_values(found) > 50).sum() == 1


def test_tridiagonal_is_the_projection_of_the_matrix(matrix_operator: Operator) -> None:
    matrix = symmetric(torch.linspace(-2, 3, 30, dtype=torch.float64))
    operator = matrix_operator(matrix)
    found = lanczos(operator, sphere_vector(30, 0).double(), 8)
    basis = torch.stack(operator.seen, 1)
    expected = np.diag(found.alpha) + np.diag(found.beta[:-1], 1) + np.diag(found.beta[:-1], -1)
    np.testing.assert_allclose((basis.T @ matrix @ basis).numpy(), expected, atol=1e-12)


def test_last_beta_is_the_norm_of_the_residual(matrix_operator: Operator) -> None:
    matrix = symmetric(torch.linspace(-2, 3, 30, dtype=torch.float64))
    operator = matrix_operator(matrix)
    found = lanczos(operator, sphere_vector(30, 0).double(), 8)
    basis = torch.stack(operator.seen, 1)
    product = matrix @ basis[:, -1]
    residual = product - basis @ (basis.T @ product)
    assert found.beta[-1] == pytest.approx(float(residual.norm()), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_matrix_breaks_down_early(matrix_operator: Operator, rank: int, dtype: torch.dtype) -> None:
    eigenvalues = torch.cat(
        [torch.arange(1, rank + 1, dtype=torch.float64), torch.zeros(60 - rank, dtype=torch.float64)]
    )
    found = lanczos(matrix_operator(symmetric(eigenvalues).to(dtype)), sphere_vector(60, 1), 40)
    # One step more for the start vector's part in the null space; rounding may cost another, with next to no weight.
    assert rank + 1 <= len(found.alpha) <= rank + 3
    assert found.beta[-1] == 0
    nodes, weights = gauss_rule(found.alpha, found.beta)
    np.testing.assert_allclose(np.unique(nodes[weights > 1e-6].round(3)), range(rank + 1))


def test_eigenvector_as_start_breaks_down_at_once(matrix_operator: Operator) -> None:
    found = lanczos(matrix_operator(torch.diag(torch.tensor([3.0, 1.0, 2.0]))), torch.tensor([0.0, 1.0, 0.0]), 3)
    np.testing.assert_array_equal(found.alpha, [1.0])
    np.testing.assert_array_equal(found.beta, [0.0])


def test_zero_matrix_is_complete_at_once(matrix_operator: Operator) -> None:
    found = lanczos(matrix_operator(torch.zeros(5, 5)), torch.ones(5), 5)
    assert (found.alpha.tolist(), found.beta.tolist()) == ([0.0], [0.0])


@given(scale=st.floats(1e-6, 1e6))
def test_length_of_the_start_vector_does_not_matter(matrix_operator: Operator, scale: float) -> None:
    operator, start = (
        matrix_operator(symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64))),
        sphere_vector(20, 4).double(),
    )
    one, other = lanczos(operator, start, 6), lanczos(operator, start * scale, 6)
    np.testing.assert_allclose(other.alpha, one.alpha, rtol=1e-8)
    np.testing.assert_allclose(other.beta, one.beta, rtol=1e-8)


def test_start_vector_is_normalised_in_the_precision_of_the_operator(matrix_operator: Operator) -> None:
    # Once wrong: the norm is taken before the conversion to float64, so alpha is off in the eighth digit.
    operator = matrix_operator(5 * torch.eye(1000, dtype=torch.float64))
    found = lanczos(operator, sphere_vector(1000, 0), 1)
    assert found.alpha[0] == pytest.approx(5, rel=1e-13)


def test_start_vector_is_not_changed(matrix_operator: Operator) -> None:
    start = torch.ones(6)
    lanczos(matrix_operator(symmetric(torch.arange(6, dtype=torch.float64)).float()), start, 3)
    assert torch.equal(start, torch.ones(6))


def test_products_are_not_changed(matrix_operator: Operator) -> None:
    class Keeping(matrix_operator):  # type: ignore[misc, valid-type]
        def __matmul__(self, vectors: Tensor) -> Tensor:
            self.given = [*getattr(self, "given", []), super().__matmul__(vectors)]
            return self.given[-1]

    matrix = symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64))
    operator = Keeping(matrix)
    lanczos(operator, sphere_vector(20, 0).double(), 6)
    for vector, product in zip(operator.seen, operator.given, strict=True):
        assert torch.equal(product, matrix @ vector)


def test_the_probe_knows_nothing_of_a_network_drawn_from_the_same_seed() -> None:
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    for seed in range(5):
        correlation = float(sphere_vector(10_000, seed) @ weights / weights.norm())
        assert abs(correlation) < 0.05  # five standard deviations


def test_steps_are_products(matrix_operator: Operator) -> None:
    operator = matrix_operator(symmetric(torch.linspace(0, 1, 20, dtype=torch.float64)))
    lanczos(operator, torch.ones(20), 5)
    assert len(operator.seen) == 5


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(matrix_operator: Operator, steps: int) -> None:
    with pytest.raises(PruneLimitError, match=f"steps={steps}"):
        lanczos(matrix_operator(torch.eye(3)), torch.ones(3), steps)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.tensor([1.0, torch.nan, 0.0])])
def test_start_without_a_direction_is_refused(matrix_operator: Operator, start: Tensor) -> None:
    with pytest.raises(PruneLimitError, match="start"):
        lanczos(matrix_operator(torch.eye(3)), start, 2)


def test_sphere_vector_has_norm_one_and_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    vector = sphere_vector(1000, 7)
    assert float(vector.norm()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(vector, sphere_vector(1000, 7))
    assert not torch.equal(vector, sphere_vector(1000, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_one_pass_of_gram_schmidt_is_the_rule(matrix_operator: Operator) -> None:
    """The second pass is made only where the first one took much away, and the basis stays orthonormal all the same."""
    operator = matrix_operator(symmetric(torch.linspace(-1, 1, 300, dtype=torch.float64)).float())
    run = LanczosRun(operator, sphere_vector(300, 0)).extend(100)
    basis = torch.cat([block[0, :n] for block, n in zip(run._blocks, run._filled, strict=True)]).double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(100, dtype=torch.float64), rtol=0, atol=1e-4)


@given(first=st.integers(1, 15), seed=st.integers(0, 100))
def test_extending_is_running_on(matrix_operator: Operator, first: int, seed: int) -> None:
    operator = matrix_operator(symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64)))
    start = sphere_vector(20, seed).double()
    whole = lanczos(operator, start, 16)
    parts = LanczosRun(operator, start).extend(first).extend(16 - first).tridiagonals[0]
    np.testing.assert_allclose(parts.alpha, whole.alpha, atol=1e-10)
    np.testing.assert_allclose(parts.beta, whole.beta, atol=1e-10)


def test_block_of_probes_is_each_probe_alone(matrix_operator: Operator) -> None:
    operator = matrix_operator(symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64)))
    starts = torch.stack([sphere_vector(20, seed) for seed in range(3)]).double()
    for start, found in zip(starts, LanczosRun(operator, starts).extend(9).tridiagonals, strict=True):
        alone = lanczos(operator, start, 9)
        np.testing.assert_allclose(found.alpha, alone.alpha, atol=1e-10)
        np.testing.assert_allclose(found.beta, alone.beta, atol=1e-10)


def test_probe_that_ends_early_leaves_the_others_alone(matrix_operator: Operator) -> None:
    matrix = torch.diag(torch.linspace(1, 9, 9, dtype=torch.float64))
    starts = torch.stack([torch.eye(9)[2], torch.ones(9)]).double()
    run = LanczosRun(matrix_operator(matrix), starts).extend(5)
    assert [len(t.alpha) for t in run.tridiagonals] == [1, 5]
    alone = lanczos(matrix_operator(matrix), torch.ones(9).double(), 5)
    np.testing.assert_allclose(run.tridiagonals[1].alpha, alone.alpha, atol=1e-10)


def test_product_at_hand_is_not_made_again(matrix_operator: Operator) -> None:
    matrix = symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64))
    operator, start = matrix_operator(matrix), torch.arange(1.0, 21.0).double()
    run = LanczosRun(operator, start, first=matrix @ start).extend(6)
    assert len(operator.seen) == 5
    np.testing.assert_allclose(run.tridiagonals[0].alpha, lanczos(operator, start, 6).alpha, atol=1e-10)


def test_interrupted_product_leaves_no_trace(matrix_operator: Operator) -> None:
    class Flaky(matrix_operator):  # type: ignore[misc, valid-type]
        broken = True

        def __matmul__(self, vectors: Tensor) -> Tensor:
            if self.broken and len(self.seen) == 4:
                self.broken = False
                raise KeyboardInterrupt
            return super().__matmul__(vectors)

    matrix = symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64))
    run = LanczosRun(Flaky(matrix), torch.ones(20).double())
    with pytest.raises(KeyboardInterrupt):
        run.extend(9)
    found = run.extend(9 - run.steps).tridiagonals[0]
    np.testing.assert_allclose(found.alpha, lanczos(matrix_operator(matrix), torch.ones(20).double(), 9).alpha)


def test_saved_process_of_something_else_is_refused(matrix_operator: Operator, tmp_path: Path) -> None:
    operator = matrix_operator(symmetric(torch.linspace(-1, 2, 20, dtype=torch.float64)))
    LanczosRun(operator, torch.ones(20)).extend(3).save(tmp_path, seed=1)
    assert LanczosRun.load(tmp_path, operator, seed=1).steps == 3
    with pytest.raises(PruneLimitError, match=r"folder=.*about \{'seed': 1\}, not \{'seed': 2\}"):
        LanczosRun.load(tmp_path, operator, seed=2)
    with pytest.raises(PruneLimitError, match=r"folder=.*dimension 20, not 5"):
        LanczosRun.load(tmp_path, matrix_operator(torch.eye(5)), seed=1)
    assert LanczosRun.load(tmp_path / "empty", operator) is None


def test_without_a_basis_outliers_come_back_and_the_integral_stays(matrix_operator: Operator) -> None:
    eigenvalues = torch.cat([torch.linspace(0, 1, 199, dtype=torch.float64), torch.tensor([100.0]).double()])
    operator, start = matrix_operator(symmetric(eigenvalues).float()), sphere_vector(200, 0)
    lean, full = (lanczos(operator, start, 60, reorthogonalise=flag) for flag in (False, True))
    assert (ritz_values(lean) > 50).sum() > 1
    rules = [gauss_rule(t.alpha, t.beta) for t in (lean, full)]
    values = [weights @ np.abs(nodes) ** 0.5 for nodes, weights in rules]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_without_a_basis_there_is_nothing_to_save(matrix_operator: Operator, tmp_path: Path) -> None:
    run = LanczosRun(matrix_operator(torch.eye(3)), torch.ones(3), reorthogonalise=False).extend(1)
    with pytest.raises(PruneLimitError, match="reorthogonalise=False"):
        run.save(tmp_path)


def test_basis_bytes_counts_every_vector() -> None:
    assert basis_bytes(1000, 64, 2) == 1000 * 64 * 2 * 4
    assert basis_bytes(1000, 64, 2, torch.float64) == 1000 * 64 * 2 * 8
