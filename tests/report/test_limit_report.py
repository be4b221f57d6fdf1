"""limit_report: its numbers are those of the single calls, its advice solves the formula, its page stands alone."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import (
    PruneLimitError,
    Report,
    apply_masks,
    layer_limits,
    limit_report,
    magnitude_masks,
    predict_limit,
)
from prunelimit.changes import Change, needed_change
from prunelimit.limit import effective_dimension, exact_limit
from prunelimit.pruning import MagnitudePath, UnitOrder
from prunelimit.report import USUAL

Data = tuple[Tensor, Tensor]
EPSILON = 0.02


@dataclasses.dataclass
class Known:
    """A spectrum of which everything is known, with a given doubt about it."""

    eigenvalues: np.ndarray
    doubt: float = 0.0

    @property
    def dimension(self) -> int:
        return len(self.eigenvalues)

    def effective_dimension(self, mu: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value = effective_dimension(self.eigenvalues, mu)
        return value, value * (1 - self.doubt), value * (1 + self.doubt)


@pytest.fixture(scope="module")
def report(trained_digits: nn.Module, digits_data: Data) -> Report:
    return limit_report(trained_digits, functional.cross_entropy, digits_data, epsilon=EPSILON, steps=30, name="<mine>")


# The advice


@pytest.mark.parametrize("further", [0.01, 0.05])
def test_each_change_alone_moves_the_exact_limit_there(
    trained_digits: nn.Module, digits_eigenvalues: np.ndarray, further: float
) -> None:
    distance = MagnitudePath(trained_digits).distance
    wanted = exact_limit(digits_eigenvalues, distance, EPSILON) + further
    change = needed_change(Known(digits_eigenvalues), distance, EPSILON, wanted)  # type: ignore[arg-type]
    assert 0 < change.factor < 1
    one = 2 / len(digits_eigenvalues)
    for found in (
        exact_limit(digits_eigenvalues * change.factor, distance, EPSILON),
        exact_limit(digits_eigenvalues, distance * change.weights, EPSILON),
        exact_limit(digits_eigenvalues, distance, EPSILON * change.epsilon),
    ):
        assert found == pytest.approx(wanted, abs=one)


def test_the_present_limit_needs_no_change(trained_digits: nn.Module, digits_eigenvalues: np.ndarray) -> None:
    distance = MagnitudePath(trained_digits).distance
    now = exact_limit(digits_eigenvalues, distance, EPSILON)
    assert needed_change(Known(digits_eigenvalues), distance, EPSILON, now).factor == pytest.approx(1, abs=0.02)  # type: ignore[arg-type]


def test_doubt_about_the_dimension_is_doubt_about_the_change(
    trained_digits: nn.Module, digits_eigenvalues: np.ndarray
) -> None:
    distance = MagnitudePath(trained_digits).distance
    change = needed_change(Known(digits_eigenvalues, 0.1), distance, EPSILON, 0.9)  # type: ignore[arg-type]
    low, high = change.interval
    assert low < change.factor < high
    sure = needed_change(Known(digits_eigenvalues), distance, EPSILON, 0.9)  # type: ignore[arg-type]
    assert change.factor == sure.factor


def test_zeros_may_go_without_any_change() -> None:
    change = needed_change(Known(np.ones(4)), np.array([0.0, 0, 0, 1, 2]), EPSILON, 0.5)  # type: ignore[arg-type]
    assert change.factor == np.inf
    assert change.sentences(EPSILON) == ["A limit of 50.0% is within the formula already."]
    json.dumps(change.to_dict(), allow_nan=False)


def test_wanted_limits_are_reached_by_the_stated_curvature(trained_digits: nn.Module, digits_data: Data) -> None:
    """A loss times c has c times the curvature: its formula, with the same epsilon, must have the wanted limit."""
    targets = [0.5, 0.9, 0.95]
    found = limit_report(
        trained_digits,
        functional.cross_entropy,
        digits_data,
        methods=["formula"],
        layers=False,
        epsilon=EPSILON,
        steps=60,
        targets=targets,
    )
    assert [change.sparsity for change in found.changes] == targets
    for change in found.changes:
        assert change.factor < 1 or change.sparsity < found.limits["formula"].sparsity
        scaled = predict_limit(
            trained_digits,
            lambda o, t, c=change.factor: c * functional.cross_entropy(o, t),
            digits_data,
            epsilon=EPSILON,
            steps=60,
        )
        assert scaled.sparsity == pytest.approx(change.sparsity, abs=0.01)


def test_one_cut_is_measured_at_the_wanted_limit(trained_digits: nn.Module, digits_data: Data) -> None:
    inputs, targets = digits_data
    before = [p.detach().clone() for p in trained_digits.parameters()]
    found = limit_report(
        trained_digits,
        functional.cross_entropy,
        digits_data,
        methods=["formula"],
        layers=False,
        epsilon=EPSILON,
        steps=3,
        targets=[0.9],
    )
    assert all(bool((p == old).all()) for p, old in zip(trained_digits.parameters(), before, strict=True))
    cut = apply_masks(copy.deepcopy(trained_digits), magnitude_masks(trained_digits, 0.9))
    losses = [functional.cross_entropy(m.eval()(inputs), targets).item() for m in (trained_digits, cut)]
    assert found.changes[0].rise == pytest.approx(losses[1] - losses[0], abs=1e-5)
    assert found.changes[0].radius == pytest.approx(float(MagnitudePath(trained_digits).radius(0.9)))
    assert f"{losses[1] - losses[0]:+.3g}" in str(found)


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.3, float("nan")])
def test_wanted_sparsity_out_of_range(sparsity: float) -> None:
    with pytest.raises(PruneLimitError, match=r"^sparsity="):
        needed_change(Known(np.ones(3)), np.arange(4.0), EPSILON, sparsity)  # type: ignore[arg-type]


# The numbers


@pytest.mark.parametrize("method", USUAL)
def test_limits_are_those_of_the_single_calls(
    report: Report, trained_digits: nn.Module, digits_data: Data, method: str
) -> None:
    single = predict_limit(
        trained_digits, functional.cross_entropy, digits_data, epsilon=EPSILON, steps=30, method=method
    )
    assert report.limits[method].sparsity == single.sparsity
    assert report.limits[method].interval == single.interval


def test_layers_are_those_of_the_single_call(report: Report, trained_digits: nn.Module, digits_data: Data) -> None:
    common = report.limits["measured"].sparsity
    single = layer_limits(trained_digits, functional.cross_entropy, digits_data, epsilon=EPSILON, common=common)
    assert report.layers is not None
    for column in ("sparsity", "removed", "rise"):
        np.testing.assert_allclose(report.layers.table[column], single.table[column], rtol=1e-5)


def test_gain_and_cost_add_up(report: Report) -> None:
    assert report.gain == report.limits["refit"].sparsity - report.limits["measured"].sparsity
    assert report.layers is not None
    expected = sum(limit.cost["products"] for limit in report.limits.values()) + report.layers.cost["products"]
    assert report.products == expected
    assert [change.sparsity for change in report.changes] == [pytest.approx(report.limits["formula"].sparsity + 0.05)]


def test_dense_network_is_left_alone(trained_digits: nn.Module, digits_data: Data) -> None:
    before = [p.detach().clone() for p in trained_digits.parameters()]
    limit_report(trained_digits, functional.cross_entropy, digits_data, epsilon=EPSILON, steps=3)
    assert all(bool((p == old).all()) for p, old in zip(trained_digits.parameters(), before, strict=True))


@pytest.mark.parametrize("unit", ["channel", "input"])
def test_units_leave_together(trained_digits: nn.Module, digits_data: Data, unit: str) -> None:
    found = limit_report(
        trained_digits, functional.cross_entropy, digits_data, methods=["measured"], epsilon=0.3, units=unit
    )
    masks = UnitOrder(trained_digits, unit).masks
    common: dict[str, Any] = {"epsilon": 0.3}
    single = predict_limit(
        trained_digits, functional.cross_entropy, digits_data, method="measured", masks=masks, **common
    )
    assert found.limits["measured"].sparsity == single.sparsity
    assert found.layers is not None
    for row in found.layers.table.itertuples():
        alone = UnitOrder(trained_digits, unit, [row.layer])
        limit = predict_limit(
            trained_digits,
            functional.cross_entropy,
            digits_data,
            method="directional",
            prunable=[row.layer],
            masks=alone.masks,
            **common,
        )
        assert row.sparsity == pytest.approx(limit.sparsity, abs=0.002)
        removed = 1 - masks(single.sparsity)[row.layer].mean().item()
        assert row.removed == pytest.approx(removed)


def test_low_memory_and_its_limit(trained_digits: nn.Module, digits_data: Data) -> None:
    options: dict[str, Any] = {"epsilon": EPSILON, "steps": 40, "low_memory": True}
    single = predict_limit(trained_digits, functional.cross_entropy, digits_data, **options)
    found = limit_report(
        trained_digits, functional.cross_entropy, digits_data, methods=["formula"], layers=False, **options
    )
    assert found.limits["formula"].sparsity == single.sparsity


# How it is shown


def test_table_has_a_row_per_method_with_its_cost(report: Report) -> None:
    table = report.table.set_index("method")
    assert list(table.index) == list(USUAL)
    for method, limit in report.limits.items():
        row = table.loc[method]
        assert (row.sparsity, row.low, row.high, row.resolved) == (limit.sparsity, *limit.interval, limit.resolved)
        assert row.products == limit.cost["products"]
        assert row.seconds == limit.cost["seconds"]
    assert table.loc["measured", "evaluations"] > 0
    assert table.loc["measured", "products"] == 0


def test_notebook_shows_findings_and_tables_without_a_figure(report: Report) -> None:
    shown = report._repr_html_()
    page = Page()
    page.feed(shown)
    assert page.open == []
    assert "svg" not in page.tags
    assert page.tags.count("table") == 3
    for line in report.findings():
        assert line in page.text
    assert report.layers is not None
    assert "3.weight" in report.layers._repr_html_()
    assert repr(report) == str(report)
    assert report.describe().splitlines() == [f"- {line}" for line in report.findings()]


def test_what_is_not_counted_is_said(report: Report, trained_digits: nn.Module, digits_data: Data) -> None:
    biases = sum(p.numel() for p in trained_digits.parameters() if p.ndim == 1)
    assert report.left_out.weights.sum() == biases
    assert f"biases and normalisation: {biases}." in report.findings()[-1]
    assert "prunable=" not in report.findings()[-1]
    one = limit_report(
        trained_digits,
        functional.cross_entropy,
        digits_data,
        methods=["measured"],
        layers=False,
        prunable=["3.weight"],
    )
    assert "not in prunable: 1.weight (Linear, 2,048), 5.weight (Linear, 240)" in str(one)
    assert "prunable=" not in one.findings()[-1]


def test_text_says_limits_findings_and_layers(report: Report) -> None:
    text = str(report)
    for method, limit in report.limits.items():
        assert re.search(rf"{method} +{limit.sparsity:.1%}", text)
    for part in ("3,056 prunable weights", "640 examples", "hold the network back", "curvature times squared distance"):
        assert part in text


def test_json_has_everything(report: Report) -> None:
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["limits"]["measured"]["sparsity"] == report.limits["measured"].sparsity
    (change,) = found["changes"]
    assert change["weights"] == pytest.approx(change["curvature"] ** 0.5)
    assert len(found["layers"]["layers"]) == 3
    assert found["findings"] == report.findings()


class Page(HTMLParser):
    """Collects tags, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_stands_alone(report: Report) -> None:
    page = Page()
    page.feed(report.to_html())
    assert page.open == []
    assert all(link.startswith("#") for link in page.links)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert "Pruning report: <mine>" in page.text
    for limit in report.limits.values():
        assert f"{limit.sparsity:.1%}" in page.text


