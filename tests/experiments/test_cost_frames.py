"""The cost model finds the law that made its data, and says how far it misses other networks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.errors import PruneLimitError
from prunelimit.experiments import cost_frames, cost_model
from prunelimit.figures.cost import describe_cost, plot_cost

#: Seconds of a product are TIME * N * D; of a step besides, per weight, C + Q * steps; vectors besides the basis.
TIME, C, Q, VECTORS = 5e-11, 4e-9, 1e-10, 12

CLOCKS = {
    "provenance": {"processor": "one", "threads": 1, "torch": "2"},
    "complete": True,
    "command": "python -m benchmarks",
}


def product(examples: float, weights: float) -> float:
    return TIME * examples * weights


def process(examples: float, weights: float, steps: int) -> float:
    return steps * (product(examples, weights) + weights * (C + Q * steps))


def sweep(sizes: list[float], seconds: list[float], **about: Any) -> dict[str, Any]:
    return {"sizes": sizes, "clocks": [{"cpu_median": one} for one in seconds], **about}


def records() -> dict[str, Any]:
    many, sizes, steps = [500.0, 1000.0, 4000.0], [1e5, 1e6, 3e6, 1e7], [16, 64, 256]
    parts = {
        "examples": sweep(many, [product(n, 1e6) for n in many], dimension=1e6),
        "parameters": {
            "examples": 256,
            "steps": 16,
            "product": sweep(sizes, [product(256, d) for d in sizes]),
            "process": sweep(sizes, [process(256, d, 16) for d in sizes]),
        },
        "steps": sweep([float(k) for k in steps], [process(500, 1e6, k) for k in steps], dimension=1e6, examples=500),
    }
    taken = [(d, k) for d in (1e6, 4e6) for k in (8, 32, None)]
    peaks = [{"weights": d, "steps": k, "peak": 4 * d * ((k or 0) + VECTORS)} for d, k in taken]
    fc3 = {"network": "fc3", "dimension": 3072 * 32 + 32 * 20 + 200, "examples": 100}
    twice = 2 * product(100, fc3["dimension"])
    same = {
        "problem": fc3,
        "steps": 8,
        "product": {"product": {"cpu_median": twice}},
        "seconds": {"prunelimit": {"cpu_median": process(100, fc3["dimension"], 8)}},
    }
    return {
        "growth": CLOCKS | {"parts": parts},
        "footprint": CLOCKS | {"sizes": peaks},
        "same-work-fc5": CLOCKS | same,
    }


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name, record in records().items():
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_the_law_behind_the_data_is_found(recorded: Path) -> None:
    fit = cost_model.fit_cost()
    assert fit.product.coefficients == pytest.approx([math.log(TIME), 1, 1], abs=1e-6)
    assert np.exp(fit.besides.coefficients) == pytest.approx([C, Q], rel=1e-5)
    assert fit.memory is not None
    assert fit.memory.coefficients == pytest.approx([VECTORS])
    assert fit.largest == 1e7
    assert fit.product_seconds(2000, 1e9)[0] == pytest.approx(product(2000, 1e9), rel=1e-5)
    assert fit.besides_seconds(1e9, 64)[0] == pytest.approx(1e9 * 64 * (C + 64 * Q), rel=1e-5)
    assert fit.besides_seconds(1e9, 64, basis=False)[0] == pytest.approx(1e9 * 64 * C, rel=1e-5)
    assert fit.bytes(1e9, 64) == pytest.approx((4e9 * (64 + VECTORS),) * 3)
    assert fit.bytes(1e9, 64, basis=False) == pytest.approx((4e9 * VECTORS,) * 3)


def test_small_networks_have_no_part_in_the_fit(recorded: Path) -> None:
    record = records()["growth"]
    record["parts"]["parameters"]["product"]["clocks"][0]["cpu_median"] *= 10
    (recorded / "growth.json").write_text(json.dumps(record), encoding="utf-8")
    assert cost_model.fit_cost().product.coefficients[2] == pytest.approx(1, abs=1e-6)
    assert cost_model.fit_cost(smallest=1).product.coefficients[2] < 0.9
    roles = cost_frames.point_frame().query("panel == 'product'").role.value_counts()
    assert dict(roles) == {"fitted": 6, "left out": 1, "held out": 1}
    with pytest.raises(PruneLimitError, match=r"^smallest leaves 1 measurements for 3 coefficients"):
        cost_model.fit_cost(smallest=5e6)


def test_other_networks_are_held_against_it_and_widen_it(recorded: Path) -> None:
    one, whole = cost_frames.held_out_frame().to_dict("records")
    assert one["work"] == one["weights"]
    assert (one["ratio"], one["inside"]) == (pytest.approx(2, rel=1e-4), False)
    assert whole["ratio"] == pytest.approx(1, rel=1e-4)
    assert cost_frames.shape_factor() == pytest.approx(2, rel=1e-4)
    fit = cost_model.fit_cost()
    value, low, high = fit.product_seconds(100, 1e6, shapes=True)
    assert value / low == pytest.approx(high / value)
    assert math.log(high / value) == pytest.approx(fit.product.quantile * math.log(2), rel=1e-4)


def test_multiply_adds_are_weights_times_positions() -> None:
    assert cost_model.multiply_adds("fc3") == 3072 * 32 + 32 * 20 + 20 * 10
    assert cost_model.multiply_adds("fc3 100") == 3072 * 32 + 32 * 20 + 20 * 100


def test_projections_follow_the_law(recorded: Path) -> None:
    table = cost_frames.projection_frame((1e6, 1e9), examples=1000, steps=10, workers=4, bandwidth=1e9)
    assert table.extrapolated.tolist() == [False] * 4 + [True] * 4
    basis, bare, data, parameters = table[table.weights == 1e9].to_dict("records")
    assert basis["hours"] * 3600 == pytest.approx(process(1000, 1e9, 10), rel=1e-4)
    assert bare["hours"] * 3600 == pytest.approx(10 * (product(1000, 1e9) + 1e9 * C), rel=1e-4)
    assert data["hours"] * 3600 == pytest.approx(10 * (product(1000, 1e9) / 4 + 1e9 * C), rel=1e-4)
    assert parameters["hours"] == pytest.approx(bare["hours"] / 4, rel=1e-4)
    assert basis["GiB"] == pytest.approx(4e9 * (1 + 10 + VECTORS) / 2**30)
    assert parameters["GiB"] == pytest.approx(bare["GiB"] / 4)
    assert [one["communication"] * 3600 for one in (basis, bare, data, parameters)] == pytest.approx(
        [0, 0, 10 * 2 * 4 * 0.75, 10 * 7 * 4 * 0.75]
    )
    assert all(row["from"] < row["hours"] < row["to"] for row in table.to_dict("records"))
    with pytest.raises(PruneLimitError, match=r"^bandwidth=0 must be a positive"):
        cost_frames.projection_frame(bandwidth=0)


def test_coefficients_have_intervals_and_the_figure_its_words(recorded: Path) -> None:
    table = cost_frames.coefficient_frame()
    assert table.part.value_counts().to_dict() == {"product": 3, "other work": 2, "memory": 1}
    assert (table.low <= table.estimate).all()
    assert (table.estimate <= table.high).all()
    points, curves = cost_frames.point_frame(), cost_frames.curve_frame(largest=1e9)
    panels = plot_cost(points, curves).axes
    assert [axis.get_xlabel() for axis in panels] == ["multiply-adds per example", "Lanczos steps", "weights"]
    assert any(line.get_linestyle() == "--" and max(line.get_xdata()) >= 0.99e9 for line in panels[0].lines)
    assert "extrapolated to 1e+09" in describe_cost(curves)


def test_every_record_behind_the_model_is_listed(recorded: Path) -> None:
    (recorded / "memory-resnet20.json").write_text(json.dumps(CLOCKS), encoding="utf-8")
    origin = cost_frames.cost_origin()
    assert list(origin.benchmark) == ["growth", "footprint", "same-work-fc5", "memory-resnet20"]
    assert list(origin.role) == ["fitted", "fitted", "held out", "held out"]


def test_without_memory_the_time_is_modelled_alone(recorded: Path) -> None:
    (recorded / "footprint.json").unlink()
    assert cost_model.fit_cost().memory is None
    assert cost_frames.projection_frame((1e6,)).GiB.isna().all()
    assert set(cost_frames.curve_frame().panel) == {"product", "besides"}


@given(
    st.lists(st.floats(-3, 3), min_size=5, max_size=9, unique=True),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.integers(0, 1000),
)
def test_standard_errors_are_those_of_a_regression(
    places: list[float], constant: float, slope: float, seed: int
) -> None:
    from scipy import stats

    x = np.array(places)
    if np.ptp(x) < 0.1:
        return
    y = constant + slope * x + np.random.default_rng(seed).normal(size=len(x))
    fit = cost_model.fit_linear(("constant", "slope"), np.column_stack([np.ones(len(x)), x]), y)
    known = stats.linregress(x, y)
    assert fit.coefficients == pytest.approx([known.intercept, known.slope], rel=1e-6, abs=1e-8)
    assert fit.errors == pytest.approx([known.intercept_stderr, known.stderr], rel=1e-6)
