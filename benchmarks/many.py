"""Many networks at once: seconds per epoch one at a time and stacked, how that depends on the size, and how far the two part."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.measure import interleave
from benchmarks.records import Record, told
from prunelimit import training_stack
from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.models import build_model, mlp
from prunelimit.training import TrainSpec, fit
from prunelimit.training_many import LARGEST, fit_many

DIGITS = (1, 8, 8)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is compared.

    Attributes:
        epochs: Network to the epochs of one measurement.
        counts: Networks that are trained at once.
        hidden: Hidden widths of the MLPs on 28 x 28 pixels.
        drift: Network to the epochs after which the weights are compared.
        images: Training images of the digits; ``None`` for all.
    """

    epochs: dict[str, int]
    counts: tuple[int, ...]
    hidden: tuple[tuple[int, int], ...]
    drift: dict[str, tuple[int, ...]]
    images: int | None = None


FULL = Sizes(
    {"fc5-quick": 10, "fc3": 10, "resnet8-quick": 2},
    (1, 3, 8, 24),
    ((40, 20), (100, 50), (300, 100), (1000, 300)),
    {"fc5-quick": (1, 5, 20, 100), "resnet8-quick": (1, 3, 10)},
)
QUICK = Sizes({"fc5-quick": 1, "resnet8-quick": 1}, (1, 3), ((20, 10),), {"fc5-quick": (1, 2)}, 200)


class DoubleSplit(DeviceSplit):
    """The same images in float64."""

    def normalise(self, images: Tensor) -> Tensor:
        """Map bytes to float64."""
        return super().normalise(images).double()


def _specs(name: str, count: int, epochs: int, batch_size: int = 64) -> list[TrainSpec]:
    base = TrainSpec(dataset="digits", model=name, epochs=epochs, batch_size=batch_size, lr=0.01, l1=1e-3)
    return [dataclasses.replace(base, seed=seed) for seed in range(count)]


def _networks(name: str, count: int) -> list[nn.Module]:
    return [build_model(name, input_shape=DIGITS, seed=seed) for seed in range(count)]


def _tasks(models: list[nn.Module], data: DeviceSplit, specs: list[TrainSpec]) -> dict[str, Callable[[], Any]]:
    """Train the same networks further and further, in each of the ways that there are."""

    def one_at_a_time() -> None:
        for model, spec in zip(models, specs, strict=True):
            fit(model, data, spec)

    def vmap() -> None:
        with mock.patch.object(training_stack, "mlp_layers", return_value=None):
            fit_many(models, data, specs)

    tasks = {"one at a time": one_at_a_time, "stacked": lambda: fit_many(models, data, specs)}
    return tasks | ({"vmap": vmap} if training_stack.mlp_layers(models[0]) else {})


def _timed(models: list[nn.Module], data: DeviceSplit, specs: list[TrainSpec], repeats: int) -> dict[str, Any]:
    """Measure all ways in turn, after an epoch of each that does not count; give CPU seconds per epoch of all networks."""
    for task in _tasks(models, data, [dataclasses.replace(spec, epochs=1) for spec in specs]).values():
        task()
    clocks = interleave(_tasks(models, data, specs), repeats, told)
    epochs, one = specs[0].epochs, clocks["one at a time"]
    rounds = [a / b for a, b in zip(one.cpu, clocks["stacked"].cpu, strict=True)]
    return {
        "networks": len(models),
        "parameters": sum(p.numel() for p in models[0].parameters()),
        "epochs": epochs,
        "per_epoch": {name: clock.seconds / epochs for name, clock in clocks.items()},
        "times": one.seconds / clocks["stacked"].seconds,
        "range": [min(rounds), max(rounds)],
        "seconds": {name: clock.to_dict() for name, clock in clocks.items()},
    }


def compare(record: Record, *, sizes: Sizes, repeats: int) -> None:
    """Measure and record.

    Args:
        record: Where results go.
        sizes: What is compared.
        repeats: Rounds, of which the median counts.
    """
    data = load_dataset("digits").on_device("train", size=sizes.images)
    speed: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes.epochs}
    for name, epochs in sizes.epochs.items():
        for count in sizes.counts:
            told(f"{count} x {name}")
            models = _networks(name, count)
            speed[name].append(_timed(models, data, _specs(name, count, epochs), repeats))
            record.save(rounds=repeats, batch_size=64, examples=len(data), speed=speed)
    record.save(sizes=[by_size(hidden, repeats) for hidden in sizes.hidden], largest=LARGEST)
    record.save(complete=True, drift={name: drift(name, epochs, data) for name, epochs in sizes.drift.items()})


def by_size(hidden: tuple[int, int], repeats: int, count: int = 3) -> dict[str, Any]:
    """Measure MLPs on random images of 28 x 28 pixels, ten batches of 128.

    Args:
        hidden: Hidden widths.
        repeats: Rounds.
        count: Networks at once.

    Returns:
        Widths, parameters, seconds per epoch and their ratio.
    """
    told(f"{count} MLPs with {hidden} hidden units")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1280, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (1280,), generator=generator)
    data = DeviceSplit(images, labels, (0.5,), (0.5,), 255)
    models: list[nn.Module] = [mlp([784, *hidden, 10]) for _ in range(count)]
    return {"hidden": hidden} | _timed(models, data, _specs("mlp", count, 2, batch_size=128), repeats)


def drift(name: str, epochs: tuple[int, ...], data: DeviceSplit, count: int = 3) -> list[dict[str, Any]]:
    """Measure the largest difference of any weight between networks trained one at a time and at once.

    Beside it stands what training makes of initial weights that were changed in their last bit: what cannot be told from
    that is no difference of method.

    Args:
        name: Name of the network.
        epochs: After how many epochs.
        data: Training images and labels.
        count: Networks at once.

    Returns:
        One dictionary per precision and number of epochs.
    """
    rows = []
    for precision in (torch.float32, torch.float64):
        split = copy.copy(data)
        if precision == torch.float64:
            split.__class__ = DoubleSplit
        for number in epochs:
            told(f"drift of {name}, {precision}, {number} epochs")
            specs = _specs(name, count, number)
            alone = [model.to(precision) for model in _networks(name, count)]
            stacked, nudged = copy.deepcopy(alone), [_nudged(model) for model in alone]
            for model, other, spec in zip(alone, nudged, specs, strict=True):
                fit(model, split, spec)
                fit(other, split, spec)
            fit_many(stacked, split, specs)
            found = {"stacked": _distance(alone, stacked), "nudged": _distance(alone, nudged)}
            rows.append({"precision": str(precision).removeprefix("torch."), "epochs": number} | found)
    return rows


def _nudged(model: nn.Module) -> nn.Module:
    """Copy a network and change its weights by up to their last bit."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1 + torch.finfo(p.dtype).eps * (2 * torch.rand(p.shape, generator=generator, dtype=p.dtype) - 1))
    return other


def _distance(ones: list[nn.Module], others: list[nn.Module]) -> list[float]:
    """Give the largest absolute difference of a weight, for each pair of networks."""
    pairs = [zip(a.parameters(), b.parameters(), strict=True) for a, b in zip(ones, others, strict=True)]
    return [max(float((p - q).detach().abs().max()) for p, q in pair) for pair in pairs]
