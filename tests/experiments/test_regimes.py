"""Cells of the three-regime grids: from specs to records and frames."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import regime_frames, regimes
from prunelimit.experiments.regime_frames import regime_frame, regime_means, regime_missing, regime_origin
from prunelimit.experiments.regime_grids import GRIDS, GridSettings, find_grid
from prunelimit.experiments.regime_specs import RegimeSpec
from prunelimit.experiments.regimes import run_regimes, train_parents
from prunelimit.experiments.store import record_path
from prunelimit.landscape import linear_mode_connectivity, output_similarity, prune_parent
from prunelimit.training import TrainSpec, evaluate, fit, initial_network, train

BASE = TrainSpec(
    dataset="digits", model="fc3", epochs=4, batch_size=64, lr=0.1, schedule="step", milestones=(2, 3), train_size=256
)
RETRAIN = dataclasses.replace(BASE, epochs=3)


def cell(epochs: int = 4, density: float = 0.2, seed: int = 0, **settings: Any) -> RegimeSpec:
    return RegimeSpec(
        train=dataclasses.replace(BASE, epochs=epochs, seed=seed), density=density, retrain=RETRAIN, **settings
    )


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PRUNELIMIT_CACHE", str(tmp_path / "cache"))


def test_a_record_is_what_each_step_gives_alone() -> None:
    spec = cell(children=3, last=2)
    ((found, record),) = run_regimes([spec], progress=False)
    assert found == spec
    dataset = load_dataset("digits")
    data, test = dataset.on_device("train", size=256), dataset.on_device("test")
    parent = train(spec.train, progress=False).model
    masks = prune_parent(parent, 0.2)
    children, errors = [], []
    for number in range(3):
        child = initial_network(RETRAIN, dataset)
        child.load_state_dict(parent.state_dict())
        history = fit(child, data, spec.child(number), masks=masks, test=test, test_every=1, progress=False)
        children.append(child)
        errors.append(np.mean([1 - epoch["test_accuracy"] for epoch in history[-2:]]))
    assert [c["test_error"] for c in record["children"]] == pytest.approx(errors, abs=1e-6)
    assert [c["train_loss"] for c in record["children"]] == pytest.approx(
        [evaluate(child, data)[0] for child in children], rel=1e-4
    )
    assert [pair["children"] for pair in record["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    for pair in record["pairs"]:
        first, second = (children[i] for i in pair["children"])
        assert pair["lmc"] == pytest.approx(linear_mode_connectivity(first, second, data).lmc, abs=1e-6)
        assert pair["cka"] == pytest.approx(output_similarity(first, second, data), rel=1e-4)
    assert record["parent"]["train_loss"] == pytest.approx(evaluate(parent, data)[0], rel=1e-6)
    assert (record["kept"], record["total"]) == (int(0.2 * 2688 + 1e-9), 2688)


def test_children_differ_in_the_order_of_their_data_only() -> None:
    seeds = {spec.seed for seed in range(3) for spec in map(cell(seed=seed).child, range(2))}
    assert len(seeds | {0, 1, 2}) == 9
    assert {dataclasses.replace(cell().child(i), seed=0) for i in range(3)} == {RETRAIN}


def test_records_are_found_again_and_nothing_is_left_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [cell(), cell(density=0.5)]
    first = dict(run_regimes(specs, progress=False))
    assert not list((tmp_path / "cache" / "regimes").iterdir())
    monkeypatch.setattr(regimes, "train_groups", None)
    assert dict(run_regimes(specs, progress=False)).keys() == first.keys()
    assert record_path("regimes", specs[0]).is_file()


def test_what_a_killed_process_left_beside_its_record_is_removed(tmp_path: Path) -> None:
    list(run_regimes([cell()], progress=False))
    left = tmp_path / "cache" / "regimes" / cell().hash / "child-0"
    left.mkdir(parents=True)
    list(run_regimes([cell()], progress=False))
    assert not left.parent.exists()


def test_parents_share_their_first_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    plain = regimes.train_groups

    def counting(specs: list[TrainSpec], **options: Any) -> Any:
        from prunelimit.checkpoints import load_checkpoint
        from prunelimit.files import cache_folder

        for spec in specs:
            begun = load_checkpoint(cache_folder() / "checkpoints" / spec.hash)
            trained.append(spec.epochs - (len(begun[1]["history"]) if begun else 0))
        return plain(specs, **options)

    monkeypatch.setattr(regimes, "train_groups", counting)
    specs = [cell(epochs, seed=seed).train for epochs in (4, 1, 3) for seed in (0, 1)]
    found = train_parents(specs, progress=False)
    assert sorted(trained) == [1, 1, 1, 1, 2, 2]
    monkeypatch.undo()
    for spec in specs:
        alone = initial_network(spec, load_dataset("digits"))
        fit(alone, load_dataset("digits").on_device("train", size=256), spec, progress=False)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found[spec].model.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_passed_deadline_leaves_cells_for_the_next_call() -> None:
    assert list(run_regimes([cell()], deadline=time.monotonic() - 1, progress=False)) == []
    assert len(list(run_regimes([cell()], progress=False))) == 1


def test_worker_processes_give_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Residual networks are not trained many at once, so that each cell is a task of its own.
    small = {"model": "preresnet8-quick", "train_size": 64, "epochs": 1, "milestones": ()}
    train_spec = dataclasses.replace(BASE, **small)
    specs = [
        RegimeSpec(train=dataclasses.replace(train_spec, epochs=e), density=0.5, retrain=train_spec) for e in (1, 2)
    ]
    alone = dict(run_regimes(specs, progress=False))
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "others"))
    monkeypatch.setenv("PRUNELIMIT_CACHE", str(tmp_path / "other-cache"))
    beside = dict(run_regimes(specs, workers=2, progress=False))
    assert beside.keys() == alone.keys()
    for spec in specs:
        assert beside[spec]["pairs"] == alone[spec]["pairs"]
        assert beside[spec]["children"] == alone[spec]["children"]


def test_networks_that_say_the_same_of_every_image_have_no_similarity() -> None:
    ((_, record),) = run_regimes([cell(density=1e-9)], progress=False)
    assert record["kept"] == 0
    assert record["pairs"][0]["cka"] is None
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "^density=0.0 must lie in"),
        ({"density": 1.2}, "^density=1.2 must lie in"),
        ({"distribution": "even"}, "^distribution='even' is unknown"),
        ({"children": 1}, "^children=1"),
        ({"last": 0}, "last=0"),
    ],
)
def test_cells_that_cannot_be_measured_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        cell(**settings)


def test_workers_must_be_positive() -> None:
    with pytest.raises(PruneLimitError, match=r"^workers=0"):
        next(run_regimes([cell()], workers=0))


def test_specs_survive_json() -> None:
    spec = cell(distribution="global")
    assert RegimeSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> str:
    settings = GridSettings("epochs", (1, 4), (0.1, 0.5), (0, 1), BASE, RETRAIN, 256)
    grid = dataclasses.replace(GRIDS["epochs"], name="small", profiles={"quick": settings})
    monkeypatch.setitem(GRIDS, "small", grid)
    return "small"


def test_a_frame_has_a_row_per_cell_and_says_where_it_comes_from(small_grid: str) -> None:
    assert regime_frame(small_grid).empty
    assert regime_missing(small_grid)["cells without a record"].tolist() == [8]
    frame = regime_frame(small_grid, "quick", run_missing=True)
    pd.testing.assert_frame_equal(frame, regime_frame(small_grid))
    assert list(frame.columns) == regime_frames.COLUMNS
    assert frame[["value", "density", "seed"]].to_numpy().tolist() == [
        [v, d, s] for v in (1, 4) for d in (0.1, 0.5) for s in (0, 1)
    ]
    assert np.allclose(frame["achieved"], frame["density"], atol=1 / 2688)
    assert regime_missing(small_grid).empty
    (origin,) = regime_origin(frame).to_dict("records")
    assert (origin["cells"], origin["command"]) == (8, "prunelimit regimes small --profile quick")


def test_the_first_cells_of_a_long_grid_do_not_replace_a_whole_one(
    small_grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = find_grid(small_grid).settings("quick")
    longer = dataclasses.replace(quick, values=(2, 3))
    profiles = {"quick": quick, "laptop": longer}
    monkeypatch.setitem(GRIDS, small_grid, dataclasses.replace(GRIDS[small_grid], profiles=profiles))
    cells = [longer.spec(*cell) for cell in longer.cells()]
    assert len(list(run_regimes(cells[:3], progress=False))) == 3
    assert set(regime_frame(small_grid).profile) == {"laptop"}  # better than none
    regime_frame(small_grid, "quick", run_missing=True)
    assert set(regime_frame(small_grid).profile) == {"quick"}
    assert len(list(run_regimes(cells[3:4], progress=False))) == 1
    assert set(regime_frame(small_grid).profile) == {"laptop"}


def test_only_the_most_faithful_profile_runs_if_cells_are_missing(
    small_grid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = find_grid(small_grid).settings("quick")
    profiles = {"quick": quick, "laptop": dataclasses.replace(quick, values=(2, 3))}
    monkeypatch.setitem(GRIDS, small_grid, dataclasses.replace(GRIDS[small_grid], profiles=profiles))
    assert set(regime_frame(small_grid, run_missing=True).profile) == {"laptop"}
    assert regime_missing(small_grid).profile.tolist() == ["quick"]


def test_means_average_over_seeds_and_normalise_by_density(small_grid: str) -> None:
    frame = regime_frame(small_grid, "quick", run_missing=True)
    means = regime_means(frame)
    assert means["seeds"].tolist() == [2] * 4
    for row in means.itertuples():
        own = frame[(frame["value"] == row.value) & (frame["density"] == row.density)]
        assert row.error == pytest.approx(own["error"].mean())
        assert row.lmc == pytest.approx(own["lmc"].mean())
        column = means[means["density"] == row.density]["error"]
        assert row.normalised_error == pytest.approx(row.error - column.min())


def test_batch_sizes_keep_the_number_of_iterations() -> None:
    for profile, images in (("quick", 1437), ("paper", 50_000)):
        settings = find_grid("batch-size").settings(profile)
        assert settings.images == images
        base = settings.base.epochs * images / settings.base.batch_size
        for value in settings.values:
            spec = settings.parent(value, 0)
            iterations = spec.epochs * images / spec.batch_size
            assert abs(iterations - base) <= images / spec.batch_size / 2 + 1e-9
            assert all(0 < m < spec.epochs for m in spec.milestones)


def test_the_published_batch_sizes_take_62400_iterations() -> None:
    spec = find_grid("batch-size").settings("paper").parent(128, 0)
    assert spec.epochs * 50_000 / 128 == pytest.approx(62_400, rel=0.002)


@pytest.mark.parametrize("name", GRIDS)
def test_every_profile_has_valid_cells_that_differ(name: str) -> None:
    for settings in GRIDS[name].profiles.values():
        cells = list(settings.cells())
        assert len({settings.spec(*one).hash for one in cells}) == len(cells)
        assert sorted(settings.by_worth()) == sorted(cells)
        assert list(settings.values) == sorted(settings.values)
        assert list(settings.densities) == sorted(settings.densities)


def test_the_quick_grid_is_as_large_as_promised() -> None:
    for grid in GRIDS.values():
        settings = grid.settings("quick")
        assert len(settings.values) >= 6
        assert len(settings.densities) >= 6
        assert len(settings.seeds) >= 2
        assert settings.spec(settings.values[0], 0.5, 0).children >= 2


def test_the_most_valuable_cells_of_the_paper_come_first() -> None:
    order = find_grid("epochs").settings("paper").by_worth()
    first = order[: 5 * 5]
    assert {v for v, _, _ in first} == {10, 40, 80, 120, 160}
    assert max(d for _, d, _ in first) <= 0.1
    assert {s for _, _, s in order[: len(order) // 3]} == {0}


def test_unknown_names_are_told() -> None:
    with pytest.raises(PruneLimitError, match=r"^grid='epoch' is unknown"):
        find_grid("epoch")
    with pytest.raises(PruneLimitError, match=r"^profile='laptop' is not defined for rho"):
        find_grid("rho").settings("laptop")
    with pytest.raises(PruneLimitError, match=r"^profile='quik' is unknown"):
        regime_frame("rho", "quik")


def test_a_grid_of_another_network_has_records_of_its_own(small_grid: str) -> None:
    settings = find_grid(small_grid).settings("quick")
    other = settings.varied("mlpnet-quick", "global")
    assert {spec.model for spec in (other.base, other.retrain)} == {"mlpnet-quick"}
    frame = regime_frame(small_grid, "quick", network="mlpnet-quick", distribution="global", run_missing=True)
    assert set(frame["network"]) == {"mlpnet-quick"}
    assert set(frame["distribution"]) == {"global"}
    assert regime_frame(small_grid).empty
    assert regime_origin(frame)["command"].tolist() == [
        "prunelimit regimes small --profile quick --network mlpnet-quick --distribution global"
    ]
    with pytest.raises(PruneLimitError, match=r"^network='vgg17' is unknown"):
        settings.varied("vgg17")
