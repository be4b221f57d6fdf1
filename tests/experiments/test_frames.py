"""Tables say what the records say."""

import numpy as np
import pandas as pd
import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import frames
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.store import repository


@pytest.fixture
def recorded(monkeypatch):
    """The records of the checkout."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))


def test_every_quick_cell_is_recorded(recorded):
    cells = frames.load_cells(profile="quick")
    assert [(c.task.name, c.seed) for c in cells] == [(name, seed) for name in TASKS for seed in (0, 1, 2)]


def test_limits_are_fractions_in_order(recorded):
    limits = frames.limits_frame(frames.load_cells(profile="quick"))
    assert limits.formula.between(limits.formula_low, limits.formula_high).all()
    assert (limits.lower <= limits.formula).all()
    assert (limits.formula <= limits.upper).all()
    columns = ["formula", "directional", "measured", "accuracy", "fine_tuned"]
    assert ((limits[columns] > 0) & (limits[columns] < 1)).all(axis=None)


def test_the_interval_holds_the_dense_truth_where_there_is_one(recorded):
    limits = frames.limits_frame(frames.load_cells(["fc5-cifar10", "fc12-cifar10"], "quick"))
    assert limits.exact.notna().all()
    assert limits.exact.between(limits.formula_low, limits.formula_high).all()


def test_best_prefers_the_more_faithful_profile(recorded):
    best = frames.load_cells("fc5-cifar10", "best")
    assert best
    quick = frames.load_cells("fc5-cifar10", "quick")
    if any(cell.profile != "quick" for cell in best):
        assert all(cell.profile in ("laptop", "paper") for cell in best)
    assert {c.spec.hash for c in frames.beside("fc5-cifar10", "quick", [0, 1, 2])} >= {c.spec.hash for c in quick}


def test_the_origin_names_every_commit(recorded):
    cells = frames.load_cells("fc12-cifar10", "quick")
    commits = [cell.record["provenance"]["commit"][:10] for cell in cells]
    assert len(set(commits)) > 1
    row = frames.origin(cells).iloc[0]
    assert row.commit == ", ".join(dict.fromkeys(commits))
    assert (row.seeds, row.device, row.command.split()[-1]) == ("0, 1, 2", "cpu", "3")


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.5),
        ([[0.4, 1.0]], 0.5),  # the cut was sparser
        ([[0.6, 1.05], [0.7, 1.1], [0.8, 1.2]], 0.7),
        ([[0.6, 1.2], [0.7, 0.9]], 0.7),  # training does not fall steadily
    ],
)
def test_the_sparsest_network_seen_is_within_epsilon_of_the_dense_one(points, expected):
    record = {"dense": {"train_loss": 1.0}, "epsilon": 0.1, "measured": {"sparsity": 0.5}}
    assert frames.sparsest_seen(record) == 0.5
    assert frames.sparsest_seen(record | {"fine_tuned": {"points": points}}) == expected


def test_the_control_is_told_in_units_of_epsilon(recorded):
    cells = frames.load_cells("resnet18-tinyimagenet", "quick")
    limits = frames.limits_frame(cells)
    for cell, moved in zip(cells, limits.control, strict=True):
        loss = cell.record["dense"]["train_loss"] + moved * cell.record["epsilon"]
        assert loss == pytest.approx(cell.record["fine_tuned"]["reference_loss"])


def test_missing_cells_name_the_command_that_fills_them(recorded):
    missing = frames.missing_cells("resnet20-cifar10")
    row = missing[missing.profile == "paper"].iloc[0]
    assert row.command == "prunelimit run resnet20-cifar10 --profile paper --seeds 3 --missing"
    assert row["seeds without a record"] == "0, 1, 2"


def test_mean_and_spread_by_hand():
    frame = pd.DataFrame({"title": ["a", "a", "b"], "profile": "quick", "x": [0.1, 0.3, np.nan]})
    table = frames.mean_and_spread(frame, ["x"])
    assert table.x.tolist() == ["20.0 ± 14.1", "—"]
    assert table.seeds.tolist() == [2, 1]


def test_an_unknown_profile_is_refused():
    with pytest.raises(PruneLimitError, match="Did you mean 'quick'"):
        frames.load_cells(profile="quik")
