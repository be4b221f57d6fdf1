"""The catalogue holds the released settings and refuses what it does not know."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from prunelimit.datasets import SOURCES
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import SEEDS, TASKS, find_ladders, find_tasks
from prunelimit.experiments.frames import Cell
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.store import repository
from prunelimit.models import MODELS
from prunelimit.training import learning_rate


def test_fc5_has_the_released_settings():
    train = TASKS["fc5-cifar10"].spec("laptop", 2).train
    assert (train.dataset, train.model, train.seed) == ("cifar10", "fc5", 2)
    assert (train.epochs, train.batch_size, train.lr, train.momentum) == (200, 128, 0.01, 0.9)
    assert (train.l1, train.l2, train.schedule, train.warmup_epochs) == (5e-5, 0, "constant", 0)
    assert train.augment
    assert train.train_size is None


def test_every_cell_names_a_network_that_exists_and_has_its_own_hash():
    specs = [task.spec(profile, seed) for task in TASKS.values() for profile in task.profiles for seed in (0, 1)]
    assert all(spec.train.model in MODELS for spec in specs)
    assert len({spec.hash for spec in specs}) == len(specs)


def test_a_limit_spec_survives_the_way_through_json():
    spec = TASKS["resnet20-cifar10"].spec("laptop", 1)
    assert LimitSpec.from_dict(spec.to_dict()) == spec
    assert LimitSpec.from_dict(spec.to_dict()).hash == spec.hash


@pytest.mark.parametrize("call", [lambda: find_tasks("fc5-cifar"), lambda: find_tasks(["fc5-cifar10", "fc5-cifar"])])
def test_an_unknown_task_is_refused_with_the_nearest_name(call):
    with pytest.raises(PruneLimitError, match="Did you mean 'fc5-cifar10'"):
        call()


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    with pytest.raises(PruneLimitError, match="Did you mean 'laptop'"):
        TASKS["fc5-cifar10"].spec("labtop", 0)


#: The released settings: data, network, learning rate, L1, schedule, warm-up epochs, Lanczos steps.
RELEASED = {
    "fc5-cifar10": ("cifar10", "fc5", 0.01, 5e-5, "constant", 0, 128),
    "fc12-cifar10": ("cifar10", "fc12", 0.01, 5e-5, "constant", 0, 128),
    "alexnet-cifar10": ("cifar10", "alexnet", 0.01, 3e-5, "step", 5, 96),
    "vgg16-cifar10": ("cifar10", "vgg16", 0.01, 1e-4, "constant", 5, 128),
    "resnet18-cifar100": ("cifar100", "resnet18", 0.1, 5e-5, "cosine", 5, 128),
    "resnet50-cifar100": ("cifar100", "resnet50", 0.1, 2e-5, "cosine", 5, 128),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_paper_profile_has_the_released_settings(name):
    spec = TASKS[name].spec("paper", 1)
    train = spec.train
    found = (train.dataset, train.model, train.lr, train.l1, train.schedule, train.warmup_epochs, spec.steps)
    assert found == RELEASED[name]
    assert (train.epochs, train.batch_size, train.momentum, train.l2) == (200, 128, 0.9, 0)
    assert train.augment
    assert train.train_size is None


def test_alexnet_halves_its_rate_three_times():
    train = TASKS["alexnet-cifar10"].spec("paper", 0).train
    rates = [learning_rate(train, epoch) for epoch in (4, 59, 60, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025, 0.00125, 0.00125])


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_tiny_imagenet_takes_as_many_iterations_as_cifar100(network):
    small, large = (TASKS[f"{network}-{data}"].spec("paper", 0).train for data in ("cifar100", "tinyimagenet"))
    assert small.epochs * 50_000 == large.epochs * 100_000
    changed = dataclasses.replace(large, dataset=small.dataset, epochs=small.epochs)
    assert changed == small


def test_mlpnet_sees_mnist_on_a_laptop_and_has_no_larger_profile():
    task = TASKS["mlpnet-mnist"]
    assert set(task.profiles) == {"quick", "laptop"}
    assert (task.spec("laptop", 0).train.dataset, task.spec("laptop", 0).train.model) == ("mnist", "mlpnet")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_task_has_a_stand_in_on_digits_with_everything_about_it(task):
    train = task.spec("quick", 0).train
    assert train.dataset == "digits"
    assert train.model.endswith("-quick")
    for specs in (task.refit_specs, task.row_specs, task.sight_specs):
        assert specs("quick", 0)


def test_no_two_cells_share_a_title():
    titles = [
        Cell(task, profile, 0, task.spec(profile, 0), {}).title for task in TASKS.values() for profile in task.profiles
    ]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_network_takes_its_data(task):
    for profile in task.profiles:
        train = task.spec(profile, 0).train
        if train.dataset == "digits":
            shape, classes = (1, 8, 8), 10
        else:
            (height, width, channels), classes = SOURCES[train.dataset].shape, SOURCES[train.dataset].classes
            shape = (channels, height, width)
        with torch.device("meta"):
            assert MODELS[train.model](shape, classes)(torch.empty(2, *shape)).shape == (2, classes)


#: Hashes of seed 0 under which records and checkpoints of the first three tasks are kept.
FROZEN = {
    ("fc5-cifar10", "quick"): "d702ff12a2770ef5",
    ("fc5-cifar10", "laptop"): "b3760cd87c64acee",
    ("fc5-cifar10", "paper"): "3ffb6633f026b1e7",
    ("fc12-cifar10", "quick"): "59ee5cce08a0586f",
    ("fc12-cifar10", "laptop"): "dbee90ccc5f06c10",
    ("fc12-cifar10", "paper"): "28feefbf10decff7",
    ("resnet20-cifar10", "quick"): "52f8d21976cd4ed9",
    ("resnet20-cifar10", "laptop"): "d2be4615dd741c9e",
    ("resnet20-cifar10", "paper"): "ceaafb09c6ae9c73",
}


@pytest.mark.parametrize(("task", "profile"), FROZEN)
def test_hashes_of_recorded_cells_have_not_moved(task, profile):
    assert TASKS[task].spec(profile, 0).hash == FROZEN[task, profile]


def test_every_record_of_the_checkout_belongs_to_a_cell():
    known = set()
    for task, profile, seed in ((t, p, s) for t in TASKS.values() for p in t.profiles for s in SEEDS):
        sights = task.sight_specs(profile, seed)
        specs = {
            "limit": [task.spec(profile, seed)],
            "curvature": [*task.curvature_specs(profile, seed), *(spec.spectrum for spec in sights)],
            "refit": task.refit_specs(profile, seed),
            "rows": task.row_specs(profile, seed),
            "sight": sights,
        }
        known |= {(experiment, spec.hash) for experiment, found in specs.items() for spec in found}
    folder = repository() / "results"
    there = {(e, path.stem) for e in {e for e, _ in known} for path in (folder / e).glob("*.json")}
    assert there
    assert there <= known


@pytest.mark.parametrize(
    ("find", "name", "told"),
    [
        (find_tasks, "fc3-weak-l1", "prunelimit ladder fc3-weak-l1"),
        (find_ladders, "fc5-cifar10", "prunelimit run fc5-cifar10"),
    ],
)
def test_a_task_of_another_command_is_told_which(find: Callable[[str], object], name: str, told: str) -> None:
    with pytest.raises(PruneLimitError, match=told):
        find(name)
