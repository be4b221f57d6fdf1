"""Table T7 has a row for every setting of the catalogue, and splits what was removed correctly."""

import pytest

from prunelimit.experiments import settings_frames
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.settings_frames import _removed
from prunelimit.experiments.store import repository
from prunelimit.models import build_model, prunable_names


@pytest.fixture
def spectra(monkeypatch):
    """The records of the checkout, seed 0."""
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
    return settings_frames.slq_frame(seeds=[0])


def test_every_setting_has_a_row(spectra):
    wanted = sum(1 + len(task.curvature_specs(profile, 0)) for task in TASKS.values() for profile in task.profiles)
    assert len(spectra) == wanted
    assert len(settings_frames.slq_table(spectra)) == wanted


def test_quick_limits_are_recorded_with_their_settings(spectra):
    quick = spectra[(spectra.profile == "quick") & (spectra.command == "run") & spectra.total.notna()]
    totals = dict(zip(quick.task, quick.total, strict=True))
    assert totals.items() >= {"fc5-cifar10": 5920, "fc12-cifar10": 7328, "resnet20-cifar10": 10662}.items()
    for name, total in totals.items():
        model = build_model(TASKS[name].spec("quick", 0).train.model, input_shape=(1, 8, 8))
        assert total == sum(dict(model.named_parameters())[weight].numel() for weight in prunable_names(model))
    assert (quick.products == quick.steps * quick.probes).all()
    assert (quick.width > 0).all()
    assert (quick.largest / quick.mu > 100).all()


def test_the_table_is_text_with_dashes_where_nothing_is_recorded(spectra):
    table = settings_frames.slq_table(spectra)
    released = dict(zip(table["network, data, profile"], table["steps as released"], strict=True))
    assert released["FC5 on cifar10 (laptop)"] == "128"
    assert released["ResNet20 on cifar10 (laptop)"] == "—"
    missing = table[table.seeds == "—"]
    assert (missing[["D", "width (points)", "seconds"]] == "—").all(axis=None)
    assert (table[table.seeds != "—"].resolved.isin(["yes", "no"])).all()


def test_one_profile_of_one_task(spectra):
    part = settings_frames.slq_frame("fc12-cifar10", "quick", [0, 1])
    assert part.seed.tolist() == [0, 1]
    assert len(settings_frames.slq_table(part)) == 1
    assert settings_frames.slq_table(part).seeds[0] == "0, 1"


def test_without_records_there_are_only_settings_and_commands(monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    frame = settings_frames.slq_frame("fc5-cifar10", "laptop", [0, 1])
    assert frame.total.isna().all()
    assert settings_frames.slq_origin(frame).empty
    missing = settings_frames.missing_spectra(frame)
    assert missing.command.tolist() == [
        "prunelimit run fc5-cifar10 --profile laptop --seeds 2 --missing",
        "prunelimit resolve fc5-cifar10 --profile laptop --seeds 2",
    ]
    assert missing["without a record"][0] == "2,000 images: seeds 0, 1"
    assert missing["without a record"][1].endswith("all images: seeds 0, 1")
    assert set(settings_frames.slq_table(frame)["width (points)"]) == {"—"}


def test_nothing_is_missing_where_everything_is_recorded(spectra):
    quick = settings_frames.slq_frame("fc12-cifar10", "quick", [0])
    assert settings_frames.missing_spectra(quick).empty
    assert settings_frames.slq_origin(quick).command[0] == "prunelimit run fc12-cifar10 --profile quick --seeds 1"


def test_what_was_removed_is_split_by_hand():
    # 64-48-32-24-16-10: two dead units in the first layer, one in the last hidden one; 40 of 64 input directions left.
    dead = 5920 - (64 * 46 + 46 * 32 + 32 * 24 + 24 * 15 + 15 * 10)
    row_space = (64 - 40) * 46
    record = {
        "total": 5920,
        "reduced": {"inputs": [64, 40], "dead": [2, 0, 0, 1]},
        "spectrum": {"nullity": dead + row_space + 7},
    }
    assert _removed("fc5-quick", record) == {"row_space": row_space, "dead": dead, "zero": 7}
    plain = {"total": 5920, "reduced": None, "spectrum": {"nullity": 5}}
    assert _removed("resnet8-quick", plain) == {"row_space": 0, "dead": 0, "zero": 5}
