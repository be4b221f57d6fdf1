"""The Hessian of a plain ReLU network at once, against products and against torch.func."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.curvature.dense import relu_hessian
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp


@pytest.mark.parametrize("widths", [[5, 3], [5, 4, 3], [5, 6, 4, 5, 3]])
def test_it_is_the_reference(widths, reference_hessian):
    torch.manual_seed(0)
    model = mlp(widths)
    data = torch.randn(40, 5), torch.randint(0, 3, (40,))
    expected = reference_hessian(model, cross_entropy, data)
    found = relu_hessian(model, *data)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_it_is_what_the_products_give(digits_model, digits_data):
    found = relu_hessian(digits_model, *digits_data)
    operator = HessianOperator(digits_model, cross_entropy, digits_data, dtype=torch.float64)
    vectors = torch.randn(operator.dimension, 3, dtype=torch.float64)
    torch.testing.assert_close(found @ vectors, operator @ vectors, rtol=1e-7, atol=1e-9)


def test_batches_are_weighted_by_their_size(monkeypatch):
    torch.manual_seed(0)
    model, data = mlp([4, 3, 3]), (torch.randn(25, 4), torch.randint(0, 3, (25,)))
    whole = relu_hessian(model, *data)
    monkeypatch.setattr("prunelimit.curvature.dense.ROWS", 10)
    torch.testing.assert_close(relu_hessian(model, *data), whole)


@pytest.mark.parametrize("model", [nn.Conv2d(1, 1, 3), nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))])
def test_other_networks_are_refused(model):
    with pytest.raises(PruneLimitError, match="plain chain of linear layers and ReLU"):
        relu_hessian(model, torch.randn(3, 4), torch.zeros(3, dtype=torch.int64))