def test_figure_marks_every_limit(report: Report) -> None:
    left, right = report.plot().axes
    dots = [line.get_xdata()[0] for line in left.lines if line.get_marker() == "o"]
    assert dots == [limit.sparsity for limit in report.limits.values()]
    assert report.layers is not None
    assert [bar.get_width() for bar in right.patches] == list(report.layers.table.sparsity)


@pytest.mark.parametrize(
    ("rises", "said"), [([-0.01, 0.01, 0.03], False), ([0.015, 0.012, 0.03], False), ([0.015, 0.004, 0.03], True)]
)
def test_a_loss_that_falls_on_the_way_is_noted(report: Report, rises: list[float], said: bool) -> None:
    """Bisection finds one crossing; where the loss falls again by a fifth of epsilon there may be another."""
    curve = pd.DataFrame({"sparsity": [0.5, 0.25, 0.75], "radius": 1.0, "rise": [rises[1], rises[0], rises[2]]})
    measured = dataclasses.replace(report.limits["measured"], curve=curve)
    one = dataclasses.replace(report, limits={"measured": measured})
    found = [line for line in one.findings() if "does not rise steadily" in line]
    assert len(found) == said
    if said:
        assert "(+0.015 at 25.0%, +0.004 at 50.0%)" in found[0]
        assert found[0] in one.to_html()


