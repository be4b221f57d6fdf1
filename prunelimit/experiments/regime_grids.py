"""The grids of the three-regime paper: a temperature-like parameter against the density, each in up to three profiles.

``quick`` is ours: a multilayer perceptron on digits of which a fifth of the training labels are wrong. With right labels alone
every network of this size that keeps a tenth of its weights learns all of them, whatever the temperature. ``laptop`` is ours
too, a small residual network on CIFAR-10. ``paper`` is the published recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from prunelimit.checks import pick_names
from prunelimit.errors import unknown_name
from prunelimit.experiments.catalogue import pick_profile
from prunelimit.experiments.regime_specs import RegimeSpec
from prunelimit.models import MODELS
from prunelimit.train_spec import TrainSpec


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """A grid in one profile.

    Attributes:
        field: The field of ``TrainSpec`` that is the temperature-like parameter.
        values: Its values, rising.
        densities: Fractions of the weights that stay, rising.
        seeds: Seeds of the dense networks.
        base: The dense training that all have in common.
        retrain: How children are retrained; the same everywhere.
        images: Training images, so that a grid of batch sizes can keep the number of iterations.
        first: Densities and values that are worth the most, and are run first.
        distribution: How the density is spread over the layers, ``"uniform"`` or ``"global"``.
    """

    field: str
    values: tuple[float, ...]
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    base: TrainSpec
    retrain: TrainSpec
    images: int
    first: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    distribution: str = "uniform"

    def varied(self, network: str | None = None, distribution: str | None = None) -> GridSettings:
        """Return the same grid for another network, or with another way to prune.

        Args:
            network: A name of :func:`~prunelimit.models.build_model`; ``None`` for the catalogue's.
            distribution: ``"uniform"`` or ``"global"``; ``None`` for the catalogue's.

        Returns:
            The settings.

        Raises:
            PruneLimitError: If the network is unknown.
        """
        if network is not None and network not in MODELS:
            raise unknown_name("network", network, MODELS)
        base, retrain = (dataclasses.replace(spec, model=network or spec.model) for spec in (self.base, self.retrain))
        return dataclasses.replace(self, base=base, retrain=retrain, distribution=distribution or self.distribution)

    def parent(self, value: float, seed: int) -> TrainSpec:
        """Say how one dense network is trained.

        Args:
            value: The temperature-like parameter.
            seed: Seed of the training.

        Returns:
            The spec. A number of epochs stops the training of ``base`` early. Another batch size changes the epochs, and the
            milestones with them, so that as many batches as in ``base`` are seen, to within half an epoch; a short last batch of
            an epoch is an iteration as well, and counts here by its images.
        """
        base = dataclasses.replace(self.base, seed=seed)
        if self.field == "batch_size":
            factor = value / base.batch_size
            epochs = max(1, round(base.epochs * factor))
            milestones = tuple(round(epochs * milestone / base.epochs) for milestone in base.milestones)
            return dataclasses.replace(base, batch_size=int(value), epochs=epochs, milestones=milestones)
        changed: dict[str, Any] = {self.field: int(value) if self.field == "epochs" else value}
        return dataclasses.replace(base, **changed)

    def spec(self, value: float, density: float, seed: int) -> RegimeSpec:
        """Return the spec of one cell.

        Args:
            value: The temperature-like parameter.
            density: Fraction of the weights that stays.
            seed: Seed of the dense network.

        Returns:
            The spec.
        """
        return RegimeSpec(
            train=self.parent(value, seed), density=density, retrain=self.retrain, distribution=self.distribution
        )

    def cells(self) -> Iterator[tuple[float, float, int]]:
        """Give value, density and seed of every cell, in the order of the tables."""
        for value in self.values:
            for density in self.densities:
                for seed in self.seeds:
                    yield value, density, seed

    def by_worth(self) -> list[tuple[float, float, int]]:
        """Give the cells, the most valuable first: one seed everywhere before a second one, the named rows and columns first."""
        densities, values = self.first

        def worth(cell: tuple[float, float, int]) -> tuple[int, bool, bool]:
            value, density, seed = cell
            return self.seeds.index(seed), density not in densities, value not in values

        return sorted(self.cells(), key=worth)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A temperature-like parameter against the density.

    Attributes:
        name: Its name on the command line.
        title: How figures call the parameter.
        hotter: 1 if a larger value is a higher temperature, -1 if it is a lower one.
        profiles: Profile name to what is run.
    """

    name: str
    title: str
    hotter: int
    profiles: dict[str, GridSettings]

    def settings(self, profile: str) -> GridSettings:
        """Return what is run in a profile.

        Args:
            profile: One of ``PROFILES``.

        Returns:
            The settings.

        Raises:
            PruneLimitError: If the profile is unknown or the grid does not have it.
        """
        return pick_profile(self.profiles, profile, self.name)


