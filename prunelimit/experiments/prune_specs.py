"""What the experiments with pruners are named by."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.specs import TrainedSpec
from prunelimit.pruning.base import PrunerSpec
from prunelimit.pruning.methods import find_method


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PrunerSpec(TrainedSpec):
    """What is done with one pruner.

    ``train`` gives the dense network: where a pruner of trained networks begins, and, for one that trains the network
    itself, what it is compared with.

    Attributes:
        method: Key of :data:`~prunelimit.pruning.methods.METHODS`.
        settings: Settings of that method, the training in it included.
    """

    method: str
    settings: PrunerSpec

    def __post_init__(self) -> None:
        """Refuse settings of another method."""
        super().__post_init__()
        if not isinstance(self.settings, find_method(self.method).spec):
            wanted = find_method(self.method).spec.__name__
            raise PruneLimitError(f"settings of method={self.method!r} must be a {wanted}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec, and the specs inside it, from :meth:`to_dict`."""
        if not isinstance(values.get("settings"), dict):
            raise PruneLimitError(f"{cls.__name__} needs settings={{...}}, the fields of the method's spec.")
        kind = find_method(values.get("method", "")).spec
        return super().from_dict(values | {"settings": kind.from_dict(values["settings"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneSpec(_PrunerSpec):
    """One network, pruned by one method to several sparsities.

    Attributes:
        sparsities: Fractions of the prunable weights to remove.
    """

    sparsities: tuple[float, ...]

    def about(self) -> str:
        """Say which of its kind it is, in a few words."""
        return f"{find_method(self.method).title} to {', '.join(f'{s:.4g}' for s in self.sparsities)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundsSpec(_PrunerSpec):
    """Iterative pruning with the limit recomputed after each round.

    Attributes:
        steps: Hessian products per spectrum.
        probes: Random probes per spectrum.
        examples: Training images behind the Hessian, drawn at random; ``None`` for all.
    """

    steps: int = 128
    probes: int = 1
    examples: int | None = None
