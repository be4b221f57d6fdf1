"""The comparison of training at once with training one at a time runs, and its record becomes tables and a figure."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunelimit.experiments import benchmark_frames
from prunelimit.experiments.store import results_folder
from prunelimit.figures.benchmarks import plot_many


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The folder is not a part of the package: it is found next to it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks.many")


@pytest.fixture
def recorded(many: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    record = importlib.import_module("benchmarks.records").Record("many", results_folder() / "benchmarks")
    sizes = dataclasses.replace(many.QUICK, images=64, drift={"fc5-quick": (1,)})
    many.compare(record, sizes=sizes, repeats=1)


@pytest.mark.usefixtures("recorded")
def test_record_becomes_tables_and_a_figure(many: ModuleType) -> None:
    table = benchmark_frames.many_frame()
    assert table["at once"].tolist() == [1, 3, 1, 3, 3]
    assert table.network.tolist()[-2:] == ["resnet8-quick", "MLP 784-20-10-10"]
    ratio = table["one at a time, s"] / table["stacked, s"]
    assert ratio.tolist() == pytest.approx(table["times faster"].tolist())
    resnet = table[table.network == "resnet8-quick"]
    assert (resnet["vmap, s"] == resnet["stacked, s"]).all()
    figure = plot_many(table)
    shown = [list(line.get_ydata()) for line in figure.axes[0].lines[:2]]
    assert shown == [table["times faster"][:2].tolist(), table["times faster"][2:4].tolist()]
    assert figure.axes[1].lines[0].get_xdata().tolist() == table.parameters[-1:].tolist()
    drift = benchmark_frames.drift_frame().set_index("precision")
    assert 0 < drift.loc["float64", "last bit changed"] < 1e-12
    assert drift.loc["float64", "at once"] < 1e-12
    assert drift.loc["float32", "at once"] < 1e-4
    origin = benchmark_frames.benchmark_origin().set_index("comparison")
    assert origin.loc["many", "processor"] != "not recorded"


def test_nothing_recorded_is_empty_and_says_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    assert benchmark_frames.many_frame().empty
    assert benchmark_frames.drift_frame().empty
    origin = benchmark_frames.benchmark_origin().set_index("comparison")
    assert origin.loc["many", "command"] == "python -m benchmarks many"


def test_nudged_weights_differ_in_their_last_bit(many: ModuleType) -> None:
    model = torch.nn.Linear(40, 30)
    before = model.weight.clone()
    other = many._nudged(model)
    assert torch.equal(model.weight, before)
    change = ((other.weight - before) / before).abs()
    assert 0 < change.max() <= 2 * torch.finfo(torch.float32).eps
