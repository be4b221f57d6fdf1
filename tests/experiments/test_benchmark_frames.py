"""Tables of recorded comparisons."""

from __future__ import annotations

import json

import pytest

from prunelimit.experiments import benchmark_frames
from prunelimit.experiments.store import results_folder


@pytest.fixture
def record() -> dict[str, object]:
    clock = {"cpu_median": 2.0}
    return {
        "complete": True,
        "problem": {"network": "fc5", "examples": 2000},
        "steps": 96,
        "rounds": 3,
        "seconds": {"prunelimit": clock, "other": {"cpu_median": 8.0}},
        "shares": {"other": {"share": 0.25, "target": 0.45}},
        "methods": {"prunelimit": {"what": "ours"}, "other": {"what": "theirs"}},
        "product": {"rule": "mlp", "rows_per_pass": 1000, "gradients": 1.1, "target": 1.2},
    }


def test_recorded_comparisons_become_rows(record: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    assert benchmark_frames.same_work_frame().empty
    (results_folder() / "benchmarks").mkdir()
    path = results_folder() / "benchmarks" / "same-work-fc5.json"
    path.write_text(json.dumps(record))
    table = benchmark_frames.same_work_frame().set_index("method")
    assert table.loc["other", "ours / it"] == 0.25
    assert table["CPU seconds"].tolist() == [2.0, 8.0]
    assert benchmark_frames.product_frame()["gradients per product"].tolist() == [1.1]
    path.write_text(json.dumps(record | {"complete": False}))
    assert benchmark_frames.same_work_frame().empty


def written(name: str, record: dict[str, object], monkeypatch: pytest.MonkeyPatch, folder) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(folder))
    (results_folder() / "benchmarks").mkdir(exist_ok=True)
    (results_folder() / "benchmarks" / f"{name}.json").write_text(json.dumps({"complete": True} | record))


def test_memory_is_shown_in_sizes_of_the_basis(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    sizes = {"prunelimit": {"peak": 3 * 2**20, "basis": 2 * 2**20, "ratio": 1.5}, "released": {"failed": -9}}
    about = {"problem": {"network": "fc5", "examples": 2000}, "steps": 96, "bytes": sizes, "target": 1.1}
    written("memory-fc5", about, monkeypatch, tmp_path)
    table = benchmark_frames.memory_frame().set_index("method")
    assert table.loc["prunelimit", ["peak, MiB", "basis, MiB", "peak / basis", "aim"]].tolist() == [3, 2, 1.5, 1.1]
    assert table.loc["released", ["peak, MiB", "aim"]].isna().all()


def test_seconds_until_it_is_right_tell_who_never_arrived(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    curve = {"steps": [8, 16], "errors": [[0.5, 0.6], [0.01, 0.02]], "cpu": [1.0, 2.0]}
    rows = [
        {
            "tolerance": tolerance,
            "scale": 0.01,
            "prunelimit": {"cpu": 2.0, "steps": 16, "at_least": None},
            "pyhessian": {"cpu": None, "steps": None, "at_least": 30.0, "times_ours": 15.0},
        }
        for tolerance in (0.05, 0.1)
    ]
    about = {
        "problem": {"network": "mlp", "dimension": 70},
        "methods": {"prunelimit": {}, "pyhessian": {}},
        "scales": [0.01, 0.001],
        "probe_noise": [0.1, 0.2],
        "curves": {"prunelimit": curve},
        "table": rows,
        "target": 8.0,
    }
    written("same-accuracy-mlp-small", about, monkeypatch, tmp_path)
    table = benchmark_frames.accuracy_frame(0.05).set_index("method")
    assert table.reached.to_dict() == {"prunelimit": True, "pyhessian": False}
    assert table.loc["pyhessian", ["CPU seconds", "times ours", "aim"]].tolist() == [30.0, 15.0, 8.0]
    errors = benchmark_frames.error_frame()
    assert errors[errors.scale == 0.001].error.tolist() == [0.6, 0.02]
    assert set(errors.noise) == {0.1, 0.2}


def test_growth_and_shortcuts_are_read_from_one_record(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    clock = {"cpu_median": 2.0}
    sweep = {"sizes": [10.0, 20.0], "clocks": [clock, {"cpu_median": 8.0}], "exponent": 2.0}
    rows = {"dimension": 100, "probes": 8, "estimated": clock, "rows_measured": 5, "all_rows_extrapolated": 50.0}
    curve = {
        "points": 1000,
        "one_sort": clock,
        "copies": {"cpu_median": 60.0},
        "times": 30.0,
        "largest_difference": 1e-9,
    }
    parts = {
        "examples": sweep,
        "parameters": {"product": sweep, "process": sweep},
        "rows": rows | {"times": 25.0, "relative_error": {"root_mean_square": 0.2}},
        "curve": curve,
    }
    written("growth", {"parts": parts}, monkeypatch, tmp_path)
    growth = benchmark_frames.growth_frame()
    assert growth.groupby(["sweep", "timed"]).size().tolist() == [2, 2, 2]
    assert growth["CPU seconds"].tolist() == [2.0, 8.0] * 3
    shortcuts = benchmark_frames.shortcut_frame()
    assert shortcuts["one at a time, s"].tolist() == [50.0, 60.0]
    assert shortcuts.times.tolist() == [25.0, 30.0]


def test_origin_lists_what_is_missing_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    about = {"processor": "chip", "threads": 1, "torch": "2", "commit": "0123456789abcdef"}
    written("growth", {"name": "growth", "provenance": about, "command": "make it"}, monkeypatch, tmp_path)
    table = benchmark_frames.benchmark_origin().set_index("comparison")
    assert table.loc["growth", ["commit", "command"]].tolist() == ["0123456789", "make it"]
    assert table.loc["memory-fc5", "command"] == "python -m benchmarks memory --network fc5"
    assert table.loc["memory-fc5", "processor"] == "not recorded"
