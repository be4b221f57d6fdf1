"""WandaOrder: scores by their definition, for every kind of layer; masks exact, nested and as published; any network."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunelimit import PruneLimitError, predict_limit
from prunelimit.pruning import WandaOrder
from prunelimit.pruning.magnitude import removed_count

TransposedLinear = type(
    "Conv1D",
    (nn.Module,),
    {
        "__module__": "transformers.pytorch_utils",
        "__init__": lambda self, outputs, inputs: (
            nn.Module.__init__(self),
            setattr(self, "weight", nn.Parameter(torch.randn(inputs, outputs))),
        )[0],
        "forward": lambda self, x: x @ self.weight,
    },
)


def square(output: Tensor, targets: Tensor) -> Tensor:
    return output.square().mean() + 0 * targets.sum()


def positive(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


LAYERS: dict[str, tuple[Any, Tensor]] = {
    "linear": (lambda: nn.Linear(4, 3), positive(7, 4)),
    "linear on tokens": (lambda: nn.Linear(4, 3), positive(7, 5, 4)),
    "transposed linear": (lambda: TransposedLinear(3, 4), positive(7, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), positive(7, 2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), positive(7, 2, 8, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, 2, groups=2), positive(7, 4, 4, 5)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 2, groups=3), positive(7, 3, 4, 5)),
    "same": (lambda: nn.Conv2d(2, 2, (1, 3), padding="same", dilation=(1, 2)), positive(7, 2, 4, 5)),
    "valid": (lambda: nn.Conv2d(2, 2, (2, 3), padding="valid"), positive(7, 2, 4, 5)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), positive(7, 2, 4, 5)),
    "reflect": (lambda: nn.Conv1d(2, 2, 3, padding=(2,), padding_mode="reflect"), positive(7, 2, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 2, 2, stride=2, padding=1), positive(7, 2, 3, 4, 3)),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))


def images(count: int = 30) -> tuple[Tensor, Tensor]:
    return positive(count, 2, 4, 4), torch.arange(count) % 3


@pytest.mark.parametrize("name", LAYERS)
def test_a_score_is_how_much_the_output_changes_without_the_weight(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    layer = make()
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)
    batches = [(inputs[:4], torch.zeros(4)), (inputs[4:], torch.zeros(3))]
    found = WandaOrder(layer, square, batches).scores["weight"]
    dense = layer.weight.detach().clone()
    expected = torch.empty_like(dense)
    with torch.no_grad():
        for place in torch.ones_like(dense).nonzero().tolist():
            layer.weight.zero_()
            layer.weight[tuple(place)] = dense[tuple(place)]
            expected[tuple(place)] = layer(inputs).norm()
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)


def test_layers_may_read_single_examples() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv1d(2, 3, 2), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.head(self.conv(example).flatten()) for example in x])

    inputs = positive(5, 2, 4)
    model = Single()
    found = WandaOrder(model, square, [(inputs, torch.zeros(5))]).scores
    with torch.no_grad():
        conv = model.conv.weight.abs() * torch.stack([inputs[:, :, :3], inputs[:, :, 1:]], 2).norm(dim=(0, 3))
        head = model.head.weight.abs() * model.conv(inputs).flatten(1).norm(dim=0)
    torch.testing.assert_close(found["conv.weight"].float(), conv, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["head.weight"].float(), head, rtol=1e-5, atol=1e-6)


def test_inner_layers_read_what_the_network_gives_them() -> None:
    model, (inputs, targets) = network(), images()
    found = WandaOrder(model, functional.cross_entropy, (inputs, targets)).scores["3.weight"]
    with torch.no_grad():
        expected = model[3].weight.abs() * model[:3](inputs).norm(dim=0)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compare", ["output", "layer", "global"])
@given(low=st.integers(0, 999), high=st.integers(0, 999))
def test_masks_are_exact_and_nested(compare: str, low: int, high: int) -> None:
    order = WandaOrder(network(), functional.cross_entropy, images(), compare=compare)
    few, many = (order.masks(s / 1000) for s in sorted((low, high)))
    for masks, s in ((few, min(low, high)), (many, max(low, high))):
        assert sum(int((mask == 0).sum()) for mask in masks.values()) == removed_count(s / 1000, order.total)
    assert all(bool((few[name] >= many[name]).all()) for name in few)


@pytest.mark.parametrize("compare", ["output", "layer"])
@given(sparsity=st.integers(0, 99).map(lambda k: k / 100))
def test_what_the_published_rule_removes_is_removed(compare: str, sparsity: float) -> None:
    order = WandaOrder(network(), functional.cross_entropy, images(), compare=compare)
    masks, missing = order.masks(sparsity), removed_count(sparsity, order.total)
    for name, score in order.scores.items():
        rows = score.flatten(1) if compare == "output" else score.reshape(1, -1)
        kept = masks[name].reshape(rows.shape)
        count = int(rows.shape[1] * sparsity)
        assert not bool(kept.gather(1, rows.argsort(dim=1, stable=True)[:, :count]).any())
        # Each row loses its smallest scores.
        removed = (kept == 0).sum(1)
        assert torch.equal(
            kept.gather(1, rows.argsort(dim=1, stable=True)), (torch.arange(rows.shape[1]) >= removed[:, None]).float()
        )
        missing -= count * len(rows)
    assert missing <= sum(len(score) for score in order.scores.values())


def test_rows_lose_exactly_the_published_number_where_it_is_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    order = WandaOrder(model, square, (positive(20, 8), torch.zeros(20)))
    masks = order.masks(0.5)
    assert masks["0.weight"].sum(1).tolist() == [4] * 6
    assert masks["2.weight"].sum(1).tolist() == [3] * 4


def test_global_comparison_is_one_sort_of_all_scores() -> None:
    order = WandaOrder(network(), functional.cross_entropy, images(), compare="global")
    masks = order.masks(0.3)
    removed = torch.cat([order.scores[name][masks[name] == 0] for name in masks])
    kept = torch.cat([order.scores[name][masks[name] == 1] for name in masks])
    assert removed.max() <= kept.min()


class Language(nn.Module):
    """Tokens to an object with logits; its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.inner, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, weights: Tensor) -> SimpleNamespace:
        # The layer is called twice, once by keyword.
        hidden = self.inner(input=torch.tanh(self.inner(self.embed(tokens))) * weights[..., None])
        return SimpleNamespace(logits=self.head(hidden))


