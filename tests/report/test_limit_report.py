"""limit_report: its numbers are those of the single calls, its advice solves the formula, its page stands alone."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, Report, layer_limits, limit_report, predict_limit
from prunelimit.limit import effective_dimension, exact_limit
from prunelimit.pruning import MagnitudePath
from prunelimit.report import USUAL, Change, needed_change

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
    assert report.change is not None
    assert report.change.sparsity == pytest.approx(report.limits["formula"].sparsity + 0.05)


def test_dense_network_is_left_alone(trained_digits: nn.Module, digits_data: Data) -> None:
    before = [p.detach().clone() for p in trained_digits.parameters()]
    limit_report(trained_digits, functional.cross_entropy, digits_data, epsilon=EPSILON, steps=3)
    assert all(bool((p == old).all()) for p, old in zip(trained_digits.parameters(), before, strict=True))


# How it is shown


def test_text_says_limits_findings_and_layers(report: Report) -> None:
    text = str(report)
    for method, limit in report.limits.items():
        assert re.search(rf"{method} +{limit.sparsity:.1%}", text)
    for part in ("3,056 prunable weights", "640 examples", "hold the network back", "curvature times squared distance"):
        assert part in text


def test_json_has_everything(report: Report) -> None:
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["limits"]["measured"]["sparsity"] == report.limits["measured"].sparsity
    assert found["change"]["weights"] == pytest.approx(found["change"]["curvature"] ** 0.5)
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


def test_small_report(trained_digits: nn.Module, digits_data: Data) -> None:
    found = limit_report(trained_digits, functional.cross_entropy, digits_data, methods=["measured"], layers=False)
    assert (found.gain, found.change, found.layers) == (None, None, None)
    assert len(found.plot().axes) == 1
    assert "each layer" not in found.to_html()
    json.dumps(found.to_dict())


def test_nothing_is_advised_where_there_is_room(report: Report) -> None:
    free = dataclasses.replace(report, change=Change(0.9, 1.5, (1.2, 1.8)))
    assert "has to fall" not in str(free)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"methods": []}, r"^methods is empty"), ({"methods": ["formul"]}, r"^methods='formul'.*Did you mean 'formula'")],
)
def test_bad_input(trained_digits: nn.Module, digits_data: Data, options: dict, message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        limit_report(trained_digits, functional.cross_entropy, digits_data, **options)
