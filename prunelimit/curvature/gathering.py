"""Parameters that are sharded over processes and gathered for one call at a time; see :mod:`prunelimit.curvature.sharded`."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunelimit.curvature.layers import CheapSecondDerivatives
from prunelimit.curvature.network import unwrapped
from prunelimit.errors import PruneLimitError

#: What a forward pass may ask a parameter without its values.
_METADATA = {"__get__", "__set__", "dim", "is_complex", "is_floating_point", "numel", "size", "stride"}


# DTensor's own autograd fails in the second backward pass where a gradient is missing, because no weight was moved in that
# direction, and older versions of it leave terms out; its collectives do what is needed here.
class _Gather(Function):
    """Make a sharded tensor whole; the derivative sums over processes and scatters."""

    @staticmethod
    def forward(ctx: Any, shards: Any) -> Tensor:
        """Gather."""
        ctx.like = shards.device_mesh, shards.placements
        ctx.set_materialize_grads(False)
        return shards.detach().redistribute(placements=[Replicate()]).to_local()

    @staticmethod
    def backward(ctx: Any, upper: Tensor | None) -> Tensor | None:
        """Scatter; differentiable itself."""
        return None if upper is None else _Scatter.apply(upper, *ctx.like)


class _Scatter(Function):
    """Sum a tensor over processes, each of which keeps its shard; the derivative gathers."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, mesh: DeviceMesh, placements: Any) -> Any:
        """Sum and scatter."""
        ctx.set_materialize_grads(False)
        whole = DTensor.from_local(part.detach(), mesh, [Partial()], run_check=False)
        return whole.redistribute(placements=placements)

    @staticmethod
    def backward(ctx: Any, upper: Any) -> tuple[Tensor | None, None, None]:
        """Gather; differentiable itself."""
        return None if upper is None else _Gather.apply(upper), None, None


@dataclasses.dataclass(frozen=True)
class _Note:
    """What the graph keeps of a gathered tensor: how to have it again, and which view of it was meant."""

    parameter: Any
    whole: weakref.ref[Tensor]
    view: tuple[Sequence[int], Sequence[int], int]


class Gathered:
    """The book of all parameters that are whole at the moment; there is one for each process, ``GATHERED``.

    Attributes:
        numbers: Numbers gathered so far, the shards of all processes counted.
        peak: The most bytes of gathered parameters that were alive at once.
    """

    def __init__(self) -> None:
        self.numbers, self.peak = 0, 0
        self._alive: dict[int, tuple[StorageWeakRef, weakref.ref[Tensor], Any, int]] = {}

    def gather(self, parameter: Any) -> Tensor:
        """Gather a DTensor, differentiably; its gradient is summed over processes and scattered."""
        whole: Tensor = _Gather.apply(parameter)
        storage = whole.untyped_storage()
        entry = StorageWeakRef(storage), weakref.ref(whole), parameter.detach(), storage.nbytes()
        self._alive[storage.data_ptr()] = entry
        self.numbers += whole.numel()
        self.peak = max(self.peak, self.live())
        return whole

    def live(self) -> int:
        """Return the bytes of gathered parameters that are alive."""
        self._alive = {place: entry for place, entry in self._alive.items() if not entry[0].expired()}
        return sum(entry[-1] for entry in self._alive.values())

    def _pack(self, tensor: Tensor) -> Tensor | _Note:
        entry = None if isinstance(tensor, DTensor) else self._alive.get(tensor.untyped_storage().data_ptr())
        if entry is None or entry[0].expired() or tensor.dtype != entry[2].dtype:
            return tensor
        return _Note(entry[2], entry[1], (tensor.size(), tensor.stride(), int(tensor.storage_offset())))

    def _unpack(self, kept: Tensor | _Note) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            whole = kept.whole()
            return (self.gather(kept.parameter) if whole is None else whole.detach()).as_strided(*kept.view)

    def notes(self) -> saved_tensors_hooks:
        """Let graphs that are built meanwhile keep notes in place of gathered parameters."""
        return saved_tensors_hooks(self._pack, self._unpack)


GATHERED = Gathered()


def _whole(values: Sequence[Any]) -> list[Any]:
    """Gather the parameters among values."""
    return [GATHERED.gather(value) if isinstance(value, DTensor) else value for value in values]


class _Call(Function):
    """A call of a function of torch; the backward pass calls it again, with parameters gathered for that purpose alone.

    Without this a gathered parameter would have one node in the graph. In the second backward pass that node waits for the
    parameter's part in the forward pass, while its part in the first backward pass, as large as the parameter, stays in memory:
    for all layers at once.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        """Gather the parameters and run."""
        ctx.run = run
        ctx.save_for_backward(*values)
        ctx.set_materialize_grads(False)
        return run(*_whole(values))

    @staticmethod
    def backward(ctx: Any, *uppers: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run again and differentiate; with a graph of its own if one is wanted."""
        wanted, graph = ctx.needs_input_grad[1:], torch.is_grad_enabled()
        with torch.enable_grad():
            # New views, because one value may depend on another.
            values = [
                value if not want else value.view_as(value) if graph else value.detach().requires_grad_()
                for value, want in zip(ctx.saved_tensors, wanted, strict=True)
            ]
            whole = _whole(values)  # kept until the end, so that it is gathered once
            outputs = zip(ctx.run(*whole), uppers, strict=True)
            pairs = [(output, upper) for output, upper in outputs if upper is not None and output.requires_grad]
            if not pairs:
                return (None,) * (1 + len(values))
            found = iter(
                torch.autograd.grad(
                    [output for output, _ in pairs],
                    [value for value, want in zip(values, wanted, strict=True) if want],
                    [upper for _, upper in pairs],
                    create_graph=graph,
                    allow_unused=True,
                )
            )
        return None, *(next(found) if want else None for want in wanted)


