"""Products whose data is spread over processes: who takes which rows, and how the parts are added up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from prunelimit.curvature.data import Batches, has_rows
from prunelimit.errors import PruneLimitError

Value = TypeVar("Value")


def processes(shard: bool | None) -> tuple[int, int]:
    """Return this process's rank and the number of processes that share a product.

    Args:
        shard: Whether to share; ``None`` shares when ``torch.distributed`` is initialised.

    Returns:
        Rank and world size, ``(0, 1)`` for a process on its own.

    Raises:
        PruneLimitError: If sharing is asked for and ``torch.distributed`` is not initialised.
    """
    ready = distributed.is_available() and distributed.is_initialized()
    if shard and not ready:
        raise PruneLimitError(
            "shard=True needs processes: start them with torchrun and call torch.distributed.init_process_group() first."
        )
    if not ready or shard is False:
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a network has parameters that are sharded over processes, as DTensors."""
    return any(hasattr(parameter, "placements") for parameter in model.parameters())


def own_part(batches: Batches, rank: int, world: int) -> Batches:
    """Take one process's part of the data, the same on every machine however much memory it has.

    Pairs of tensors are shared by rows, so that the parts differ by one row at most; other batches are dealt out whole.

    Args:
        batches: All of the data, the same in every process.
        rank: This process.
        world: Number of processes.

    Returns:
        The part, which may be empty; the parts of all ranks together are the data.
    """
    if world == 1:
        return batches
    if not all(has_rows(batch) for batch in batches):
        return batches[rank::world]
    total = sum(len(targets) for _, targets in batches)
    start, stop = rank * total // world, (rank + 1) * total // world
    part, offset = [], 0
    for inputs, targets in batches:
        low, high = max(start - offset, 0), min(stop - offset, len(targets))
        if low < high:
            part.append((inputs[low:high], targets[low:high]))
        offset += len(targets)
    return part


def add_up(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes.

    Args:
        tensor: This process's part; changed in place.

    Returns:
        The same tensor.
    """
    if distributed.get_backend() == "nccl" and tensor.device.type == "cpu":  # which nccl cannot send
        moved = tensor.cuda()
        distributed.all_reduce(moved)
        return tensor.copy_(moved)
    distributed.all_reduce(tensor)
    return tensor


def all_or_none(work: Callable[[], Value], world: int, device: torch.device) -> Value:
    """Do something in every process, and fail in all of them if it failed in one.

    Without this the others would wait for the missing part until a time limit ends them.

    Args:
        work: What to do.
        world: Number of processes.
        device: Where the processes talk.

    Returns:
        What it gave.

    Raises:
        PruneLimitError: If it failed in another process.
        Exception: What it failed with in this process.
    """
    if world == 1:
        return work()
    failure: Exception | None = None
    try:
        value = work()
    except Exception as error:
        failure = error
    failed = add_up(torch.tensor([float(failure is not None)], device=device))
    if failure is not None:
        raise failure
    if failed.item():
        raise PruneLimitError("shard: the product failed in another process; read the message there.")
    return value


@contextmanager
def joined_processes(device: str = "cpu") -> Iterator[int]:
    """Join the processes that torchrun started, if it did, for as long as the block lasts.

    Args:
        device: Where the products run; ``cuda`` takes one GPU per process and nccl, anything else gloo.

    Yields:
        This process's rank; zero on its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield processes(None)[0]
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()
