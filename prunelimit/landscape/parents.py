"""A dense network as the decisions by regime see it: it can be pruned to a density, and its retrained children measured."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.landscape.children import DISTRIBUTIONS, LAST_EPOCHS, final_error, measure_pair, prune_parent
from prunelimit.pruning.magnitude import apply_masks
from prunelimit.train_spec import TrainSpec
from prunelimit.training import evaluate, fit


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the retrained children of a pruned network tell.

    Attributes:
        error: Their test error in ``[0, 1]``, averaged over the last retraining epochs and over children.
        lmc: Linear mode connectivity, mean over pairs of children, in units of training error; zero is connected.
        cka: Linear CKA of their softmax outputs on training images, mean over pairs.
        retrainings: How many children were retrained for it.
    """

    error: float
    lmc: float
    cka: float
    retrainings: int


class Parent(Protocol):
    """A dense network that can be pruned to a density and retrained."""

    @property
    def dense_error(self) -> float:
        """Test error of the dense network in ``[0, 1]``."""

    def measure(self, density: float) -> Measurement:
        """Measure the children at a density, the fraction of the prunable weights that is kept."""


class TrainedParent:
    """A network of one's own, pruned by magnitude and retrained on demand; asking twice costs nothing.

    Args:
        model: The dense network, on the device of the data; left as it was.
        train: Training images: for retraining and, un-augmented, for connectivity and similarity.
        test: Where the error is measured.
        retrain: How children are retrained from the pruned weights. Child k gets this spec's seed plus k, which decides the
            order of the data and the augmentation.
        children: How many, at least two.
        distribution: ``"uniform"`` keeps the density in every layer, ``"global"`` over all of them.
        folder: Where to keep the state of the retrainings, to resume from; one folder for each dense network.

    Raises:
        PruneLimitError: If an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        train: DeviceSplit,
        test: DeviceSplit,
        retrain: TrainSpec,
        *,
        children: int = 2,
        distribution: str = "uniform",
        folder: Path | None = None,
    ) -> None:
        if children < 2:
            raise PruneLimitError(f"children={children!r} must be at least 2: connectivity is that of a pair.")
        if retrain.epochs < 1:
            raise PruneLimitError("retrain.epochs=0 retrains nothing: give at least one epoch.")
        if distribution not in DISTRIBUTIONS:
            raise unknown_name("distribution", distribution, DISTRIBUTIONS)
        self.model, self.train, self.test, self.retrain = model, train, test, retrain
        self.children, self.distribution, self.folder = children, distribution, folder
        self._found: dict[float, Measurement] = {}

    @functools.cached_property
    def dense_error(self) -> float:
        """Test error of the dense network in ``[0, 1]``."""
        return 1 - evaluate(self.model, self.test)[1]

    def measure(self, density: float) -> Measurement:
        """Prune, retrain the children and measure them, or return what was measured before.

        Args:
            density: Fraction of the prunable weights to keep, in ``(0, 1]``.

        Returns:
            The measurement.

        Raises:
            PruneLimitError: If the density is out of range, or the loss of a child stops being finite.
        """
        if density not in self._found:
            self._found[density] = self._measure(density)
        return self._found[density]

    def _measure(self, density: float) -> Measurement:
        masks = prune_parent(self.model, density, self.distribution)
        networks, errors = [], []
        for number in range(self.children):
            child = apply_masks(copy.deepcopy(self.model), masks)
            spec = dataclasses.replace(self.retrain, seed=self.retrain.seed + number)
            folder = self.folder / f"density-{density:g}-seed-{spec.seed}" if self.folder else None
            history = fit(child, self.train, spec, masks=masks, test=self.test, test_last=LAST_EPOCHS, folder=folder)
            errors.append(final_error(history))
            networks.append(child)
        pairs = [measure_pair(a, b, self.train) for a, b in itertools.combinations(networks, 2)]
        return Measurement(
            error=float(np.mean(errors)),
            lmc=float(np.mean([pair.lmc for pair in pairs])),
            cka=float(np.mean([pair.cka for pair in pairs])),
            retrainings=self.children,
        )
