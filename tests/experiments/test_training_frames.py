"""Table T6 has a row for every training of the catalogue and says what differs from the released settings."""

import dataclasses

import pytest

from prunelimit.datasets import load_dataset
from prunelimit.experiments import training_frames
from prunelimit.experiments.catalogue import TASKS
from prunelimit.experiments.training_frames import RELEASED, differences
from prunelimit.models import build_model
from prunelimit.pruning.magnitude import MagnitudePath


@pytest.fixture(scope="module")
def table():
    return training_frames.training_frame()


def test_every_training_has_a_row(table):
    wanted = [
        (task.name, settings)
        for task in TASKS.values()
        for settings in (["released"] if task.name in RELEASED else [])
        + [name for name in ("paper", "laptop", "quick") if name in task.profiles]
    ]
    assert list(zip(table.task, table.settings, strict=True)) == wanted


def test_weights_are_counted_as_they_are_pruned():
    dataset = load_dataset("digits")
    model = build_model("resnet8-quick", input_shape=dataset.image_shape, num_classes=10)
    assert training_frames.prunable_count("resnet8-quick", "digits") == MagnitudePath(model).total
    assert training_frames.prunable_count("fc5", "cifar10") == 3_883_000
    assert training_frames.image_shape("mnist-14") == ((1, 14, 14), 10)


def test_differences_are_named():
    released = RELEASED["fc5-cifar10"]
    assert differences("fc5-cifar10", released) == "nothing"
    changed = dataclasses.replace(released, lr=0.02, augment=False)
    assert differences("fc5-cifar10", changed) == "learning rate, augmentation"
    assert differences("alexnet-cifar10", RELEASED["alexnet-cifar10"]) == "schedule: per epoch, not per iteration"
    assert differences("resnet20-cifar10", released) == training_frames.OURS


def test_the_paper_profile_of_released_tasks_differs_in_the_schedule_alone(table):
    paper = table[(table.settings == "paper") & table.task.isin(RELEASED)]
    allowed = {"nothing", "schedule: per epoch, not per iteration"}
    assert set(paper.iloc[:, -1]) <= allowed


def test_columns_with_one_value_are_set_apart(table):
    left, shared = training_frames.same_everywhere(table)
    assert {"momentum", "weight decay"} <= set(shared.setting)
    assert not set(shared.setting) & set(left.columns)
    assert len(left.columns) + len(shared) == len(table.columns)
    single, none = training_frames.same_everywhere(table.head(1))
    assert (len(single.columns), len(none)) == (len(table.columns), 0)
