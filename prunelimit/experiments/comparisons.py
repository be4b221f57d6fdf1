"""Which pruner is held against which, on what: the entries of tables T3 to T5 and T9 and of figure F3."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prunelimit.checks import pick_names
from prunelimit.experiments.catalogue import TASKS, Task
from prunelimit.experiments.prune_specs import PruneSpec, RoundsSpec
from prunelimit.pruning.base import PrunerSpec
from prunelimit.pruning.cbs import CbsSpec
from prunelimit.pruning.chita import ChitaSpec
from prunelimit.pruning.controls import RandomSpec, UniformSpec
from prunelimit.pruning.iterative import IterativeSpec
from prunelimit.pruning.lomp import LompSpec
from prunelimit.pruning.rare_gems import RareGemsSpec
from prunelimit.pruning.smart_ratio import SmartRatioSpec
from prunelimit.pruning.woodfisher import WoodFisherSpec
from prunelimit.training import TrainSpec

AnySpec = TypeVar("AnySpec", PrunerSpec, TrainSpec)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a comparison.

    Attributes:
        title: How tables call it.
        method: Key of :data:`~prunelimit.pruning.methods.METHODS`.
        train: Training of the dense network that the method begins with, or is compared with.
        settings: Settings of the method.
    """

    title: str
    method: str
    train: TrainSpec
    settings: PrunerSpec

    def seeded(self, seed: int) -> Entry:
        """Give the same row for another seed, of every training in it."""
        return dataclasses.replace(self, train=_seeded(self.train, seed), settings=_seeded(self.settings, seed))


def _seeded(spec: AnySpec, seed: int) -> AnySpec:
    """Set the seed of a spec and of the specs in it."""
    nested = {
        field.name: _seeded(getattr(spec, field.name), seed)
        for field in dataclasses.fields(spec)
        if isinstance(getattr(spec, field.name), PrunerSpec | TrainSpec)
    }
    return dataclasses.replace(spec, seed=seed, **nested)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The rows of one profile, each to be pruned to every sparsity."""

    entries: tuple[Entry, ...]
    sparsities: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One network, pruned by several methods to several sparsities.

    Attributes:
        name: Its name on the command line: that of the task, or a name of its own.
        title: How tables call the network.
        table: Table that it belongs to, for example ``"T3"``.
        profiles: Profile name to rows and sparsities.
        rounds: Profile name to the spec of iterative pruning with the limit of every round.
    """

    name: str
    title: str
    table: str
    profiles: Mapping[str, Grid]
    rounds: Mapping[str, RoundsSpec] = dataclasses.field(default_factory=dict)

    def specs(self, profile: str, seed: int) -> list[PruneSpec]:
        """Return the specs of one profile and seed, row by row; there may be none."""
        return [spec for _, spec in self.rows(profile, seed)]

    def rows(self, profile: str, seed: int) -> list[tuple[Entry, PruneSpec]]:
        """Return every row of one profile and seed, with its spec."""
        if profile not in self.profiles:
            return []
        grid = self.profiles[profile]
        seeded = [entry.seeded(seed) for entry in grid.entries]
        return [
            (own, PruneSpec(train=own.train, method=own.method, settings=own.settings, sparsities=grid.sparsities))
            for own in seeded
        ]

    def rounds_specs(self, profile: str, seed: int) -> list[RoundsSpec]:
        """Return the spec of iterative pruning with the limit of every round; there may be none."""
        if profile not in self.rounds:
            return []
        base = self.rounds[profile]
        return [dataclasses.replace(base, train=_seeded(base.train, seed), settings=_seeded(base.settings, seed))]


def _controls(train: TrainSpec) -> tuple[Entry, ...]:
    """LOMP, and the two simplest things that one can do with the same network."""
    return (
        Entry("LOMP", "lomp", train, LompSpec()),
        Entry("layer-wise magnitude", "uniform", train, UniformSpec()),
        Entry("random", "random", train, RandomSpec()),
    )


def _trained(
    train: TrainSpec, iterative: IterativeSpec, smart: SmartRatioSpec, gems: RareGemsSpec
) -> tuple[Entry, ...]:
    """The rows of tables T3 to T5: LOMP and its controls, and the pruners that train."""
    plain_gems = dataclasses.replace(gems, l2_scores=0.0)
    return (
        *_controls(train),
        Entry("IMP", "iterative", iterative.train, iterative),
        Entry("Smart-Ratio", "smart-ratio", smart.train, smart),
        Entry("Rare Gems", "rare-gems", gems.train, gems),
        Entry("Rare Gems, no L2", "rare-gems", gems.train, plain_gems),
    )


def _one_shot(train: TrainSpec, examples: int) -> tuple[Entry, ...]:
    """The rows of table T9: the second-order pruners begin with a network trained without L1, and so does magnitude.

    Damping and linear term of the staged CHITA are ours; so is its keeping a removed weight removed.
    """
    plain = dataclasses.replace(train, l1=0.0)
    return (
        *_controls(train),
        Entry("magnitude, no L1", "lomp", plain, LompSpec()),
        Entry("WoodFisher, no L1", "woodfisher", plain, WoodFisherSpec(examples=examples)),
        Entry("CBS, no L1", "cbs", plain, CbsSpec(examples=examples)),
        Entry("CHITA, no L1", "chita", plain, ChitaSpec(examples=examples)),
        Entry(
            *("CHITA in 15 stages, no L1", "chita", plain),
            ChitaSpec(examples=examples, stages=15, damping=0.1, first_order=1.0),
        ),
    )


