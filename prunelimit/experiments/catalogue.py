"""The tasks of the papers, each in up to three profiles.

``quick`` stands in with scikit-learn's digits and a small network of the same family, ``laptop`` is what a CPU can do,
``paper`` is the published setting. Settings follow the released code; what is ours is marked so. The stand-ins of two
tasks that differ only in the data differ in L1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prunelimit.checks import integers, pick_names, several
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.experiments.specs import CurvatureSpec, LadderSpec, LimitSpec, RefitSpec, RowsSpec, SightSpec
from prunelimit.training import TrainSpec

#: From the most to the least faithful: the first one that is recorded is shown.
PROFILES = ("paper", "laptop", "quick")

SEEDS = (0, 1, 2)


def _grid(*parts: tuple[float, float, float]) -> tuple[float, ...]:
    points = {round(start + k * step, 6) for start, stop, step in parts for k in range(round((stop - start) / step))}
    return tuple(sorted(points))


_QUICK_SWEEP = _grid((0, 0.5, 0.05), (0.5, 1, 0.01))
_SWEEP = _grid((0, 0.5, 0.25), (0.5, 0.8, 0.05), (0.8, 1, 0.01))


def _quick(model: str, **settings: object) -> LimitSpec:
    """Ours: digits, whole training set, dense truth."""
    base = TrainSpec(dataset="digits", model=model, epochs=150, batch_size=64, lr=0.01, l1=1e-3)
    train = dataclasses.replace(base, **settings)  # type: ignore[arg-type]
    return LimitSpec(train=train, steps=384, exact=True, sweep=_QUICK_SWEEP, tune_epochs=20)


def _quick_convolutions(model: str, **settings: object) -> LimitSpec:
    """Ours: few epochs, of which the first warms up, and no dense truth, for there are too many weights."""
    base = _quick(model, epochs=30, warmup_epochs=1, **settings)
    return dataclasses.replace(base, exact=False, steps=128, tune_epochs=10)


def _cifar(train: TrainSpec, **settings: object) -> LimitSpec:
    base = LimitSpec(train=train, curvature_examples=2000, steps=128, sweep=_SWEEP, tune_epochs=5, tune_tolerance=0.01)
    return dataclasses.replace(base, **settings)  # type: ignore[arg-type]


def _paper(train: TrainSpec, **settings: object) -> LimitSpec:
    """As published, but trained in bfloat16, and with a sweep that looks closest where the loss crosses."""
    fast = dataclasses.replace(train, precision="bfloat16")
    return dataclasses.replace(_cifar(fast, **settings), sweep=(), sweep_evaluations=80)


_FC = TrainSpec(dataset="cifar10", model="fc5", epochs=200, lr=0.01, l1=5e-5, augment=True)
_ALEXNET = dataclasses.replace(
    _FC, model="alexnet", l1=3e-5, schedule="step", milestones=(60, 120, 160), gamma=0.5, warmup_epochs=5
)
_VGG16 = dataclasses.replace(_FC, model="vgg16", l1=1e-4, warmup_epochs=5)
_RESNET18 = TrainSpec(
    dataset="cifar100", model="resnet18", epochs=200, lr=0.1, l1=5e-5, schedule="cosine", warmup_epochs=5, augment=True
)
_RESNET50 = dataclasses.replace(_RESNET18, model="resnet50", l1=2e-5)

#: Ours.
_RESNET20 = TrainSpec(dataset="cifar10", model="resnet20", epochs=200, lr=0.1, l1=5e-5, schedule="cosine", augment=True)
_MLPNET = TrainSpec(dataset="mnist", model="mlpnet", epochs=30, lr=0.05, l1=1e-4, schedule="cosine")

#: Ours: images behind the Hessian of a large network; the released code takes all training images, augmented.
_LARGE = 10_000


def _on_tiny_imagenet(train: TrainSpec) -> TrainSpec:
    """Ours: the settings for CIFAR-100, over as many iterations, which is half the epochs."""
    return dataclasses.replace(train, dataset="tinyimagenet", epochs=train.epochs // 2)


#: Ours: training images and products with which the formula's number is resolved.
_SIZES = ((500, 320), (2000, 320), (8000, 320), (None, 400))


_Settings = TypeVar("_Settings")


def pick_profile(profiles: Mapping[str, _Settings], profile: str, owner: str) -> _Settings:
    """Choose one of the profiles that a task or a grid has.

    Args:
        profiles: Profile name to what is run.
        profile: One of ``PROFILES``.
        owner: The task or grid, for messages.

    Returns:
        What is run.

    Raises:
        PruneLimitError: If the profile is unknown or the owner does not have it.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    if profile not in profiles:
        raise PruneLimitError(f"profile={profile!r} is not defined for {owner}: choose {', '.join(profiles)}.")
    return profiles[profile]


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set and a network, as one row of the tables.

    Attributes:
        name: Its name in the tables and on the command line.
        title: How figures call it.
        profiles: Profile name to what is run.
        sizes: Profile name to the training images and products of the spectra that show what is resolved; ``None`` for
            all images.
        rows: Profile name to the training images behind the row norms of the Hessian; ``None`` for all images.
        refits: Profile name to the training images behind the refitted limit; ``None`` for all images.
        sights: Profile name to the limits along the line of sight: training images, products of the spectrum and per line of
            sight.
    """

    name: str
    title: str
    profiles: dict[str, LimitSpec]
    sizes: dict[str, tuple[tuple[int | None, int], ...]] = dataclasses.field(default_factory=dict)
    rows: dict[str, int | None] = dataclasses.field(default_factory=dict)
    refits: dict[str, int | None] = dataclasses.field(default_factory=dict)
    sights: dict[str, tuple[tuple[int | None, int, int], ...]] = dataclasses.field(default_factory=dict)

    def spec(self, profile: str, seed: int) -> LimitSpec:
        """Return the spec of one cell.

        Args:
            profile: One of ``PROFILES``.
            seed: Seed of the training.

        Returns:
            The spec.

        Raises:
            PruneLimitError: If the profile is unknown or the task does not have it.
        """
        base = pick_profile(self.profiles, profile, self.name)
        return dataclasses.replace(base, train=dataclasses.replace(base.train, seed=seed))

    def curvature_specs(self, profile: str, seed: int) -> list[CurvatureSpec]:
        """Return the specs of the spectra that show what is resolved, the smallest sample first; there may be none."""
        if profile not in self.sizes:
            return []
        train = self.spec(profile, seed).train
        return [CurvatureSpec(train=train, examples=examples, steps=steps) for examples, steps in self.sizes[profile]]

    def refit_specs(self, profile: str, seed: int) -> list[RefitSpec]:
        """Return the spec of the refitted limit; there may be none."""
        if profile not in self.refits:
            return []
        return [RefitSpec(train=self.spec(profile, seed).train, examples=self.refits[profile])]

    def sight_specs(self, profile: str, seed: int) -> list[SightSpec]:
        """Return the specs of the limits along the line of sight, the smallest sample first; there may be none."""
        if profile not in self.sights:
            return []
        train = self.spec(profile, seed).train
        return [
            SightSpec(train=train, examples=examples, steps=steps, sight_steps=sight)
            for examples, steps, sight in self.sights[profile]
        ]

    def row_specs(self, profile: str, seed: int) -> list[RowsSpec]:
        """Return the specs of the row norms: order 1, the paper's, and order 2, the bound's; there may be none."""
        if profile not in self.rows:
            return []
        train = self.spec(profile, seed).train
        return [RowsSpec(train=train, examples=self.rows[profile], order=order) for order in (1, 2)]


def _large_task(name: str, title: str, quick: LimitSpec, paper: LimitSpec) -> Task:
    """Give a task that takes a GPU, with its stand-in."""
    every: dict[str, int | None] = {"quick": None}
    return Task(
        name, title, {"quick": quick, "paper": paper}, rows=every, refits=every, sights={"quick": ((None, 128, 32),)}
    )


_TASKS = (
    Task(
        "fc5-cifar10",
        "FC5",
        {
            "quick": _quick("fc5-quick"),
            "laptop": _cifar(_FC),
            "paper": _cifar(_FC, curvature_examples=None),
        },
        {
            "quick": ((180, 256), (360, 256), (720, 256), (None, 256)),
            "laptop": _SIZES,
            "paper": _SIZES,
        },
        rows={"quick": None, "laptop": 2000},
        refits={"quick": None, "laptop": 2000},
        sights={"quick": ((None, 256, 128),), "laptop": ((2000, 320, 64), (None, 400, 24))},
    ),
    Task(
        "fc12-cifar10",
        "FC12",
        {
            "quick": _quick("fc12-quick", epochs=200),
            "laptop": _cifar(dataclasses.replace(_FC, model="fc12")),
            "paper": _cifar(dataclasses.replace(_FC, model="fc12"), curvature_examples=None),
        },
        rows={"quick": None},
        refits={"quick": None},
        sights={"quick": ((None, 256, 128),)},
    ),
    _large_task(
        *("alexnet-cifar10", "AlexNet"),
        _quick_convolutions("alexnet-quick", lr=0.02, schedule="step", milestones=(9, 18, 24), gamma=0.5),
        _paper(_ALEXNET, curvature_examples=_LARGE, steps=96),
    ),
    _large_task(
        *("vgg16-cifar10", "VGG16"),
        _quick_convolutions("vgg-quick"),
        _paper(_VGG16, curvature_examples=_LARGE),
    ),
    _large_task(
        *("resnet18-cifar100", "ResNet18"),
        _quick_convolutions("resnet18-quick", lr=0.1, l1=5e-4, schedule="cosine"),
        _paper(_RESNET18, curvature_examples=_LARGE),
    ),
    _large_task(
        *("resnet50-cifar100", "ResNet50"),
        _quick_convolutions("resnet50-quick", lr=0.1, l1=5e-4, schedule="cosine"),
        _paper(_RESNET50, curvature_examples=_LARGE),
    ),
    _large_task(
        *("resnet18-tinyimagenet", "ResNet18-64"),
        _quick_convolutions("resnet18-quick", lr=0.1, schedule="cosine"),
        _paper(_on_tiny_imagenet(_RESNET18), curvature_examples=_LARGE),
    ),
    _large_task(
        *("resnet50-tinyimagenet", "ResNet50-64"),
        _quick_convolutions("resnet50-quick", lr=0.1, schedule="cosine"),
        _paper(_on_tiny_imagenet(_RESNET50), curvature_examples=_LARGE),
    ),
    Task(
        "resnet20-cifar10",
        "ResNet20",
        {
            "quick": dataclasses.replace(_quick("resnet8-quick", epochs=30, l1=5e-4), exact=False, steps=256),
            "laptop": _cifar(dataclasses.replace(_RESNET20, epochs=20), curvature_examples=1000, steps=64),
            "paper": _paper(_RESNET20),
        },
        rows={"quick": None},
        refits={"quick": None},
        sights={"quick": ((None, 256, 128),)},
    ),
    Task(
        "mlpnet-mnist",
        "MLPNet",
        {
            "quick": _quick("mlpnet-quick", epochs=100, lr=0.05, schedule="cosine"),
            "laptop": _cifar(_MLPNET, curvature_examples=_LARGE, steps=256),
        },
        rows={"quick": None, "laptop": _LARGE},
        refits={"quick": None, "laptop": _LARGE},
        sights={"quick": ((None, 256, 128),), "laptop": ((_LARGE, 256, 64),)},
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}


@dataclasses.dataclass(frozen=True)
class LadderTask:
    """A network small enough for its dense Hessian, on which the assumptions are given back one by one.

    Attributes:
        name: Its name on the command line.
        title: How figures call it.
        profiles: Profile name to what is run.
    """

    name: str
    title: str
    profiles: dict[str, LadderSpec]

    def specs(self, profile: str, seed: int) -> list[LadderSpec]:
        """Return the spec of one profile and seed; there may be none."""
        if profile not in self.profiles:
            return []
        base = self.profiles[profile]
        return [dataclasses.replace(base, train=dataclasses.replace(base.train, seed=seed))]


def _ladder(name: str, title: str, l1: float) -> LadderTask:
    """Ours: a falling learning rate, so that training ends near a stationary point; fine-tuning is all of it once more."""
    quick = TrainSpec(dataset="digits", model="fc3", epochs=200, batch_size=64, lr=0.05, l1=l1, schedule="cosine")
    laptop = dataclasses.replace(quick, dataset="mnist-14", epochs=100, batch_size=128, train_size=10_000)
    return LadderTask(
        name,
        title,
        {
            "quick": LadderSpec(train=quick, tune_epochs=quick.epochs),
            "laptop": LadderSpec(train=laptop, tune_epochs=laptop.epochs, rotations=3),
        },
    )


LADDERS: dict[str, LadderTask] = {
    task.name: task
    for task in (_ladder("fc3-weak-l1", "FC3, γ = 1e-4", 1e-4), _ladder("fc3-strong-l1", "FC3, γ = 1e-3", 1e-3))
}

AnyTask = TypeVar("AnyTask", Task, LadderTask)


def find_ladders(names: str | Sequence[str] | None) -> list[LadderTask]:
    """Look up small networks by name, as :func:`find_tasks` does with tasks."""
    return _find(names, LADDERS)


def find_tasks(names: str | Sequence[str] | None) -> list[Task]:
    """Look up tasks by name.

    Args:
        names: One name, several, or ``None`` for all.

    Returns:
        The tasks, in the given order.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    return _find(names, TASKS)


