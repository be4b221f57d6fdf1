r"""Mode connectivity: the error along a straight line, or along a trained curve, between two networks.

Two networks retrained from one pruned parent share its mask. A weight that is zero in both is zero on the whole line and
on the whole curve, so that every point between them is as sparse as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from prunelimit.curvature.data import evaluation_mode
from prunelimit.curvature.lanczos import scrambled_seed
from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.models import prunable_names
from prunelimit.precision import full_float32, training_rounding
from prunelimit.training import evaluate

MEASURES = ("error", "loss")

#: Images per pass where networks are measured, as in :func:`prunelimit.training.evaluate`.
BATCH_SIZE = 2000


@dataclasses.dataclass(frozen=True)
class Connectivity:
    r"""The error, or the loss, along a path between two networks.

    Attributes:
        points: Places on the path, from 0 for the first network to 1 for the second.
        values: The training error in ``[0, 1]``, or the training loss in nats, at each.
        measure: ``"error"`` or ``"loss"``.
    """

    points: tuple[float, ...]
    values: tuple[float, ...]
    measure: str

    @property
    def _deviations(self) -> np.ndarray:
        """How far each value lies below the mean of both ends."""
        return (self.values[0] + self.values[-1]) / 2 - np.array(self.values)

    @property
    def t(self) -> float:
        r"""Where the value is farthest from the mean of both ends, :math:`t^*`; the first place, if there are several."""
        return self.points[int(np.abs(self._deviations).argmax())]

    @property
    def lmc(self) -> float:
        r"""Mode connectivity :math:`\frac12 (e(0) + e(1)) - e(t^*)`, as in the three-regime paper (Zhou et al. 2023).

        Zero is connected, negative is a barrier, positive is a path better than its ends. The ends themselves count: with
        unequal ends and nothing between them, the magnitude is half of their difference.
        """
        return float(self._deviations[np.abs(self._deviations).argmax()])

    @property
    def barrier(self) -> float:
        r"""Highest rise above the chord, :math:`\max_t e(t) - (1 - t) e(0) - t e(1)` (Entezari et al. 2022).

        It is never negative, and zero if the value is convex along the path, whatever the ends.
        """
        start, end = self.values[0], self.values[-1]
        rises = (v - start - t * (end - start) for t, v in zip(self.points[1:-1], self.values[1:-1], strict=True))
        return max(0.0, *rises)


@contextmanager
def _collecting(layers: list[_BatchNorm], sums: dict[_BatchNorm, list[Tensor]]) -> Iterator[None]:
    """Let layers normalise by the batch and add up its count, mean and square; put momentum and modes back afterwards."""
    momenta = [layer.momentum for layer in layers]

    def collect(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, _BatchNorm)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # With momentum one, the running statistics are those of the batch; the variance is the unbiased one.
        count = inputs[0].numel() // inputs[0].shape[1]
        mean, variance = layer.running_mean.double(), layer.running_var.double()
        parts = torch.full_like(mean, count), count * mean, (count - 1) * variance + count * mean**2
        sums[layer] = [a + b for a, b in zip(sums[layer], parts, strict=True)] if layer in sums else list(parts)

    handles = [layer.register_forward_hook(collect) for layer in layers]
    try:
        for layer in layers:
            layer.momentum, layer.training = 1.0, True
        yield
    finally:
        for layer, momentum, handle in zip(layers, momenta, handles, strict=True):
            layer.momentum = momentum
            handle.remove()


@torch.no_grad()
def reestimate_statistics(model: nn.Module, data: DeviceSplit, batch_size: int = BATCH_SIZE) -> nn.Module:
    """Measure the running statistics of batch normalisation anew, in place, on un-augmented images.

    Mean and variance are those of all that reaches a layer in one pass over the data, each layer before it normalising by
    the batch: counted by the sizes of the batches, added up in float64, and therefore independent of their order. They are
    no moving average. Only batch normalisation is in training mode; dropout stays off. Batches are cut to equal sizes, to
    one image, because a very short last one would have statistics of its own.

    Args:
        model: The network; modes and momenta are put back afterwards. Without batch normalisation nothing happens.
        data: Images, usually those of the training.
        batch_size: The most images per pass, at least 2.

    Returns:
        The same network.

    Raises:
        PruneLimitError: If a batch would have less than two images.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return model
    if min(batch_size, len(data)) < 2:
        raise PruneLimitError(
            f"batch_size={batch_size!r} with {len(data)} images: batch normalisation needs at least 2 per pass."
        )
    passes = min(-(-len(data) // batch_size), len(data) // 2)  # no image is left alone
    bounds = [len(data) * k // passes for k in range(passes + 1)]
    sums: dict[_BatchNorm, list[Tensor]] = {}
    with full_float32(data.device), evaluation_mode(model), _collecting(layers, sums):
        for start, end in itertools.pairwise(bounds):
            model(data.normalise(data.images[start:end]))
    for layer, (count, total, squares) in sums.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(total / count)
        layer.running_var.copy_(((squares - total**2 / count) / (count - 1)).clamp(min=0))
    return model


def check_same_architecture(first: nn.Module, second: nn.Module) -> None:
    """Refuse two networks between which there is no line.

    Args:
        first: A network.
        second: Another one.

    Raises:
        PruneLimitError: If modules, names or shapes differ.
    """
    if [type(m) for m in first.modules()] != [type(m) for m in second.modules()]:
        raise PruneLimitError("first and second are built of different modules: give two networks of one architecture.")
    one, other = first.state_dict(), second.state_dict()
    for name in [*one, *other]:
        shapes = [tuple(state[name].shape) if name in state else None for state in (one, other)]
        if shapes[0] != shapes[1]:
            raise PruneLimitError(
                f"first and second differ in {name!r}, of shapes {shapes[0]} and {shapes[1]}: "
                "give two networks of one architecture."
            )


def _blend(models: list[nn.Module], blend: Callable[..., Tensor]) -> nn.Module:
    """Copy the first network, with parameters and statistics blended; counters are those of the first."""
    result = copy.deepcopy(models[0])
    states = [model.state_dict() for model in models]
    with torch.no_grad():
        for name, value in result.state_dict().items():
            if value.is_floating_point():
                value.copy_(blend(*(state[name] for state in states)))
    return result


def _check_place(t: float) -> None:
    if not 0 <= t <= 1:
        raise PruneLimitError(f"t={t!r} must lie between 0, the first network, and 1, the second.")


def interpolate(first: nn.Module, second: nn.Module, t: float) -> nn.Module:
    r"""Build the network :math:`(1 - t)\, w_1 + t\, w_2`, which is the first one at 0 and the second one at 1, to the bit.

    Args:
        first: A network; left as it was.
        second: One of the same architecture; left as it was.
        t: Between 0 and 1.

    Returns:
        A new network. Running statistics are interpolated too, which does not make them right: see
        :func:`reestimate_statistics`.

    Raises:
        PruneLimitError: If the architectures differ or ``t`` is out of range.
    """
    check_same_architecture(first, second)
    _check_place(t)
    return _blend([first, second], lambda a, b: torch.lerp(a, b, t))


def bezier_point(first: nn.Module, middle: nn.Module, second: nn.Module, t: float) -> nn.Module:
    r"""Build the network :math:`(1 - t)^2 w_1 + 2 t (1 - t)\, \theta + t^2 w_2` (Garipov et al. 2018).

    Args:
        first: A network.
        middle: The network that the curve bends towards, :math:`\theta`.
        second: A network.
        t: Between 0 and 1.

    Returns:
        A new network; the others are left as they were.

    Raises:
        PruneLimitError: If the architectures differ or ``t`` is out of range.
    """
    check_same_architecture(first, second)
    check_same_architecture(first, middle)
    _check_place(t)
    weights = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return _blend([first, middle, second], lambda a, b, c: weights[0] * a + weights[1] * b + weights[2] * c)


def _along(
    path: Callable[[float], nn.Module], data: DeviceSplit, points: int, batch_size: int
) -> dict[str, Connectivity]:
    """Measure error and loss at equally spaced points of a path, each with statistics of its own."""
    places = tuple(k / (points - 1) for k in range(points))
    measured = [evaluate(reestimate_statistics(path(t), data, batch_size), data, batch_size) for t in places]
    values = {"error": tuple(1 - accuracy for _, accuracy in measured), "loss": tuple(loss for loss, _ in measured)}
    return {measure: Connectivity(places, values[measure], measure) for measure in MEASURES}


def _check_points(points: int) -> None:
    if points < 3:
        raise PruneLimitError(f"points={points!r} must be at least 3: both ends and something between them.")


def _check_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise unknown_name("measure", measure, MEASURES)


def linear_mode_connectivity(
    first: nn.Module,
    second: nn.Module,
    data: DeviceSplit,
    *,
    points: int = 11,
    measure: str = "error",
    batch_size: int = BATCH_SIZE,
) -> Connectivity:
    """Measure the training error along the straight line between two networks.

    Batch-norm statistics are re-estimated at every point, the ends included. Defaults are those of the three-regime paper.

    Args:
        first: A network, on the device of ``data``; left as it was.
        second: One of the same architecture; left as it was.
        data: Un-augmented training images: error and statistics are measured on all of them.
        points: Equally spaced places, both ends included.
        measure: ``"error"``, the share of wrong predictions, or ``"loss"``, the mean cross-entropy in nats.
        batch_size: Images per pass.

    Returns:
        The values along the line; ``.lmc`` is zero if connected and negative if there is a barrier.

    Raises:
        PruneLimitError: If the architectures differ, or an argument is out of range.
    """
    _check_measure(measure)
    return linear_path(first, second, data, points=points, batch_size=batch_size)[measure]


def linear_path(
    first: nn.Module, second: nn.Module, data: DeviceSplit, *, points: int = 11, batch_size: int = BATCH_SIZE
) -> dict[str, Connectivity]:
    """Measure training error and loss along the straight line between two networks, in the same passes.

    Args:
        first: As for :func:`linear_mode_connectivity`.
        second: As there.
        data: As there.
        points: As there.
        batch_size: As there.

    Returns:
        What :func:`linear_mode_connectivity` gives, for ``"error"`` and for ``"loss"``.

    Raises:
        PruneLimitError: If the architectures differ, or an argument is out of range.
    """
    _check_points(points)
    check_same_architecture(first, second)
    return _along(lambda t: interpolate(first, second, t), data, points, batch_size)


def _curve_rate(epoch: int, epochs: int) -> float:
    """Share of the learning rate: one for half of the training, then linearly down to a hundredth at nine tenths."""
    return 1 - 0.99 * min(max((epoch / epochs - 0.5) / 0.4, 0.0), 1.0)


class _CurveStep:
    """Loss at a point of the curve, and its gradient by the middle point."""

    def __init__(self, first: nn.Module, middle: nn.Module, second: nn.Module) -> None:
        names = [name for name, p in middle.named_parameters() if p.requires_grad]
        self.point = copy.deepcopy(middle).train()
        self.weights = [self.point.get_parameter(name) for name in names]
        self.theta = [middle.get_parameter(name) for name in names]
        self.first, self.second = ([m.get_parameter(n).detach() for n in names] for m in (first, second))
        prunable = set(prunable_names(first))
        pairs = zip(names, self.first, self.second, strict=True)
        self.masks = [((a != 0) | (b != 0)).to(a) if name in prunable else None for name, a, b in pairs]

    def gradients(self, images: Tensor, labels: Tensor, t: float) -> Tensor:
        """Set the gradients of the middle point from one batch at one place; pruned weights have none. Return the loss."""
        with torch.no_grad():
            for w, a, b, c in zip(self.weights, self.first, self.theta, self.second, strict=True):
                w.copy_((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)
        self.point.zero_grad()
        loss = functional.cross_entropy(self.point(images), labels)
        loss.backward()
        for w, b, mask in zip(self.weights, self.theta, self.masks, strict=True):
            if w.grad is not None:
                b.grad = 2 * t * (1 - t) * (w.grad if mask is None else w.grad * mask)
        return loss.detach()


def bezier_middle(
    first: nn.Module,
    second: nn.Module,
    data: DeviceSplit,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 128,
    momentum: float = 0.9,
    l2: float = 0.0,
    augment: bool = False,
    seed: int = 0,
) -> nn.Module:
    r"""Train the middle point of a quadratic Bezier curve between two networks (Garipov et al. 2018).

    Each step draws t uniformly from [0, 1] and descends the batch's loss at that point of the curve, whose gradient by
    :math:`\theta` is :math:`2 t (1 - t)` times the one by the weights. The curve begins as the straight line. The rate stays
    for half of the epochs and falls linearly to a hundredth at nine tenths of them. Weights that are zero in both ends stay
    zero.

    Args:
        first: A network, on the device of ``data``; left as it was.
        second: One of the same architecture; left as it was.
        data: Training images and labels.
        epochs: Passes over them; zero gives the middle of the straight line.
        lr: Learning rate of SGD.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        l2: Weight decay of the middle point.
        augment: Random crops and flips.
        seed: Seed of the order of the data, the augmentation, the places on the curve, and dropout.

    Returns:
        The trained middle point, in evaluation mode.

    Raises:
        PruneLimitError: If the architectures differ, an argument is out of range, or the loss stops being finite.
    """
    if epochs < 0 or not (math.isfinite(lr) and lr > 0) or batch_size < 2:
        raise PruneLimitError(
            f"epochs={epochs!r}, lr={lr!r}, batch_size={batch_size!r}: epochs must be at least 0, lr positive and "
            "batch_size at least 2."
        )
    middle = interpolate(first, second, 0.5)
    step = _CurveStep(first, middle, second)
    optimiser = torch.optim.SGD(step.theta, lr=lr, momentum=momentum, weight_decay=l2)
    generator = torch.Generator().manual_seed(scrambled_seed(seed, "curve"))
    crops = torch.Generator(data.device).manual_seed(scrambled_seed(seed, "crops")) if augment else None
    devices = [data.device] if data.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), training_rounding("float32", data.device):
        torch.manual_seed(scrambled_seed(seed, "dropout"))
        for epoch in range(epochs):
            optimiser.param_groups[0]["lr"] = lr * _curve_rate(epoch, epochs)
            total = torch.zeros((), device=data.device)
            for images, labels in data.batches(batch_size, generator, crops):
                if len(images) > 1:  # batch normalisation has nothing to say about one image
                    total += step.gradients(images, labels, float(torch.rand((), generator=generator)))
                    optimiser.step()
            if not math.isfinite(total):
                raise PruneLimitError(f"lr={lr!r}: the loss on the curve is not finite in epoch {epoch + 1}; lower lr.")
    return middle.eval()


def bezier_connectivity(
    first: nn.Module,
    second: nn.Module,
    data: DeviceSplit,
    *,
    epochs: int,
    lr: float,
    points: int = 11,
    measure: str = "error",
    batch_size: int = 128,
    momentum: float = 0.9,
    l2: float = 0.0,
    augment: bool = False,
    seed: int = 0,
    evaluation_batch: int = BATCH_SIZE,
) -> Connectivity:
    """Measure the training error along a trained curve between two networks; see :func:`bezier_middle`.

    Args:
        first: A network, on the device of ``data``; left as it was.
        second: One of the same architecture; left as it was.
        data: Training images and labels.
        epochs: Passes over them to train the curve.
        lr: Learning rate.
        points: Equally spaced places, both ends included.
        measure: ``"error"`` or ``"loss"``.
        batch_size: Images per training step.
        momentum: Momentum of SGD.
        l2: Weight decay of the middle point.
        augment: Random crops and flips while the curve is trained.
        seed: Seed of the training.
        evaluation_batch: Images per pass of the measurement.

    Returns:
        The values along the curve.

    Raises:
        PruneLimitError: If the architectures differ, an argument is out of range, or the loss stops being finite.
    """
    _check_points(points)
    _check_measure(measure)
    middle = bezier_middle(
        first, second, data,
        epochs=epochs, lr=lr, batch_size=batch_size, momentum=momentum, l2=l2, augment=augment, seed=seed,
    )  # fmt: skip
    return _along(lambda t: bezier_point(first, middle, second, t), data, points, evaluation_batch)[measure]
