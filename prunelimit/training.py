"""Training: SGD with momentum, L1, L2, augmentation on the device, resumable to the bit.

The settings follow the released code of the fundamental-limit paper (kept in the catalogue of experiments), with one
stated difference: the learning-rate schedule moves once per epoch, not once per iteration. The loop itself is in
:mod:`prunelimit.training_loop`; processes that torchrun started share it, see :mod:`prunelimit.training_shared`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.datasets import Dataset, DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.files import cache_folder
from prunelimit.models import build_model
from prunelimit.precision import full_float32
from prunelimit.processes import add_up, from_first, processes
from prunelimit.progress import ProgressLine
from prunelimit.threads import suited_threads
from prunelimit.throughput import Runtime, lay_out
from prunelimit.train_spec import SCHEDULES, TrainSpec, learning_rate
from prunelimit.training_loop import Loop
from prunelimit.training_shared import Sharing

__all__ = ["SCHEDULES", "OutOfTime", "TrainSpec", "TrainedModel", "evaluate", "fit", "learning_rate", "train"]

#: An epoch shorter than this is not worth a file of its own: the state is saved when so many seconds have passed.
SAVE_INTERVAL = 5.0

#: Within an epoch the state is saved when so many seconds have passed.
LONG_INTERVAL = 60.0

#: Saving takes at most one part in so many of the time.
SAVE_SHARE = 20

#: Processes that share a training look at the first one's clock together, about once in so many seconds.
LOOK_INTERVAL = 0.1

#: Bytes per second at which a state is taken to be written, before the first one was.
WRITE_SPEED = 1e8


class OutOfTime(Exception):
    """The time budget is used up; what was done so far is saved."""


@dataclasses.dataclass
class TrainedModel:
    """A trained network with the history of its training.

    Attributes:
        model: The network, in evaluation mode.
        spec: What determined it.
        history: One dictionary per epoch: ``epoch``, ``lr``, ``loss``, ``accuracy``, ``seconds``, ``images_per_second``
            and, where it was measured, ``test_loss`` and ``test_accuracy``; once per process also ``stages`` (seconds per
            iteration) and ``runtime``, see :func:`~prunelimit.throughput.throughput`. Older ones lack the speeds.
    """

    model: nn.Module
    spec: TrainSpec
    history: list[dict[str, Any]]


def evaluate(
    model: nn.Module, data: DeviceSplit, batch_size: int = 2000, shard: bool | None = None
) -> tuple[float, float]:
    """Measure the mean cross-entropy and the accuracy on un-augmented images, in evaluation mode and full float32.

    Args:
        model: The network; its mode is restored afterwards.
        data: The images and labels.
        batch_size: Images per forward pass; it does not change the result beyond rounding.
        shard: Whether processes share the images; by default they do if ``torch.distributed`` is initialised.

    Returns:
        Mean loss in nats and accuracy in ``[0, 1]``.
    """
    rank, world = processes(shard)
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=data.device, dtype=torch.float64)
    right = torch.zeros((), device=data.device, dtype=torch.int64)
    try:
        with torch.no_grad(), full_float32(data.device):
            for images, labels, counted in _own_batches(data, batch_size, rank, world):
                logits = model(images)[:counted]
                loss += functional.cross_entropy(logits, labels[:counted], reduction="sum")
                right += (logits.argmax(1) == labels[:counted]).sum()
    finally:
        model.train(was_training)
    if world > 1:
        add_up(loss), add_up(right)
    return float(loss) / len(data), int(right) / len(data)


def _own_batches(data: DeviceSplit, batch_size: int, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Give one process's batches, and how many of their images count: with sharded parameters all make as many passes."""
    size = min(batch_size, -(-len(data) // world))
    for start in range(rank * size, rank * size + len(data), world * size):
        chosen = slice(start, start + size) if start < len(data) else slice(0, 1)
        labels = data.labels[chosen]
        yield data.normalise(data.images[chosen]), labels, len(labels) if start < len(data) else 0


#: What :func:`evaluate` gives for the training split, and then for the test split.
MEASURES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def evaluate_both(model: nn.Module, train: DeviceSplit, test: DeviceSplit) -> dict[str, float]:
    """Measure loss and accuracy on both splits, as :func:`evaluate` does, by the names in ``MEASURES``."""
    return dict(zip(MEASURES, [*evaluate(model, train), *evaluate(model, test)], strict=True))


def initial_network(spec: TrainSpec, dataset: Dataset) -> nn.Module:
    """Build the network that a training begins with, on the CPU; its weights follow from the seed.

    Args:
        spec: The training.
        dataset: Its data set.

    Returns:
        The network.
    """
    return build_model(spec.model, input_shape=dataset.image_shape, num_classes=dataset.num_classes, seed=spec.seed)


def is_tested(epoch: int, epochs: int, test_every: int, test_last: int) -> bool:
    """Whether a training measures itself on the test split after an epoch, counted from one."""
    return epoch % test_every == 0 or epoch > epochs - test_last


class _Keeper:
    """Decides when a training is saved and when it has to stop."""

    def __init__(self, loop: Loop, folder: Path | None, deadline: float | None) -> None:
        self.loop, self.folder, self.deadline = loop, folder, deadline
        self.begun = self.saved = time.monotonic()
        self.cost, self.iteration, self.evaluation = loop.bytes / WRITE_SPEED, 0.0, 0.0
        self.world, self._pause, self._left = loop.sharing.world, 1, 0

    def agreed(self, value: Any) -> Any:
        """What the first process says: no clock is asked but its own."""
        return from_first(value, self.world)

    def time_is_up(self, evaluating: bool = False) -> bool:
        """Whether the deadline is so near that nothing more fits in before it but to save."""
        if self.deadline is None:
            return False
        reserve = 1.5 * self.cost + (1 + self._pause) * self.iteration + (self.evaluation if evaluating else 0.0)
        # However slow the disk, half of the time is for the training: otherwise it would never get anywhere.
        return time.monotonic() + min(reserve, (self.deadline - self.begun) / 2) > self.deadline

    def save(self) -> None:
        """Save what is new, if there is a folder."""
        if self.folder is None or not self.loop.changed:
            return
        start = time.monotonic()
        self.loop.save(self.folder)
        self.saved = time.monotonic()
        self.cost = self.saved - start

    def due(self, interval: float) -> bool:
        """Whether the state has been unsaved for so long; zero is always, other intervals grow with what saving takes."""
        return time.monotonic() - self.saved >= max(interval, SAVE_SHARE * self.cost if interval else 0.0)

    def stop(self) -> bool:
        """Look at the clock after an iteration; a state without a folder is not worth stopping for."""
        if self.folder is None:
            return False
        last, self._left = self.loop.place == self.loop.per_epoch, self._left - 1
        if self._left > 0 and not last:
            return False
        self.iteration = self.loop.seconds / self.loop.place
        if self.world > 1:
            self._pause = max(1, int(LOOK_INTERVAL / max(self.iteration, 1e-6)))
        up, due, self._left = self.agreed((self.time_is_up(last), self.due(LONG_INTERVAL), self._pause))
        if up or due:
            self.save()
        return bool(up)


def fit(
    model: nn.Module,
    data: DeviceSplit,
    spec: TrainSpec,
    *,
    masks: dict[str, Tensor] | None = None,
    test: DeviceSplit | None = None,
    test_every: int = 10,
    test_last: int = 1,
    folder: Path | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    first_iteration: int = 0,
    after_step: Callable[[int], None] | None = None,
    runtime: Runtime | None = None,
    shard: bool | None = None,
    shard_parameters: bool = False,
) -> list[dict[str, Any]]:
    """Train a given network in place.

    Processes that share a training all make the same call; what comes out agrees with one process's result to rounding.

    Args:
        model: The network, on the device of ``data``; left in evaluation mode.
        data: Training images and labels.
        spec: Settings; ``dataset``, ``model`` and ``train_size`` are not read here.
        masks: Parameter name to a 0-1 tensor of its shape; masked weights stay exactly zero.
        test: Where to measure loss and accuracy, every ``test_every`` epochs and at the end.
        test_every: Epochs between two measurements on ``test``.
        test_last: How many of the last epochs are measured in any case.
        folder: Where to save the state, every few seconds and at the deadline, and to look for one to resume from;
            ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` before which the state is to be saved, within an epoch if need be. Without
            a folder an epoch that has begun is finished. Of several processes the first one's clock counts.
        progress: Whether to show a progress line.
        first_iteration: Iterations of the schedule that the network has behind it already, as after rewinding: training
            begins there, in the middle of an epoch if need be.
        after_step: Called after each iteration with the number of iterations done, ``first_iteration`` included. What it
            keeps is not part of the saved state.
        runtime: Memory layout and compilation; by default what suits the device.
        shard: Whether processes share the rows of every batch; by default they do if ``torch.distributed`` is initialised.
            The first one's weights count, and it alone writes to ``folder``, which all must be able to read.
        shard_parameters: Whether to cut parameters, gradients and momentum over these processes, by FSDP2; the network stays
            cut. It may be on the CPU before, where every process must have the same weights.

    Returns:
        The history, one dictionary per epoch; it ends before ``spec.epochs`` only if the deadline passed.

    Raises:
        PruneLimitError: If the loss stops being finite, ``first_iteration`` lies outside of the training, or the processes
            cannot share it.
    """
    sharing = Sharing(model, data.device, shard, shard_parameters)
    loop = Loop(model, data, spec, masks, first_iteration, after_step, runtime, sharing)
    if not 0 <= first_iteration <= spec.epochs * loop.per_epoch:
        raise PruneLimitError(
            f"first_iteration={first_iteration!r} must lie between 0 and the {spec.epochs * loop.per_epoch} of the training."
        )
    if folder is not None:
        loop.load(folder)
    keeper = _Keeper(loop, folder, deadline)
    try:
        with suited_threads(model), ProgressLine(spec.title, spec.epochs, progress and not sharing.rank) as line:
            if loop.number < spec.epochs and not keeper.agreed(keeper.time_is_up()):
                loop.compile()
            while loop.number < spec.epochs and not keeper.agreed(keeper.time_is_up()):
                entry = loop.epoch(keeper.stop)
                if entry is None:
                    break
                if test is not None and is_tested(entry["epoch"], spec.epochs, test_every, test_last):
                    start = time.monotonic()
                    entry["test_loss"], entry["test_accuracy"] = evaluate(model, test, shard=sharing.world > 1)
                    keeper.evaluation = time.monotonic() - start
                if entry["epoch"] == spec.epochs or keeper.agreed(keeper.due(SAVE_INTERVAL)):
                    keeper.save()
                shown = {"loss": entry["loss"], "accuracy": entry["accuracy"]}
                shown["images/s"] = round(entry["images_per_second"])
                line.update(entry["epoch"], **shown)
            keeper.save()
    finally:
        if not sharing.sharded:
            lay_out(model, channels_last=False)
    model.eval()
    return loop.history


def train(
    spec: TrainSpec,
    *,
    device: str | torch.device = "cpu",
    folder: Path | None = None,
    dataset: Dataset | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    runtime: Runtime | None = None,
    shard: bool | None = None,
    shard_parameters: bool = False,
) -> TrainedModel:
    """Train the network that a spec describes, or load it if that was done before.

    Processes that torchrun started share the training, without changing the result beyond rounding; all make the same call.

    Args:
        spec: What to train.
        device: Where to train; data and augmentation live there too.
        folder: Folder of the checkpoints; by default one named by the spec's hash in the cache folder.
        dataset: The data set, if it is loaded already.
        deadline: Value of ``time.monotonic()`` before which the state is saved and the training left.
        progress: Whether to show a progress line.
        runtime: Memory layout and compilation; by default what suits the device.
        shard: As for :func:`fit`.
        shard_parameters: As for :func:`fit`; the network is never whole on ``device``, and the checkpoint is that of one process.

    Returns:
        The trained network. If the deadline passed, its history is shorter than ``spec.epochs``; the next call goes on
        from there, to the same result, bit for bit on the same CPU.
    """
    dataset = dataset or load_dataset(spec.dataset)
    model = initial_network(spec, dataset)
    if not shard_parameters:
        model.to(device)
    folder = folder or cache_folder() / "checkpoints" / spec.hash
    data, test = dataset.on_device("train", device, spec.train_size), dataset.on_device("test", device)
    options: dict[str, Any] = {"runtime": runtime, "shard": shard, "shard_parameters": shard_parameters}
    history = fit(model, data, spec, test=test, folder=folder, deadline=deadline, progress=progress, **options)
    return TrainedModel(model, spec, history)
