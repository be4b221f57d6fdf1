"""What the pruners that train have in common: nested training settings, and training with a fixed mask."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.pruning.base import PrunerSpec
from prunelimit.pruning.magnitude import Masks
from prunelimit.training import TrainSpec, fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPrunerSpec(PrunerSpec):
    """Settings of a pruner that trains the network itself.

    Attributes:
        train: How the network is trained; its ``dataset``, ``model`` and ``train_size`` are not read, and its ``seed``
            becomes that of the pruner.
    """

    begins: ClassVar[str] = "initial"

    #: Settings as published, for each field that is a TrainSpec.
    PUBLISHED: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    train: TrainSpec

    def __post_init__(self) -> None:
        """Give every training the seed of the pruner, so that one number decides what is drawn."""
        super().__post_init__()
        for name in self._trainings():
            training = getattr(self, name)
            if not isinstance(training, TrainSpec):
                raise PruneLimitError(f"{name}={training!r} must be a TrainSpec.")
            object.__setattr__(self, name, dataclasses.replace(training, seed=self.seed))

    @classmethod
    def _trainings(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls) if field.type == "TrainSpec"]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec, and the training specs inside it, from :meth:`to_dict`."""
        nested = {}
        for name in cls._trainings():
            if not isinstance(values.get(name), dict):
                raise PruneLimitError(f"{cls.__name__} needs {name}={{...}}, the fields of a TrainSpec.")
            nested[name] = TrainSpec.from_dict(values[name])
        return super().from_dict(values | nested)

    @classmethod
    def published(cls, dataset: str, model: str, **settings: Any) -> Self:
        """Build the spec with the published settings.

        Args:
            dataset: Name of the data set.
            model: Name of the network.
            **settings: Fields of the spec that differ from their defaults.

        Returns:
            The spec.
        """
        trainings = {
            name: TrainSpec(dataset=dataset, model=model, **training) for name, training in cls.PUBLISHED.items()
        }
        return cls(**(trainings | settings))


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's parameters and buffers by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def train_masked(
    model: nn.Module,
    data: DeviceSplit,
    spec: TrainSpec,
    masks: Masks | None,
    *,
    folder: Path | None,
    deadline: float | None,
    progress: bool | None,
    first_iteration: int = 0,
    watch: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]] | None:
    """Train a copy of a network with a fixed mask, to the end of the schedule.

    Args:
        model: The network; left as it was.
        data: Training images and labels.
        spec: Settings of the training.
        masks: Parameter name to a 0-1 tensor of its shape; masked weights are exactly zero at the end.
        folder: Where to save the state, and to look for one to resume from.
        deadline: Value of ``time.monotonic()`` after which no further epoch is begun.
        progress: Whether to show a progress line.
        first_iteration: Iterations of the schedule that the network has behind it already.
        watch: Called after each iteration with the network in training and the number of iterations done.

    Returns:
        The trained copy and one dictionary per epoch, or ``None`` if the deadline passed.
    """
    trained = copy.deepcopy(model)
    history = fit(
        trained,
        data,
        spec,
        masks=masks,
        folder=folder,
        deadline=deadline,
        progress=progress,
        first_iteration=first_iteration,
        after_step=None if watch is None else lambda iteration: watch(trained, iteration),
    )
    done = first_iteration // iterations_per_epoch(data, spec) + len(history)
    return (trained, history) if done >= spec.epochs else None


def iterations_per_epoch(data: DeviceSplit, spec: TrainSpec) -> int:
    """Return how many batches make an epoch; the last one may be shorter."""
    return -(-len(data) // spec.batch_size)
