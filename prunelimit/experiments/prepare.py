"""What every experiment on a trained network begins with."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor, nn

from prunelimit.datasets import Dataset, DeviceSplit, load_dataset
from prunelimit.training import TrainSpec, train


class _OnTrained(Protocol):
    @property
    def train(self) -> TrainSpec: ...

    @property
    def examples(self) -> int | None: ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A trained network, its training data, and the images behind its curvature.

    Attributes:
        dataset: The data set.
        model: The network.
        data: Its training split on the device.
        sample: Inputs and targets behind the curvature; smaller samples are parts of larger ones.
    """

    dataset: Dataset
    model: nn.Module
    data: DeviceSplit
    sample: tuple[Tensor, Tensor]


def curvature_sample(data: DeviceSplit, examples: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the images behind a curvature, others for every seed of the training.

    Args:
        data: The training split.
        examples: How many; a smaller sample is part of a larger one. ``None`` for all, in their order.
        seed: Seed of the training.

    Returns:
        Normalised inputs and targets.
    """
    return data.tensors(examples, None if examples is None else torch.Generator().manual_seed(seed))


def prepare(spec: _OnTrained, device: str, deadline: float | None, progress: bool | None) -> Prepared | None:
    """Train the network of a spec, or load its checkpoint, and draw its sample.

    Args:
        spec: A spec with ``train`` and ``examples``.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which training is not continued.
        progress: Whether to show the progress of the training.

    Returns:
        All of it, or ``None`` if the deadline passed during training.
    """
    dataset = load_dataset(spec.train.dataset)
    trained = train(spec.train, device=device, dataset=dataset, deadline=deadline, progress=progress)
    if len(trained.history) < spec.train.epochs:
        return None
    data = dataset.on_device("train", device, spec.train.train_size)
    sample = curvature_sample(data, spec.examples, spec.train.seed)
    return Prepared(dataset, trained.model, data, sample)
