"""A loss that no weight moves has no curvature: an error, and not a matrix of zeros, by which everything can be removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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
