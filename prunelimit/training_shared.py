"""A training that processes share: rows of every batch, sums of gradients, statistics of batches, parameters if wanted.

Every process draws the same order of the data and the same augmentation, and takes its rows of each batch. Its gradient counts
by its rows and is summed over the processes before anything else is done with it, so that L1, momentum, masks and the
perturbation of SAM are those of one process. Batch normalisation takes mean and variance over the whole batch. Dropout is an
exception: each process draws masks of its own, so that a result is repeatable, but not what one process gives.

A batch with fewer rows than there are processes is computed by each of them, and the first one's gradient counts.

With sharded parameters FSDP2 cuts every parameter by its first dimension, gathers a block of the network while it is used, and
scatters its gradient. The optimiser, L1 and the masks work entry by entry, on the shards alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from prunelimit.errors import PruneLimitError
from prunelimit.processes import add_up, from_first, is_sharded, processes, rows_of
from prunelimit.throughput import Runtime


def shard_for_training(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Cut a network's parameters over all processes, in place, by FSDP2: each block of its containers, and the rest together.

    Args:
        model: Any torch module with the same weights in every process; on the CPU if it does not fit on one device.
        device: Where it is trained.

    Returns:
        The same module, whose parameters are DTensors now and which is called as before.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (distributed.get_world_size(),))
    for block in [*_blocks(model), model]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return model


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Find the members of lists and sequences that are no such containers themselves."""
    containers = (nn.Sequential, nn.ModuleList)
    for child in module.children():
        if isinstance(module, containers) and not isinstance(child, containers):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _blocks(child)


class Sharing:
    """One process's part in a training; a process of its own has all of it.

    Args:
        model: The network.
        device: Where it is trained.
        shard: Whether processes share the training; ``None`` if ``torch.distributed`` is initialised.
        shard_parameters: Whether to cut the parameters of ``model`` over the processes, in place.

    Attributes:
        rank: This process.
        world: Number of processes.
        sharded: Whether the parameters are cut.
        parameters: What the optimiser moves: the parameters that need gradients, or this process's shards of them.

    Raises:
        PruneLimitError: If there are no processes to share with, or the network is sharded by something else than FSDP2.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, shard: bool | None = None, shard_parameters: bool = False
    ) -> None:
        self.model, self.device, self.sharded = model, device, shard_parameters or is_sharded(model)
        if self.sharded and shard is False:
            raise PruneLimitError(
                "shard=False leaves a process alone, without the others' shards of the parameters: leave it out."
            )
        self.rank, self.world = processes(self.sharded or shard)
        if shard_parameters and not is_sharded(model):
            shard_for_training(model, device)
        self._statistics = _Statistics(self.world)
        self._whole: list[Any] = [p for p in model.parameters() if p.requires_grad]
        self.parameters: list[Tensor] = self._whole
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            if not isinstance(model, FSDPModule):
                raise PruneLimitError("model has sharded parameters: to train it, leave that to shard_parameters=True.")
            self.parameters = [p.detach().to_local().requires_grad_() for p in self._whole]
        elif self.world > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def settled(self, runtime: Runtime) -> Runtime:
        """Decide what sharing leaves no choice about.

        Args:
            runtime: How the training is to be carried out.

        Returns:
            The same without compilation, where it could not see the collectives, and with the shards in their layout.

        Raises:
            PruneLimitError: If compilation is asked for in spite of that.
        """
        if not self.sharded and (self.world == 1 or not _normalisations(self.model)):
            return runtime
        if runtime.compiled:
            raise PruneLimitError(
                "compiled=True is not for sharded parameters, nor for batch normalisation that processes share: leave it out."
            )
        return dataclasses.replace(
            runtime, compiled=False, channels_last=False if self.sharded else runtime.channels_last
        )

    def part(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int]:
        """Take this process's rows of a batch.

        Args:
            images: ``(B, ...)``.
            labels: ``(B,)``.

        Returns:
            Its images, their labels, and how many of them count.
        """
        self._statistics.shared = len(labels) >= self.world
        if not self._statistics.shared:
            return images, labels, 0 if self.rank else len(labels)
        own = rows_of(len(labels), self.rank, self.world)
        return images[own], labels[own], own.stop - own.start

    def backward(self, loss: Tensor, share: float) -> None:
        """Give :attr:`parameters` the gradient of the loss of the whole batch.

        Args:
            loss: Mean loss of this process's rows.
            share: Its share of the rows of the batch.
        """
        if self.world == 1 and not self.sharded:
            loss.backward()
            return
        # FSDP2 takes the mean over processes.
        loss.backward(torch.full_like(loss, share * self.world if self.sharded else share))
        if self.sharded:
            for shard, parameter in zip(self.parameters, self._whole, strict=True):
                shard.grad = None if parameter.grad is None else parameter.grad.to_local()
                parameter.grad = None
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def total(self, value: Tensor) -> Tensor:
        """Add up a number over the processes; the given tensor stays."""
        return value if self.world == 1 else add_up(value.clone())

    def cut(self, place: int, whole: Tensor) -> Tensor:
        """Return this process's shard of a tensor of the shape of a parameter.

        Args:
            place: The parameter's place in :attr:`parameters`.
            whole: The tensor, the same in every process.

        Returns:
            A tensor of the shape of the shard; the same one where nothing is sharded.
        """
        if not self.sharded:
            return whole
        local: Tensor = _cut(whole, self._whole[place]).to_local()
        return local

    def join(self, place: int, shard: Tensor) -> Tensor:
        """Undo :meth:`cut`, by asking all processes for their shards."""
        if not self.sharded:
            return shard
        from torch.distributed.tensor import DTensor

        like = self._whole[place]
        layout: dict[str, Any] = {"shape": like.shape, "stride": like.stride(), "run_check": False}
        whole: Tensor = DTensor.from_local(shard, like.device_mesh, like.placements, **layout).full_tensor()
        return whole

    def masks(self, pairs: Sequence[tuple[Any, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Pair what the optimiser moves with its part of the masks."""
        if not self.sharded:
            return list(pairs)
        shards = {id(p): shard for p, shard in zip(self._whole, self.parameters, strict=True)}
        cut = [(p, _cut(mask, p).to_local()) for p, mask in pairs]
        return [(shards.get(id(p), p.detach().to_local()), mask) for p, mask in cut]

    def state(self) -> dict[str, Tensor]:
        """Return the network's whole state; all processes have to ask for it."""
        return {k: v.full_tensor() if hasattr(v, "placements") else v for k, v in self.model.state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Give the network a whole state."""
        if self.sharded:
            own = self.model.state_dict()
            state = {k: _cut(v, own[k]) if hasattr(own.get(k), "placements") else v for k, v in state.items()}
        self.model.load_state_dict(state)

    def check_same(self, what: Any, folder: Any) -> None:
        """Refuse to go on from states that differ.

        Args:
            what: Tells states apart.
            folder: Where this process found its state.

        Raises:
            PruneLimitError: In every process, if one of them found another state than the first one.
        """
        differ = torch.tensor([float(from_first(what, self.world) != what)], device=self.device)
        if self.total(differ).item():
            raise PruneLimitError(
                f"folder={str(folder)!r} does not hold the same state for all processes: put it where all of them can read "
                "it, for example by PRUNELIMIT_CACHE."
            )

    @contextmanager
    def statistics(self) -> Iterator[None]:
        """Let batch normalisation see the whole batch, for as long as the block lasts."""
        modules = _normalisations(self.model) if self.world > 1 else []
        for module in modules:
            module.forward = functools.partial(_batch_norm, module, self._statistics)
        try:
            yield
        finally:
            for module in modules:
                del module.forward


def _cut(whole: Tensor, like: Any) -> Any:
    """Shard a tensor, the same in every process, as another one is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device, like.dtype), like.device_mesh, like.placements)


