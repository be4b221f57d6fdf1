"""How much memory there is, when it has run out, and how much the graphs of a network take."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunelimit.curvature.data import has_rows

#: Rows on which the memory of a state is measured.
PROBE_ROWS = 16

#: What is taken for free where the operating system does not say.
UNKNOWN_FREE = 2**31

#: Where a container's memory limit is written.
CONTROL_GROUP = Path("/sys/fs/cgroup")

_ALLOCATOR_WORDS = ("can't allocate memory", "CUDA out of memory", "_STATUS_ALLOC_FAILED")


def free_memory(device: torch.device) -> int:
    """Return the memory of a device that can still be had, in bytes; what torch keeps in reserve counts as free.

    Args:
        device: A CUDA device; any other one is taken for the machine's own memory.

    Returns:
        Bytes, within the limit of the container if there is one.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return min(_machine_memory(), _container_memory())


def _machine_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # not on Linux
        return UNKNOWN_FREE


def _container_memory() -> int:
    """Return what the control group (version 2) leaves; files that it caches can be dropped."""
    try:
        most, used = (int((CONTROL_GROUP / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CONTROL_GROUP / "memory.stat").read_text("ascii").splitlines())
        return max(0, most - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no group, or no limit ("max")
        return 2**62


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the memory of a device, or of the machine, is used up."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR_WORDS)
    )


class SavedBytes:
    """Count the bytes that autograd keeps for a graph, each storage once.

    Args:
        known: Tensors that exist anyway and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known if tensor.layout == torch.strided}
        self._storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:  # a sparse matrix, which comes with the data and has no storage of its own
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        """Bytes counted so far."""
        return sum(self._storages.values())


def state_memory(rule: Any, network: Any, batch: tuple[Any, Tensor]) -> tuple[float, float]:
    """Measure the memory of a rule's states on a few rows; refuses what the rule's check refuses.

    Args:
        rule: The rule, see :class:`prunelimit.curvature.rules.Rule`.
        network: Its network, ready for passes.
        batch: A batch of the data; one that cannot be cut by rows is taken whole.

    Returns:
        Bytes that every state takes, and bytes for each of its rows.
    """

    def measured(rows: int) -> int:
        inputs, targets = (batch[0][:rows], batch[1][:rows]) if has_rows(batch) else batch
        saved = SavedBytes([*network.module.parameters(), *network.module.buffers()])
        with saved.hooks:
            rule.check(rule.state(*network.place(inputs, targets)))
        return saved.total

    most = min(PROBE_ROWS, len(batch[1])) if has_rows(batch) else len(batch[1])
    whole = measured(most)
    if most < 2 or not has_rows(batch):
        return 0.0, whole / most
    slope = max(0.0, (whole - measured(most // 2)) / (most - most // 2))
    return max(0.0, whole - slope * most), slope
