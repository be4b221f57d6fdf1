"""Other weights, the same function: what must not change does not, and the rest is what the chain rule says."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import rescaling
from prunelimit.limit import exact_limit
from prunelimit.models import mlp
from prunelimit.pruning.magnitude import MagnitudePath


@pytest.fixture(scope="module")
def case():
    """A tiny network with biases that matter, and data."""
    torch.manual_seed(0)
    model = mlp([6, 8, 5, 3]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), (torch.randn(60, 6, dtype=torch.float64), torch.randint(0, 3, (60,)))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_an_exchange_between_layers_leaves_the_function(case, layer, factor):
    model, (inputs, _) = case
    other = rescaling.rescaled_layers(model, layer, factor)
    assert torch.allclose(other(inputs), model(inputs), atol=1e-12)
    assert not torch.allclose(other[1 + 2 * layer].weight, model[1 + 2 * layer].weight)


def test_the_logits_grow_with_the_number_of_layers(case):
    model, (inputs, _) = case
    assert torch.allclose(rescaling.scaled_network(model, 2.0)(inputs), 8 * model(inputs), atol=1e-12)


def test_the_frame_is_the_rescaled_networks_own(case):
    model, data = case
    frame = rescaling.rescaling_frame(model, data, 0.05, 0, [0.5, 1.0, 4.0])
    assert np.ptp(frame.loss) < 1e-12
    assert frame.measured_fixed.nunique() == 1
    assert frame.formula.nunique() > 1
    one = frame[frame.factor == 1].iloc[0]
    assert (one.formula, one.measured) == (one.formula_fixed, one.measured_fixed)
    other = rescaling.rescaled_layers(model, 0, 4.0)
    values = np.linalg.eigvalsh(HessianOperator(other, cross_entropy, data).dense().numpy())
    assert frame.trace.iloc[2] == pytest.approx(np.abs(values).sum(), rel=1e-9)
    assert frame.formula.iloc[2] == exact_limit(values, MagnitudePath(other).distance, 0.05)
    assert frame.length.iloc[2] == pytest.approx(MagnitudePath(other).distance[-1])


def test_a_weight_that_is_zero_is_scaled_like_its_layer(case):
    model, data = case
    torch.manual_seed(1)
    sparse = rescaling.copy.deepcopy(model)
    with torch.no_grad():
        sparse[1].weight[0, :3] = 0
    frame = rescaling.rescaling_frame(sparse, data, 0.05, 0, [3.0])
    own = HessianOperator(rescaling.rescaled_layers(sparse, 0, 3.0), cross_entropy, data).dense()
    assert frame.trace.iloc[0] == pytest.approx(float(torch.linalg.eigvalsh(own).abs().sum()), rel=1e-9)


def test_growing_weights_start_at_the_network_itself(case):
    model, data = case
    frame = rescaling.growth_frame(model, data, 0.05, [1.0, 1.5, 3.0], steps=103)
    assert frame.held.iloc[0] == frame.formula.iloc[0]
    assert frame.held.is_monotonic_decreasing
    assert frame.loss.iloc[0] == pytest.approx(float(cross_entropy(model(data[0]), data[1]).detach()))
    assert frame.formula.between(frame.low, frame.high).all()


def test_the_small_network_learns_and_gives_its_tolerance():
    model, data, epsilon = rescaling.small_network([8], 3, 0.0, 0)
    assert not model.training
    assert epsilon > 0
    with torch.no_grad():
        assert float(cross_entropy(model(data[0]), data[1])) < 1.5


@pytest.mark.parametrize(
    ("layer", "factor", "words"), [(2, 1.0, "layer=2"), (-1, 1.0, "layer=-1"), (0, 0.0, "factor=")]
)
def test_what_cannot_be_exchanged_is_refused(case, layer, factor, words):
    with pytest.raises(PruneLimitError, match=words):
        rescaling.rescaled_layers(case[0], layer, factor)
