"""Scaled weights and the bound by the trace, on records, on random spectra and on matrices that are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.curvature import spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import frames, quadratic
from prunelimit.experiments import theory_frames as theory
from prunelimit.experiments.store import repository
from prunelimit.limit import effective_dimension, formula_limit, removable_fraction, solve_limit

spectra = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40).filter(lambda v: any(abs(x) > 1e-6 for x in v))


@pytest.fixture
def cells(monkeypatch):
    """The recorded quick cells of FC5."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    return frames.load_cells("fc5-cifar10", "quick")


def test_weights_times_one_have_the_recorded_limit(cells):
    scaling = theory.scaling_frame(cells, [1])
    assert scaling.sparsity.tolist() == [cell.limit.sparsity for cell in cells]
    assert list(zip(scaling.low, scaling.high, strict=True)) == [cell.limit.interval for cell in cells]
    assert scaling.radius.tolist() == [cell.limit.radius for cell in cells]


def test_larger_weights_never_raise_the_limit(cells):
    scaling = theory.scaling_frame(cells, [0.5, 1, 2, 5])
    for _, part in scaling.groupby("seed"):
        assert part.factor.is_monotonic_increasing
        for column in ("sparsity", "low", "high"):
            assert part[column].is_monotonic_decreasing
        assert part.radius.is_monotonic_increasing


def test_larger_weights_are_a_smaller_tolerance(cells):
    cell = cells[0]
    scaling = theory.scaling_frame([cell], [3]).iloc[0]
    other = formula_limit(cell.limit.spectrum, frames.fine_distance(cell.record), cell.record["epsilon"] / 9)
    assert scaling.sparsity == pytest.approx(other.sparsity, abs=1e-4)
    assert (scaling.low, scaling.high) == pytest.approx(other.interval, abs=1e-4)


def test_factors_must_be_positive(cells):
    with pytest.raises(PruneLimitError, match="factors="):
        theory.scaling_frame(cells, [1, 0])


@given(spectra, st.floats(1e-3, 1e2), st.floats(1e-4, 1e2))
def test_the_trace_asks_for_at_least_what_the_spectrum_asks_for(values, radius, epsilon):
    mean = np.abs(values).mean()
    load = radius**2 * mean / (2 * epsilon)
    needed = float(effective_dimension(np.array(values), 2 * epsilon / radius**2)) / len(values)
    assert needed <= load / (1 + load) * (1 + 1e-12)


@given(spectra, st.floats(1e-4, 1e2), st.integers(0, 2**20))
def test_the_limit_from_the_trace_never_exceeds_the_formulas(values, epsilon, seed):
    weights = np.sort(np.abs(np.random.default_rng(seed).standard_normal(len(values))))
    distance = np.sqrt(np.r_[0.0, np.cumsum(weights**2)])
    array = np.array(values)
    formula = solve_limit(
        distance,
        lambda r: removable_fraction(lambda mu: effective_dimension(array, mu), r, epsilon, len(values)) + 1e-12,
    )
    assert theory.trace_limit(distance, float(np.abs(array).mean()), epsilon) <= formula


def test_the_trace_is_enough_for_a_flat_spectrum_and_loses_more_the_more_unequal():
    table = theory.bound_limits(quadratic.family_wells(80, 0.02)).set_index("name")
    names = quadratic.FAMILIES
    assert table.lost[names["flat"]] == 0
    assert (table.lost.drop(names["flat"]) > 0.05).all()
    assert table.bound.nunique() == 1  # the same trace and the same weights
    assert table.lost[names["null"]] > table.lost[names["loguniform"]]
    assert table["holds_50%"][names["flat"]] == pytest.approx(0.5)


def test_the_curves_cross_the_diagonal_at_the_limits():
    wells = quadratic.family_wells(80, 0.02)
    curves, limits = theory.bound_curves(wells, points=81), theory.bound_limits(wells)
    for _, row in limits.iterrows():
        part = curves[curves.name == row["name"]]
        assert (part.bound <= part.formula + 1e-12).all()
        for column in ("formula", "bound"):
            assert part.sparsity[part[column] >= part.sparsity].max() == pytest.approx(row[column])


@pytest.fixture(scope="module")
def known():
    """A dense indefinite matrix with a few outliers, and its eigenvalues."""
    values = np.r_[50.0, -20.0, 10.0, np.linspace(-1, 2, 297)]
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    return torch.tensor(basis @ np.diag(values) @ basis.T), values


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_holds_the_trace(known, matrix_operator, seed):
    matrix, values = known
    value, low, high = theory.absolute_trace(spectrum(matrix_operator(matrix), steps=40, probes=4, seed=seed))
    assert low <= value <= high
    assert low <= np.abs(values).sum() <= high
    assert high - low < 2 * np.abs(values).sum()


def test_with_all_the_moments_the_trace_is_the_probes_own(known, matrix_operator):
    matrix, values = known
    found = spectrum(matrix_operator(torch.diag(torch.full((50,), 3.0, dtype=torch.float64))), steps=5, probes=1)
    assert theory.absolute_trace(found) == pytest.approx((150, 150, 150))
    many = spectrum(matrix_operator(matrix), steps=30, probes=64)
    assert theory.absolute_trace(many)[0] == pytest.approx(np.abs(values).sum(), rel=0.1)  # three deviations


def test_the_trace_sits_where_the_eigenvalues_say(matrix_operator):
    values = np.logspace(0, -3, 200) * np.where(np.arange(200) % 5, 1, -1)
    estimated = theory.concentration(spectrum(matrix_operator(torch.diag(torch.tensor(values))), steps=60, probes=64))
    exact = theory.exact_concentration(values)
    assert estimated.eigenvalues.iloc[-1] == pytest.approx(1)
    for share in (0.3, 0.5, 0.9):
        assert theory.holders(estimated, share) == pytest.approx(theory.holders(exact, share), rel=0.15)


def test_known_zeros_hold_nothing(matrix_operator):
    diagonal = torch.cat([torch.full((60,), 2.0), torch.zeros(40)]).double()
    found = spectrum(matrix_operator(torch.diag(diagonal)), steps=10, probes=1, seed=1)
    assert found.nullity == 40
    points = theory.concentration(found)
    assert points.eigenvalues.iloc[-1] == pytest.approx(0.6)
    assert theory.holders(points, 0.5) == pytest.approx(0.3)
    assert theory.absolute_trace(found)[0] == pytest.approx(120)


def test_holders_by_hand():
    points = theory.exact_concentration(np.array([1.0, -6.0, 3.0, 0.0]))
    assert points.trace.tolist() == pytest.approx([0.6, 0.9, 1, 1])
    assert theory.holders(points, 0.6) == pytest.approx(0.25)
    assert theory.holders(points, 0.75) == pytest.approx(0.375)


def test_recorded_limits_from_the_trace_lie_below_the_formulas(cells):
    table = theory.trace_frame(cells)
    assert table.formula.tolist() == [cell.limit.sparsity for cell in cells]
    assert (table.bound <= table.formula).all()
    assert table.bound.between(table.bound_low, table.bound_high).all()
    assert table.trace.between(table.trace_low, table.trace_high).all()
    assert (table.granted >= table.needed).all()
    assert (table["holds_50%"] < table["holds_90%"]).all()
    held = theory.concentration_frame(cells)
    assert set(zip(held.title, held.seed, strict=True)) == {(cell.title, cell.seed) for cell in cells}
    assert isinstance(held, pd.DataFrame)
