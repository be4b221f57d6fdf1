"""Figures of the weights draw the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest

from prunelimit.figures import distributions as drawn


@pytest.fixture
def density():
    magnitude = np.geomspace(1e-6, 1, 13)
    rows = [
        pd.DataFrame({"magnitude": magnitude, "density": np.exp(-(np.log(magnitude / peak) ** 2))}).assign(
            title="a", state=state, seed=seed
        )
        for state, peak in (("trained", 1e-4), ("initial", 0.1))
        for seed in (0, 1)
    ]
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def statistics():
    table = pd.DataFrame({"title": "a", "seed": [0, 1], "step": 1e-5, "cut": [0.01, 0.02], "median": [1e-4, 2e-4]})
    return table.assign(small=0.5, mean_magnitude=0.01, initial=0.1)


@pytest.fixture
def curves():
    factor = np.geomspace(0.1, 10, 21)
    factor[10] = 1
    rows = []
    for title, seed, size in (("a", 0, 0.01), ("a", 1, 0.02), ("b", 0, 0.1)):
        limit = 0.9 - 0.1 * np.log10(factor)
        columns = {"factor": factor, "magnitude": size * factor, "sparsity": limit, "low": limit - 0.02}
        keys = {"title": title, "task": title, "network": title, "profile": "quick", "seed": seed}
        rows.append(pd.DataFrame(columns | {"high": limit + 0.01, "normal": limit - 0.2}).assign(**keys))
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def variation():
    rows = [
        {"title": "a", "rule": rule, "kind": kind, "bins": bins, "distance": distance * scale, "expected": 0.01}
        for rule in ("equal width", "equal mass", "Freedman-Diaconis")
        for kind, distance in (("trained", 0.02), ("change", 0.5))
        for bins in (10, 100)
        for scale in (1.0, 1.5, 2.0)
    ]
    return pd.DataFrame(rows)


def test_every_network_has_a_row_and_says_what_is_missing(density, statistics, curves):
    figure = drawn.plot_weights(density, statistics, curves)
    assert len(figure.axes) == 4
    assert [axis.get_title(loc="left") for axis in figure.axes[::2]] == ["a", "b"]
    assert [text.get_text() for text in figure.axes[2].texts] == ["no record of the weights"]
    assert not figure.axes[3].texts


def test_seeds_and_marks_are_at_their_numbers(density, statistics, curves):
    left, right = drawn.plot_weights(density, statistics, curves).axes[:2]
    trained = [line for line in left.lines if line.get_label().startswith("trained")]
    assert len(trained) == 2
    first = density[(density.state == "trained") & (density.seed == 0)]
    np.testing.assert_allclose(trained[0].get_ydata(), first.density)
    places = {line.get_label(): line.get_xdata()[0] for line in left.lines}
    assert places["learning rate × γ in the last epoch"] == pytest.approx(1e-5)
    assert places["cut at the predicted limit: left of it is removed"] == pytest.approx(0.015)
    own = next(line for line in right.lines if line.get_label() == "the network itself, c = 1")
    np.testing.assert_allclose(own.get_xdata(), [0.01, 0.02])
    np.testing.assert_allclose(own.get_ydata(), [0.9, 0.9])


def test_all_networks_meet_in_one_figure(curves):
    left, right = drawn.plot_magnitudes(curves).axes
    assert sum(len(line.get_xdata()) == 21 for line in left.lines) == 3
    dots = np.concatenate([container.lines[0].get_xydata().astype(float) for container in right.containers])
    np.testing.assert_allclose(dots, [[0.7, 0.9]] * 3)


def test_distances_are_drawn_with_their_spread_and_without_difference(variation):
    figure = drawn.plot_variation(variation)
    assert [axis.get_xlabel() for axis in figure.axes] == ["bins of equal width", "bins of equal mass"]
    axis = figure.axes[0]
    middle = {c.get_label(): c.lines[0].get_ydata().astype(float) for c in axis.containers}
    np.testing.assert_allclose(middle["two runs"], [0.03, 0.03])
    bars = axis.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [0.5, 1.0])
    null = [line for line in axis.lines if line.get_label() == "two runs: without difference"]
    np.testing.assert_allclose(null[0].get_ydata(), [0.01, 0.01])


def test_words_carry_the_numbers(statistics, curves, variation):
    text = drawn.describe_weights(statistics, curves)
    assert "a: half of the magnitudes lie below 0.00015, 50% below 0.001" in text
    assert "Predicted limit 90.0%, with all weights times 0.1 100.0%, times 10 80.0%; of normal weights" in text
    assert "b: Predicted limit" in text
    assert "a: mean magnitude 0.015, limit 90.0%, of normal weights 70.0%." in drawn.describe_magnitudes(curves)
    assert "two runs, 10 bins: 3.0%, without difference 1.0%" in drawn.describe_variation(variation)


def test_nothing_recorded_is_an_empty_figure(density, statistics, curves, variation):
    assert len(drawn.plot_weights(density[:0], statistics[:0], curves[:0]).axes) == 2
    assert len(drawn.plot_magnitudes(curves[:0]).axes) == 2
    assert len(drawn.plot_variation(variation[:0]).axes) == 2
