"""Products whose data is spread over processes: who takes which rows."""

from __future__ import annotations

from prunelimit.curvature.data import Batches, has_rows
from prunelimit.processes import rows_of


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
    own = rows_of(total, rank, world)
    part, offset = [], 0
    for inputs, targets in batches:
        low, high = max(own.start - offset, 0), min(own.stop - offset, len(targets))
        if low < high:
            part.append((inputs[low:high], targets[low:high]))
        offset += len(targets)
    return part
