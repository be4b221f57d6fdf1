"""How many threads a network is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Networks with fewer parameters run on one thread: their layers are done before a second thread has woken up.
SMALL = 100_000


@contextmanager
def suited_threads(model: nn.Module) -> Iterator[None]:
    """Let a small network use one thread, and give the others back afterwards.

    On a machine that is busy with something else the gain is large: each layer would wait for a thread that is not
    scheduled.

    Args:
        model: The network that is about to be used.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
