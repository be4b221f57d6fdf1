"""Heads of attention as units: against a network whose heads are silenced where they leave attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit import PruneLimitError, apply_masks, layer_limits, limit_report, predict_limit
from prunelimit.models.gpt import GPT, ViT
from prunelimit.pruning import UnitOrder
from prunelimit.pruning.heads import head_units

TOKENS = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Plain(nn.Module):
    """Attention in four linear layers; the number of heads is known around it."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.inside, self.up = (
            2,
            nn.ModuleDict({n: nn.Linear(8, 8) for n in ("wq", "wk", "wv", "wo")}),
            nn.Linear(8, 4),
        )
        self.inside.wq, self.inside.wk, self.inside.wv, self.inside.wo = self.inside.values()

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.inside[name](x).unflatten(-1, (2, 4)).transpose(1, 2) for name in ("wq", "wk", "wv"))
        weights = (query @ key.transpose(2, 3)).softmax(-1)
        return self.up(self.inside["wo"]((weights @ value).transpose(1, 2).flatten(2)))


def published(name: str, model: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, model)(getattr(transformers, f"{name}Config")(**options))


SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 6}

#: Network, input, the layers that attention's output goes through, number of heads, and of heads that share keys.
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, str, int, int]] = {
    "ours": (lambda: GPT(11, 5, 8, heads=2, depth=2), TOKENS, "blocks.{}.out", 2, 1),
    "vit": (lambda: ViT((1, 4, 4), 3, width=6, heads=3), IMAGES, "blocks.{}.out", 3, 1),
    "bert": (
        lambda: published("Bert", "BertModel", vocab_size=11, **SIZES),
        TOKENS,
        "encoder.layer.{}.attention.output.dense",
        4,
        1,
    ),
    "gpt2": (
        lambda: published(
            "GPT2", "GPT2Model", vocab_size=11, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        ),
        TOKENS,
        "h.{}.attn.c_proj",
        2,
        1,
    ),
    "llama": (
        lambda: published("Llama", "LlamaModel", vocab_size=11, num_key_value_heads=2, pad_token_id=0, **SIZES),
        TOKENS,
        "layers.{}.self_attn.o_proj",
        4,
        2,
    ),
}


def output(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found = model.eval()(inputs)
    return found if isinstance(found, Tensor) else found.last_hidden_state


def entering(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """What attention gives to its output layer, ``(N, T, heads * size)``."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    output(model, inputs)
    handle.remove()
    return seen[0]


def silenced(model: nn.Module, layer: str, entries: slice, inputs: Tensor) -> Tensor:
    """The network's output if some of what enters a layer is zero."""

    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = given[0].clone()
        first[..., entries] = 0
        return (first, *given[1:])

    handle = model.get_submodule(layer).register_forward_pre_hook(hook)
    try:
        return output(model, inputs)
    finally:
        handle.remove()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, str, int, int]:
    make, *rest = CASES[request.param]
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    inputs = rest[0].double() if rest[0].is_floating_point() else rest[0]
    return model, inputs, *rest[1:]  # type: ignore[return-value]


def test_removing_a_unit_silences_its_heads(case: tuple[nn.Module, Tensor, str, int, int]) -> None:
    model, inputs, layer, heads, shared = case
    units = head_units(model)
    count = heads // shared
    assert {int(number) for part in units.values() for number in part.flatten()} == set(range(2 * count))
    for unit in range(2 * count):
        masks = {name: (part != unit).double().expand(model.get_parameter(name).shape) for name, part in units.items()}
        where = layer.format(unit // count)
        width = entering(model, where, inputs).shape[-1] // count
        entries = slice(unit % count * width, (unit % count + 1) * width)
        removed = apply_masks(copy.deepcopy(model), masks)
        torch.testing.assert_close(output(removed, inputs), silenced(model, where, entries, inputs))
        assert (output(removed, inputs) - output(model, inputs)).abs().max() > 1e-4


def test_rows_of_a_unit_are_those_of_its_heads(case: tuple[nn.Module, Tensor, str, int, int]) -> None:
    """Without its rows and the biases a head gives zero, and the others give what they gave."""
    model, inputs, layer, heads, shared = case
    units, count = head_units(model), heads // shared
    out = f"{layer.format(1)}.weight"
    rows = {name: part for name, part in units.items() if name != out}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.removesuffix("bias") + "weight" in rows:
                p.zero_()
    before = entering(model, layer.format(1), inputs)
    for unit in range(count):
        masks = {n: (part != unit + count).double().expand(model.get_parameter(n).shape) for n, part in rows.items()}
        after = entering(apply_masks(copy.deepcopy(model), masks), layer.format(1), inputs)
        width = before.shape[-1] // count
        expected = before.clone()
        expected[..., unit * width : (unit + 1) * width] = 0
        torch.testing.assert_close(after, expected)
        share = sum(int((mask == 0).sum()) for mask in masks.values()) / sum(
            mask.numel() for n, mask in masks.items() if f".{1}." in n
        )
        assert share == pytest.approx(1 / count)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}], ids=["together", "apart"])