def test_small_report(trained_digits: nn.Module, digits_data: Data) -> None:
    found = limit_report(trained_digits, functional.cross_entropy, digits_data, methods=["measured"], layers=False)
    assert (found.gain, found.changes, found.layers) == (None, (), None)
    assert len(found.plot().axes) == 1
    assert "each layer" not in found.to_html()
    json.dumps(found.to_dict())


def test_nothing_is_advised_where_there_is_room(report: Report) -> None:
    free = dataclasses.replace(report, changes=(Change(0.9, 1.5, (1.2, 1.8)),))
    assert "has to fall" not in str(free)
    assert "A limit of 90.0% is within the formula already." in free.findings()
    assert "within already" in free.to_html()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, r"^methods is empty"),
        ({"methods": ["formul"]}, r"^methods='formul'.*Did you mean 'formula'"),
        ({"targets": [1.0]}, r"^targets has 1.0"),
        ({"targets": [0.9], "methods": ["measured"]}, r"^targets needs the formula"),
        ({"units": "row"}, r"^unit='row' is unknown"),
    ],
)
def test_bad_input(trained_digits: nn.Module, digits_data: Data, options: dict, message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        limit_report(trained_digits, functional.cross_entropy, digits_data, **options)


def test_a_loss_without_curvature_leaves_the_formula_out() -> None:
    # Once wrong: 100 % by the formula, above a measured limit of nothing.
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 1), torch.randn(60, 4)
    report = limit_report(model, functional.l1_loss, (inputs, model(inputs).detach()), epsilon=0.01, layers=False)
    assert "formula" not in report.limits
    assert "measured" in report.limits
    assert any(line.startswith("Left out: formula") for line in report.findings())
    with pytest.raises(PruneLimitError, match="no curvature"):
        limit_report(model, functional.l1_loss, (inputs, model(inputs).detach()), epsilon=0.01, methods=["formula"])


def test_a_network_that_needs_none_of_its_weights_is_called_so(trained_digits: nn.Module, digits_data: Data) -> None:
    report = limit_report(
        trained_digits, functional.cross_entropy, digits_data, epsilon=100.0, methods=["measured"], layers=False
    )
    assert any("even the sparsest cut" in line for line in report.findings())
