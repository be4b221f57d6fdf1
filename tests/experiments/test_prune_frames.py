"""From records of pruners to tables: nothing is shown that is not recorded, and what is missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import prune_frames, rounds_frames
from prunelimit.experiments.comparisons import COMPARISONS, find_comparisons
from prunelimit.experiments.prune import EXPERIMENT
from prunelimit.experiments.store import save_record
from prunelimit.figures.pruners import describe_pruners, describe_rounds, plot_pruners, plot_rounds
from prunelimit.models import build_model
from prunelimit.pruning.iterative import IterativeSpec, round_counts
from prunelimit.pruning.methods import METHODS
from prunelimit.pruning.smart_ratio import SmartRatioSpec, kept_per_layer

NAME = "fc5-cifar10"


@pytest.fixture
def some_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int, float], float]:
    """Records of two methods and two seeds, with accuracies that are known."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    known = {}
    for seed in (0, 1):
        for entry, spec in COMPARISONS[NAME].rows("quick", seed):
            if entry.method not in {"lomp", "rare-gems"}:
                continue
            networks = []
            for place, sparsity in enumerate(spec.sparsities):
                accuracy = 0.9 - 0.1 * place - 0.01 * seed + (0.02 if entry.title == "Rare Gems" else 0)
                known[entry.title, seed, sparsity] = accuracy
                networks.append(_network(sparsity, accuracy, 0 if entry.method == "lomp" else 300))
            save_record(EXPERIMENT, spec, _record(networks))
    return known


def _network(sparsity: float, accuracy: float, epochs: int) -> dict[str, Any]:
    losses = {"train_loss": 0.1, "train_accuracy": 1.0, "test_loss": 0.5}
    return losses | {
        "sparsity": sparsity, "test_accuracy": accuracy, "kept": 10, "layers": {}, "epochs": epochs, "seconds": 1.0
    }  # fmt: skip


def _record(networks: list[dict[str, Any]]) -> dict[str, Any]:
    source = {"commit": "0123456789abcdef", "device": "cpu", "torch": "2"}
    return {
        "total": 100, "epochs": 150, "dense": {"test_accuracy": 0.95}, "provenance": source, "networks": networks
    }  # fmt: skip


def test_the_frame_has_every_recorded_network_and_no_other(some_records: dict[tuple[str, int, float], float]) -> None:
    frame = prune_frames.prune_frame(NAME)
    assert {(r.row, r.seed, r.sparsity): r.test_accuracy for r in frame.itertuples()} == some_records
    assert set(frame.profile) == {"quick"}


def test_the_table_averages_over_seeds(some_records: dict[tuple[str, int, float], float]) -> None:
    table = prune_frames.prune_table(prune_frames.prune_frame(NAME)).set_index("method")
    assert list(table.index) == ["LOMP", "Rare Gems", "Rare Gems, no L2"]
    assert table.loc["LOMP", "0.5"] == "89.5 ± 0.7"
    assert table.loc["LOMP", "seeds"] == 2
    assert table.loc["LOMP", "epochs"] == "150"  # the training of the network that it cuts
    assert table.loc["Rare Gems", "epochs"] == "300"  # its own: the dense network is for comparison only


def test_the_gain_is_paired_by_seed(some_records: dict[tuple[str, int, float], float]) -> None:
    gain = prune_frames.paired_gain(prune_frames.prune_frame(NAME), "Rare Gems", "Rare Gems, no L2")
    assert set(gain["gain (points)"]) == {"2.0"}
    assert set(gain["interval"]) == {"2.0 to 2.0"}
    assert set(gain["pairs"]) == {2}


def test_what_is_missing_is_named(some_records: dict[tuple[str, int, float], float]) -> None:
    missing = prune_frames.missing_networks(NAME, seeds=(0, 1)).set_index("profile")
    rows = len(COMPARISONS[NAME].rows("quick", 0))
    assert missing.loc["quick", "rows without a record"] == f"{2 * rows - 6} of {2 * rows}"
    assert missing.loc["quick", "command"] == f"prunelimit prune {NAME} --profile quick --seeds 2"
    origin = prune_frames.prune_origin(prune_frames.prune_frame(NAME))
    assert list(origin.commit) == ["0123456789"]


def test_the_figure_shows_every_method(some_records: dict[tuple[str, int, float], float]) -> None:
    frame = prune_frames.prune_frame(NAME)
    title = frame.title.iloc[0]
    axis = plot_pruners(frame, {title: 0.9}).axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert set(labels) == {"LOMP", "Rare Gems", "Rare Gems, no L2", "predicted limit of LOMP"}
    left, right = axis.get_xlim()
    assert left > right  # sparse networks on the right
    assert "LOMP 89.5% to 49.5%" in describe_pruners(frame)