class _Gathering(TorchFunctionMode):
    """While it is active, functions of torch receive sharded parameters whole."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Gather the parameters among the arguments for as long as the function runs."""
        leaves, form = tree_flatten((args, kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _METADATA or not any(isinstance(leaf, DTensor) for leaf in leaves):
            return func(*args, **(kwargs or {}))
        if name.startswith(("__i", "__setitem__")) or (name.endswith("_") and not name.endswith("__")):
            args, kwargs = tree_unflatten(
                _whole(leaves), form
            )  # changes a tensor in place: it must not be called again
            return func(*args, **kwargs)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = [leaves[place] for place in places]
        for place in places:  # the graph keeps them, and what comes here would be kept twice
            leaves[place] = None
        shape: dict[str, Any] = {}

        def run(*values: Tensor) -> tuple[Tensor, ...]:
            filled = dict(zip(places, values, strict=True))
            args, kwargs = tree_unflatten([filled.get(place, leaf) for place, leaf in enumerate(leaves)], form)
            with CheapSecondDerivatives():
                found, shape["form"] = tree_flatten(func(*args, **kwargs))
            shape["rest"] = [None if isinstance(leaf, Tensor) else leaf for leaf in found]
            shape["places"] = [place for place, leaf in enumerate(found) if isinstance(leaf, Tensor)]
            return tuple(found[place] for place in shape["places"])

        outputs, found = _Call.apply(run, *tensors), list(shape["rest"])
        for place, output in zip(shape["places"], outputs, strict=True):
            found[place] = output
        return tree_unflatten(found, shape["form"])


class ShardedModule(nn.Module):
    """What :func:`shard_parameters` adds to a network's class, as FSDP2 does: calls gather its parameters."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        with _Gathering():
            return super().__call__(*args, **kwargs)


def shard_parameters(model: nn.Module, device: str | torch.device | None = None) -> nn.Module:
    """Copy a network with its parameters sharded over all processes; every process calls it with the same network.

    A network that fits nowhere is built on the meta device, sharded, and loaded afterwards: by
    ``load_state_dict(state, assign=True)`` with a sharded state, such as that of an FSDP2 module, or after ``to_empty`` by
    ``torch.distributed.checkpoint``. Parameters that are shared by layers stay shared.

    Args:
        model: Any torch module, left as it was; delete it to free its memory. The weights of the first process count.
        device: Type of device for the shards, such as ``"cuda"``; by default the parameters' own.

    Returns:
        A module of a subclass of its class, whose parameters are DTensors and whose outputs are plain tensors. It is called as
        before, without a part of the network being called on its own.

    Raises:
        PruneLimitError: If there are no processes, or the network has FSDP2's hooks or no weights yet.
    """
    model = unwrapped(model)
    if not (distributed.is_available() and distributed.is_initialized()):
        raise PruneLimitError(
            "shard_parameters needs processes: start them with torchrun and call torch.distributed.init_process_group() first."
        )
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise PruneLimitError(
            "model has the hooks of FSDP2, which cannot be differentiated twice: build the network on the meta device without "
            "them, shard it, and give it the state by load_state_dict(fsdp.state_dict(), assign=True)."
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise PruneLimitError(f"model has no weights yet in {name!r}: call it once before sharding.")
    own = next((p.device.type for p in model.parameters()), "cpu")
    nccl = "nccl" in distributed.get_backend()
    kind = torch.device(device).type if device is not None else own if own != "meta" else "cuda" if nccl else "cpu"
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    memo: dict[int, Any] = {id(p): _sharded(p, mesh) for p in model.parameters()}
    memo |= {id(b): b.detach().clone() if b.is_meta else b.detach().to(kind, copy=True) for b in model.buffers()}
    result = copy.deepcopy(model, memo)
    cls = type(model)
    if not isinstance(result, ShardedModule):
        about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        result.__class__ = type(cls.__name__, (ShardedModule, cls), about)
    return result


@torch.no_grad()
def _sharded(parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """Cut one parameter by its first dimension; copy one that has none."""
    if isinstance(parameter, DTensor):
        return parameter
    if parameter.ndim == 0:
        value = parameter.detach().clone() if parameter.is_meta else parameter.detach().to(mesh.device_type, copy=True)
        return nn.Parameter(value, parameter.requires_grad)
    return nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]), parameter.requires_grad)
