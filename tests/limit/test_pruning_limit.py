"""PruningLimit: what it says about itself."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pandas as pd
import pytest

from prunelimit.limit import PruningLimit


@pytest.fixture
def limit() -> PruningLimit:
    return PruningLimit(
        sparsity=0.875,
        interval=(0.871, 0.879),
        epsilon=0.012,
        lower=0.8,
        upper=0.95,
        radius=3.25,
        dimension=382.0,
        curve=pd.DataFrame({"sparsity": [0.0], "radius": [0.0], "removable": [1.0]}),
        cost={"products": 64, "seconds": 1.5},
        method="formula",
        total=3056,
        examples=1437,
    )


def test_density_is_what_is_kept(limit: PruningLimit) -> None:
    assert limit.density == 0.125


@pytest.mark.parametrize(("low", "high", "resolved"), [(0.87, 0.8799, True), (0.87, 0.881, False), (0.5, 0.5, True)])
def test_resolved_means_narrower_than_a_point(limit: PruningLimit, low: float, high: float, resolved: bool) -> None:
    assert dataclasses.replace(limit, interval=(low, high)).resolved is resolved


def test_repr_names_the_limit_the_interval_and_the_cost(limit: PruningLimit) -> None:
    text = repr(limit)
    for part in (
        "formula",
        "87.5%",
        "3,056",
        "87.1% to 87.9%",
        "(resolved)",
        "0.012",
        "1,437",
        "80.0%",
        "95.0%",
        "64 products",
    ):
        assert part in text


def test_repr_promises_of_the_window_only_what_is_proved(limit: PruningLimit) -> None:
    assert "99 % below it" in repr(limit)
    assert "99 % on each side" in repr(dataclasses.replace(limit, method="cut"))


def test_repr_says_when_the_interval_is_wide(limit: PruningLimit) -> None:
    assert "NOT resolved" in repr(dataclasses.replace(limit, interval=(0.8, 0.9)))


def test_repr_without_a_theorem_does_not_mention_one(limit: PruningLimit) -> None:
    assert "window" not in repr(dataclasses.replace(limit, lower=None, upper=None))


def test_html_is_a_well_formed_table(limit: PruningLimit) -> None:
    opened: list[str] = []
    cells: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

        def handle_data(self, data: str) -> None:
            cells.append(data)

    parser = Parser()
    parser.feed(limit._repr_html_())
    parser.close()
    assert not opened
    assert "87.5% of 3,056 weights" in cells
    assert "(not resolved)" not in limit._repr_html_()


def test_html_says_when_the_interval_is_wide(limit: PruningLimit) -> None:
    assert "(not resolved)" in dataclasses.replace(limit, interval=(0.8, 0.9))._repr_html_()


def test_dict_is_plain_json_without_curve_and_spectrum(limit: PruningLimit) -> None:
    values = limit.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["sparsity"] == 0.875
    assert values["density"] == 0.125
    assert values["interval"] == [0.871, 0.879]
    assert values["resolved"] is True
    assert not {"curve", "spectrum"} & set(values)
