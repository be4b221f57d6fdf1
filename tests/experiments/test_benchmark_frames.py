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
