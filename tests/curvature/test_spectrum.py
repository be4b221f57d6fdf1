"""Spectrum: the interval covers, the limits are right, and the record builds the same object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.curvature import Spectrum, Tridiagonal, slq, spectrum
from prunelimit.errors import PruneLimitError

Operator = Callable[[Tensor], object]

EIGENVALUES = torch.cat(
    [
        torch.zeros(200, dtype=torch.float64),
        torch.logspace(-5, 0, 190, dtype=torch.float64),
        torch.linspace(2, 20, 10).double(),
    ]
)


def exact_dimension(eigenvalues: Tensor, mu: float) -> float:
    return float((eigenvalues.abs() / (eigenvalues.abs() + mu)).sum())


@pytest.fixture(scope="module")
def operator(matrix_operator: Operator) -> object:
    return matrix_operator(torch.diag(EIGENVALUES))


@pytest.fixture(scope="module")
def found(operator: object) -> Spectrum:
    return spectrum(operator, steps=40, probes=2, seed=3)


@pytest.mark.parametrize("mu", [1e-3, 3e-2, 1.0])
def test_interval_covers_the_truth_over_many_seeds(operator: object, mu: float) -> None:
    exact, covered = exact_dimension(EIGENVALUES, mu), 0
    for seed in range(100):
        _, low, high = spectrum(operator, steps=16, seed=seed).effective_dimension(mu)
        covered += bool(low <= exact <= high)
    # Two deviations promise 95 of 100; fewer than 86 has a probability below one in ten thousand.
    assert covered >= 86


def test_interval_is_not_idle(operator: object) -> None:
    # An interval from 0 to D would cover too.
    found = spectrum(operator, steps=40)
    _, low, high = found.effective_dimension(0.03)
    assert high - low < 0.25 * len(EIGENVALUES)
    _, low, high = found.effective_dimension(0.03, bounds="tail")
    assert high - low < 0.15 * len(EIGENVALUES)


def test_more_probes_narrow_the_interval(operator: object) -> None:
    widths = []
    for probes in (1, 16):
        _, low, high = spectrum(operator, steps=150, probes=probes).effective_dimension(0.03)
        widths.append(float(high - low))
    # The rule is converged after 150 steps, so only the probes' noise is left, and it falls with their root.
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)


def test_mean_over_seeds_is_unbiased(operator: object) -> None:
    values = [float(spectrum(operator, steps=60, seed=seed).effective_dimension(0.03)[0]) for seed in range(100)]
    error = np.std(values, ddof=1) / 10
    assert abs(np.mean(values) - exact_dimension(EIGENVALUES, 0.03)) < 4 * error


def test_negative_eigenvalues_count_by_their_magnitude(matrix_operator: Operator) -> None:
    eigenvalues = EIGENVALUES * (-1.0) ** torch.arange(len(EIGENVALUES))
    operator = matrix_operator(torch.diag(eigenvalues))
    _, low, high = spectrum(operator, steps=100, probes=8).effective_dimension(0.03)
    assert low <= exact_dimension(EIGENVALUES, 0.03) <= high


@pytest.mark.parametrize("rule", ["tail", "gauss", "radau"])
@given(mu=st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=5))
def test_value_lies_in_the_interval_between_zero_and_the_dimension(found: Spectrum, rule: str, mu: list[float]) -> None:
    value, low, high = found.effective_dimension(mu, rule)
    assert np.all((low >= 0) & (low <= value) & (value <= high) & (high <= found.dimension))


@given(mu=st.floats(1e-9, 1e9), factor=st.floats(1, 1e3))
def test_dimension_falls_with_mu(found: Spectrum, mu: float, factor: float) -> None:
    # Rounding may lift a value by a part in 1e12 where factor is hardly above one.
    assert found.effective_dimension(mu * factor)[0] <= found.effective_dimension(mu)[0] * (1 + 1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_results_have_the_shape_of_mu(found: Spectrum, shape: tuple[int, ...]) -> None:
    assert all(part.shape == shape for part in found.effective_dimension(np.full(shape, 0.1)))


def test_many_mu_at_once_equal_each_alone(found: Spectrum) -> None:
    points = np.array([1e-4, 0.1, 3.0])
    together = found.effective_dimension(points)
    for k, mu in enumerate(points):
        for whole, alone in zip(together, found.effective_dimension(mu), strict=True):
            assert whole[k] == pytest.approx(float(alone))


def test_infinite_mu_leaves_nothing(found: Spectrum) -> None:
    assert found.effective_dimension(np.inf)[0] == 0


def test_trace_of_a_multiple_of_the_identity_is_exact(matrix_operator: Operator) -> None:
    assert spectrum(matrix_operator(3 * torch.eye(50)), steps=4).trace == pytest.approx(150, rel=1e-5)


def test_multiple_of_the_identity_has_no_noise(matrix_operator: Operator) -> None:
    value, low, high = spectrum(matrix_operator(3 * torch.eye(50)), steps=4).effective_dimension(1.0)
    assert value == pytest.approx(37.5, rel=1e-5)
    assert high - low < 0.01


def test_zero_operator_has_dimension_zero(matrix_operator: Operator) -> None:
    value, low, high = spectrum(matrix_operator(torch.zeros(5, 5)), steps=3).effective_dimension(0.1)
    assert (value, low, high) == (0, 0, 0)


def test_largest_is_the_largest_magnitude(matrix_operator: Operator) -> None:
    operator = matrix_operator(torch.diag(torch.tensor([-7.0, 1.0, 2.0, 0.5])))
    assert spectrum(operator, steps=4).largest == pytest.approx(7, rel=1e-5)


def test_probes_use_consecutive_seeds(operator: object) -> None:
    both, second = spectrum(operator, steps=5, probes=2, seed=10), spectrum(operator, steps=5, seed=11)
    np.testing.assert_array_equal(both.probes[1].alpha, second.probes[0].alpha)


def test_low_rank_matrix_with_few_steps_is_exact_for_its_probe(matrix_operator: Operator) -> None:
    # Once wrong: the Krylov space is complete, yet the incomplete rules before it are averaged in.
    eigenvalues = torch.cat([torch.tensor([1.0, 10.0, 1000.0]), torch.zeros(97)]).double()
    basis = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    matrix = basis * eigenvalues @ basis.T
    found = spectrum(matrix_operator((matrix + matrix.T) / 2), steps=30)
    assert found.steps == 4
    gauss, tail = (float(found.effective_dimension(0.5, rule)[0]) for rule in ("gauss", "tail"))
    assert tail == pytest.approx(gauss, rel=1e-6)


def test_probes_may_have_complete_krylov_spaces_of_different_size() -> None:
    # Once wrong: fewer than TAIL steps, and not the same number for each probe, make a ragged array.
    probes = (
        Tridiagonal(np.array([1.0, 2.0]), np.array([0.5, 0.0])),
        Tridiagonal(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 0.0])),
    )
    value, low, high = Spectrum(10, probes).effective_dimension(0.5)
    assert 0 <= low <= value <= high <= 10


def test_record_builds_the_same_spectrum(found: Spectrum) -> None:
    again = Spectrum.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert (again.dimension, again.seed, again.steps) == (found.dimension, found.seed, found.steps)
    for old, new in zip(found.probes, again.probes, strict=True):
        np.testing.assert_array_equal(old.alpha, new.alpha)
        np.testing.assert_array_equal(old.beta, new.beta)
    points = np.logspace(-6, 3, 20)
    for old, new in zip(found.effective_dimension(points), again.effective_dimension(points), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("mu", [0.0, -1.0, float("nan"), [1.0, 0.0]])
def test_mu_must_be_positive(found: Spectrum, mu: float | list[float]) -> None:
    with pytest.raises(PruneLimitError, match="mu="):
        found.effective_dimension(mu)


def test_unknown_rule_is_refused(found: Spectrum) -> None:
    with pytest.raises(PruneLimitError, match="rule='simpson'"):
        found.effective_dimension(1.0, "simpson")


@pytest.mark.parametrize("probes", [0, -1])
def test_no_probes_are_refused(operator: object, probes: int) -> None:
    with pytest.raises(PruneLimitError, match=f"probes={probes}"):
        spectrum(operator, probes=probes)


@pytest.mark.parametrize("bounds", ["certified", "tail"])
def test_more_steps_narrow_the_interval(operator: object, bounds: str) -> None:
    found = spectrum(operator, steps=120, probes=4)
    widths = []
    for steps in (20, 50, 120):
        _, low, high = found.truncated(steps).effective_dimension(0.03, bounds=bounds)
        widths.append(float(high - low))
    assert widths[0] > widths[1] > widths[2]


def test_zero_rows_are_found_from_the_first_product_and_cost_nothing(matrix_operator: Operator) -> None:
    operator = matrix_operator(torch.diag(EIGENVALUES))
    found = spectrum(operator, steps=30, seed=3)
    assert (found.nullity, found.active, found.dimension) == (200, 200, 400)
    assert len(operator.seen) == 30
    assert all(bool((vector[:200] == 0).all()) for vector in operator.seen[1:])


def test_known_null_space_takes_the_noise_of_the_probes_with_it(matrix_operator: Operator) -> None:
    # A random basis hides the zeros from the rows; without them in the dimension the same probe is worth less.
    basis = torch.linalg.qr(torch.randn(400, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    matrix = basis * EIGENVALUES @ basis.T
    hidden = spectrum(matrix_operator((matrix + matrix.T) / 2), steps=150)
    known = spectrum(matrix_operator(torch.diag(EIGENVALUES)), steps=150)
    assert (hidden.nullity, known.nullity) == (0, 200)
    widths = []
    for found in (hidden, known):
        _, low, high = found.effective_dimension(0.03)
        assert low <= exact_dimension(EIGENVALUES, 0.03) <= high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_nullity_counts_eigenvalues_that_were_left_out_beforehand(matrix_operator: Operator) -> None:
    whole = spectrum(matrix_operator(torch.diag(EIGENVALUES[200:])), steps=80, nullity=200)
    assert whole.dimension == 400
    value, low, high = whole.effective_dimension(0.03)
    assert low <= exact_dimension(EIGENVALUES, 0.03) <= high
    assert float(value) == float(
        spectrum(matrix_operator(torch.diag(EIGENVALUES[200:])), steps=80).effective_dimension(0.03)[0]
    )


def test_probes_side_by_side_are_the_probes_one_by_one(operator: object, monkeypatch: pytest.MonkeyPatch) -> None:
    together = spectrum(operator, steps=12, probes=3)
    monkeypatch.setattr(slq, "free_memory", lambda device: 400 * 12 * 8 * 1.5)
    apart = spectrum(operator, steps=12, probes=3)
    for one, other in zip(together.probes, apart.probes, strict=True):
        np.testing.assert_allclose(other.alpha, one.alpha, atol=1e-10)


def test_basis_that_does_not_fit_is_refused_beforehand(operator: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slq, "free_memory", lambda device: 2e4)
    with pytest.raises(PruneLimitError, match=r"steps=64 needs .* low_memory=True"):
        spectrum(operator)
    assert spectrum(operator, low_memory=True, steps=3).steps == 3


def test_low_memory_integrates_as_well(operator: object) -> None:
    exact = exact_dimension(EIGENVALUES, 0.03)
    full, lean = (spectrum(operator, steps=120, probes=8, low_memory=flag) for flag in (False, True))
    assert float(lean.effective_dimension(0.03)[0]) == pytest.approx(float(full.effective_dimension(0.03)[0]), rel=0.02)
    assert lean.effective_dimension(0.03)[1] <= exact <= lean.effective_dimension(0.03)[2]


def test_folder_continues_instead_of_repeating(matrix_operator: Operator, tmp_path: Path) -> None:
    whole = spectrum(matrix_operator(torch.diag(EIGENVALUES)), steps=40, probes=2)
    spectrum(matrix_operator(torch.diag(EIGENVALUES)), steps=25, probes=2, folder=tmp_path)
    operator = matrix_operator(torch.diag(EIGENVALUES))
    again = spectrum(operator, steps=40, probes=2, folder=tmp_path)
    assert len(operator.seen) == 15
    for one, other in zip(whole.probes, again.probes, strict=True):
        np.testing.assert_allclose(other.alpha, one.alpha, atol=1e-12)
        np.testing.assert_allclose(other.beta, one.beta, atol=1e-12)
    fewer = spectrum(operator, steps=10, probes=2, folder=tmp_path)
    assert fewer.steps == 10
    assert len(operator.seen) == 15


def test_folder_survives_what_stops_the_process(matrix_operator: Operator, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    stopped = matrix_operator(torch.diag(EIGENVALUES))

    def each() -> None:
        if len(stopped.seen) == 23:
            raise Stopped

    with pytest.raises(Stopped):
        spectrum(stopped, steps=40, folder=tmp_path, each=each)
    operator = matrix_operator(torch.diag(EIGENVALUES))
    found = spectrum(operator, steps=40, folder=tmp_path)
    assert len(operator.seen) == 40 - 23
    np.testing.assert_allclose(found.probes[0].alpha, spectrum(operator, steps=40).probes[0].alpha, atol=1e-12)


def test_vectors_of_a_save_that_was_cut_off_are_written_again(matrix_operator: Operator, tmp_path: Path) -> None:
    spectrum(matrix_operator(torch.diag(EIGENVALUES)), steps=10, folder=tmp_path)
    basis = next(tmp_path.rglob("basis.bin"))
    with basis.open("ab") as file:
        file.write(b"half a vector")
    operator = matrix_operator(torch.diag(EIGENVALUES))
    found = spectrum(operator, steps=20, folder=tmp_path)
    again = spectrum(operator, steps=25, folder=tmp_path)
    whole = spectrum(matrix_operator(torch.diag(EIGENVALUES)), steps=25)
    np.testing.assert_allclose(again.probes[0].alpha, whole.probes[0].alpha, atol=1e-12)
    np.testing.assert_allclose(found.probes[0].alpha, whole.probes[0].alpha[:20], atol=1e-12)


def test_low_memory_cannot_be_continued(operator: object, tmp_path: Path) -> None:
    with pytest.raises(PruneLimitError, match="low_memory=True"):
        spectrum(operator, low_memory=True, folder=tmp_path)


def test_progress_tells_memory_and_what_is_known(operator: object, capsys: pytest.CaptureFixture[str]) -> None:
    spectrum(operator, steps=4, progress=True, watch=lambda found: {"steps known": found.steps})
    lines = capsys.readouterr().err
    assert "basis of 0.00 GiB" in lines
    assert "Lanczos, probe 1 of 1: 4/4" in lines
    assert "steps known 4" in lines


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", [1e-3, 1e-5, 1e-6, 1e-8])
def test_outliers_that_drown_the_rest_in_rounding_leave_no_narrow_interval(
    matrix_operator: Operator, ratio: float, dtype: torch.dtype, joint: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    small = 10.0 ** (-2 * torch.rand(2000, generator=generator, dtype=torch.float64))
    signs = torch.where(torch.rand(2000, generator=generator) < 0.3, -1.0, 1.0)
    eigenvalues = torch.cat([torch.tensor([10.0, 7, 5, 4, 3]).double(), 10 * ratio * small * signs])
    found = spectrum(matrix_operator(torch.diag(eigenvalues.to(dtype))), steps=40, probes=2, joint=joint)
    mu = ratio * np.logspace(-1, 2, 7)
    truth = [exact_dimension(eigenvalues, m) for m in mu]
    _, low, high = found.effective_dimension(mu)
    assert np.all((low <= truth) & (truth <= high))
    if ratio <= 1e-6 and dtype == torch.float32:
        # Once wrong: what was left after the outliers was taken for the end of the Krylov space, and the rule for exact.
        assert any(matrix.complete for matrix in (*found.probes, *found.blocks))
        _, low, high = dataclasses.replace(found, rounding=0).effective_dimension(mu)
        assert not np.all((low <= truth) & (truth <= high))


def test_rounding_is_that_of_the_products_and_of_how_they_ended(matrix_operator: Operator) -> None:
    def diagonal(eigenvalues: Tensor) -> object:
        return matrix_operator(torch.diag(eigenvalues))

    single, double = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
    eigenvalues = torch.linspace(1, 2, 30)
    assert spectrum(diagonal(eigenvalues), steps=5).rounding == single
    assert spectrum(diagonal(eigenvalues.double()), steps=5).rounding == 1e-7  # for the squares
    few = torch.tensor([1.0, 2, 3]).repeat(10)
    assert spectrum(diagonal(few), steps=9).rounding == 10 * single
    assert spectrum(diagonal(few.double()), steps=9).rounding == 10 * double
    # All dimensions are there: nothing was taken for an end.
    assert spectrum(diagonal(torch.tensor([1.0, 2, 3]).double()), steps=9).rounding == double
    found = spectrum(diagonal(eigenvalues), steps=5)
    assert Spectrum.from_dict(json.loads(json.dumps(found.to_dict()))).rounding == single
    assert found.slack(2 * single) == pytest.approx(0.5, rel=0.02)
