"""What every pruner takes and gives."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import unknown_name
from prunelimit.pruning.magnitude import Masks, apply_masks
from prunelimit.specs import Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrunerSpec(Spec):
    """What determines the result of a pruner, besides the network, the data and the sparsity.

    Attributes:
        seed: Seed of everything that the pruner draws, training included.
    """

    #: The network that a pruner wants: ``"trained"`` or, for one that trains the network itself, ``"initial"``.
    begins: ClassVar[str] = "trained"

    #: Whether runs that differ by the sparsity only may share a folder, and thereby what they have in common.
    nested: ClassVar[bool] = False

    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What a pruner found.

    Attributes:
        masks: Parameter name to a 0-1 tensor of its shape; together they keep the wanted number of weights exactly.
        weights: Names as in ``model.state_dict()`` to new values, for the entries that the pruner changed; empty for a
            pruner that only chooses. Pruned weights are zero in it.
        history: What happened on the way, one plain dictionary per round or epoch.
        epochs: Passes over the training data that the pruner made to train, by itself.
    """

    masks: Masks
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    epochs: float = 0.0

    @torch.no_grad()
    def applied(self, model: nn.Module) -> nn.Module:
        """Copy a network, and give the copy the new weights and the masks."""
        changed = copy.deepcopy(model)
        state = changed.state_dict()
        for name, value in self.weights.items():
            if name not in state:
                raise unknown_name("weights", name, state)
            state[name].copy_(value)
        return apply_masks(changed, self.masks)


class Pruner(Protocol):
    """One pruning method."""

    def __call__(
        self,
        model: nn.Module,
        data: DeviceSplit,
        sparsity: float,
        spec: Any,
        *,
        folder: Path | None = None,
        deadline: float | None = None,
        progress: bool | None = None,
    ) -> Pruned | None:
        """Prune a network to a sparsity.

        Args:
            model: The network, trained or initial as ``spec.begins`` says; left as it was.
            data: Training images and labels.
            sparsity: Fraction of the prunable weights to remove, in ``[0, 1)``; exactly ``ceil(sparsity * D)`` of them go.
            spec: The method's settings.
            folder: Where to save the state of a long method, and to look for one to resume from; ``None`` keeps nothing.
            deadline: Value of ``time.monotonic()`` after which nothing new is begun.
            progress: Whether to show a progress line.

        Returns:
            Masks and new weights, or ``None`` if the deadline passed; the next call goes on from there.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Method:
    """A pruner with its name and settings.

    Attributes:
        title: How tables call it.
        spec: Type of its settings.
        prune: The method.
    """

    title: str
    spec: type[PrunerSpec]
    prune: Pruner
