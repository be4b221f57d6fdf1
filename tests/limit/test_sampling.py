"""Limits from a sample of the data, other curvatures, less memory, and several processes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, PruningLimit, predict_limit
from prunelimit.curvature import ggn_eigenvalues
from prunelimit.limit import effective_dimension, removable_fraction, solve_limit, stretch_to_population
from prunelimit.pruning.magnitude import MagnitudePath

Data = tuple[Tensor, Tensor]


def predict(model: nn.Module, data: object, **options: object) -> PruningLimit:
    return predict_limit(model, functional.cross_entropy, data, epsilon=0.02, **options)  # type: ignore[arg-type]


def test_sample_and_its_half_are_both_probed(digits_model: nn.Module, digits_data: Data) -> None:
    limit = predict(digits_model, digits_data, steps=20, examples=200)
    assert limit.examples == 200
    assert limit.cost["products"] == 40
    assert limit.trend is not None
    assert (
        limit.interval[0] <= min(limit.sparsity, limit.trend) <= max(limit.sparsity, limit.trend) <= limit.interval[1]
    )


def test_all_examples_have_no_trend(digits_model: nn.Module, digits_data: Data) -> None:
    whole = predict(digits_model, digits_data, steps=20)
    assert (whole.trend, whole.cost["products"]) == (None, 20)
    assert predict(digits_model, digits_data, steps=20, examples=640).sparsity == whole.sparsity


def test_sample_does_not_depend_on_how_the_data_are_cut(digits_model: nn.Module, digits_data: Data) -> None:
    inputs, targets = digits_data
    batches = list(zip(inputs.split(100), targets.split(100), strict=True))
    one, other = (predict(digits_model, data, steps=10, examples=100) for data in (digits_data, batches))
    assert one.sparsity == pytest.approx(other.sparsity, abs=1e-3)


@pytest.mark.parametrize("examples", [0, 1, 641])
def test_examples_out_of_range_are_refused(digits_model: nn.Module, digits_data: Data, examples: int) -> None:
    with pytest.raises(PruneLimitError, match=f"examples={examples} must lie between 2 and the 640"):
        predict(digits_model, digits_data, examples=examples)


def test_examples_serve_the_formula_alone(digits_model: nn.Module, digits_data: Data) -> None:
    with pytest.raises(PruneLimitError, match="examples=100"):
        predict(digits_model, digits_data, examples=100, method="directional")


def test_inputs_that_are_no_tensors_are_sampled_alike(digits_model: nn.Module, digits_data: Data) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["image"])

    images, targets = digits_data
    batches = [({"image": i}, t) for i, t in zip(images.split(100), targets.split(100), strict=True)]
    found = predict(Wrapped(digits_model), batches, steps=20, examples=100)
    expected = predict(digits_model, digits_data, steps=20, examples=100)
    assert found.sparsity == pytest.approx(
        expected.sparsity, abs=0.02
    )  # the plain network is reduced before it is probed
    assert found.examples == 100


def test_batches_of_several_shapes_cannot_be_sampled() -> None:
    class Mean(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(1)

    batches = [(torch.randn(6, length, 4), torch.arange(6) % 3) for length in (2, 5)]
    with pytest.raises(PruneLimitError, match="examples= needs batches of one shape"):
        predict(Mean(4, 3), batches, examples=8)


@pytest.fixture
def limit(digits_model: nn.Module, digits_data: Data) -> Callable[..., PruningLimit]:
    found = predict(digits_model, digits_data, steps=10)

    def make(sparsity: float, examples: int) -> PruningLimit:
        changed = copy.copy(found)
        changed.sparsity, changed.examples, changed.interval = sparsity, examples, (sparsity - 0.01, sparsity + 0.02)
        return changed

    return make


def test_trend_is_exact_where_it_holds(limit: Callable[..., PruningLimit]) -> None:
    def law(n: int) -> float:
        return 0.9 - 0.5 / np.sqrt(n)

    found = stretch_to_population(limit(law(200), 200), limit(law(100), 100), 5000)
    assert found.trend == pytest.approx(law(5000))
    assert found.interval == pytest.approx((law(200) - 0.01, law(200) + 0.02 + law(5000) - law(200)))


def test_no_trend_leaves_the_interval(limit: Callable[..., PruningLimit]) -> None:
    found = stretch_to_population(limit(0.8, 200), limit(0.8, 100), 5000)
    assert found.interval == pytest.approx((0.79, 0.82))


@pytest.mark.parametrize(("half", "whole", "population"), [(200, 200, 500), (0, 200, 500), (100, 600, 500)])
def test_sizes_must_grow(limit: Callable[..., PruningLimit], half: int, whole: int, population: int) -> None:
    with pytest.raises(PruneLimitError, match="examples="):
        stretch_to_population(limit(0.8, whole), limit(0.8, half), population)


def test_gauss_newton_limit_agrees_with_its_exact_spectrum(digits_model: nn.Module, digits_data: Data) -> None:
    data = digits_data[0][:100], digits_data[1][:100]
    found = predict(digits_model, data, curvature="ggn", steps=300, probes=8)
    exact = ggn_eigenvalues(digits_model, functional.cross_entropy, data)
    path = MagnitudePath(digits_model)

    def removable(radius: np.ndarray) -> np.ndarray:
        return removable_fraction(lambda mu: effective_dimension(exact.eigenvalues, mu), radius, 0.02, path.total)

    truth = solve_limit(path.distance, removable)
    assert found.interval[0] - 1e-3 <= truth <= found.interval[1] + 1e-3
    assert found.resolved


def test_low_memory_gives_nearly_the_same(digits_model: nn.Module, digits_data: Data) -> None:
    full, lean = (predict(digits_model, digits_data, steps=100, low_memory=flag) for flag in (False, True))
    assert lean.sparsity == pytest.approx(full.sparsity, abs=0.005)


def test_wide_inputs_are_reduced_to_their_row_space() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(40, 300), torch.arange(40) % 3
    found = predict(model, data, steps=400)
    assert found.total == 300 * 8 + 24
    assert found.spectrum.nullity >= 260 * 8
    assert found.resolved


def test_progress_shows_the_present_interval(
    digits_model: nn.Module, digits_data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(digits_model, digits_data, steps=8, progress=True)
    assert "limit " in capsys.readouterr().err


def test_two_processes_predict_what_one_predicts() -> None:
    words = ["--model", "fc5-quick", "--data", "digits", "--examples", "0", "--steps", "12", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = []
    for start in (
        [sys.executable],
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    ):
        done = subprocess.run(
            [*start, "-m", "prunelimit.cli", "predict", *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(lines) == 1
        runs.append(json.loads(lines[0]))
    assert runs[1]["sparsity"] == pytest.approx(runs[0]["sparsity"], abs=1e-3)
    assert runs[1]["dimension"] == pytest.approx(runs[0]["dimension"], rel=1e-3)
