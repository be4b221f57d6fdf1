"""What lies between two children, against the records of the same cells."""

import json
from pathlib import Path

import pytest

from prunelimit import figures
from prunelimit.experiments.path_frames import children_paths
from prunelimit.experiments.regime_grids import find_grid
from prunelimit.experiments.regimes import EXPERIMENT
from prunelimit.experiments.store import repository

CELLS = [(1, 0.8), (5, 0.8)]


@pytest.fixture(scope="module")
def paths():
    return children_paths(CELLS, points=11, curve_epochs=20, curve_lr=0.05, probes=8)


def test_the_straight_line_is_that_of_the_record(paths):
    settings = find_grid("epochs").settings("quick")
    for place, cell in enumerate(CELLS):
        name = f"{settings.spec(*cell, seed=0).hash}.json"
        record = json.loads((Path(repository()) / "results" / EXPERIMENT / name).read_text(encoding="utf-8"))
        row, pair = paths.cells.iloc[place], record["pairs"][0]
        line = paths.along[(paths.along.value == cell[0]) & (paths.along.curve == "straight")]
        # Another processor rounds differently, and training carries it along.
        assert row.lmc == pytest.approx(pair["lmc"], abs=0.03)
        assert line.error.to_list() == pytest.approx(pair["errors"], abs=0.03)
        assert row.cka == pytest.approx(pair["cka"], abs=0.02)


def test_both_curves_have_the_same_ends_and_training_lowers_the_bent_one(paths):
    for _, cell in paths.along.groupby("value"):
        straight, bent = (cell[cell.curve == name].error.to_numpy() for name in ("straight", "bent"))
        assert straight[[0, -1]] == pytest.approx(bent[[0, -1]], abs=1e-12)
    hot = paths.cells.iloc[0]
    assert hot.barrier_bent < hot.barrier - 0.02


def test_sharpness_is_by_the_weights_that_are_kept(paths):
    network = 64 * 64 * 3 + 10 * 64
    assert (paths.cells.dimension < network).all()
    assert (paths.cells.dimension > 0.7 * network).all()
    assert (paths.cells.top > 0).all()
    assert (paths.cells.trace > paths.cells.top).all()


def test_words_name_every_curve_and_the_highest_barrier(paths):
    said = figures.describe_paths(paths.along)
    assert said.count("straight line") == said.count("Bezier curve") == len(CELLS)
    assert f"{paths.cells.barrier.max():.1%}" in figures.describe_bending(paths.cells)


def test_a_panel_per_cell(paths):
    figure = figures.plot_paths(paths.along)
    assert len(figure.axes) == len(CELLS)
    assert all(len(axis.lines) == 2 for axis in figure.axes)
