"""A loss that no weight moves has no curvature: an error, and not a matrix of zeros, by which everything can be removed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from prunelimit import layer_limits, limit_report
from prunelimit.curvature import GGNOperator, HessianOperator
from prunelimit.errors import PruneLimitError

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(20) % 3


class Around(nn.Module):
    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = nn.Linear(4, 3), call

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(self.layer, inputs)


def without_graph(layer: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(inputs)


def reentrant(layer: nn.Module, inputs: Tensor) -> Tensor:
    return checkpoint(layer, inputs, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("call", [without_graph, reentrant])
def test_forward_pass_without_graph_is_refused(kind: type, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    operator = kind(Around(call), functional.cross_entropy, (INPUTS, TARGETS))
    with pytest.raises(PruneLimitError, match=r"^the loss does not depend on the prunable weights"):
        operator @ torch.ones(12)


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.unused = nn.Linear(4, 3), nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_unused_parameters_are_named_once(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    model = WithUnused()
    with caplog.at_level(logging.WARNING, "prunelimit"):
        for _ in range(2):
            operator = kind(model, functional.cross_entropy, (INPUTS, TARGETS))
            product = operator @ torch.ones(37)
    assert bool((product[:12] != 0).any())
    assert bool((product[12:] == 0).all())
    assert len(caplog.records) == 1
    assert "does not depend on unused.weight (25 of 37 weights)" in caplog.records[0].message


def test_an_unused_layer_can_go_whole_and_stops_no_report() -> None:
    options = {"epsilon": 0.05, "prunable": ["layer.weight", "unused.weight"]}
    report = limit_report(WithUnused(), functional.cross_entropy, (INPUTS, TARGETS), methods=["directional"], **options)
    assert report.layers is not None
    limits = dict(zip(report.layers.table.layer, report.layers.table.sparsity, strict=True))
    assert limits["unused.weight"] > 0.99
    assert 0 < limits["layer.weight"] < 1
    with pytest.raises(PruneLimitError, match=r"^the loss does not depend on the prunable weights"):
        layer_limits(Around(without_graph), functional.cross_entropy, (INPUTS, TARGETS), epsilon=0.05)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_sparse_gradients_of_an_embedding_are_made_dense(kind: type) -> None:
    tokens, found = torch.randint(0, 9, (20, 5), generator=torch.Generator().manual_seed(0)), []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(9, 4, sparse=sparse)
        model = nn.Sequential(embedding, nn.Flatten(), nn.Tanh(), nn.Linear(20, 3))
        operator = kind(model, functional.cross_entropy, (tokens, TARGETS), prunable=["0.weight", "3.weight"])
        found.append(operator @ torch.ones(96))
        assert embedding.sparse is sparse
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda o, t: functional.cross_entropy(o, t).detach(), "^loss_fn returned a loss without gradient"),
        (lambda o, t: functional.cross_entropy(o, t).item(), "^loss_fn returned float"),
    ],
)
def test_loss_without_gradient_is_refused(loss: Callable[[Tensor, Tensor], Tensor], match: str) -> None:
    with pytest.raises(PruneLimitError, match=match):
        HessianOperator(nn.Linear(4, 3), loss, (INPUTS, TARGETS)) @ torch.ones(12)