def test_heads_of_torch_itself(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(6, 3, batch_first=True, **sizes).double()
    x = [torch.randn(2, 5, width, dtype=torch.float64) for width in (6, sizes.get("kdim", 6), sizes.get("vdim", 6))]
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(6))
        layer.in_proj_bias.zero_()
    before = layer(*x)[0]
    units = head_units(layer)
    assert (
        sum(torch.broadcast_to(part == 0, layer.get_parameter(n).shape).sum() for n, part in units.items())
        == sum(layer.get_parameter(n).numel() for n in units) // 3
    )
    for head in range(3):
        rows = {name: part for name, part in units.items() if name != "out_proj.weight"}
        masks = {n: (part != head).double().expand(layer.get_parameter(n).shape) for n, part in rows.items()}
        after = apply_masks(copy.deepcopy(layer), masks)(*x)[0]
        expected = before.clone()
        expected[..., 2 * head : 2 * head + 2] = 0
        torch.testing.assert_close(after, expected)
        column = units["out_proj.weight"].flatten()
        assert (column == head).nonzero().flatten().tolist() == [2 * head, 2 * head + 1]


def test_order_of_heads_is_that_of_their_root_mean_square() -> None:
    torch.manual_seed(0)
    model = Plain()
    with torch.no_grad():
        for part in (model.inside["wq"], model.inside["wk"], model.inside["wv"]):
            part.weight[:4] *= 3
    order = UnitOrder(model, "heads")
    assert order.names == [f"inside.{name}.weight" for name in ("wq", "wk", "wv", "wo")]
    masks = order.masks(0.5)
    assert masks["inside.wq.weight"].sum(1).tolist() == [8] * 4 + [0] * 4
    assert masks["inside.wo.weight"].sum(0).tolist() == [8] * 4 + [0] * 4
    assert UnitOrder(model, "head", ["inside.wq.weight"]).masks(0.1)["inside.wq.weight"].sum() == 32


def test_reports_take_heads_by_name() -> None:
    model = ViT((1, 4, 4), 3, width=6, heads=3, seed=0)
    data = IMAGES.repeat(4, 1, 1, 1), torch.arange(12) % 3
    common: dict[str, Any] = {"epsilon": 0.05, "method": "measured"}
    report = limit_report(model, cross_entropy, data, methods=["measured"], units="heads", epsilon=0.05)
    order = UnitOrder(model, "head")
    single = predict_limit(model, cross_entropy, data, masks=order.masks, prunable=order.names, **common)
    assert report.limits["measured"].sparsity == single.sparsity
    assert report.total == 2 * 4 * 36
    assert report.layers is not None
    assert list(report.layers.table.layer) == order.names
    assert "not in prunable" in report.findings()[-1]
    alone = layer_limits(model, cross_entropy, data, units="head", epsilon=0.05, prunable=order.names[:1]).table
    assert list(alone.layer) == order.names[:1]


class Odd(nn.Module):
    """Attention by its names, and whatever a test wants to be odd about it."""

    def __init__(self, rows: int = 12, out: str = "proj", **others: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, rows)
        setattr(self, out, nn.Linear(4, 4))
        for name, value in others.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 4)),
            r"^unit='head': model=Sequential has no attention whose weights are called .*yourself",
        ),
        (Odd(), r"^unit='head': model \(Odd\) does not say how many heads it has: set its attribute num_heads"),
        (Odd(heads=True), r"does not say how many heads"),
        (nn.Sequential(Odd(num_heads=2, out="last")), r"^unit='head': 0 \(Odd\) has no output weight called"),
        (Odd(num_heads=3), r"has 3 heads, which do not fit its weights with 12 rows and 4 columns"),
        (Odd(rows=10, num_heads=2), r"has 2 heads, which do not fit"),
        (Odd(rows=4, num_heads=2), r"has 2 heads, which do not fit"),
        (Odd(num_heads=2, head_first=True), r"keeps queries, keys and values in an order of its own: number the heads"),
        (Odd(num_heads=2, multi_query=False), r"in an order of its own"),
        (Odd(num_heads=2).requires_grad_(False), r"has no attention"),
    ],
)
def test_heads_that_cannot_be_found(model: nn.Module, message: str) -> None:
    with pytest.raises(PruneLimitError, match=message):
        UnitOrder(model, "head")


def test_other_weights_have_no_heads() -> None:
    with pytest.raises(PruneLimitError, match=r"^prunable='up.weight' belongs to no head of attention"):
        UnitOrder(Plain(), "head", ["inside.wq.weight", "up.weight"])
    model = Plain()
    model.inside["wk"].requires_grad_(False)
    assert UnitOrder(model, "head").names == [f"inside.{name}.weight" for name in ("wq", "wv", "wo")]
