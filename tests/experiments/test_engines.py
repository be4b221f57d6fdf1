"""Engines: the same records from worker processes and from a Ray cluster, also when a worker is killed."""

from __future__ import annotations

import dataclasses
import operator
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from prunelimit.cli import app
from prunelimit.cli_engines import choose_engine
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.elsewhere import run_limits
from prunelimit.experiments.engines import LocalEngine, RayEngine, from_wall_clock, run_all, to_wall_clock
from prunelimit.experiments.regime_specs import RegimeSpec
from prunelimit.experiments.regimes import run_regimes
from prunelimit.experiments.runner import run_limit
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.store import load_record, record_path
from prunelimit.models import build_model
from prunelimit.training import TrainSpec

BASE = TrainSpec(dataset="digits", model="preresnet8-quick", epochs=2, batch_size=64, lr=0.1, train_size=64)
RETRAIN = dataclasses.replace(BASE, epochs=3)

#: Two chains of parents; the second one has an early-stopped one in it.
CELLS = [
    RegimeSpec(train=dataclasses.replace(BASE, epochs=epochs, seed=seed), density=density, retrain=RETRAIN)
    for epochs, seed, density in ((2, 0, 0.5), (2, 1, 0.5), (1, 1, 0.5), (2, 0, 0.2), (2, 1, 0.2))
]

#: Scripts of the page "Beyond one machine".
SCALE = Path(__file__).parents[2] / "book" / "scale"

MEASURED = ("data", "kept", "total", "parent", "children", "pairs")


