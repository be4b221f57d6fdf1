"""Curves of the limit against the magnitude pass through the limits that are solved point by point."""

import numpy as np
import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import frames, magnitude_frames
from prunelimit.experiments.store import repository
from prunelimit.experiments.theory_frames import scaling_frame
from prunelimit.limit import solve_limit


@pytest.fixture(scope="module")
def cells():
    """The recorded limits of the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
        return frames.load_cells(["fc5-cifar10", "resnet20-cifar10"], "quick", (0, 1))


def test_normal_distances_are_those_of_a_normal_sample():
    sample = np.sort(np.abs(np.random.default_rng(0).standard_normal(400_000)))
    exact = np.sqrt(np.r_[0, np.cumsum(sample**2)])
    found = magnitude_frames.normal_distance(float(exact[-1]))
    shares = np.array([0.1, 0.5, 0.9, 0.99, 1])
    read = np.interp(shares, np.linspace(0, 1, len(found)), found)
    np.testing.assert_allclose(read, exact[(shares * 400_000).astype(int)], rtol=0.01)
    assert (np.diff(found) >= 0).all()


def test_the_whole_curve_is_that_of_solving_point_by_point():
    distance = np.linspace(0, 1, 20_001) ** 2 * 3

    def side(radius):
        return 1 / (1 + radius**2)

    factors = np.array([0.05, 0.3, 1, 4, 30])
    wanted = [solve_limit(factor * distance, side) for factor in factors]
    np.testing.assert_allclose(magnitude_frames.scaled_limits(distance, side, factors), wanted, atol=2e-4)
    with pytest.raises(PruneLimitError, match="factors"):
        magnitude_frames.scaled_limits(distance, side, np.array([0.0, 1.0]))


def test_curves_pass_through_the_networks_and_through_solved_limits(cells):
    curves = magnitude_frames.magnitude_frame(cells, reach=4)
    own = curves[curves.factor == 1]
    np.testing.assert_allclose(own.sparsity, [cell.limit.sparsity for cell in cells], atol=3e-4)
    np.testing.assert_allclose(own[["low", "high"]], [cell.limit.interval for cell in cells], atol=3e-4)
    ends = curves[(curves.seed == 0) & curves.factor.isin([curves.factor.min(), curves.factor.max()])]
    solved = scaling_frame([cell for cell in cells if cell.seed == 0], [0.25, 4])
    np.testing.assert_allclose(ends.sparsity, solved.sparsity, atol=3e-4)
    assert (curves.low <= curves.sparsity).all()
    assert (curves.sparsity <= curves.high).all()
    with pytest.raises(PruneLimitError, match="reach"):
        magnitude_frames.magnitude_frame(cells, reach=1)


def test_shape_is_apart_from_size(cells):
    curves = magnitude_frames.magnitude_frame(cells, reach=2)
    shape = magnitude_frames.shape_frame(cells, curves)
    assert shape.seed.tolist() == [cell.seed for cell in cells]
    np.testing.assert_allclose(shape.gain, shape.formula - shape.normal)
    np.testing.assert_allclose(shape.magnitude**2 / shape.rms**2, shape.effective)
    assert (shape.effective < 2 / np.pi).all()  # that of normal weights
