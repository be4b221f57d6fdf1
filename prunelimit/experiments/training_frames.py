"""Table T6: how the networks of the catalogue are trained, beside the released settings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from prunelimit.datasets import POOLED, SOURCES, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import PROFILES, Task, find_profiles, find_tasks
from prunelimit.models import build_model, prunable_names
from prunelimit.training import TrainSpec

_ALL = TrainSpec(dataset="cifar10", model="fc5", epochs=200, batch_size=128, lr=0.01, l1=5e-5, augment=True)
_RESNET = {"dataset": "cifar100", "lr": 0.1, "schedule": "cosine", "warmup_epochs": 5}

#: Settings of the released code, by task; the other tasks are not in it. Milestones and cosine periods count iterations there
#: and epochs here.
RELEASED: dict[str, TrainSpec] = {
    "fc5-cifar10": _ALL,
    "fc12-cifar10": dataclasses.replace(_ALL, model="fc12"),
    "alexnet-cifar10": dataclasses.replace(
        _ALL, model="alexnet", l1=3e-5, schedule="step", milestones=(60, 120, 160), gamma=0.5, warmup_epochs=5
    ),
    "vgg16-cifar10": dataclasses.replace(_ALL, model="vgg16", l1=1e-4, warmup_epochs=5),
    "resnet18-cifar100": dataclasses.replace(_ALL, model="resnet18", l1=5e-5, **_RESNET),  # type: ignore[arg-type]
    "resnet50-cifar100": dataclasses.replace(_ALL, model="resnet50", l1=2e-5, **_RESNET),  # type: ignore[arg-type]
}


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}" if count else "none"


def schedule_words(spec: TrainSpec) -> str:
    """Say how the learning rate moves.

    Args:
        spec: Settings of a training.

    Returns:
        A few words; milestones are in the unit of whoever steps the schedule.
    """
    if spec.schedule == "step":
        return f"× {spec.gamma:g} at {', '.join(map(str, spec.milestones))}"
    return spec.schedule


def image_shape(dataset: str) -> tuple[tuple[int, int, int], int]:
    """Return channels, height and width of a data set, and its classes, without having its images.

    Args:
        dataset: Name of a data set.

    Returns:
        The shape, and the number of classes.
    """
    if dataset in SOURCES:
        height, width, channels = SOURCES[dataset].shape
        return (channels, height, width), SOURCES[dataset].classes
    if dataset in POOLED:
        (channels, height, width), classes = image_shape(POOLED[dataset])
        return (channels, height // 2, width // 2), classes
    found = load_dataset(dataset)  # part of a package that is installed
    return found.image_shape, found.num_classes


@functools.cache
def prunable_count(model: str, dataset: str) -> int:
    """Count the prunable weights of a network on a data set, D, without making any of them.

    Args:
        model: Name of the network.
        dataset: Name of the data set.

    Returns:
        The number.
    """
    shape, classes = image_shape(dataset)
    with torch.device("meta"):
        network = build_model(model, input_shape=shape, num_classes=classes)
    names = set(prunable_names(network))
    return sum(parameter.numel() for name, parameter in network.named_parameters() if name in names)


#: Columns of the table to what they say, from a training spec.
_COLUMNS: dict[str, Callable[[TrainSpec], str]] = {
    "data": lambda spec: spec.dataset + ("" if spec.train_size is None else f", first {spec.train_size:,}"),
    "network": lambda spec: spec.model,
    "D": lambda spec: f"{prunable_count(spec.model, spec.dataset):,}",
    "learning rate": lambda spec: f"{spec.lr:g}",
    "schedule": schedule_words,
    "warm-up": lambda spec: _epochs(spec.warmup_epochs),
    "L1 γ": lambda spec: np.format_float_scientific(spec.l1, trim="-", exp_digits=1) if spec.l1 else "0",
    "epochs": lambda spec: str(spec.epochs),
    "batch": lambda spec: str(spec.batch_size),
    "augmentation": lambda spec: "crop, flip" if spec.augment else "none",
    "momentum": lambda spec: f"{spec.momentum:g}",
    "weight decay": lambda spec: f"{spec.l2:g}",
    "precision": lambda spec: spec.precision,
}

#: What the catalogue says about the settings of a task of its own.
OURS = "not released: ours"

_DIFFERS = "differs from the released settings in"


def training_frame(tasks: str | Sequence[str] | None = None, profile: str | None = None) -> pd.DataFrame:
    """Tabulate the settings of every training, the released ones first.

    Args:
        tasks: Task names; ``None`` for all.
        profile: A profile; ``None`` for all.

    Returns:
        Text: ``task``, ``settings`` (``released`` or a profile), those of the training, and ``differs from the released
        settings in``.

    Raises:
        PruneLimitError: If a name is unknown, or no task has the profile.
    """
    rows, wanted = [], find_profiles(profile, None)
    for task in find_tasks(tasks):
        if task.name in RELEASED:
            rows.append(_row(task, "released", RELEASED[task.name]) | {"precision": "—", _DIFFERS: "—"})
        for name in PROFILES:
            if name in task.profiles and name in wanted:
                train = task.profiles[name].train
                rows.append(_row(task, name, train) | {_DIFFERS: differences(task.name, train)})
    if not rows:
        raise PruneLimitError(f"profile={profile!r} is not defined for tasks={tasks!r}: see prunelimit status.")
    return pd.DataFrame(rows)


def _row(task: Task, settings: str, train: TrainSpec) -> dict[str, str]:
    return {"task": task.name, "settings": settings} | {name: say(train) for name, say in _COLUMNS.items()}


def differences(task: str, train: TrainSpec) -> str:
    """Say in which columns the settings of a task differ from the released ones.

    Args:
        task: Name of the task.
        train: Its settings.

    Returns:
        The names of the columns. A schedule that moves once per epoch differs from the same one per iteration.
    """
    if task not in RELEASED:
        return OURS
    released = RELEASED[task]
    left_out = ("network", "D", "precision")  # the last is not among the released settings
    found = [name for name, say in _COLUMNS.items() if name not in left_out and say(train) != say(released)]
    if train.model != released.model:
        found.insert(0, "network")
    if "schedule" not in found and train.schedule != "constant":
        found.append("schedule: per epoch, not per iteration")
    return ", ".join(found) or "nothing"


def same_everywhere(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take the columns with one value out of a table.

    Args:
        table: Any table.

    Returns:
        What is left, and the others as rows of ``setting`` and ``value``.
    """
    single = [name for name in table if len(table) > 1 and table[name].nunique() == 1]
    shared = pd.DataFrame(
        {"setting": single, "value": [table[name].iloc[0] for name in single]}, columns=["setting", "value"]
    )
    return table.drop(columns=single), shared
