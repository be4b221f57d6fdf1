"""The comparisons "size", "workers" and "memory-time" run in processes of their own, add up, and their records become tables."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunelimit.experiments import benchmark_frames
from prunelimit.experiments.store import results_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The folder is not a part of the package: it is found next to it."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.workers")


def run(kind: str, monkeypatch: pytest.MonkeyPatch, folder: Path, full: str | None = None) -> dict[str, Any]:
    """Run the quick variant, and let its record stand for the full one, which may be called after a network."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(folder))
    out = results_folder() / "benchmarks"
    network = [] if full is None else ["--network", "quick-resnet"]
    command = [sys.executable, "-m", "benchmarks", kind, *network, "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob(f"{kind}-quick*.json")
    text = path.read_text(encoding="utf-8")
    assert str(folder) not in text
    record = json.loads(text) | {"name": full or kind}
    (out / f"{full or kind}.json").write_text(json.dumps(record))
    return record


def test_size_is_recorded_in_gradients_and_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = run("size", monkeypatch, tmp_path)
    (found,) = record["networks"].values()
    few, many = found["steps"]
    seconds = {name: clock["cpu_median"] for name, clock in found["seconds"].items()}
    assert found["products"] == many > few
    assert found["gradients"] == pytest.approx(seconds["many"] / seconds["gradient"])
    shorter = found["gradients_besides"] + few * found["gradients_per_product"]
    assert shorter == pytest.approx(seconds["few"] / seconds["gradient"])
    assert 0.1 * 2**30 < found["peak"] < record["largest"] == 16 * 2**30
    assert record["met"]
    (row,) = benchmark_frames.size_frame().itertuples(index=False)
    assert found["problem"]["dimension"] == row.D
    assert row.gradients == found["gradients"]
    assert row.peak == found["peak"] / 2**30
    assert row[-3] == pytest.approx(row.gradients + (64 - many) * found["gradients_per_product"])
    origin = benchmark_frames.benchmark_origin().set_index("comparison")
    assert origin.loc["size", "processor"] != "not recorded"
    assert origin.loc["workers", "command"] == "python -m benchmarks workers"


def test_memory_and_time_of_a_product_by_rows_per_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = run("memory-time", monkeypatch, tmp_path, full="memory-time-resnet20")
    assert [(found["rule"], found["rows_per_pass"]) for found in record["choices"]] == [("retained", 100), ("fresh", 7)]
    table = benchmark_frames.trade_frame()
    assert table.graph.tolist() == ["kept between products", "built anew"]
    for found, row in zip(record["choices"], table.to_dict("records"), strict=True):
        assert found["basis"] == 4 * record["problem"]["dimension"] * record["steps"]
        assert row["peak of a product, MiB"] == found["peak"] / 2**20 > 0
        assert row["with the basis / basis"] == pytest.approx(1 + found["peak"] / found["basis"])
        seconds = {name: clock["cpu_median"] for name, clock in found["seconds"].items()}
        assert row["gradients per product"] == pytest.approx(seconds["product"] / seconds["gradient"])


def test_workers_give_the_same_product_and_are_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = run("workers", monkeypatch, tmp_path)
    (found,) = record["networks"].values()
    assert found["difference"] < 1e-5
    (each,) = found["rounds"]
    assert len(each["cpu"]) == record["processes"] == 2
    assert all(seconds > 0 for seconds in (*each["cpu"], *each["one"], each["wall"]))
    assert each["load"] >= 0
    (row,) = benchmark_frames.workers_frame().itertuples(index=False)
    assert row.efficiency == found["efficiency"] == pytest.approx(each["one"][0] / sum(each["cpu"]))
    assert row.speedup == found["speedup"]


def test_efficiency_of_known_rounds(workers: ModuleType) -> None:
    ideal = {"load": 0.0, "one": (8.0, 8.0), "cpu": (4.0, 4.0), "wall": 4.0}
    assert workers.efficiency([ideal]) == {"efficiency": 1, "balanced": 1, "speedup": 2, "load": 0}
    uneven = {"load": 3.0, "one": (8.0, 9.0), "cpu": (4.0, 6.0), "wall": 6.0}
    found = workers.efficiency([uneven])
    assert found["efficiency"] == 0.8
    assert found["balanced"] == pytest.approx(8 / 12)
    assert found["speedup"] == 1.5
    assert workers.efficiency([ideal, uneven, uneven]) == found


def test_nothing_recorded_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    assert benchmark_frames.size_frame().empty
    assert benchmark_frames.workers_frame().empty
    assert benchmark_frames.trade_frame().empty