def sentences() -> list[dict[str, Tensor]]:
    tokens = torch.arange(40).reshape(8, 5) * 7 % 11
    return [{"tokens": t, "weights": torch.ones(4, 5), "labels": t.roll(1, 1)} for t in tokens.split(4)]


def test_shared_weights_count_what_all_layers_read() -> None:
    model = Language()
    found = WandaOrder(model, functional.cross_entropy, sentences()).scores
    with torch.no_grad():
        tokens = torch.cat([batch["tokens"] for batch in sentences()])
        once = model.embed(tokens).reshape(-1, 6)
        twice = torch.tanh(model.inner(once))
        last = model.inner(twice)
        inner = model.inner.weight.abs() * torch.cat([once, twice]).norm(dim=0)
        head = model.embed.weight.abs() * last.norm(dim=0)
    assert list(found) == ["embed.weight", "inner.weight"]
    torch.testing.assert_close(found["inner.weight"].float(), inner, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["embed.weight"].float(), head, rtol=1e-5, atol=1e-6)


def test_half_precision_is_read_in_single() -> None:
    inputs, targets = images()
    single = WandaOrder(network(), functional.cross_entropy, (inputs, targets)).scores
    half = WandaOrder(network().bfloat16(), functional.cross_entropy, (inputs.bfloat16(), targets)).scores
    for name, score in single.items():
        torch.testing.assert_close(half[name], score, rtol=0.05, atol=0.05)


class Encoder(nn.Module):
    """Torch's own transformer, which in evaluation packs what is not padding, and goes past its layers' modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_fast_path_of_transformers_is_not_taken() -> None:
    padding = torch.arange(3) > torch.arange(10)[:, None] % 3
    data = [(positive(10, 3, 8), padding, torch.arange(10) % 3)]
    names = ["encoder.layers.0.linear1.weight", "encoder.layers.0.linear2.weight", "head.weight"]
    assert list(WandaOrder(Encoder(), functional.cross_entropy, data, prunable=names).scores) == names
    with pytest.raises(
        PruneLimitError, match=r"^prunable='encoder.layers.0.self_attn.out_proj.weight' .* does not call"
    ):
        WandaOrder(Encoder(), functional.cross_entropy, data)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_network_stays_as_it_was() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    WandaOrder(model, functional.cross_entropy, images())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("method", ["measured", "directional", "formula", "refit"])
def test_every_method_takes_the_masks(method: str) -> None:
    model, data = Language(), sentences()
    order = WandaOrder(model, functional.cross_entropy, data)
    options: dict[str, Any] = {"epsilon": 0.02, "method": method, "steps": 6, "tolerance": 0.01}
    limit = predict_limit(model, functional.cross_entropy, data, masks=order.masks, **options)
    assert limit.total == order.total == 6 * 11 + 6 * 6
    assert 0 < limit.sparsity < 1


def infinite() -> tuple[Tensor, Tensor]:
    inputs, targets = images()
    inputs[3, 0, 0, 0] = torch.inf
    return inputs, targets


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (network, images, {"compare": "row"}, r"^compare='row' is unknown"),
        (network, images, {"prunable": ["0.bias"]}, r"^prunable='0.bias' belongs to no linear or convolution"),
        (network, infinite, {}, r"^data lead to inputs of '0.weight' that are not finite"),
        (lambda: Language(), sentences, {"prunable": ["nothing"]}, r"^prunable='nothing' is unknown"),
        (
            lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)),
            lambda: (torch.zeros(6, 2).long(), torch.arange(6) % 3),
            {"prunable": ["0.weight", "2.weight"]},
            r"^prunable='0.weight' belongs to no linear or convolution layer",
        ),
    ],
)
def test_what_cannot_be_scored(model: Any, data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        WandaOrder(model(), functional.cross_entropy, data(), **options)
