"""The data behind the sliders say what the library says, and the builder makes them when it has to."""

import json

import numpy as np
import pytest

from prunelimit.book import Builder
from prunelimit.experiments import explore, frames
from prunelimit.experiments.store import repository
from prunelimit.limit import removable_fraction, solve_limit


@pytest.fixture(scope="module")
def views():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
        return explore.load_views(explore.recorded_cells())


@pytest.fixture(scope="module")
def data(views):
    return explore.explore_data(views)


def falls_to_values(falls):
    return np.cumsum([falls[0], *(-np.array(falls[1:]))]) * explore.TABLE_UNIT


def interpolate(table, name, mu):
    logs = table["start"] + table["step"] * np.arange(explore.TABLE_POINTS)
    return np.interp(np.log(mu), logs, falls_to_values(table[name]))


def test_every_recorded_cell_is_offered_once(views, monkeypatch):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    offered = {view.cell.spec.hash for view in views}
    assert offered >= {cell.spec.hash for cell in [*frames.load_cells(), *frames.load_cells(profile="quick")]}
    assert len({view.key for view in views}) == len(views)


def test_a_spectrum_of_more_images_comes_first(views):
    by_cell = {}
    for view in views:
        by_cell.setdefault(view.cell.spec.hash, []).append(view)
    pairs = [group for group in by_cell.values() if len(group) > 1]
    assert pairs, "the spectrum of FC5 from all images is recorded"
    for group in pairs:
        assert [view.examples for view in group] == sorted((view.examples for view in group), reverse=True)
        assert group[0].found is not group[1].found


@pytest.mark.parametrize("name", ["value", "low", "high"])
def test_tables_hold_what_the_quadrature_says(views, data, name):
    which = ("value", "low", "high").index(name)
    generator = np.random.default_rng(0)
    for view, entry in zip(views, data["views"], strict=True):
        table = entry["dimension"]
        step, last = table["step"], explore.TABLE_POINTS - 1
        mu = np.exp(generator.uniform(table["start"], table["start"] + last * step, 100))
        truth = view.found.effective_dimension(mu)[which] / view.found.dimension
        error = np.abs(interpolate(table, name, mu) - truth)
        assert error.max() < step / 16 + 1e-6  # a kink
        assert np.median(error) < step**2 / 80 + 1e-6


def test_tables_reach_every_setting_of_the_sliders(views, data):
    for view, entry in zip(views, data["views"], strict=True):
        table = entry["dimension"]
        smallest = 2 * view.epsilon / 2 ** data["epsilonOctaves"] / (2 ** data["scaleOctaves"] * view.distance[-1]) ** 2
        assert table["start"] == pytest.approx(np.log(smallest))
        assert falls_to_values(table["high"])[-1] <= explore.TABLE_UNIT


@pytest.mark.parametrize(("factor", "scale"), [(1, 1), (0.1, 1), (20, 0.5), (1, 4)])
def test_the_data_alone_give_the_librarys_limit(views, data, factor, scale):
    for view, entry in list(zip(views, data["views"], strict=True))[::4]:
        radius = np.interp(
            np.linspace(0, 1, data["grid"] + 1), np.linspace(0, 1, len(entry["radius"])), entry["radius"]
        )

        def removable(distance, entry=entry):
            dimension = lambda mu: interpolate(entry["dimension"], "value", mu) * entry["total"]  # noqa: E731
            return removable_fraction(dimension, distance, factor * entry["epsilon"], entry["total"])

        assert solve_limit(scale * radius, removable) == pytest.approx(view.limit(factor, scale).sparsity, abs=0.001)


def test_scaled_weights_are_a_smaller_tolerance(views):
    view = views[-1]
    assert view.limit(scale=2.0).sparsity == view.limit(factor=0.25).sparsity < view.limit().sparsity


def test_the_recorded_search_can_be_repeated_on_the_recorded_losses(views, data):
    for view, entry in zip(views, data["views"], strict=True):
        sparsity, rise = entry["rise"]["sparsity"], entry["rise"]["rise"]
        assert sparsity == sorted(set(sparsity))
        assert (sparsity[0], rise[0]) == (0, 0)
        low, high = 0.0, 1.0
        while high - low > entry["bracket"]:
            middle = (low + high) / 2
            known = np.interp(middle, sparsity, rise) if middle <= sparsity[-1] else np.inf
            low, high = (middle, high) if known <= entry["epsilon"] else (low, middle)
        assert low == view.cell.record["measured"]["sparsity"]


def test_the_script_assigns_one_global_and_is_small(data):
    script = explore.as_script(data).decode()
    start, end = f"window.{explore.VARIABLE} = ", ";\n"
    assert script.startswith(start)
    assert json.loads(script[len(start) : -len(end)]) == data
    assert len(script) < 1_000_000


def test_the_table_has_a_row_per_view_with_its_limit(views):
    header, rule, *rows = explore.as_table(views).decode().splitlines()
    assert header.count("|") == rule.count("|")
    assert len(rows) == len(views)
    for view, row in zip(views, rows, strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[1] == view.cell.title
        assert f"{100 * view.start.sparsity:.1f}" in cells
        assert f"{view.found.dimension:,}" in cells


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A book with the page and no records, whose data are made of nothing."""
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "explore.md").write_text("# Sliders\n")
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_the_builder_makes_the_data_again_only_if_a_record_changed(root, monkeypatch):
    made = []
    monkeypatch.setattr(explore, "explore_data", lambda views: made.append(views) or {"views": []})
    builder = Builder(root)
    first = {path.as_posix(): content for path, content in builder.sliders().items()}
    assert first["book/_static/explore-data.js"].startswith(b"window.")
    assert first["book/explore-table.md"].startswith(b"| network |")
    builder.sliders()
    assert len(made) == 1
    (root / "results" / "new.json").write_text("{}")
    builder.sliders()
    assert len(made) == 2
    assert len(list(builder.executed.iterdir())) == 1  # the old ones are gone


def test_a_book_without_the_page_needs_no_data(root):
    (root / "book" / "explore.md").unlink()
    assert Builder(root).sliders() == {}


def test_a_static_file_that_changed_reaches_a_book_whose_pages_did_not(root):
    builder, fresh = Builder(root), root / "html"
    for folder in (builder.stage / "book" / "_static", fresh / "_static"):
        folder.mkdir(parents=True)
        (folder / "script.js").write_text("old")
    builder.copy_static(fresh)
    assert (fresh / "_static" / "script.js").read_text() == "old"
    (builder.stage / "book" / "_static" / "script.js").write_text("new")
    builder.copy_static(fresh)
    assert (fresh / "_static" / "script.js").read_text() == "new"
