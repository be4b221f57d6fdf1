"""One cell of a grid of the three-regime paper: a dense network, pruned to a density, and its retrained children."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.experiments.specs import TrainedSpec
from prunelimit.landscape.children import DISTRIBUTIONS, LAST_EPOCHS, check_density
from prunelimit.specs import part_seed
from prunelimit.train_spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegimeSpec(TrainedSpec):
    """One dense network, pruned once by magnitude, and children retrained from there with its mask.

    Attributes:
        train: How the dense network is trained; an early-stopped one has fewer epochs than its schedule.
        density: Fraction of the weights of :func:`~prunelimit.landscape.children.regime_parameters` that stays.
        retrain: How each child is retrained from the pruned weights; children differ in the seed.
        distribution: How the density is spread over the layers, ``"uniform"`` or ``"global"``.
        children: Number of children, at least 2.
        last: Epochs at the end of the retraining over which the test error is averaged.
    """

    density: float
    retrain: TrainSpec
    distribution: str = "uniform"
    children: int = 2
    last: int = LAST_EPOCHS

    def __post_init__(self) -> None:
        """Refuse cells without a pair, and densities that prune nothing or everything."""
        super().__post_init__()
        check_density(self.density)
        if self.distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", self.distribution, DISTRIBUTIONS)
        if self.children < 2 or self.last < 1:
            raise PruneLimitError(
                f"children={self.children!r}, last={self.last!r}: it takes two children to compare, and one epoch to measure."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec, and the training specs inside it, from :meth:`to_dict`."""
        if not isinstance(values.get("retrain"), dict):
            raise PruneLimitError(f"{cls.__name__} needs retrain={{...}}, the fields of a TrainSpec.")
        return super().from_dict(values | {"retrain": TrainSpec.from_dict(values["retrain"])})

    def child(self, number: int) -> TrainSpec:
        """Return how one child is retrained.

        Args:
            number: From zero.

        Returns:
            ``retrain`` with a seed that no dense network and no other child of this parent has.
        """
        return dataclasses.replace(self.retrain, seed=part_seed(self.train.seed + 1, number))
