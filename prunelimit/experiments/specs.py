"""Specs of the experiments; their hashes name the records."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from prunelimit.errors import PruneLimitError
from prunelimit.specs import Spec, added
from prunelimit.training import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedSpec(Spec):
    """What is done with one trained network.

    Attributes:
        train: How the network is trained.
    """

    train: TrainSpec

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec, and the training spec inside it, from :meth:`to_dict`."""
        if not isinstance(values.get("train"), dict):
            raise PruneLimitError(f"{cls.__name__} needs train={{...}}, the fields of a TrainSpec.")
        return super().from_dict(values | {"train": TrainSpec.from_dict(values["train"])})

    def about(self) -> str:
        """Say which of its kind it is, in a few words."""
        examples: int | None = getattr(self, "examples", None)
        return "all images" if examples is None else f"{examples:,} images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSpec(TrainedSpec):
    """One trained network with everything that is predicted and measured about its limit.

    Attributes:
        curvature_examples: Training images behind the Hessian, drawn at random; ``None`` for all.
        steps: Hessian products per probe.
        probes: Random probes.
        exact: Whether the dense Hessian is formed as well, which takes a small network.
        sweep: Sparsities at which loss and accuracy are recorded.
        sweep_evaluations: Recorded sparsities if they are to be chosen where the curves bend, see
            :func:`~prunelimit.pruning.adaptive.adaptive_sweep`; zero for those of ``sweep``.
        accuracy_step: Step of the grid on which the accuracy-based limits are searched.
        tune_epochs: Epochs of extra training for the fine-tuned limit; zero leaves it out.
        tune_tolerance: Width of its bracket.
    """

    curvature_examples: int | None = None
    steps: int = 64
    probes: int = 1
    exact: bool = False
    sweep: tuple[float, ...] = ()
    accuracy_step: float = 0.001
    tune_epochs: int = 0
    tune_tolerance: float = 0.005
    sweep_evaluations: int = added(0)

    def __post_init__(self) -> None:
        """Refuse two kinds of sweep at once."""
        super().__post_init__()
        if self.sweep and self.sweep_evaluations:
            raise PruneLimitError("sweep_evaluations chooses the sparsities itself: give sweep=() with it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvatureSpec(TrainedSpec):
    """The spectrum of one trained network, to see how the limit depends on data and products.

    Attributes:
        examples: Training images behind the Hessian, drawn at random; a smaller sample is part of a larger one; ``None``
            for all.
        steps: Hessian products per probe.
        probes: Random probes.
    """

    examples: int | None = None
    steps: int = 256
    probes: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsSpec(TrainedSpec):
    """The norms of all rows of one trained network's Hessian.

    Attributes:
        examples: Training images behind the Hessian, the same as for a :class:`CurvatureSpec` of this size; ``None`` for
            all.
        probes: Random vectors, one Hessian product each.
        order: 1 for the sum of magnitudes of a row, 2 for its Euclidean norm.
        checked: Rows, drawn at random, that are also computed exactly with one product each.
    """

    examples: int | None = None
    probes: int = 32
    order: int = 1
    checked: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefitSpec(TrainedSpec):
    """The limit of one trained network if its kept weights are refitted by trust-region steps.

    Attributes:
        examples: Training images behind loss, gradient and curvature, the same as for a :class:`CurvatureSpec` of this
            size; ``None`` for all.
        tolerance: Width of the bracket in sparsity at which bisection stops.
    """

    examples: int | None = None
    tolerance: float = 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class SightSpec(TrainedSpec):
    """The limits of one trained network that depend on where the sparse point lies, and not only on how far away.

    Attributes:
        examples: Training images behind the Hessian, the same as for a :class:`CurvatureSpec` of this size; ``None`` for
            all.
        steps: Products of its spectrum, which is that of the :class:`CurvatureSpec` with as many.
        sight_steps: Products per line of sight.
        tolerance: Difference between the removable and the removed fraction at which the search stops.
    """

    examples: int | None = None
    steps: int = 256
    sight_steps: int = 64
    tolerance: float = 0.001

    @property
    def spectrum(self) -> CurvatureSpec:
        """The spectrum that it needs."""
        return CurvatureSpec(train=self.train, examples=self.examples, steps=self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderSpec(TrainedSpec):
    """One small trained network, from the formula to the cut, one assumption after the other, with the dense Hessian.

    Attributes:
        examples: Training images behind the Hessian, the same as for a :class:`CurvatureSpec` of this size; ``None`` for
            all.
        rotations: Random subspaces, and random sets of coordinates.
        draws: Random steps of each kind that are held against the cut.
        tolerance: Width of the bracket in sparsity at which the search for a limit stops.
        accuracy_step: Step of the grid on which the accuracy-based limit is searched.
        tune_epochs: Epochs of extra training for the fine-tuned limit, with the learning rates of the training.
        tune_tolerance: Width of its bracket.
    """

    examples: int | None = None
    rotations: int = 5
    draws: int = 16
    tolerance: float = 0.001
    accuracy_step: float = 0.001
    tune_epochs: int = 20
    tune_tolerance: float = 0.005
