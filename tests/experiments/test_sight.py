"""Records of limits along the line of sight."""

from __future__ import annotations

import time
from typing import Any

import pytest

from prunelimit.curvature import Spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import frames
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.curvature import EXPERIMENT as CURVATURE
from prunelimit.experiments.sight import EXPERIMENT, run_sight
from prunelimit.experiments.sight_frames import sight_steps_frame, truncated_limit
from prunelimit.experiments.specs import SightSpec
from prunelimit.experiments.store import load_record, save_record
from prunelimit.files import cache_folder
from prunelimit.limit import formula_limit
from prunelimit.sight import Sight, sight_along
from prunelimit.training import TrainSpec

TRAIN = TrainSpec(dataset="digits", model="fc5-quick", epochs=6, batch_size=64, lr=0.02, l1=1e-3, train_size=400)
SPEC = SightSpec(train=TRAIN, examples=200, steps=40, sight_steps=20, tolerance=0.01)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found = run_sight(SPEC, label={"task": "test", "profile": "quick"})
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["cone", "cut"])
def test_the_record_holds_the_limit_and_what_it_follows_from(record: dict[str, Any], name: str) -> None:
    limit, probed = record["limits"][name], load_record(CURVATURE, SPEC.spectrum)
    assert probed is not None
    assert (limit["method"], limit["total"], limit["examples"]) == (name, 5920, 200)
    assert limit["cost"]["products"] == 20 * len(limit["points"]["sparsity"])
    found, epsilon = Spectrum.from_dict(probed["spectrum"]), probed["epsilon"]
    sights = {round(sight["sparsity"], 8): Sight.from_dict(sight) for sight in record["sights"]}
    for s, r in zip(limit["points"]["sparsity"], limit["points"]["removable"], strict=True):
        assert sights[s].removable(found, epsilon, name)[0] == pytest.approx(r, abs=1e-6)
    at_limit = min(
        zip(limit["points"]["sparsity"], limit["points"]["removable"], strict=True), key=lambda p: abs(p[1] - p[0])
    )
    assert abs(at_limit[1] - at_limit[0]) <= SPEC.tolerance
    assert limit["sparsity"] == pytest.approx(at_limit[0], abs=1e-8)


def test_the_cone_is_never_below_the_formula(record: dict[str, Any]) -> None:
    probed = load_record(CURVATURE, SPEC.spectrum)
    assert probed is not None
    formula = formula_limit(Spectrum.from_dict(probed["spectrum"]), frames.fine_distance(probed), probed["epsilon"])
    assert record["limits"]["cone"]["sparsity"] >= formula.sparsity - SPEC.tolerance


def test_the_record_is_found_again(record: dict[str, Any]) -> None:
    assert run_sight(SPEC)["limits"] == record["limits"]


def test_a_stopped_run_goes_on_from_the_last_line_of_sight(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    (cache_folder() / "sights" / SPEC.hash / "steps.json").unlink()
    seen: list[float] = []

    def counted(*arguments: Any) -> Sight:
        seen.append(float(arguments[1].norm()))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return sight_along(*arguments)

    monkeypatch.setattr("prunelimit.experiments.sight.sight_along", counted)
    with pytest.raises(KeyboardInterrupt):
        run_sight(SPEC)
    again = run_sight(SPEC)
    assert again["limits"]["cut"]["points"] == record["limits"]["cut"]["points"]
    assert len(seen) == len(record["sights"]) + 1  # the one that was cut off


def test_a_deadline_leaves_no_record() -> None:
    spec = SightSpec(train=TrainSpec(dataset="digits", model="fc12-quick", epochs=500, batch_size=32, seed=7))
    assert run_sight(spec, deadline=time.monotonic() + 0.2) is None
    assert load_record(EXPERIMENT, spec) is None


def test_pages_find_it_by_task_profile_and_seed(record: dict[str, Any]) -> None:
    task = TASKS["fc5-cifar10"]
    cell = frames.Cell(task, "quick", 2, task.spec("quick", 2), {})
    save_record(EXPERIMENT, task.sight_specs("quick", 2)[-1], record)
    assert cell.sight["cut"]["sparsity"] == record["limits"]["cut"]["sparsity"]
    limits = frames.Cell(task, "quick", 1, task.spec("quick", 1), {}).sight
    assert limits == {}


def test_a_spectrum_of_another_network_is_refused(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    probed = load_record(CURVATURE, SPEC.spectrum)
    assert probed is not None
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    save_record(CURVATURE, SPEC.spectrum, probed | {"radius": [r * 1.01 for r in probed["radius"]]})
    with pytest.raises(PruneLimitError, match="another network"):
        run_sight(SPEC)


def test_fewer_products_of_the_recorded_lines_of_sight_lead_to_the_same_limit_in_the_end(
    record: dict[str, Any],
) -> None:
    probed = load_record(CURVATURE, SPEC.spectrum)
    assert probed is not None
    for name in ("cone", "cut"):
        whole = truncated_limit(record, probed, name, SPEC.sight_steps)
        assert whole == pytest.approx(record["limits"][name]["sparsity"], abs=SPEC.tolerance)
        assert truncated_limit(record, probed, name, 2) != pytest.approx(whole, abs=1e-4)
    outside = record | {"sights": record["sights"][:1]}
    assert truncated_limit(outside, probed, "cut", 5) != truncated_limit(outside, probed, "cut", 5)  # NaN


def test_steps_are_listed_for_recorded_cells(record: dict[str, Any]) -> None:
    task = TASKS["fc5-cifar10"]
    cell = frames.Cell(task, "quick", 3, task.spec("quick", 3), {})
    spec = task.sight_specs("quick", 3)[-1]
    save_record(EXPERIMENT, spec, record)
    assert sight_steps_frame([cell], [5, 10]).empty  # without its spectrum
    probed = load_record(CURVATURE, SPEC.spectrum)
    assert probed is not None
    save_record(CURVATURE, spec.spectrum, {k: v for k, v in probed.items() if k not in ("hash", "spec", "digest")})
    table = sight_steps_frame([cell], [5, 10, 10**6])
    assert table.steps.tolist() == [5, 10]
    assert table.cut.between(0, 1).all()