#: The published recipe, in bfloat16.
_PAPER = TrainSpec(
    dataset="cifar10",
    model="preresnet20",
    epochs=160,
    batch_size=64,
    lr=0.1,
    l2=1e-4,
    schedule="step",
    milestones=(80, 120),
    augment=True,
    precision="bfloat16",
)

#: Ours: the published recipe, an eighth as long, on a fifth of the images, with a network of a twenty-fourth of the weights.
_LAPTOP = dataclasses.replace(
    _PAPER, model="preresnet8-quick", epochs=20, milestones=(10, 15), train_size=10_000, precision="float32"
)

#: Ours.
_QUICK = dataclasses.replace(
    _LAPTOP, dataset="digits-noisy", model="fc4-quick", epochs=40, milestones=(20, 30), augment=False, train_size=None
)

_QUICK_DENSITIES = (0.02, 0.04, 0.08, 0.16, 0.32, 0.8)
_LAPTOP_DENSITIES = (0.05, 0.1, 0.2, 0.8)
_PAPER_DENSITIES = (0.05, 0.06, 0.07, 0.08, 0.1, 0.14, 0.2, 0.4, 0.8)


def _quick(field: str, values: tuple[float, ...]) -> GridSettings:
    return GridSettings(field, values, _QUICK_DENSITIES, (0, 1), _QUICK, _QUICK, 1437)


def _laptop(field: str, values: tuple[float, ...]) -> GridSettings:
    return GridSettings(field, values, _LAPTOP_DENSITIES, (0,), _LAPTOP, _LAPTOP, 10_000)


def _paper(field: str, values: tuple[float, ...], first: tuple[float, ...] = (), **settings: object) -> GridSettings:
    base = dataclasses.replace(_PAPER, **settings)  # type: ignore[arg-type]
    return GridSettings(
        field, values, _PAPER_DENSITIES, (0, 1, 2), base, _PAPER, 50_000, ((0.05, 0.06, 0.07, 0.08, 0.1), first)
    )


GRIDS = {
    grid.name: grid
    for grid in (
        Grid(
            "epochs",
            "training epochs",
            -1,
            {
                "quick": _quick("epochs", (1, 2, 5, 10, 20, 40)),
                "laptop": _laptop("epochs", (1, 2, 5, 10, 20)),
                "paper": _paper("epochs", tuple(range(10, 161, 10)), (10, 40, 80, 120, 160)),
            },
        ),
        Grid(
            "batch-size",
            "batch size",
            -1,
            {
                "quick": _quick("batch_size", (16, 32, 64, 128, 256, 512)),
                # 62,400 iterations of 128 images are 160 epochs.
                "paper": _paper("batch_size", (16, 32, 64, 128, 256, 512), batch_size=128),
            },
        ),
        Grid(
            "learning-rate",
            "learning rate",
            1,
            {
                "quick": _quick("lr", (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)),
                "paper": _paper("lr", (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)),
            },
        ),
        Grid(
            "rho",
            "radius of SAM",
            1,
            {
                "quick": _quick("sam_rho", (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)),
                "paper": _paper("sam_rho", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
            },
        ),
    )
}


def find_grid(name: str) -> Grid:
    """Look up a grid.

    Args:
        name: A key of ``GRIDS``.

    Returns:
        The grid.

    Raises:
        PruneLimitError: If the name is unknown.
    """
    return find_grids([name])[0]


def find_grids(names: str | Sequence[str] | None) -> list[Grid]:
    """Look up grids.

    Args:
        names: One key of ``GRIDS``, several, or ``None`` for all.

    Returns:
        The grids, in the given order.

    Raises:
        PruneLimitError: If a name is unknown.
    """
    return [GRIDS[name] for name in pick_names("grid", names, GRIDS)]
