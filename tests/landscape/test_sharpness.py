"""Trace and top eigenvalue agree with dense matrices, within the errors that they come with."""

import numpy as np
import pytest
import torch

from prunelimit.errors import PruneLimitError
from prunelimit.landscape import hessian_trace, measure_sharpness, top_eigenvalue
from prunelimit.models import mlp
from prunelimit.pruning.magnitude import apply_masks, magnitude_masks


@pytest.fixture(scope="module")
def matrix():
    random = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return random + random.T


def test_the_trace_of_a_diagonal_is_exact(matrix_operator):
    found = hessian_trace(matrix_operator(torch.diag(torch.arange(1.0, 6.0))), probes=4)
    assert (found.value, found.error) == (15, 0)


def test_the_standard_error_is_that_of_random_signs(matrix, matrix_operator, monkeypatch):
    monkeypatch.setattr("prunelimit.landscape.sharpness.BLOCK", 60 * 7)
    operator = matrix_operator(matrix)
    found = hessian_trace(operator, probes=2000)
    assert sum(v.shape[1] for v in operator.seen) == 2000
    assert all(bool((v.abs() == 1).all()) for v in operator.seen)
    off = matrix - torch.diag(matrix.diagonal())
    assert found.error == pytest.approx(float((2 * off.square().sum()).sqrt()) / 2000**0.5, rel=0.1)
    assert abs(found.value - float(matrix.trace())) < 4 * found.error


def test_the_largest_eigenvalue_is_the_signed_one(matrix, matrix_operator):
    shifted = matrix - 15 * torch.eye(60, dtype=torch.float64)
    truth = float(torch.linalg.eigvalsh(shifted)[-1])
    assert float(torch.linalg.eigvalsh(shifted)[0]) < -abs(truth)
    found = top_eigenvalue(matrix_operator(shifted), tolerance=1e-6)
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert 0 < found.residual <= 1e-6 * found.value
    assert found.steps < 60


def test_the_residual_bounds_the_error_and_the_steps_are_kept(matrix, matrix_operator):
    eigenvalues = torch.linalg.eigvalsh(matrix).numpy()
    for most in (1, 5, 11):
        found = top_eigenvalue(matrix_operator(matrix), tolerance=1e-12, most=most)
        assert found.steps == most
        assert found.value <= eigenvalues[-1] + 1e-12
        assert np.abs(eigenvalues - found.value).min() <= found.residual
        assert found.residual > 0
    assert top_eigenvalue(matrix_operator(matrix), tolerance=1e-30, most=500).steps == 60


def test_a_zero_matrix_is_flat(matrix_operator):
    found = top_eigenvalue(matrix_operator(torch.zeros(4, 4)))
    assert (found.value, found.residual) == (0, 0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mlp([64, 5, 10])


def test_a_network_against_its_dense_hessian(model, digits, reference_hessian):
    split = digits.on_device("train")
    found = measure_sharpness(model, split, examples=200, probes=64, dtype=torch.float64)
    dense = reference_hessian(model, torch.nn.functional.cross_entropy, split.tensors(200))
    assert (found.dimension, found.examples) == (370, 200)
    assert found.trace.error < 0.1 * found.trace.value
    assert abs(found.trace.value - float(dense.trace())) < 4 * found.trace.error
    assert found.top.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-3)


def test_a_pruned_network_in_the_directions_it_keeps(model, digits, reference_hessian):
    apply_masks(model, magnitude_masks(model, 0.8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = digits.on_device("train", size=100)
    kept = torch.cat([p.reshape(-1) != 0 for p in model.parameters() if p.ndim == 2])
    found = measure_sharpness(model, split, kept_only=True, probes=8, tolerance=1e-5, dtype=torch.float64)
    dense = reference_hessian(model, torch.nn.functional.cross_entropy, split.tensors())[kept][:, kept]
    assert found.dimension == int(kept.sum()) == 74
    assert found.top.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-4)
    assert abs(found.trace.value - float(dense.trace())) < 4 * found.trace.error
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_seeds_repeat(matrix, matrix_operator):
    values = [hessian_trace(matrix_operator(matrix), probes=3, seed=seed).value for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_bad_settings_are_refused(matrix, matrix_operator):
    operator = matrix_operator(matrix)
    with pytest.raises(PruneLimitError, match="probes=1"):
        hessian_trace(operator, probes=1)
    with pytest.raises(PruneLimitError, match="tolerance"):
        top_eigenvalue(operator, tolerance=0)
    with pytest.raises(PruneLimitError, match="most=0"):
        top_eigenvalue(operator, most=0)