def _quick(task: Task) -> Grid:
    """Ours: as short as each method still does itself justice, found by trying them on the stand-in for FC5, and on AlexNet's.

    The released settings of Rare Gems (learning rate .1, weights replaced by signed constants) do worse on it.
    """
    train = task.profiles["quick"].train
    deep = train.model == "fc12-quick"  # no normalisation to keep twelve layers in bounds
    plain = dataclasses.replace(train, l1=0.0, schedule="step", gamma=0.1, warmup_epochs=0)
    rounds = dataclasses.replace(plain, epochs=40, lr=0.1, milestones=(20, 30), l2=1e-3)
    after = dataclasses.replace(plain, epochs=60, lr=0.02 if deep else 0.05, milestones=(30, 45), l2=1e-4)
    if deep:
        rounds = after
    search = dataclasses.replace(after, lr=1.0, schedule="cosine", milestones=(), l2=0.0)
    if train.model == "alexnet-quick":  # nor has it, and at larger rates or in fewer epochs some seeds learn nothing
        after = dataclasses.replace(after, lr=0.02, epochs=40, milestones=(20, 30))
        rounds, search = dataclasses.replace(after, l2=1e-3), dataclasses.replace(search, epochs=40)
    elif not train.model.startswith("fc"):  # their epochs take ten times as long
        rounds = dataclasses.replace(rounds, epochs=20, milestones=(10, 15))
        after = dataclasses.replace(after, epochs=30, milestones=(15, 22))
        search = dataclasses.replace(search, epochs=30)
    smart = SmartRatioSpec(train=after, divide_by_square=task.name.startswith("vgg"))
    if train.model == "resnet50-quick":  # three tenths of its last layer are more than the sparsest network has
        smart = dataclasses.replace(smart, classifier_density=0.1)
    entries = _trained(
        train,
        IterativeSpec(train=rounds, rewind=100, share=0.4, rounds=8),
        smart,
        RareGemsSpec(train=after, search=search, l2_scores=3e-4, signed_constant=False),
    )
    return Grid(entries, QUICK_SPARSITIES)


def _paper(task: Task) -> Grid:
    """As published, for each method; Rare Gems' settings are those for ResNet20 on CIFAR-10."""
    train = task.profiles["paper"].train
    names = (train.dataset, train.model)
    smart = SmartRatioSpec.published(*names, divide_by_square=task.name.startswith("vgg"))
    # Twenty rounds of a fifth leave 1.15 % of the weights: the sparsest network takes a part of one more.
    iterative = IterativeSpec.published(*names, rounds=IterativeSpec.rounds + 1)
    entries = _trained(train, iterative, smart, RareGemsSpec.published(*names))
    return Grid(entries, SPARSITIES)


#: Ours: fractions removed, to which the networks of tables T3 to T5 are pruned.
SPARSITIES = (0.9, 0.95, 0.98, 0.99)
QUICK_SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)

#: Ours: the same for table T9.
ONE_SHOT_SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)

#: The tables split the tasks by data set.
TABLES = {"cifar10": "T3", "cifar100": "T4", "tinyimagenet": "T5"}


def _of_task(task: Task) -> Comparison:
    table = TABLES[task.name.rpartition("-")[2]]
    return Comparison(task.name, task.title, table, {"quick": _quick(task), "paper": _paper(task)})


def _second_order(task: Task, examples: Mapping[str, int], published: int = 0) -> Comparison:
    """Give a network of table T9.

    ``examples`` holds the images behind the Fisher matrix, by profile; if ``published`` is another number, WoodFisher has a second
    row with so many, beyond the quick profile.
    """
    grids = {}
    for profile, number in examples.items():
        train = task.profiles[profile].train
        entries = _one_shot(train, number)
        if published and profile != "quick":
            spec = WoodFisherSpec(examples=published)
            title = f"WoodFisher with {published:,} images, no L1"
            entries += (Entry(title, "woodfisher", dataclasses.replace(train, l1=0.0), spec),)
        grids[profile] = Grid(entries, ONE_SHOT_SPARSITIES)
    return Comparison(task.name, task.title, "T9", grids)


_COMPARISONS = (
    *(_of_task(task) for task in TASKS.values() if task.name not in {"mlpnet-mnist", "resnet20-cifar10"}),
    # The price grows with the square of the images, so only the method with a published number of them has a row with it.
    _second_order(TASKS["mlpnet-mnist"], {"quick": 1000, "laptop": 1000}, published=8000),
    _second_order(TASKS["resnet20-cifar10"], {"quick": 1000, "laptop": 1000, "paper": 1000}),
)


def _with_rounds(one: Comparison) -> Comparison:
    """Add figure F3's iterative pruning, with the limit of every round."""
    rounds = {}
    for profile, grid in one.profiles.items():
        entry = next((entry for entry in grid.entries if entry.method == "iterative"), None)
        if entry is not None and isinstance(settings := entry.settings, IterativeSpec):
            quick = profile == "quick"
            count, share = (10, 0.3) if quick else (IterativeSpec.rounds, settings.share)
            settings = dataclasses.replace(settings, rounds=count, share=share)
            spec = RoundsSpec(train=entry.train, method=entry.method, settings=settings, steps=128)
            rounds[profile] = dataclasses.replace(spec, examples=None if quick else 2000)
    return dataclasses.replace(one, rounds=rounds)


COMPARISONS: dict[str, Comparison] = {one.name: _with_rounds(one) for one in _COMPARISONS}


def find_comparisons(names: str | Sequence[str] | None) -> list[Comparison]:
    """Look up comparisons by name.

    Args:
        names: One name, several, or ``None`` for all.

    Returns:
        The comparisons, in the given order.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    return [COMPARISONS[name] for name in pick_names("comparison", names, COMPARISONS)]
