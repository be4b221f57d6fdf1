"""Rounding: what training may do for speed, and what measurements never do.

A spec names the precision of its training, because a network trained in bfloat16 is another network. Limits are differences
of losses and products with Hessians, so everything that measures them runs in full float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

#: ``"bfloat16"``: matrix products and convolutions in bfloat16, weights, gradients' sums and the optimiser in float32.
PRECISIONS = ("float32", "bfloat16")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass.

    Bfloat16 has the exponents of float32, so that no gradient scaler is needed.

    Args:
        precision: One of ``PRECISIONS``.
        device: Where the pass runs.

    Returns:
        A context manager; for float32 one that does nothing.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def _cuda_rounding(device: torch.device, short: bool, benchmark: bool) -> Iterator[None]:
    """Choose whether CUDA may round the factors of float32 products to TF32, and put the choice back afterwards."""
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("high" if short else "highest")
    cudnn.allow_tf32, cudnn.benchmark = short, benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32, cudnn.benchmark = before


def training_rounding(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a whole training.

    With bfloat16, what autocast leaves in float32 may use TF32, and convolutions the algorithm that is fastest for their
    shape. With float32 neither: the spec says float32.

    Args:
        precision: One of ``PRECISIONS``.
        device: Where the training runs; a CPU knows no TF32.

    Returns:
        A context manager that puts torch's switches back afterwards.
    """
    fast = precision != "float32"
    return _cuda_rounding(device, short=fast, benchmark=fast)


def full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Return the context of a measurement: no TF32, which torch allows in convolutions unless told otherwise.

    Args:
        device: Where it runs.

    Returns:
        A context manager that puts torch's switches back afterwards.
    """
    return _cuda_rounding(device, short=False, benchmark=False)
