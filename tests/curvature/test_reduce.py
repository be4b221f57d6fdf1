"""reduce_mlp: the same outputs, the same non-zero eigenvalues, fewer parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature.reduce import reduce_mlp


def network(inputs: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[1].bias[[1, 4]] = -100  # two units that never fire
        model[3].bias[0] = -100
    return model.double()


def data(rows: int = 8, inputs: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, inputs // 3, generator=generator).double(), torch.arange(rows) % 3


@pytest.mark.parametrize("names", [None, ["1.weight", "3.weight"], ["1.weight", "1.bias", "3.bias"], ["5.weight"]])
@pytest.mark.parametrize("rows", [8, 30])
def test_same_outputs_and_the_same_eigenvalues(
    reference_hessian: Callable[..., Tensor], rows: int, names: list[str] | None
) -> None:
    model, (inputs, targets) = network(), data(rows)
    before = copy.deepcopy(model.state_dict())
    found = reduce_mlp(model, (inputs, targets), names)
    assert found is not None
    assert found.dead[0] >= 2
    assert found.dead[1] >= 1
    assert found.inputs == (12, min(rows, 12))
    small = torch.cat([i for i, _ in found.batches]), torch.cat([t for _, t in found.batches])
    torch.testing.assert_close(found.model(small[0]), model(inputs))
    whole = torch.linalg.eigvalsh(reference_hessian(model, functional.cross_entropy, (inputs, targets), names))
    less = torch.linalg.eigvalsh(reference_hessian(found.model, functional.cross_entropy, small, found.prunable))
    assert len(whole) == len(less) + found.nullity
    padded = torch.cat([less, torch.zeros(found.nullity).double()]).sort().values
    torch.testing.assert_close(padded, whole, rtol=1e-9, atol=1e-12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_batches_stay_batches() -> None:
    inputs, targets = data(8)
    found = reduce_mlp(network(), list(zip(inputs.split(3), targets.split(3), strict=True)))
    assert [len(t) for _, t in found.batches] == [3, 3, 2]


def test_nothing_to_remove_is_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    assert reduce_mlp(model, (torch.randn(9, 4), torch.zeros(9, 3))) is None


def test_no_plain_mlp_is_none() -> None:
    assert (
        reduce_mlp(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()), (torch.randn(2, 1, 2, 2), torch.zeros(2))) is None
    )


def test_sequences_of_vectors_are_left_alone() -> None:
    assert reduce_mlp(nn.Sequential(nn.Linear(4, 3)), (torch.randn(2, 7, 4), torch.zeros(2, 7, 3))) is None


@pytest.mark.parametrize("names", [None, ["1.weight", "1.bias", "3.bias"]])
def test_restricted_vectors_have_the_restricted_product(
    reference_hessian: Callable[..., Tensor], names: list[str] | None
) -> None:
    model, whole = network(), data(8)
    found = reduce_mlp(model, whole, names)
    small = torch.cat([i for i, _ in found.batches]), torch.cat([t for _, t in found.batches])
    large = reference_hessian(model, functional.cross_entropy, whole, names)
    less = reference_hessian(found.model, functional.cross_entropy, small, found.prunable)
    vectors = torch.randn(3, len(large), generator=torch.Generator().manual_seed(0)).double()
    assert found.restrict(vectors).shape == (3, len(less))
    torch.testing.assert_close(found.restrict(vectors) @ less, found.restrict(vectors @ large))
