"""prune_rare_gems: rounding, freezing and gradients against naive references, and what the search is worth."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit.datasets import Dataset, DeviceSplit
from prunelimit.errors import PruneLimitError
from prunelimit.models import build_model, mlp
from prunelimit.pruning.controls import RandomSpec, prune_random
from prunelimit.pruning.magnitude import removed_count
from prunelimit.pruning.rare_gems import (
    RareGemsSpec,
    ScoredNetwork,
    frozen_counts,
    prune_rare_gems,
    with_signed_constants,
)
from prunelimit.training import TrainSpec, evaluate, fit

TRAIN = TrainSpec(dataset="digits", model="mlp", epochs=2, batch_size=32, lr=0.05)
SPEC = RareGemsSpec(train=TRAIN, search=dataclasses.replace(TRAIN, epochs=5, lr=0.5), period=2, l2_scores=0.0)


def network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(list(widths))


@pytest.fixture(scope="module")
def data(digits: Dataset) -> DeviceSplit:
    return digits.on_device("train", size=150)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors.values()])


@pytest.fixture
def scored() -> ScoredNetwork:
    return ScoredNetwork(network(6, 5, 4), seed=1)


def test_a_weight_counts_if_its_score_reaches_a_half(scored: ScoredNetwork) -> None:
    with torch.no_grad():
        scored.scores[0] = 0.5
        scored.scores[1] = math.nextafter(0.5, 0) - 1e-7
        scored.active[7] = False
        scored.scores[7] = 1.0
    x = torch.randn(3, 6)
    by_hand = network(6, 5, 4)
    keep = [float(p >= 0.5 and i != 7) for i, p in enumerate(scored.scores.tolist())]
    assert keep[0] == 1
    assert keep[1] == 0
    with torch.no_grad():
        by_hand[1].weight.mul_(torch.tensor(keep[:30]).reshape(5, 6))
        by_hand[3].weight.mul_(torch.tensor(keep[30:]).reshape(4, 5))
    assert torch.equal(scored(x), by_hand(x))


def test_the_gradient_passes_the_rounding(scored: ScoredNetwork) -> None:
    """dL/dp is w times dL/d(effective weight), and zero where frozen; nothing else has a gradient."""
    scored.freeze(9)
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    cross_entropy(scored(x), y).backward()
    effective = network(6, 5, 4)
    names = ["1.weight", "3.weight"]
    rounded = ((scored.scores >= 0.5) & scored.active).float()
    with torch.no_grad():
        for name, part in zip(names, rounded.split([30, 20]), strict=True):
            p = effective.get_parameter(name)
            p.mul_(part.reshape(p.shape))
    cross_entropy(effective(x), y).backward()
    original = network(6, 5, 4)
    gradient = flat({n: effective.get_parameter(n).grad for n in names})
    expected = gradient * flat({n: original.get_parameter(n) for n in names}) * scored.active
    torch.testing.assert_close(scored.scores.grad, expected)
    assert (expected[(rounded == 0) & scored.active] != 0).any()
    assert [name for name, p in scored.named_parameters() if p.requires_grad] == ["scores"]


@given(seed=st.integers(0, 1000), steps=st.lists(st.integers(0, 50), min_size=1, max_size=5), coarse=st.booleans())
def test_the_lowest_scores_are_frozen_and_stay_frozen(seed: int, steps: list[int], coarse: bool) -> None:
    scored = ScoredNetwork(network(6, 5, 4), seed)
    drawn = torch.Generator().manual_seed(seed)
    active = [True] * 50
    for removed in sorted(steps):
        scores = torch.rand(50, generator=drawn)
        with torch.no_grad():
            # Coarse scores have many ties, as after projection to [0, 1].
            scored.scores.copy_((scores * 3).round() / 3 if coarse else scores)
        before, now = active, scored.scores.tolist()
        scored.freeze(removed)
        active = scored.active.tolist()
        assert active.count(False) == removed
        assert all(b or not a for a, b in zip(active, before, strict=True))
        # Naive: whatever was frozen just now is not above anything that is left.
        frozen = [p for p, a, b in zip(now, active, before, strict=True) if b and not a]
        left = [p for p, a in zip(now, active, strict=True) if a]
        assert max(frozen, default=0) <= min(left, default=1)


def test_equal_scores_are_frozen_all_over_the_network() -> None:
    scored = ScoredNetwork(network(50, 40, 30), seed=0)
    with torch.no_grad():
        scored.scores.fill_(1.0)
    scored.freeze(1600)
    for mask in scored.masks().values():
        assert 0.4 < float(mask.mean()) < 0.6


@given(
    total=st.integers(1, 10**6),
    sparsity=st.floats(0, 1, exclude_max=True),
    epochs=st.integers(1, 40),
    period=st.integers(1, 12),
)
def test_the_density_falls_exponentially_to_the_target(total: int, sparsity: float, epochs: int, period: int) -> None:
    counts = frozen_counts(total, sparsity, epochs, period)
    assert list(counts) == sorted({*range(period, epochs, period), epochs})
    assert counts[epochs] == removed_count(sparsity, total)
    assert list(counts.values()) == sorted(counts.values())
    constant = math.log(1 / (1 - sparsity)) / epochs
    for epoch, removed in counts.items():
        exact = total * (1 - math.exp(-constant * epoch))
        assert exact - 1e-6 * (1 + exact) <= removed < exact + 1 + 1e-6 * (1 + exact)


def test_the_search_is_projected_sgd_with_freezing(data: DeviceSplit) -> None:
    """The masks are those of a search written out by hand, penalty included."""
    model, spec = network(64, 6, 10), dataclasses.replace(SPEC, l2_scores=2e-3)
    found = prune_rare_gems(model, data, 0.7, spec)
    assert found is not None
    weights = {n: p.sign() * math.sqrt(2 / p.shape[1]) for n, p in model.state_dict().items() if n.endswith("weight")}
    generator = torch.Generator().manual_seed(spec.seed)
    total = sum(w.numel() for w in weights.values())
    scores = torch.rand(total, generator=generator)
    shuffled = torch.randperm(total, generator=generator).tolist()
    place = {weight: k for k, weight in enumerate(shuffled)}
    active, momentum = torch.ones(total), torch.zeros(total)
    search, sizes = spec.search, [w.numel() for w in weights.values()]
    for epoch in range(search.epochs):
        for x, y in data.batches(search.batch_size, torch.Generator().manual_seed(epoch)):
            effective = {
                name: (w * part.reshape(w.shape)).requires_grad_()
                for (name, w), part in zip(weights.items(), ((scores >= 0.5) * active).split(sizes), strict=True)
            }
            hidden = (x.flatten(1) @ effective["1.weight"].T + model[1].bias.detach()).relu()
            loss = cross_entropy(hidden @ effective["3.weight"].T + model[3].bias.detach(), y)
            loss.backward()
            gradient = flat({n: effective[n].grad * weights[n] for n in weights}) * active
            momentum = search.momentum * momentum + gradient + 2 * spec.l2_scores * scores
            scores = (scores - search.lr * momentum).clamp(0, 1)
        if (epoch + 1) % spec.period == 0 or epoch + 1 == search.epochs:
            density = 0.3 ** ((epoch + 1) / search.epochs)
            ranked = sorted(range(total), key=lambda i: (active[i] * (1 + float(scores[i])), place[i]))
            for i in ranked[: math.ceil(total * (1 - density) - 1e-9)]:
                active[i] = 0
    assert float((flat(found.masks) == active).float().mean()) > 0.995  # float32 sums in another order
    assert int(flat(found.masks).sum()) == int(active.sum())


def test_training_begins_at_the_initial_weights(data: DeviceSplit) -> None:
    model = network(64, 6, 10)
    for constant in (True, False):
        spec = dataclasses.replace(SPEC, signed_constant=constant, train=dataclasses.replace(TRAIN, epochs=0))
        found = prune_rare_gems(model, data, 0.7, spec)
        assert found is not None
        start = with_signed_constants(model) if constant else model
        for name, p in start.named_parameters():
            assert torch.equal(found.weights[name], p * found.masks.get(name, 1))
        assert [entry["phase"] for entry in found.history] == ["search"] * 5


def test_signed_constants_have_the_sign_and_the_layers_deviation() -> None:
    model = build_model("resnet8-quick", input_shape=(1, 8, 8), seed=0)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 0.0
    constant = with_signed_constants(model)
    for (name, p), q in zip(model.named_parameters(), constant.parameters(), strict=True):
        if p.ndim > 1:
            fan = p.shape[1] * (p.shape[2] * p.shape[3] if p.ndim == 4 else 1)
            torch.testing.assert_close(q.abs(), torch.full_like(q, math.sqrt(2 / fan)))
            assert not (p * q < 0).any()
        else:
            assert torch.equal(p, q), name


def test_the_penalty_lowers_the_scores(data: DeviceSplit) -> None:
    means = []
    for weight in (0.0, 1e-2):
        scored = ScoredNetwork(network(64, 6, 10), seed=0)
        search = dataclasses.replace(SPEC.search, l2=2 * weight)
        fit(scored, data, search, after_step=lambda _, scored=scored: scored.project())
        assert scored.scores.min() >= 0
        assert scored.scores.max() <= 1
        means.append(float(scored.scores.detach().mean()))
    assert means[1] < means[0] - 0.1
    masks = [prune_rare_gems(network(64, 6, 10), data, 0.7, dataclasses.replace(SPEC, l2_scores=w)) for w in (0, 1e-2)]
    assert not torch.equal(flat(masks[0].masks), flat(masks[1].masks))


def test_it_beats_random_masks_with_the_same_training(digits: Dataset) -> None:
    data, test = digits.on_device("train"), digits.on_device("test")
    model = build_model("fc5-quick", input_shape=(1, 8, 8), seed=0)
    train = TrainSpec(dataset="digits", model="fc5-quick", epochs=15, batch_size=64, lr=0.1)
    search = dataclasses.replace(train, epochs=20, lr=1.0, schedule="cosine")
    spec = RareGemsSpec(train=train, search=search, l2_scores=0.0, signed_constant=False)
    found = prune_rare_gems(model, data, 0.9, spec)
    assert found is not None
    masks = prune_random(model, data, 0.9, RandomSpec()).masks
    random = build_model("fc5-quick", input_shape=(1, 8, 8), seed=0)
    fit(random, data, train, masks=masks)
    assert evaluate(found.applied(model), test)[1] > evaluate(random, test)[1] + 0.2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"period": 0}, "period"),
        ({"l2_scores": -1.0}, "l2_scores"),
        ({"l2_scores": math.inf}, "l2_scores"),
        ({"search": dataclasses.replace(TRAIN, l2=1e-4)}, "l2_scores"),
        ({"search": dataclasses.replace(TRAIN, epochs=0)}, "epochs=0"),
        ({"search": dataclasses.replace(TRAIN, sam_rho=0.1)}, "sam_rho"),
        ({"search": None}, "TrainSpec"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        dataclasses.replace(SPEC, **values)
