"""matmul and add_matmul: the same numbers by either library."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.curvature import matmul as module
from prunelimit.curvature.matmul import add_matmul, matmul

SIZES = st.integers(1, 12)


def matrices(rows: int, inner: int, columns: int, turned: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two matrices of which any may be transposed or cut out of a wider one."""
    generator = torch.Generator().manual_seed(rows + 100 * inner)
    found = []
    for k, (m, n) in enumerate([(rows, inner), (inner, columns)]):
        shape = (n, m + 3) if turned >> k & 1 else (m, n + 3)
        wide = torch.randn(shape, generator=generator, dtype=dtype)
        found.append(wide[:, :m].T if turned >> k & 1 else wide[:, :n])
    return found[0], found[1]


@pytest.mark.parametrize("least", [0, 2**60])
@given(rows=SIZES, inner=SIZES, columns=SIZES, turned=st.integers(0, 3))
def test_product_is_that_of_float64(least: int, rows: int, inner: int, columns: int, turned: int) -> None:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "_LEAST", least)
        a, b = matrices(rows, inner, columns, turned, torch.float32)
        expected = (a.double() @ b.double()).float()
        torch.testing.assert_close(matmul(a, b), expected, rtol=1e-5, atol=1e-5)
        total = torch.ones(rows, columns)
        assert add_matmul(total, a, b) is total
        torch.testing.assert_close(total, expected + 1, rtol=1e-5, atol=1e-5)


def test_float64_stays_exact() -> None:
    a, b = matrices(200, 200, 200, 1, torch.float64)
    assert torch.equal(matmul(a, b), a @ b)


@pytest.mark.skipif(not module.WIDE, reason="needs a CPU with AVX-512")
def test_large_float32_products_go_to_onednn() -> None:
    a, b = matrices(300, 300, 300, 0, torch.float32)
    assert not module._is_wide(*matrices(30, 30, 30, 0, torch.float32))
    with mock.patch.object(module.functional, "linear", wraps=module.functional.linear) as called, torch.no_grad():
        matmul(a, b)
    assert called.call_args.args[0].is_mkldnn
