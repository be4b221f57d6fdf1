"""Steps are remembered with their time, parts too, and nothing begins that the deadline would cut off."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from prunelimit.experiments import steps as steps_module
from prunelimit.experiments.steps import Steps
from prunelimit.training import OutOfTime


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless it is moved."""
    now = [100.0]
    monkeypatch.setattr(steps_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def lasting(clock: list[float], seconds: float, value: object = None) -> object:
    def compute() -> object:
        clock[0] += seconds
        return value

    return compute


def test_a_finished_step_is_not_repeated(tmp_path: Path, clock: list[float]) -> None:
    Steps(tmp_path / "steps.json")("one", lasting(clock, 3, [1, 2.5]))
    again = Steps(tmp_path / "steps.json")
    assert again("one", lambda: pytest.fail("computed again")) == [1, 2.5]
    assert again.seconds == {"one": 3}


def test_a_passed_deadline_begins_nothing(tmp_path: Path, clock: list[float]) -> None:
    steps = Steps(tmp_path / "steps.json", deadline=clock[0] + 5)
    steps("one", lasting(clock, 6))
    with pytest.raises(OutOfTime):
        steps("two", lambda: pytest.fail("begun after the deadline"))
    assert set(json.loads((tmp_path / "steps.json").read_text())) == {"one"}


def search(steps: Steps, clock: list[float], count: int = 10) -> list[int]:
    return steps("search", lambda: [steps(f"search {k}", lasting(clock, 2, k)) for k in range(count)])


def test_parts_are_kept_and_their_time_counts_once(tmp_path: Path, clock: list[float]) -> None:
    calls = 0
    while True:
        calls += 1
        steps = Steps(tmp_path / "steps.json", deadline=clock[0] + 9)
        try:
            found = steps("all", lambda steps=steps: [0, *search(steps, clock)])
            break
        except OutOfTime:
            # The longest part lasts two seconds, and half of the time is never reserved: four parts fit in.
            assert (
                len([name for name in json.loads((tmp_path / "steps.json").read_text()) if "search " in name]) % 4 == 0
            )
    assert found == [0, *range(10)]
    assert calls == 3
    assert steps.seconds == {"all": 0, "search": 20}


def test_a_part_that_takes_more_than_the_whole_budget_is_begun(tmp_path: Path, clock: list[float]) -> None:
    # Once wrong: a part that never fits is never begun, and every call ends with nothing done.
    for done in range(1, 4):
        steps = Steps(tmp_path / "steps.json", deadline=clock[0] + 1)
        with pytest.raises(OutOfTime):
            search(steps, clock)
        assert len(steps._parts("search")) == done


def test_time_of_a_step_that_was_stopped_is_added(tmp_path: Path, clock: list[float]) -> None:
    def stopped() -> object:
        clock[0] += 7
        raise OutOfTime

    with pytest.raises(OutOfTime):
        Steps(tmp_path / "steps.json")("long", stopped)
    steps = Steps(tmp_path / "steps.json")
    assert steps("long", lasting(clock, 4, "done")) == "done"
    assert steps.seconds == {"long": 11}


def test_short_parts_do_not_wait_for_the_disk_each(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(steps_module, "write_json", lambda path, value: written.append(len(value)))
    steps = Steps(tmp_path / "steps.json")
    steps("search", lambda: [steps(f"search {k}", lasting(clock, 0.3, k)) for k in range(10)])
    assert written == [4, 8, 11]


def test_steps_with_a_number_but_no_whole_stand_alone(tmp_path: Path, clock: list[float]) -> None:
    steps = Steps(tmp_path / "steps.json")
    for name, seconds in {"tuned 0.1": 1, "tuned 0.2": 2}.items():
        steps(name, lasting(clock, seconds))
    assert steps.seconds == {"tuned 0.1": 1, "tuned 0.2": 2}


def test_a_line_is_shown_now_and_then(tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for place, title in (("silent", None), ("told", "a network")):
        steps = Steps(tmp_path / place / "steps.json", title=title)
        steps("search", lambda steps=steps: [steps(f"search {k}", lasting(clock, 12)) for k in range(7)])
    assert capsys.readouterr().err.splitlines() == ["a network: search 2  12 s", "a network: search 5  12 s"]


def test_a_damaged_file_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text("{")
    assert Steps(tmp_path / "steps.json").done == {}
