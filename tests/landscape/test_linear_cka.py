"""CKA agrees with its definition written out, and with what it does not see."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.errors import PruneLimitError
from prunelimit.landscape import linear_cka, output_similarity, representations, unbiased_cka
from prunelimit.models import build_model


def naive(first, second):
    """The definition with N by N matrices and the centring matrix, in float64."""
    n = len(first)
    centring = np.eye(n) - np.ones((n, n)) / n
    one, other = (centring @ (x.astype(float) @ x.T.astype(float)) @ centring for x in (first, second))
    return np.sum(one * other) / (np.linalg.norm(one) * np.linalg.norm(other))


def brute_force_hsic(one, other):
    """The U-statistic over all quadruples of different examples (Song et al. 2012)."""
    n, total = len(one), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += one[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
    return total / math.perm(n, 4)


shapes = st.tuples(st.integers(3, 30), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))


@given(shapes)
def test_the_definition_in_either_space(shape):
    n, p1, p2, seed = shape
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((n, p1)) + 3, rng.standard_normal((n, p2)) * 5
    assert linear_cka(first, second) == pytest.approx(naive(first, second), abs=1e-12)


@given(shapes, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_rotation_scaling_and_shift_change_nothing(shape, scale, shift):
    n, p1, p2, seed = shape
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((n, p1)), rng.standard_normal((n, p2))
    rotation = np.linalg.qr(rng.standard_normal((p1, p1)))[0]
    moved = scale * first @ rotation + shift
    assert linear_cka(first, moved) == pytest.approx(1, abs=1e-9)
    value = linear_cka(first, second)
    assert linear_cka(moved, second) == pytest.approx(value, abs=1e-9)
    assert linear_cka(second, first) == pytest.approx(value, abs=1e-12)
    assert 0 <= value <= 1


def test_a_shear_is_seen():
    first = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    # The kernels have eigenvalues 2, 2 and 2 k^2, 2 in the same directions.
    for k in (2.0, 5.0):
        assert linear_cka(first, first * [k, 1]) == pytest.approx((k**2 + 1) / math.sqrt(2 * (k**4 + 1)))


def test_orthogonal_representations_have_nothing_in_common():
    first, second = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert linear_cka(first, second) == 0


def test_many_examples_need_no_kernel_of_their_own():
    # A matrix of examples by examples would take 300 GB.
    rng = np.random.default_rng(0)
    first = rng.standard_normal((200_000, 2))
    # The second shares one of two directions: kernels of eigenvalues (1, 1) and 1 have the alignment 1 / sqrt(2).
    assert linear_cka(first, first[:, :1]) == pytest.approx(1 / math.sqrt(2), abs=0.01)


def test_a_constant_representation_has_no_direction():
    constant, moving = torch.full((50, 3), 0.1), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert math.isnan(linear_cka(constant, moving))
    assert math.isnan(linear_cka(moving, torch.zeros(50, 2)))
    assert math.isnan(unbiased_cka([(constant, moving)]))


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_the_unbiased_form_is_the_u_statistic(seed, p):
    rng = np.random.default_rng(seed)
    batches = [(rng.standard_normal((n, p)) + 2, rng.standard_normal((n, 3))) for n in (6, 4, 5)]
    sums = np.zeros(3)
    for first, second in batches:
        one, other = first @ first.T, second @ second.T
        sums += [brute_force_hsic(a, b) for a, b in ((one, other), (one, one), (other, other))]
    found = unbiased_cka(batches)
    if min(sums[1:]) > 0:
        assert found == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-6, abs=1e-9)
    else:
        assert math.isnan(found)


def test_only_the_biased_form_finds_similarity_in_noise():
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((20, 50)), rng.standard_normal((20, 50))) for _ in range(100)]
    assert np.mean([linear_cka(*pair) for pair in batches]) > 0.6
    assert abs(unbiased_cka(batches)) < 0.03


def test_one_large_batch_and_many_small_ones_agree():
    rng = np.random.default_rng(1)
    first = rng.standard_normal((2000, 6))
    second = first @ rng.standard_normal((6, 4)) + rng.standard_normal((2000, 4))
    batches = [(first[i : i + 20], second[i : i + 20]) for i in range(0, 2000, 20)]
    whole = unbiased_cka([(first, second)])
    assert whole == pytest.approx(linear_cka(first, second), abs=0.01)
    assert unbiased_cka(batches) == pytest.approx(whole, abs=0.03)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        (torch.zeros(5, 2), torch.zeros(4, 2), "same examples"),
        (torch.zeros(5), torch.zeros(5, 2), "first has shape"),
        (torch.zeros(5, 2), torch.full((5, 2), math.inf), "second is NaN"),
        (torch.zeros(1, 2), torch.zeros(1, 2), "at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, match):
    with pytest.raises(PruneLimitError, match=match):
        linear_cka(first, second)


def test_batches_that_are_too_small_are_refused():
    with pytest.raises(PruneLimitError, match="at least 4"):
        unbiased_cka([(torch.zeros(3, 2), torch.zeros(3, 2))])
    with pytest.raises(PruneLimitError, match="empty"):
        unbiased_cka([])


@pytest.fixture(scope="module")
def split(digits):
    return digits.on_device("train", size=250)


@pytest.fixture
def model():
    return build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)


def test_outputs_are_those_of_evaluation_mode(model, split):
    found = {
        layer: representations(model, split, layer, examples=200, batch_size=64) for layer in ("softmax", "logits")
    }
    assert model.training
    with torch.no_grad():
        logits = model.eval()(split.tensors(200)[0])
    torch.testing.assert_close(found["logits"], logits)
    assert found["softmax"].dtype == torch.float64
    torch.testing.assert_close(found["softmax"], logits.double().softmax(dim=1))


def test_any_layer_can_be_looked_at(model, split):
    found = representations(model, split, "1", examples=1000, batch_size=100)
    model.eval()
    with torch.no_grad():
        inner = model[1](model[0](split.tensors()[0])).flatten(1)
    torch.testing.assert_close(found, inner)
    assert len(found) == 250
    assert not model[1]._forward_hooks


def test_what_follows_in_place_does_not_reach_what_was_collected(split):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.ReLU(inplace=True))
    with torch.no_grad():
        expected = model[1](split.tensors()[0].flatten(1))
    assert bool((expected < 0).any())
    torch.testing.assert_close(representations(model, split, "1"), expected)


def test_two_networks(model, split):
    other = build_model("fc3", input_shape=(1, 8, 8), seed=1)
    assert output_similarity(model, model, split) == pytest.approx(1)
    parts = [representations(m, split, "logits").double().numpy() for m in (model, other)]
    assert output_similarity(model, other, split, layer="logits") == pytest.approx(naive(*parts), abs=1e-10)
    assert output_similarity(model, other, split) < 0.9


def test_a_layer_that_is_not_there_is_refused(model, split):
    with pytest.raises(PruneLimitError, match=r"layer='sofmax' is unknown.*softmax"):
        representations(model, split, "sofmax")
    unused = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    unused.extra = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    unused.forward = lambda x: unused[1](unused[0](x))
    with pytest.raises(PruneLimitError, match="module that the network calls"):
        representations(unused, split, "extra.0")
    with pytest.raises(PruneLimitError, match="examples=0"):
        representations(model, split, examples=0)