def test_the_legend_has_the_methods_of_every_panel(some_records: dict[tuple[str, int, float], float]) -> None:
    frame = prune_frames.prune_frame(NAME)
    first, second = frame[frame.row == "LOMP"], frame[frame.row == "Rare Gems"].assign(title="another network")
    (legend,) = plot_pruners(pd.concat([first, second]), {}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["LOMP", "Rare Gems"]


def test_tables_without_records_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    assert prune_frames.prune_table(prune_frames.prune_frame()).empty
    assert prune_frames.prune_origin(prune_frames.prune_frame()).empty
    assert rounds_frames.rounds_frame().empty
    assert rounds_frames.rounds_table(rounds_frames.rounds_frame()).empty
    assert len(rounds_frames.missing_rounds(NAME)) == len(COMPARISONS[NAME].rounds)


def test_every_comparison_belongs_to_a_table_and_has_known_methods() -> None:
    assert {one.table for one in COMPARISONS.values()} == {"T3", "T4", "T5", "T9"}
    for one in COMPARISONS.values():
        for profile, grid in one.profiles.items():
            titles = [entry.title for entry in grid.entries]
            assert len(set(titles)) == len(titles)
            assert all(entry.method in METHODS for entry in grid.entries)
            hashes = {spec.hash for seed in (0, 1, 2) for spec in one.specs(profile, seed)}
            assert len(hashes) == 3 * len(grid.entries)
            for entry, spec in one.rows(profile, 1):
                assert spec.train.seed == spec.settings.seed == entry.train.seed == 1


def test_rows_without_a_record_beside_another_are_named(some_records: dict[tuple[str, int, float], float]) -> None:
    absent = prune_frames.absent_rows(prune_frames.prune_frame(NAME))
    assert absent == ["layer-wise magnitude", "random", "IMP", "Smart-Ratio"]
    assert prune_frames.absent_rows(prune_frames.prune_frame(NAME), "IMP") == []


@pytest.mark.parametrize("name", list(COMPARISONS))
def test_every_sparsity_of_a_grid_can_be_reached(name: str) -> None:
    for profile, grid in COMPARISONS[name].profiles.items():
        for entry in grid.entries:
            if isinstance(entry.settings, IterativeSpec):
                assert all(round_counts(10_000_000, entry.settings, s)[-1] for s in grid.sparsities)
            if isinstance(entry.settings, SmartRatioSpec) and profile == "quick":
                model = build_model(entry.train.model, input_shape=(1, 8, 8), seed=0)
                for sparsity in grid.sparsities:
                    kept_per_layer(model, sparsity, entry.settings)


def test_an_unknown_comparison_is_named() -> None:
    with pytest.raises(PruneLimitError, match="comparison='fc6'"):
        find_comparisons("fc6")


def test_rank_correlation_and_share_of_what_is_left() -> None:
    rows = [
        {"title": "a", "seed": 0, "round": r, "sparsity": s, "formula": f, "measured": f, "low": f, "high": f}
        for r, s, f in ((0, 0.0, 0.5), (1, 0.5, 0.75), (2, 0.75, 0.875), (3, 0.875, 0.999))
    ]
    # The last network gives every image the same class: nearly all that is left could go, and it does not count.
    frame = pd.DataFrame(rows).assign(test_accuracy=[0.9, 0.9, 0.8, 0.1], alive=[True, True, True, False])
    table = rounds_frames.rounds_table(frame).set_index("limit")
    one = table.loc["formula"]
    assert (one["dense"], one["last round"], one["change (points)"]) == ("50.0", "87.5", "+37.5")
    assert one["rank correlation"] == "+1.00"
    assert (one["of what is left, dense"], one["of what is left, last"]) == ("50.0", "50.0")
    assert (one["test accuracy"], one["dead, left out"]) == ("90.0 to 80.0", "1 of 4")
    assert "87.5%" in describe_rounds(frame)
    assert max(plot_rounds(frame).axes[0].lines[0].get_ydata()) == 0.875
    assert not np.isnan(float(one["rank correlation"]))


def test_settings_are_told_for_the_rows_that_are_shown(some_records: dict[tuple[str, int, float], float]) -> None:
    table = prune_frames.settings_table(prune_frames.prune_frame(NAME)).set_index("method")
    assert list(table.index) == ["LOMP", "Rare Gems", "Rare Gems, no L2"]
    assert table.loc["LOMP", "settings"] == "none"
    assert "l1 0.001" in table.loc["LOMP", "dense network"]
    assert "train as the dense network" in table.loc["Rare Gems", "settings"]
    assert "l2_scores 0;" in table.loc["Rare Gems, no L2", "settings"]
