"""A stack of networks of one architecture: one block of memory, one step for all; see :mod:`prunelimit.training_many`."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from prunelimit.datasets import DeviceSplit, crop_and_flip
from prunelimit.precision import training_rounding
from prunelimit.specs import part_seed
from prunelimit.train_spec import TrainSpec, learning_rate
from prunelimit.training_loop import Loop

Masks = dict[str, Tensor]


@dataclasses.dataclass
class Member:
    """One network of a stack.

    Attributes:
        loop: Its own loop, which holds, saves and loads its state between epochs.
        masks: Parameter name to a 0-1 tensor.
        folder: Where to save its state.
        failure: Why it was given up.
    """

    loop: Loop
    masks: Masks
    folder: Path | None
    failure: str | None = None

    @property
    def left(self) -> int:
        """Epochs to go."""
        return self.loop.spec.epochs - self.loop.number


class Stack:
    """Of each parameter a block ``(k, *shape)``, all blocks behind each other in one vector.

    Args:
        members: Networks of one architecture that have done the same number of epochs.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members, self.loops = members, [member.loop for member in members]
        self.base = copy.deepcopy(self.loops[0].model).train()
        self.names = [name for name, p in self.base.named_parameters() if p.requires_grad]
        every = [_values(loop.model) for loop in self.loops]
        shapes = {name: (len(members), *every[0][name].shape) for name in self.names}
        self.sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        self.weights = torch.zeros(sum(self.sizes.values())).to(every[0][self.names[0]])
        self.gradient, self.velocity = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.parameters, self.gradients, self.velocities = (
            {n: part.view(shapes[n]) for n, part in zip(self.names, flat.split([*self.sizes.values()]), strict=True)}
            for flat in (self.weights, self.gradient, self.velocity)
        )
        for i, (loop, values) in enumerate(zip(self.loops, every, strict=True)):
            for name, parameter in zip(self.names, loop.parameters, strict=True):
                self.parameters[name][i] = values[name].detach()
                self.velocities[name][i] = loop.optimiser.state[parameter].get("momentum_buffer", 0)
        self.constants = {
            name: torch.stack([v[name].detach() for v in every]) for name in every[0] if name not in shapes
        }
        self.mask = self._mask()
        layers = mlp_layers(self.base)
        self.backward: _Vmapped | _MLP = _Vmapped(self) if layers is None else _MLP(self, layers)

    def _mask(self) -> Tensor | None:
        if not any(member.masks for member in self.members):
            return None
        whole = torch.ones_like(self.weights)
        parts = dict(zip(self.names, whole.split([*self.sizes.values()]), strict=True))
        for i, member in enumerate(self.members):
            for name in parts.keys() & member.masks.keys():
                parts[name].view(self.parameters[name].shape)[i] = member.masks[name].to(whole)
        return whole

    def spread(self, values: Sequence[float]) -> float | Tensor:
        """Give each entry of the vector its network's value; one number if they are all equal."""
        if len(set(values)) == 1:
            return values[0]
        each = torch.tensor(values, dtype=self.weights.dtype, device=self.weights.device)
        return torch.cat([each.repeat_interleave(size // len(values)) for size in self.sizes.values()])

    def epoch(self, data: DeviceSplit) -> list[dict[str, Any]]:
        """Train one epoch, with the randomness that each network would have alone.

        Args:
            data: Training images and labels.

        Returns:
            The entry of each network's history.
        """
        start, number, device = time.monotonic(), self.loops[0].number, data.device
        specs = [loop.spec for loop in self.loops]
        step, rates = _Step(self, specs, number), [learning_rate(spec, number) for spec in specs]
        loss_sum = torch.zeros(len(specs), device=device, dtype=self.weights.dtype)
        right = torch.zeros(len(specs), device=device, dtype=torch.int64)
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            training_rounding(specs[0].precision, device),
        ):
            seeds = [part_seed(spec.seed, number) for spec in specs]
            torch.manual_seed(seeds[0] + 2)  # dropout
            crops = [torch.Generator(device).manual_seed(seed + 1) for seed in seeds] if specs[0].augment else []
            orders = [torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            for chosen in torch.stack(orders).to(device).split(specs[0].batch_size, dim=1):
                images, labels = data.images[chosen], data.labels[chosen]
                if crops:
                    images = torch.stack([crop_and_flip(i, g) for i, g in zip(images, crops, strict=True)])
                losses, logits = self.backward(data.normalise(images), labels)
                step()
                loss_sum += losses * labels.shape[1]
                right += (logits.argmax(1) == labels).sum(1)
        means, counts = (loss_sum / len(data)).tolist(), right.tolist()
        seconds = (time.monotonic() - start) / len(specs)
        same = {"seconds": seconds, "images_per_second": float(f"{len(data) / max(seconds, 1e-9):.4g}")}
        same["stacked"] = len(specs)
        return [
            {"epoch": number + 1, "lr": rate, "loss": loss, "accuracy": count / len(data)} | same
            for rate, loss, count in zip(rates, means, counts, strict=True)
        ]

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the state into the networks and their loops."""
        for i, loop in enumerate(self.loops):
            values = _values(loop.model)
            for name, block in (self.parameters | self.constants).items():
                values[name].copy_(block[i])
            if loop.spec.momentum:
                for name, parameter in zip(self.names, loop.parameters, strict=True):
                    loop.optimiser.state[parameter]["momentum_buffer"] = self.velocities[name][i].clone()


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Name every parameter and buffer."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class _Step:
    """SGD as in ``Loop``, with each network's own rates: torch.optim.SGD's formula, and L1's subgradient."""

    def __init__(self, stack: Stack, specs: Sequence[TrainSpec], epoch: int) -> None:
        self.stack, self.rate = stack, stack.spread([learning_rate(spec, epoch) for spec in specs])
        self.momentum = stack.spread([spec.momentum for spec in specs])
        self.l1, self.l2 = stack.spread([spec.l1 for spec in specs]), stack.spread([spec.l2 for spec in specs])

    @torch.no_grad()
    def __call__(self) -> None:
        stack = self.stack
        if not (isinstance(self.l1, float) and self.l1 == 0):
            _add(stack.gradient, stack.weights.sgn(), self.l1)  # as sign, which takes five times as long on a CPU
        if not (isinstance(self.l2, float) and self.l2 == 0):
            _add(stack.gradient, stack.weights, self.l2)
        stack.velocity.mul_(self.momentum).add_(stack.gradient)
        _add(stack.weights, stack.velocity, -self.rate)
        if stack.mask is not None:
            stack.weights.mul_(stack.mask)


def _add(total: Tensor, part: Tensor, factor: float | Tensor) -> None:
    """Add a multiple in place."""
    if isinstance(factor, Tensor):
        total.addcmul_(part, factor)
    else:
        total.add_(part, alpha=factor)


class _Vmapped:
    """Gradients of any network: :func:`torch.func.vmap` of its forward pass, and one backward pass through all."""

    def __init__(self, stack: Stack) -> None:
        base = stack.base
        self.stack, self.parameters = stack, {n: p.detach().requires_grad_() for n, p in stack.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.grad = stack.gradients[name]  # backward adds to it in place
        self.forward = vmap(lambda values, x: functional_call(base, values, (x,)), randomness="different")

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set the gradients; return the losses ``(k,)`` and the logits ``(k, classes, B)``."""
        logits = self.forward(self.parameters | self.stack.constants, images).transpose(1, 2)
        losses = functional.cross_entropy(logits, labels, reduction="none").mean(1)
        self.stack.gradient.zero_()
        losses.sum().backward()
        return losses.detach(), logits.detach()


class _MLP:
    """Gradients of plain MLPs by hand: a third of the time of vmap, whose operations take longer to start than to run.

    Examples are columns, since a softmax over the last dimension of a tensor is slow where that has ten entries.
    """

    def __init__(self, stack: Stack, layers: Sequence[str]) -> None:
        self.weights, self.weight_gradients = (
            [part[f"{layer}.weight"] for layer in layers] for part in (stack.parameters, stack.gradients)
        )
        self.biases = [stack.parameters[f"{layer}.bias"][:, :, None] for layer in layers]
        self.bias_gradients = [stack.gradients[f"{layer}.bias"] for layer in layers]

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Set the gradients; return the losses ``(k,)`` and the logits ``(k, classes, B)``."""
        inputs = [images.flatten(2).transpose(1, 2)]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs.append(torch.baddbmm(bias, weight, inputs[-1]).relu_())
        logits = torch.baddbmm(self.biases[-1], self.weights[-1], inputs[-1])
        log_p, target = logits.log_softmax(1), labels[:, None]
        delta = log_p.exp()  # the loss's derivative by the logits: probabilities less the one-hot label, over B
        delta.scatter_add_(1, target, torch.full_like(target, -1, dtype=delta.dtype)).div_(labels.shape[1])
        for i in reversed(range(len(inputs))):
            torch.bmm(delta, inputs[i].transpose(1, 2), out=self.weight_gradients[i])
            torch.sum(delta, 2, out=self.bias_gradients[i])
            if i:
                delta = torch.bmm(self.weights[i].transpose(1, 2), delta)
                delta = torch.ops.aten.threshold_backward(delta, inputs[i], 0)  # ReLU's derivative, zero at zero
        return -log_p.gather(1, target)[:, 0].mean(1), logits


def mlp_layers(model: nn.Module) -> list[str] | None:
    """Name the linear layers of a plain MLP; ``None`` for any other network."""
    kinds = [(name, type(module)) for name, module in model.named_children()]
    layers = [name for name, kind in kinds if kind is nn.Linear]
    expected = [nn.Flatten, *([nn.Linear, nn.ReLU] * len(layers))[:-1]]
    plain = type(model) is nn.Sequential and [kind for _, kind in kinds] == expected
    whole = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    return layers if plain and whole == {n for n, p in model.named_parameters() if p.requires_grad} else None