def _normalisations(model: nn.Module) -> list[nn.Module]:
    """List the layers whose output for one row depends on the others; torch's synchronised ones take care of themselves."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]


@dataclasses.dataclass
class _Statistics:
    """Number of processes, and whether the rows of the present batch are spread over them."""

    world: int
    shared: bool = False


class _Normalised(Function):
    """Normalise by mean and variance of all processes' rows together, and differentiate through them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: tuple[Tensor, Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        """Normalise; ``moments`` are mean, variance and number of the values of each channel."""
        mean, variance, count = moments
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, upper: Tensor) -> Any:
        """Add up over processes what a value does to the others through mean and variance (Ioffe and Szegedy 2015)."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        shape = (1, -1, *[1] * (x.ndim - 2))
        dims = [0, *range(2, x.ndim)]
        normal, upper = (x - mean.view(shape)) * inverse.view(shape), upper.to(mean.dtype)
        own = torch.stack([upper.sum(dims), (upper * normal).sum(dims)])
        shift, slope = (add_up(own.clone()) / count).view(2, *shape)
        scale = inverse if weight is None else inverse * weight
        lower = (upper - shift - slope * normal) * scale.view(shape)
        return lower.to(x.dtype), None if weight is None else own[1], None if weight is None else own[0], None, None


def _batch_norm(module: Any, statistics: _Statistics, x: Tensor) -> Tensor:
    """Do what a layer of batch normalisation does, with the statistics of all processes' rows.

    torch's own synchronised layer is for GPUs alone.
    """
    if not statistics.shared or not (module.training or module.running_mean is None):
        result: Tensor = type(module).forward(module, x)
        return result
    module._check_input_dim(x)
    moments = _moments(x, statistics.world)
    if module.training and module.running_mean is not None:
        mean, variance, count = moments
        module.num_batches_tracked.add_(1)
        factor = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        module.running_mean.lerp_(mean.to(module.running_mean), factor)
        module.running_var.lerp_((variance * count / (count - 1)).to(module.running_var), factor)
    return _Normalised.apply(x, module.weight, module.bias, moments, module.eps)


@torch.no_grad()
def _moments(x: Tensor, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and number of the values of each channel, over all processes (Chan et al. 1979)."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(values, [0, *range(2, x.ndim)], correction=0)
    own = torch.cat([mean, variance, mean.new_tensor([x.numel() // x.shape[1]])])
    parts = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(parts, own)
    channels = x.shape[1]
    means, variances, counts = torch.stack(parts).split([channels, channels, 1], 1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / total, total