def use_folders(patch: pytest.MonkeyPatch, results: Path, cache: Path) -> None:
    patch.setenv("PRUNELIMIT_RESULTS", str(results))
    patch.setenv("PRUNELIMIT_CACHE", str(cache))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray with two workers; their cache."""
    ray = pytest.importorskip("ray")
    home = tmp_path_factory.mktemp("cluster")
    short = tempfile.mkdtemp(prefix="pl-", dir="/tmp")  # Ray's sockets lie there, whose names must be short
    with pytest.MonkeyPatch.context() as patch:
        use_folders(patch, home / "workers-results", home / "cache")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # another program's memory must not end a test
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init("local", num_cpus=2, object_store_memory=80 * 2**20, _temp_dir=short, **options)
        try:
            yield home / "cache"
        finally:
            ray.shutdown()
            shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[RegimeSpec, dict[str, Any]]:
    """The records of one process."""
    home = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        use_folders(patch, home / "results", home / "cache")
        return dict(run_regimes(CELLS, progress=False))


def processes(cache: Path, title: bytes = b"ray::_call") -> set[int]:
    """Find the processes that work with a cache and have a title, which Ray gives to those that run a task."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = (folder / "cmdline").read_bytes().startswith(title)
            if named and str(cache).encode() in (folder / "environ").read_bytes():
                found.add(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def kill_a_worker(cache: Path) -> int:
    """End a process in the middle of a task."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for process in processes(cache):
            os.kill(process, signal.SIGSTOP)  # so that the task cannot end between the look and the kill
            if process in processes(cache):
                os.kill(process, signal.SIGKILL)
                return process
            os.kill(process, signal.SIGCONT)
        time.sleep(0.01)
    raise AssertionError("no task ran")


def test_a_killed_worker_changes_no_record(
    cluster: Path, alone: dict[RegimeSpec, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_folders(monkeypatch, tmp_path / "results", tmp_path / "own-cache")
    found, killed = {}, None
    for spec, record in run_regimes(CELLS, engine=RayEngine(), progress=False):
        found[spec] = record
        if killed is None:
            killed = kill_a_worker(cluster)
    assert killed not in processes(cluster, b"ray::")
    assert found.keys() == alone.keys()
    files = {path.stem for path in (tmp_path / "results" / "regimes").iterdir()}
    assert files == {spec.hash for spec in CELLS}
    for spec in CELLS:
        stored = load_record("regimes", spec)
        assert stored is not None
        for key in MEASURED:
            assert stored[key] == found[spec][key] == alone[spec][key]
    # Whatever is there is not computed again, and records cross no shared folder.
    assert not (cluster.parent / "workers-results").exists()
    record_path("regimes", CELLS[0]).unlink()
    again = {spec: record["pairs"] for spec, record in run_regimes(CELLS, engine=RayEngine(), progress=False)}
    assert again == {spec: record["pairs"] for spec, record in alone.items()}


def test_stacks_of_small_networks_are_tasks_too(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(BASE, model="fc3", epochs=1)
    specs = [RegimeSpec(train=small, density=density, retrain=small) for density in (0.2, 0.5)]
    use_folders(monkeypatch, tmp_path / "here", tmp_path / "cache")
    here = dict(run_regimes(specs, progress=False))
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "there"))
    there = dict(run_regimes(specs, engine=RayEngine(), progress=False))
    for spec in specs:
        assert there[spec]["parent"] == pytest.approx(here[spec]["parent"], rel=1e-4)
        assert there[spec]["pairs"][0]["lmc"] == pytest.approx(here[spec]["pairs"][0]["lmc"], abs=1e-3)


def test_limits_are_those_of_one_process(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainSpec(dataset="digits", model="fc3", epochs=2, batch_size=64, lr=0.05, train_size=256)
    spec = LimitSpec(train=train, curvature_examples=64, steps=8, sweep_evaluations=40, accuracy_step=0.1)
    use_folders(monkeypatch, tmp_path / "here", tmp_path / "cache")
    here = run_limit(spec, progress=False)
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "there"))
    assert list(run_limits([(spec, {}, False)], RayEngine(), deadline=time.monotonic() - 1)) == [(spec, None)]
    ((found, there),) = run_limits([(spec, {}, False)], RayEngine())
    assert found == spec
    assert here is not None
    for record in (there, load_record("limit", spec)):
        assert record is not None
        assert {key: record[key] for key in ("spectrum", "measured", "dense")} == {
            key: here[key] for key in ("spectrum", "measured", "dense")
        }


def test_a_lost_run_is_started_again(cluster: Path, tmp_path: Path) -> None:
    def dies_once(mark: Path) -> str:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with RayEngine(retries=1) as engine:
        assert dict(run_all(engine, [("it", dies_once, (tmp_path / "mark",))])) == {"it": "done"}
    assert (tmp_path / "mark").exists()


def test_errors_come_back_and_lost_runs_are_told(cluster: Path) -> None:
    with RayEngine(retries=0) as engine:
        first = engine.submit(operator.add, 1, 2)
        assert dict(run_all(engine, [("sum", operator.mul, (first, 5))])) == {"sum": 15}
        with pytest.raises(PruneLimitError, match=r"^model='resnet19' is unknown"):
            dict(run_all(engine, [("bad", build_model, ("resnet19",))]))
        with pytest.raises(PruneLimitError, match=r"^engine='ray': a run was lost 1 times \(WorkerCrashedError\)"):
            dict(run_all(engine, [("lost", os._exit, (1,))]))


@pytest.mark.slow
def test_ray_that_was_started_here_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        ray.shutdown()
    use_folders(monkeypatch, tmp_path, tmp_path / "cache")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", (short := tempfile.mkdtemp(prefix="pl-", dir="/tmp")))
    try:
        with RayEngine(workers=1) as engine:
            assert dict(run_all(engine, [(n, operator.neg, (n,)) for n in range(3)])) == {0: 0, 1: -1, 2: -2}
            assert processes(tmp_path, b"")
        until = time.monotonic() + 20
        while processes(tmp_path, b"") - {os.getpid()} and time.monotonic() < until:
            time.sleep(0.1)
        assert not processes(tmp_path, b"") - {os.getpid()}
        assert not ray.is_initialized()
    finally:
        shutil.rmtree(short, ignore_errors=True)


def test_a_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(PruneLimitError, match=r"^ray_address='node:6379' cannot be joined \(nobody there\)"):
        RayEngine("node:6379").__enter__()


def test_without_ray_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PruneLimitError, match=r"^engine='ray' needs Ray, which is not here: pip install 'ray>=2.40'"):
        RayEngine().__enter__()


def test_processes_of_this_machine_compute_jobs_that_need_each_other() -> None:
    with LocalEngine(2) as engine:
        first = engine.submit(operator.add, 1, 2)
        found = dict(run_all(engine, [(n, operator.mul, (first, n)) for n in range(5)]))
        assert found == {n: 3 * n for n in range(5)}
        with pytest.raises(ZeroDivisionError):
            dict(run_all(engine, [("bad", operator.truediv, (1, 0))]))


def test_deadlines_survive_the_way_to_another_clock() -> None:
    now = time.monotonic()
    assert from_wall_clock(to_wall_clock(now + 5)) == pytest.approx(now + 5, abs=0.5)
    assert from_wall_clock(to_wall_clock(None)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cpus": 0}, "^cpus=0 must be positive"),
        ({"gpus": 1.5}, "^gpus=1.5 must be a fraction of one GPU"),
        ({"gpus": -1}, "^gpus=-1 must"),
        ({"retries": -2}, "^retries=-2 must"),
        ({"workers": 0}, "^workers=0 must be at least 1"),
    ],
)
def test_impossible_clusters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        RayEngine(**settings)


def commands_of(text: str) -> list[list[str]]:
    """Find the calls of the command line in a script, and in the comments of a cluster file."""
    joined = re.sub(r"\\\n|\n#(?=     )", " ", text).replace("prunelimit.cli", "bin/prunelimit")
    found = re.findall(r"(?:^|/|\s)prunelimit\s+((?:regimes|run|predict)\b[^\n\")]*)", joined)
    return [shlex.split(words) for words in found]


@pytest.mark.parametrize("name", ["sweep.slurm", "limit.slurm", "train.slurm", "cluster.yaml"])
def test_the_scripts_call_what_there_is(name: str) -> None:
    text = (SCALE / name).read_text(encoding="utf-8")
    calls = commands_of(text)
    assert calls
    group = typer.main.get_command(app)
    for command, *words in calls:
        chosen = group.commands[command]  # type: ignore[attr-defined]
        known = {option for parameter in chosen.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
    if name.endswith("slurm"):
        subprocess.run(["bash", "-n", SCALE / name], check=True)


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_the_cluster_file() -> None:
    pytest.importorskip("ray")
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((SCALE / "cluster.yaml").read_text(encoding="utf-8")))
    validate_config(config)
    (nodes,) = config["available_node_types"].values()
    assert nodes["min_workers"] == len(config["provider"]["worker_ips"])


def test_options_of_the_command_line_become_an_engine() -> None:
    assert choose_engine("local", "cpu", None, 1, 0, 3) is None
    assert choose_engine("ray", "cuda", "head:6379", 2, 0.25, 1) == RayEngine("head:6379", None, 2, 0.25, 1)
    wrong: list[tuple[tuple[Any, ...], str]] = [
        (("spark", "cpu", None, 1, 0, 3), "^engine='spark' is unknown"),
        (("local", "cpu", "head:6379", 1, 0, 3), "^engine='local' knows neither"),
        (("ray", "cuda:1", None, 1, 0.5, 3), "^device='cuda:1' must be cpu or cuda"),
        (("ray", "cuda", None, 1, 0, 3), "^device='cuda' does not go with gpus_per_run=0"),
        (("ray", "cpu", None, 1, 0.25, 3), "^device='cpu' does not go with gpus_per_run=0.25"),
    ]
    for arguments, message in wrong:
        with pytest.raises(PruneLimitError, match=message):
            choose_engine(*arguments)
