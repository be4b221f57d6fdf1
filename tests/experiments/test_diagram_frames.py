"""Recorded grids become phase diagrams, with their gaps, and say where they are from."""

import numpy as np
import pandas as pd
import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import diagram_frames
from prunelimit.experiments.regime_frames import COLUMNS, MEASURES
from prunelimit.experiments.regime_grids import find_grid


def recorded(name, profile, missing=()):
    """Make up a frame of a grid; a value is told by the cell that it belongs to."""
    settings = find_grid(name).settings(profile)
    rows = [
        dict.fromkeys(MEASURES, 0.1)
        | {"grid": name, "profile": profile, "network": "net", "dataset": "data", "distribution": "uniform"}
        | {
            "value": value,
            "density": density,
            "seed": seed,
            "error": value + density + seed,
            "lmc": -density,
            "key": "k",
        }
        for value, density, seed in settings.cells()
        if (value, density) not in missing
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture
def records(monkeypatch):
    """The quick and the laptop grid over epochs are recorded, nothing else."""
    there = {("epochs", name): recorded("epochs", name) for name in ("quick", "laptop")}
    there["epochs", "best"] = there["epochs", "laptop"]

    def load(grid, profile="best", **_):
        return there.get((grid, profile), pd.DataFrame(columns=COLUMNS))

    monkeypatch.setattr(diagram_frames, "regime_frame", load)


def test_a_diagram_is_the_mean_over_seeds():
    diagram = diagram_frames.grid_diagram("epochs", recorded("epochs", "quick"))
    settings = find_grid("epochs").settings("quick")
    assert diagram.title == "net on data (quick)"
    over_layers = recorded("epochs", "quick").assign(distribution="global")
    assert diagram_frames.grid_diagram("epochs", over_layers).title == "net on data (quick), global pruning"
    assert (diagram.axis, diagram.hotter) == ("training epochs", -1)
    table = diagram.table("error")
    assert list(table.index) == sorted(settings.values)
    expected = np.add.outer(table.index.to_numpy(float), np.array(settings.densities)) + np.mean(settings.seeds)
    np.testing.assert_allclose(table, expected)


def test_cells_without_a_record_are_gaps():
    settings = find_grid("epochs").settings("quick")
    gap = settings.values[1], settings.densities[2]
    column = [(value, settings.densities[0]) for value in settings.values]
    diagram = diagram_frames.grid_diagram("epochs", recorded("epochs", "quick", [gap, *column]))
    table = diagram.table("lmc")
    assert table.shape == (len(settings.values), len(settings.densities))
    assert table.isna().to_numpy().sum() == 1 + len(column)
    assert np.isnan(table.loc[gap])
    assert diagram.classes().loc[gap] == ""


def test_a_grid_without_records_is_empty(records):
    ((name, frame),) = diagram_frames.load_frames(["rho"], ["best", "quick"])
    diagram = diagram_frames.grid_diagram(name, frame)
    assert diagram.frame.empty
    assert diagram.axis == find_grid("rho").title
    assert diagram_frames.corners_frame([diagram]).empty
    assert diagram_frames.diagrams_origin([(name, frame)]).empty


def test_profiles_stand_side_by_side_once(records):
    def found(*profiles):
        frames = diagram_frames.load_frames(["epochs"], profiles)
        return [(name, frame.profile.iloc[0]) for name, frame in frames]

    assert found("best") == [("epochs", "laptop")]
    assert found("best", "quick") == [("epochs", "laptop"), ("epochs", "quick")]
    assert found("best", "laptop") == [("epochs", "laptop")]
    assert len(diagram_frames.load_frames()) == 4
    with pytest.raises(PruneLimitError, match="profile"):
        diagram_frames.load_frames(["epochs"], ["fast"])
    with pytest.raises(PruneLimitError, match="grid"):
        diagram_frames.load_frames(["weather"])


def test_corners_are_the_ends_of_what_is_recorded():
    for name in ("epochs", "learning-rate"):
        settings = find_grid(name).settings("quick")
        lowest = [(settings.values[0], density) for density in settings.densities]
        frame = recorded(name, "quick", lowest)
        found = diagram_frames.corners_frame([diagram_frames.grid_diagram(name, frame)])
        assert found.corner.tolist() == ["hot, sparse", "cold, sparse", "hot, dense", "cold, dense"]
        assert found.density.tolist() == [settings.densities[k] for k in (0, 0, -1, -1)]
        ends = [settings.values[-1], settings.values[1]][:: 1 if name == "learning-rate" else -1]
        assert found.value.tolist() == 2 * ends
        np.testing.assert_allclose(found.error, found.value + found.density + np.mean(settings.seeds))


def test_seeds_that_agree_and_seeds_that_do_not():
    frame = recorded("epochs", "quick")
    same = diagram_frames.agreement_frame([("epochs", frame)]).iloc[0]
    assert (same.lmc, same.error, same.same) == (1, 1, 1)
    assert same.chance < 1
    assert same.seeds == 2
    turned = frame.assign(lmc=frame.lmc.where(frame.seed == 0, -0.9 - frame.lmc))
    assert diagram_frames.agreement_frame([("epochs", turned)]).iloc[0].lmc == pytest.approx(-1)
    # A cell that one of the two lacks does not count.
    gap = frame.drop(index=frame.index[0])
    assert diagram_frames.agreement_frame([("epochs", gap)]).iloc[0].same == 1
    assert diagram_frames.agreement_frame([("epochs", frame[frame.seed == 0]), ("rho", frame[:0])]).empty


def test_chance_is_that_of_shuffled_classes():
    frame = recorded("epochs", "quick")
    lmc = np.where(frame.seed == 0, np.where(frame.density < 0.1, -0.5, 0.0), -0.5)
    found = diagram_frames.agreement_frame([("epochs", frame.assign(lmc=lmc))]).iloc[0]
    low = np.mean([density < 0.1 for density in find_grid("epochs").settings("quick").densities])
    assert found.same == found.chance == pytest.approx(low)


def test_what_is_missing_has_its_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    table = diagram_frames.diagrams_missing(["epochs", "rho"])
    assert set(table.grid) == {"epochs", "rho"}
    assert "prunelimit regimes epochs --profile quick" in table.command.tolist()
    assert set(diagram_frames.diagrams_missing().grid) == {"epochs", "batch-size", "learning-rate", "rho"}


def test_ways_to_prune_are_compared_cell_by_cell_in_the_best_profile_that_has_both(monkeypatch):
    frames = {
        ("quick", "uniform"): recorded("epochs", "quick"),
        # Half a point better everywhere but at one density, where it is worse by one; one cell is not recorded.
        ("quick", "global"): recorded("epochs", "quick", missing=[(1, 0.08)]),
        ("laptop", "uniform"): recorded("epochs", "laptop"),
    }
    over_all = frames["quick", "global"]
    over_all["error"] += np.where(over_all.density == 0.02, 0.01, -0.005)

    def load(grid, profile, *, distribution):
        return frames.get((profile, distribution), pd.DataFrame(columns=COLUMNS))

    monkeypatch.setattr(diagram_frames, "regime_frame", load)
    ways = diagram_frames.pruning_frame("epochs").set_index("density")
    settings = find_grid("epochs").settings("quick")
    assert ways.index.to_list() == list(settings.densities)
    assert ways.gain.to_list() == pytest.approx([-0.01, *[0.005] * 5])
    full = len(settings.values) * len(settings.seeds)
    assert ways.cells.to_list() == [full, full, full - len(settings.seeds), full, full, full]
    assert ways.gain_error.to_list() == pytest.approx([0.0] * 6, abs=1e-12)
    assert ways.error_uniform[0.16] == pytest.approx(np.mean(settings.values) + 0.16 + np.mean(settings.seeds))
    assert diagram_frames.pruning_frame("epochs", "laptop").empty
