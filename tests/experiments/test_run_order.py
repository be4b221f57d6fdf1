"""`run all` takes the most valuable cells first, and skips those that it cannot compute here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunelimit import cli_records
from prunelimit.experiments import runner
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.order import has_begun, most_valuable_first, value_rank

NAMES = (
    "fc5-cifar10",
    "vgg16-cifar10",
    "resnet18-tinyimagenet",
    "resnet18-cifar100",
    "resnet50-cifar100",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNELIMIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path / "results"))
    return tmp_path / "cache"


def order(seeds: int = 2) -> list[tuple[str, int]]:
    cells = most_valuable_first([TASKS[name] for name in NAMES], "paper", range(seeds))
    for task, seed, spec in cells:
        assert spec == task.spec("paper", seed)
    return [(task.name, seed) for task, seed, _ in cells]


def test_one_seed_of_every_task_comes_before_a_second_one_of_any() -> None:
    found = order()
    assert [seed for _, seed in found] == [0] * 5 + [1] * 5
    assert [name for name, _ in found[:5]] == [name for name, _ in found[5:]]
    assert {name for name, _ in found[:2]} == {"vgg16-cifar10", "resnet18-cifar100"}
    assert found[4] == ("resnet18-tinyimagenet", 0)


@pytest.mark.parametrize("what", ["checkpoint", "steps"])
def test_what_has_begun_comes_before_its_equals_and_not_before_its_betters(cache: Path, what: str) -> None:
    begun = [TASKS["resnet50-cifar100"].spec("paper", 0), TASKS["fc5-cifar10"].spec("paper", 1)]
    for spec in begun:
        assert not has_begun(spec)
        if what == "checkpoint":
            (cache / "checkpoints" / spec.train.hash / "step-000001").mkdir(parents=True)
        else:
            (cache / "runs" / spec.hash).mkdir(parents=True)
            (cache / "runs" / spec.hash / "steps.json").write_text("{}")
        assert has_begun(spec)
    found = order()
    assert found[2:4] == [("resnet50-cifar100", 0), ("fc5-cifar10", 0)]
    assert found[7:9] == [("fc5-cifar10", 1), ("resnet50-cifar100", 1)]


def test_every_task_has_a_rank() -> None:
    assert {value_rank(task) for task in TASKS.values()} == {0, 1, 2}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(cli_records, "say", lines.append)
    return lines


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the runs that were asked for; each is recorded at once, but the fourth runs out of time."""
    labels: list[str] = []

    def run_limit(spec: object, label: dict[str, str], **options: Any) -> dict[str, Any] | None:
        labels.append(label["task"])
        if len(labels) == 4:
            return None
        return {"measured": {"sparsity": 0.5}, "provenance": {"throughput": {"images_per_second": 12345.6}}}

    monkeypatch.setattr(runner, "run_limit", run_limit)
    return labels


def test_data_that_are_not_here_are_skipped_with_a_note(
    tmp_path: Path, said: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNELIMIT_DATA", str(tmp_path / "data"))
    cli_records.run("all", profile="paper", missing=True, seeds=1)
    assert asked == []
    skipped = [line for line in said if "skipped" in line]
    assert len(skipped) == sum("paper" in task.profiles for task in TASKS.values())
    # Why, once per data set.
    assert len([line for line in said if "is not on this machine" in line]) == 3


def test_run_ends_at_the_first_cell_that_runs_out_of_time(said: list[str], asked: list[str]) -> None:
    cli_records.run("all", profile="quick", missing=True, seeds=2)
    assert len(asked) == 4
    assert said[0].endswith("measured limit 50.0%, 0 s, trained at 12,346 images/s")
    assert said[3].endswith("out of time; call again to go on")
    assert len(said) == 4