def _find(names: str | Sequence[str] | None, known: Mapping[str, AnyTask]) -> list[AnyTask]:
    for name in [] if names is None else several("task", names):
        if known is TASKS and name in LADDERS:
            raise PruneLimitError(
                f"task={name!r} is one of the small networks of the ladder: prunelimit ladder {name}."
            )
        if known is LADDERS and name in TASKS:
            raise PruneLimitError(f"task={name!r} is no network of the ladder: prunelimit run {name}.")
    return [known[name] for name in pick_names("task", names, known)]


def find_profiles(profile: str | None, every: str | None = "best") -> list[str]:
    """List the profiles to look in, the most faithful first.

    Args:
        profile: One of ``PROFILES``, or what stands for all of them.
        every: What stands for all of them.

    Returns:
        Names.

    Raises:
        PruneLimitError: If the profile is unknown.
    """
    if profile == every:
        return list(PROFILES)
    if profile not in PROFILES:
        raise unknown_name("profile", profile, [*PROFILES, str(every)])
    return [profile]


def find_seeds(seeds: int | Sequence[int]) -> list[int]:
    """List training seeds.

    Args:
        seeds: One, or several.

    Returns:
        The seeds, in their order.

    Raises:
        PruneLimitError: If there is none, one is no whole number or negative, or one is there twice.
    """
    return integers("seeds", seeds, least=0)
