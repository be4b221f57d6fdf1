"""Which cells of the catalogue are worth computing first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prunelimit.experiments.catalogue import Task
from prunelimit.experiments.runner import run_folder
from prunelimit.experiments.specs import LimitSpec
from prunelimit.files import cache_folder

#: One network with shortcuts and one without, one for each CIFAR data set: the most different pair of the large tasks.
FIRST = ("resnet18-cifar100", "vgg16-cifar10")

#: The data set with most pixels, whose settings are not published.
LAST = "tinyimagenet"


def value_rank(task: Task) -> int:
    """Return 0 for the tasks that come first, 2 for those that come last, and 1 for the others."""
    return 0 if task.name in FIRST else 2 if task.name.endswith(LAST) else 1


def has_begun(spec: LimitSpec) -> bool:
    """Whether a training state or finished steps of a run lie in the cache."""
    trained = any((cache_folder() / "checkpoints" / spec.train.hash).glob("step-*"))
    return trained or (run_folder(spec) / "steps.json").is_file()


def most_valuable_first(tasks: Sequence[Task], profile: str, seeds: Iterable[int]) -> list[tuple[Task, int, LimitSpec]]:
    """Order the cells of some tasks.

    The first seed of every task comes before the second of any; among those the tasks go by :func:`value_rank`; and of
    equal ones, those that have begun come first.

    Args:
        tasks: The tasks.
        profile: One of the profiles, which every task has.
        seeds: Seeds of the training.

    Returns:
        Task, seed and spec of each cell.
    """
    cells = [(task, seed, task.spec(profile, seed)) for seed in seeds for task in tasks]
    return sorted(cells, key=lambda cell: (cell[1], value_rank(cell[0]), not has_begun(cell[2])))
