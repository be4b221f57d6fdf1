"""Frames of the weight distributions: densities add up, pairs are compared, tables name what is missing."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from prunelimit.experiments import (
    catalogue,
    distribution_frames,
    distributions,
    frames,
    magnitude_frames,
    variation_frames,
)
from prunelimit.experiments.specs import LimitSpec
from prunelimit.models import build_model
from prunelimit.training import TrainSpec

TRAIN = TrainSpec(dataset="digits", model="mlpnet-quick", epochs=2, batch_size=64, lr=0.02, l1=1e-3, train_size=300)
TASK = catalogue.Task("tiny", "Tiny", {"quick": LimitSpec(train=TRAIN), "laptop": LimitSpec(train=TRAIN, steps=8)})
OTHER = catalogue.Task("other", "Other", {"quick": LimitSpec(train=dataclasses.replace(TRAIN, model="fc3"))})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Recorded: two seeds of one task, one of the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(tmp_path_factory.mktemp("results")))
        for task, seeds in ((TASK, (0, 1)), (OTHER, (0,))):
            patch.setitem(catalogue.TASKS, task.name, task)
            spec = dataclasses.replace(
                distribution_frames.distributions_spec(task, "quick", seeds), bins=(5, 20), draws=10
            )
            patch.setattr(
                distribution_frames, "DistributionsSpec", lambda spec=spec, **kw: dataclasses.replace(spec, **kw)
            )
            distributions.run_distributions(spec, label={"task": task.name, "profile": "quick"}, progress=False)
        yield distribution_frames.load_distributions(["tiny", "other"], "quick", (0, 1, 2))


def test_the_record_with_most_seeds_is_found_once(found):
    assert [(weights.task.name, weights.spec.seeds) for weights in found] == [("tiny", (0, 1)), ("other", (0,))]
    assert found[0].title == "Tiny on digits (laptop)"  # both profiles train alike, and neither has a limit


def test_densities_add_up_to_one(found):
    density = distribution_frames.density_frame(found)
    lines = (
        density.groupby(["title", "state", "seed"]).density.sum()
        * distribution_frames.MERGED
        / distributions.PER_DECADE
    )
    assert len(lines) == 6
    np.testing.assert_allclose(lines, 1, atol=1e-9)
    assert distribution_frames.density_frame([]).empty


def test_counts_are_in_the_order_of_the_weights(found):
    weights = distributions.sorted_weights(build_model("mlpnet-quick", input_shape=(1, 8, 8), num_classes=10, seed=1))
    counts = found[0].counts("initial", 1)
    edges = distributions.magnitude_edges()
    np.testing.assert_array_equal(counts[:-1], np.histogram(weights, np.r_[-edges[::-1], edges])[0])


def test_the_cut_is_read_off_to_a_bin(found):
    record = found[0].record["networks"][0]
    for share, magnitude in record["statistics"]["quantiles"].items():
        read = distribution_frames.magnitude_below(found[0], 0, float(share))
        assert abs(np.log10(read / magnitude)) < 1.01 / distributions.PER_DECADE


def test_statistics_have_a_row_per_trained_network(found):
    table = distribution_frames.statistics_frame(found)
    assert table.seed.tolist() == [0, 1, 0]
    assert table.step.tolist() == pytest.approx([2e-5] * 3)
    assert table.limit.isna().all()
    assert (table.initial > table.mean_magnitude).all()


def test_seeds_are_averaged_and_dashes_stand_for_nothing(found):
    table = distribution_frames.statistics_frame(found)
    text = distribution_frames.over_seeds(table, {"rms": ("rms", "{:.4f}"), "limit": ("limit", "{:.1%}")})
    first = table[table.title == table.title[0]].rms
    assert text.seeds.tolist() == ["0, 1", "0"]
    assert text.rms[0] == f"{first.mean():.4f} ± {first.std(ddof=1):.4f}"
    assert "±" not in text.rms[1]
    assert text.limit.tolist() == ["—", "—"]


def test_variation_has_a_row_per_pair_and_rule(found):
    frame = variation_frames.variation_frame(found)
    assert len(frame) == 4 * 5 + 1 * 5
    np.testing.assert_allclose(frame.excess, frame.distance - frame.expected)
    table = variation_frames.variation_table(frame)
    assert table.compared.tolist() == ["two runs", "two initial networks", "trained and initial", "trained and initial"]
    assert table.pairs.tolist() == [1, 1, 2, 1]
    assert variation_frames.variation_table(frame, "equal mass", 5).bins.tolist() == ["5"] * 4
    bins = variation_frames.bins_table(frame)
    assert bins.columns.tolist() == ["network, data, profile", "bins of", "5 bins", "20 bins"]
    assert bins["bins of"].tolist() == ["equal width", "equal mass"]


def test_networks_are_compared_across_tasks(found):
    across = variation_frames.across_frame(found)
    assert across.pairs.tolist() == [1, 1]
    table = variation_frames.across_table(across)
    assert table.shape == (2, 3)
    one, other = found[0].counts("trained", 1), found[1].counts("trained", 0)
    assert across.distance[1] == pytest.approx(distributions.total_variation(one, other))
    assert table.iloc[0, 2].startswith(f"{100 * across.distance[1]:.1f} | ")
    assert table.iloc[1, 1] == ""


def test_without_records_tables_are_empty_and_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    none = distribution_frames.load_distributions()
    assert none == []
    assert frames.beside(None, "quick", (0, 1, 2), run_missing=False) == []
    for table in (
        distribution_frames.statistics_frame(none),
        magnitude_frames.magnitude_frame([]),
        magnitude_frames.shape_frame([], magnitude_frames.magnitude_frame([])),
        variation_frames.variation_table(variation_frames.variation_frame(none)),
        variation_frames.bins_table(variation_frames.variation_frame(none)),
        variation_frames.across_table(variation_frames.across_frame(none)),
        distribution_frames.distributions_origin(none),
    ):
        assert isinstance(table, pd.DataFrame)
        assert table.empty
        assert len(table.columns)
    missing = distribution_frames.missing_distributions("fc5-cifar10")
    assert missing.profile.tolist() == list(catalogue.TASKS["fc5-cifar10"].profiles)
    assert missing.command[0] == "prunelimit distributions fc5-cifar10 --profile quick --seeds 3"


def test_origin_names_seeds_and_command(found):
    origin = distribution_frames.distributions_origin(found)
    assert origin.seeds.tolist() == ["0, 1", "0"]
    assert origin.command[1] == "prunelimit distributions other --profile quick --seeds 1"


def test_the_cut_is_where_the_limit_says(found):
    keys = {"title": found[0].title, "seed": 1}
    curves = pd.DataFrame([keys | {"factor": 1.0, "sparsity": 0.75}, keys | {"factor": 2.0, "sparsity": 0.1}])
    row = distribution_frames.statistics_frame(found, curves).iloc[1]
    assert (row.limit, row.cut) == (0.75, distribution_frames.magnitude_below(found[0], 1, 0.75))
