"""Specs of the experiments; their hashes name the records."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from prunelimit.errors import PruneLimitError
from prunelimit.specs import Spec
from prunelimit.training import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSpec(Spec):
    """One trained network with everything that is predicted and measured about its limit.

    Attributes:
        train: How the network is trained.
        curvature_examples: Training images behind the Hessian, drawn at random; ``None`` for all.
        steps: Hessian products per probe.
        probes: Random probes.
        exact: Whether the dense Hessian is formed as well, which takes a small network.
        sweep: Sparsities at which loss and accuracy are recorded.
        accuracy_step: Step of the grid on which the accuracy-based limits are searched.
        tune_epochs: Epochs of extra training for the fine-tuned limit; zero leaves it out.
        tune_tolerance: Width of its bracket.
    """

    train: TrainSpec
    curvature_examples: int | None = None
    steps: int = 64
    probes: int = 1
    exact: bool = False
    sweep: tuple[float, ...] = ()
    accuracy_step: float = 0.001
    tune_epochs: int = 0
    tune_tolerance: float = 0.005

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec, and the training spec inside it, from :meth:`to_dict`."""
        if not isinstance(values.get("train"), dict):
            raise PruneLimitError("LimitSpec needs train={...}, the fields of a TrainSpec.")
        return super().from_dict(values | {"train": TrainSpec.from_dict(values["train"])})
