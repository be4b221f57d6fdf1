"""Products of float32 matrices by the faster of torch's two libraries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Whether this CPU has 512-bit vectors and torch has oneDNN, which uses them. Of MKL, which torch takes otherwise, only
#: those by Intel get more than 256 bits.
WIDE = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"

#: Multiplications from which on it pays to hand matrices over to oneDNN.
_LEAST = 2**22


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two matrices; not differentiable.

    Args:
        a: ``(m, k)``, with any strides.
        b: ``(k, n)``, with any strides.

    Returns:
        ``(m, n)``.
    """
    return functional.linear(a.to_mkldnn(), b.T).to_dense() if _is_wide(a, b) else a @ b


def add_matmul(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a product of two matrices to a third one, in place.

    Args:
        total: ``(m, n)``.
        a: ``(m, k)``, with any strides.
        b: ``(k, n)``, with any strides.

    Returns:
        The sum, which is ``total``.
    """
    return total.add_(matmul(a, b)) if _is_wide(a, b) else total.addmm_(a, b)


def _is_wide(a: Tensor, b: Tensor) -> bool:
    return WIDE and a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() * b.shape[1] >= _LEAST
