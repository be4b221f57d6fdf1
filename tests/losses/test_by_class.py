"""by_class: a mean over batches with class weights is the loss of the whole data, by torch and by the dense Hessian."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import GGNOperator, HessianOperator
from prunelimit.curvature.data import mean_loss
from prunelimit.losses import ClassWeighted, by_class
from prunelimit.models import mlp

WEIGHT = torch.tensor([1.0, 7.0, 0.0])
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(90, 4, generator=GENERATOR)
TARGETS = torch.randint(0, 3, (90,), generator=GENERATOR).sort().values  # so that batches differ in their weights

LOSSES: dict[str, Callable[[], Any]] = {
    "module": lambda: nn.CrossEntropyLoss(WEIGHT),
    "smoothed": lambda: nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
    "ignoring": lambda: nn.CrossEntropyLoss(WEIGHT, ignore_index=0),
    "function": lambda: partial(functional.cross_entropy, weight=WEIGHT),
    "function, smoothed": lambda: partial(functional.cross_entropy, weight=WEIGHT, label_smoothing=0.1),
    "doubles": lambda: partial(functional.cross_entropy, weight=WEIGHT.double()),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return mlp([4, 5, 3])


@torch.no_grad()
def whole(loss: Any, model: nn.Module) -> float:
    return float(loss(model(INPUTS), TARGETS))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "doubles"])
@pytest.mark.parametrize("rows", [1, 17, 90])
def test_mean_over_batches_is_the_loss_of_the_whole(name: str, rows: int) -> None:
    model, loss = network(), LOSSES[name]()
    adapted = adapt(model, loss, list(zip(INPUTS.split(rows), TARGETS.split(rows), strict=True)))
    assert mean_loss(adapted.model, adapted.loss_fn, adapted.batches)[0] == pytest.approx(whole(loss, model), rel=1e-5)


@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("name", LOSSES)
def test_curvature_of_batches_is_that_of_the_whole(name: str, kind: type[HessianOperator]) -> None:
    model = network()
    expected = kind(model, nn.CrossEntropyLoss(WEIGHT), (INPUTS, TARGETS), rule="fresh", batch_size=90).dense()
    loss = LOSSES[name]()
    if "smoothed" in name or name == "ignoring":
        plain = loss if isinstance(loss, nn.Module) else nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1)
        expected = kind(model, plain, (INPUTS, TARGETS), rule="fresh", batch_size=90).dense()
    adapted = adapt(model, loss, (INPUTS, TARGETS))
    operator = kind(adapted.model, adapted.loss_fn, adapted.batches, batch_size=7)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-4, atol=1e-6)


def test_negative_log_likelihood(reference_hessian: Callable[..., Tensor]) -> None:
    torch.manual_seed(1)
    model, loss = nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), nn.NLLLoss(WEIGHT)
    expected = reference_hessian(model, copy.deepcopy(loss).double(), (INPUTS, TARGETS))
    adapted = adapt(model, loss, [(INPUTS[:20], TARGETS[:20]), (INPUTS[20:], TARGETS[20:])])
    found = HessianOperator(adapted.model, adapted.loss_fn, adapted.batches).dense()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_limit_does_not_depend_on_the_batches() -> None:
    found = [
        predict_limit(
            network(), nn.CrossEntropyLoss(WEIGHT), data, epsilon=0.05, method="measured", tolerance=0.01
        ).sparsity
        for data in ((INPUTS, TARGETS), list(zip(INPUTS.split(8), TARGETS.split(8), strict=True)))
    ]
    assert found[0] == found[1]


class Tokens(nn.Module):
    """A class score per token, classes last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_tokens_that_are_ignored_have_no_weight() -> None:
    model, loss = Tokens(), nn.CrossEntropyLoss(WEIGHT)
    inputs, targets = INPUTS.reshape(18, 5, 4), TARGETS.clone().reshape(18, 5)
    targets[::3, 2:] = -100
    adapted = adapt(model, loss, [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])])
    expected = float(loss(model(inputs).flatten(0, 1), targets.flatten()).detach())
    assert adapted.terms == "targets"
    assert mean_loss(adapted.model, adapted.loss_fn, adapted.batches)[0] == pytest.approx(expected, rel=1e-5)


@given(
    weight=st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    cuts=st.lists(st.integers(1, 89), max_size=4, unique=True),
)
def test_any_weights_and_any_batches(weight: list[float], cuts: list[int]) -> None:
    loss = nn.CrossEntropyLoss(torch.tensor(weight))
    output = INPUTS[:, :3]
    edges = [0, *sorted(cuts), 90]
    parts = [slice(low, high) for low, high in itertools.pairwise(edges)]
    found = by_class(loss, [TARGETS[part] for part in parts])
    total = sum(float(found(output[part], TARGETS[part])) * len(TARGETS[part]) for part in parts) / 90
    assert total == pytest.approx(float(loss(output, TARGETS)), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [functional.cross_entropy, nn.CrossEntropyLoss(), nn.MSELoss(), None, partial(functional.nll_loss), len],
)
def test_other_losses_are_left_alone(loss: Any) -> None:
    assert by_class(loss, [TARGETS]) is loss


def test_probabilities_are_a_mean_over_rows_already() -> None:
    loss = nn.CrossEntropyLoss(WEIGHT)
    assert by_class(loss, [torch.rand(4, 3)]) is loss


def test_it_is_still_known_as_cross_entropy() -> None:
    from prunelimit.losses import ignore_index, is_cross_entropy

    found = by_class(nn.CrossEntropyLoss(WEIGHT, ignore_index=1), [TARGETS])
    assert isinstance(found, ClassWeighted)
    assert is_cross_entropy(found)
    assert ignore_index(found) == 1


def test_weights_of_zero_are_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^loss_fn has class weights"):
        by_class(nn.CrossEntropyLoss(torch.tensor([1.0, 0, 0])), [torch.tensor([1, 2])])
