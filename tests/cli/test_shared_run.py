"""`prunelimit run` by two processes of torchrun, one of which is killed, against the run of one process."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prunelimit.experiments.runner import EXPERIMENT, run_limit
from prunelimit.experiments.store import load_record

#: A task that takes a second, and a process that dies on the way if it is told to.
SCRIPT = """
import os
import signal
import sys

from prunelimit import cli
from prunelimit.experiments import catalogue, runner
from prunelimit.experiments.specs import LimitSpec
from prunelimit.training import TrainSpec

SPEC = LimitSpec(
    train=TrainSpec(dataset="digits", model="fc5-quick", epochs=4, batch_size=64, lr=0.02, l1=1e-3, train_size=399),
    curvature_examples=99,
    steps=6,
    sweep=(0.0, 0.5, 0.9),
    accuracy_step=0.05,
    tune_epochs=1,
    tune_tolerance=0.5,
)

if __name__ == "__main__":
    sweep = runner.sweep

    def fatal(*words):
        if os.environ["RANK"] == os.environ["FATAL"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return sweep(*words)

    runner.sweep = fatal
    catalogue.TASKS["tiny"] = catalogue.Task(name="tiny", title="Tiny", profiles={"quick": SPEC})
    sys.argv = ["prunelimit", "run", "tiny", "--seeds", "1"]
    cli.main()
"""


def close(one: Any, other: Any, rel: float = 1e-3, abs_: float = 1e-5) -> bool:
    return one == pytest.approx(other, rel=rel, abs=abs_)


def test_two_processes_make_the_record_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    spec = runpy.run_path(str(script))["SPEC"]
    expected = run_limit(spec, keep=False)
    for name in ("CACHE", "RESULTS"):
        monkeypatch.setenv(f"PRUNELIMIT_{name}", str(tmp_path / name.lower()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def run(fatal: str) -> subprocess.CompletedProcess[str]:
        words = [*command, str(script)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 500, "check": False}
        return subprocess.run(words, env=environment | {"FATAL": fatal}, **options)

    assert run("1").returncode != 0
    steps = tmp_path / "cache" / "runs" / spec.hash / "steps.json"
    kept = {name: step for name, step in json.loads(steps.read_text(encoding="utf-8")).items() if "value" in step}
    assert "accuracy" in kept
    assert "sweep" not in kept
    done = run("none")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("recorded") == 1  # one process speaks
    again = json.loads(steps.read_text(encoding="utf-8"))
    assert {name: again[name] for name in kept} == kept  # and none of it was computed anew, seconds included

    record = load_record(EXPERIMENT, spec)
    assert record is not None
    assert record["provenance"]["processes"] == 2
    assert "processes" not in expected["provenance"]
    assert set(record) - {"digest", "format", "hash", "spec"} == set(expected)
    for key in ("dense", "epsilon", "radius"):
        assert close(record[key], expected[key]), key
    for key, values in expected["sweep"].items():
        assert close(record["sweep"][key], values), key
    one, other = (found["spectrum"]["probes"][0] for found in (record, expected))
    assert close(one["alpha"], other["alpha"])
    for key in ("directional", "measured"):
        assert close(record[key]["sparsity"], expected[key]["sparsity"], abs_=0.002), key
    assert close(record["fine_tuned"]["reference_loss"], expected["fine_tuned"]["reference_loss"])
    assert [entry["accuracy"] for entry in record["history"]] == [entry["accuracy"] for entry in expected["history"]]
    assert not list((tmp_path / "cache").rglob("unfinished"))
