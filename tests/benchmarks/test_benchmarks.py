"""The harness runs, measures the same thing for every method, and its truth is the truth."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from prunelimit.curvature import HessianOperator

ROOT = Path(__file__).parents[2]
COMPETITORS = ("pyhessian", "pyhessian-loader", "curvlinops", "released")

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The folder is not a part of the package: it is found next to it."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def read(folder: Path, name: str) -> dict:
    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert record["complete"]
    assert record["provenance"]["torch"] == str(torch.__version__)
    return record


@pytest.mark.parametrize("name", COMPETITORS)
def test_methods_multiply_by_the_same_matrix_from_the_same_start(load: Load, name: str) -> None:
    competitors, problem = load("competitors"), load("problems").load_problem("quick-mlp")
    method = competitors.METHODS[name]
    if not method.available:
        pytest.skip(f"{method.package} is not installed")
    ours, theirs = competitors.METHODS["prunelimit"].open(problem), method.open(problem)
    starts = competitors.start_vectors(problem, 2, seed=5)
    found = ours.product(ours.prepared(starts[0]))
    torch.testing.assert_close(ours.prepared(theirs.product(starts[0])), found, rtol=1e-3, atol=1e-5)
    if name == "released":  # its nodes are bins
        return
    # Moments that six steps determine; ours leave the known null space out, and know more of what is left.
    for one, other in zip(ours.rules(starts, 6), theirs.rules(starts, 6), strict=True):
        for power in (0, 1, 2, 5):
            assert one[1] @ one[0] ** power == pytest.approx(other[1] @ other[0] ** power, rel=2e-3)


def test_released_routine_finds_known_eigenvalues(load: Load) -> None:
    released = load("released")
    values = torch.tensor([-1.0, 0.5, 2.0, 4.0])
    start = [torch.full((2,), 0.5), torch.full((2,), 0.5)]
    nodes, weights = released.lanczos(lambda v: [v[0] * values[:2], v[1] * values[2:]], start, 4)
    np.testing.assert_allclose(nodes, values, atol=1e-4)
    np.testing.assert_allclose(weights, 0.25, atol=1e-4)
    grid, mass = released.smoothed(nodes, weights)
    assert mass.sum() == pytest.approx(1)
    assert grid @ mass == pytest.approx(float(values.mean()), rel=0.2)


def test_dense_truth_is_the_hessian(load: Load) -> None:
    problems = load("problems")
    problem = problems.load_problem("quick-mlp")
    operator = HessianOperator(
        problem.model, problem.loss_fn, (problem.inputs, problem.targets), rule="fresh", dtype=torch.float64
    )
    expected = torch.linalg.eigvalsh(operator.dense()).numpy()
    found = problems.dense_eigenvalues(problem)
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())
    np.testing.assert_array_equal(problems.dense_eigenvalues(problem), found)  # now from the cache


def test_probe_noise_is_what_probes_leave(load: Load) -> None:
    accuracy = load("same_accuracy")
    eigenvalues, mu = np.geomspace(1e-4, 1, 200), np.array([0.01])
    vectors = np.random.default_rng(0).standard_normal((4000, 200))
    shares = vectors**2 / (vectors**2).sum(1, keepdims=True)
    estimates = 200 * shares @ (eigenvalues / (eigenvalues + mu))
    truth = accuracy.exact_dimension(eigenvalues, mu)
    assert accuracy.probe_noise(eigenvalues, mu, 1)[0] == pytest.approx(estimates.std() / truth[0], rel=0.1)


def test_rivals_are_measured_by_the_first_of_our_methods(load: Load) -> None:
    accuracy = load("same_accuracy")
    curve = {"steps": [8, 16], "errors": [[0.01] * 7] * 2}
    seconds = {"prunelimit": 3.0, "pyhessian": 12.0, "prunelimit-joint": 2.0}
    curves = {name: curve | {"cpu": [spent, 2 * spent]} for name, spent in seconds.items()}
    row = accuracy.table(curves, np.zeros(7))[0]
    assert {name: row[name].get("times_ours") for name in seconds} == {
        "prunelimit": 1.5,
        "pyhessian": 6.0,
        "prunelimit-joint": None,
    }
    del curves["prunelimit-joint"]
    assert accuracy.table(curves, np.zeros(7))[0]["pyhessian"]["times_ours"] == 4.0


def test_methods_that_need_several_start_vectors_are_asked_for_by_name(load: Load) -> None:
    competitors = load("competitors")
    assert "prunelimit-joint" not in competitors.available()
    assert list(competitors.available(["prunelimit-joint"])) == ["prunelimit-joint"]


def test_reached_wants_two_in_a_row(load: Load) -> None:
    reached = load("same_accuracy").reached
    errors = [[0.01], [0.2], [0.04], [0.03], [0.02]]
    assert reached(errors, [1.0, 2.0, 3.0, 4.0, 5.0], 0.05, 0) == (3.0, 2)
    assert reached(errors, [1.0, 2.0, 3.0, 4.0, 5.0], 0.001, 0)[0] is None


def test_fitted_exponent(load: Load) -> None:
    assert load("measure").fitted_exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_same_work_is_recorded(load: Load, tmp_path: Path) -> None:
    record = load("records").Record("work", tmp_path)
    load("same_work").compare(record, "quick-mlp", steps=3, repeats=2, examples=100, names=None)
    found = read(tmp_path, "work")
    assert {"prunelimit", "released"} <= set(found["seconds"])
    assert all(len(clock["cpu"]) == 2 for clock in found["seconds"].values())
    largest = {name: entry["largest"] for name, entry in found["agreement"].items() if name != "released"}
    np.testing.assert_allclose(list(largest.values()), largest["prunelimit"], rtol=1e-3)
    assert found["product"]["gradients"] > 0
    assert found["shares"]["released"]["share"] > 0


def test_same_accuracy_is_recorded(load: Load, tmp_path: Path) -> None:
    record = load("records").Record("accuracy", tmp_path)
    names = ["prunelimit-joint", "prunelimit", "pyhessian"]
    load("same_accuracy").compare(record, "quick-mlp", probes=2, groups=2, steps=(4, 64), names=names)
    found = read(tmp_path, "accuracy")
    for name in names[:2]:
        curve = found["curves"][name]
        assert curve["steps"] == [4, 64]
        assert max(curve["errors"][-1]) < 0.5
    assert len(found["table"]) == 2 * len(found["scales"])


def test_growth_is_recorded(load: Load, tmp_path: Path) -> None:
    growth = load("growth")
    growth.compare(load("records").Record("growth", tmp_path), sizes=growth.QUICK, repeats=1, parts=None)
    parts = read(tmp_path, "growth")["parts"]
    assert set(parts) == set(growth.PARTS)
    assert parts["curve"]["largest_difference"] < 1e-4


def test_command_measures_memory_and_writes_no_path(tmp_path: Path) -> None:
    words = ["memory", "--network", "quick-mlp", "--methods", "prunelimit", "--quick", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path, "memory-quick-mlp")
    assert found["bytes"]["prunelimit"]["peak"] > 0
    assert str(tmp_path) not in json.dumps(found)
