"""Processes that torchrun started: who is there, how parts are added up, and how all come to the same decision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from prunelimit.errors import PruneLimitError

Value = TypeVar("Value")


def processes(shard: bool | None) -> tuple[int, int]:
    """Return this process's rank and the number of processes that share the work.

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


def from_first(value: Value, world: int) -> Value:
    """Take the first process's value in all of them, so that they come to the same decisions.

    Args:
        value: This process's value; that of the first one must be something that pickle can hold.
        world: Number of processes.

    Returns:
        The first process's value.
    """
    if world == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def rows_of(count: int, rank: int, world: int) -> slice:
    """Return the rows out of so many that are one process's part; the parts differ by one row at most."""
    return slice(rank * count // world, (rank + 1) * count // world)


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
        raise PruneLimitError("shard: the work failed in another process; read the message there.")
    return value


def own_folder(folder: Path) -> Path:
    """Give each of several processes a folder for a state of its own, emptied if a kill left their states at different points.

    Args:
        folder: The folder of one process.

    Returns:
        The same for a process on its own; else one inside. All of them hold the same JSON files.
    """
    rank, world = processes(None)
    if world == 1:
        return folder
    own = folder / f"{rank}-of-{world}"
    state = {str(path.relative_to(own)): path.read_text(encoding="utf-8") for path in own.rglob("*.json")}
    states: list[Any] = [None] * world
    distributed.all_gather_object(states, state)
    if any(other != state for other in states):
        shutil.rmtree(own, ignore_errors=True)
    return own


@contextmanager
def joined_processes(device: str = "cpu") -> Iterator[int]:
    """Join the processes that torchrun started, if it did, for as long as the block lasts.

    Args:
        device: Where the processes compute; ``cuda`` takes one GPU per process and nccl, anything else gloo.

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
