"""Small transformers of ours: shapes, causality, tied weights, and the Hessian against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit import predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp, prunable_names
from prunelimit.models.gpt import GPT, Block, ViT, block_names

CODES = torch.randint(0, 7, (6, 9), generator=torch.Generator().manual_seed(0))


def gpt(**changes: int) -> GPT:
    return GPT(**{"vocabulary": 7, "context": 8, "width": 6, "heads": 2, "depth": 1, "seed": 0} | changes)


def token_loss(output: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(output.flatten(0, 1), targets.flatten())


def test_a_position_does_not_see_what_follows() -> None:
    model, changed = gpt(depth=2).eval(), CODES[:, :8].clone()
    changed[:, 5] = (changed[:, 5] + 1) % 7
    before, after = model(CODES[:, :8]), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amin(-1).amin() > 0


def test_a_patch_sees_all_others() -> None:
    block, x = Block(6, 2), torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 3] += torch.arange(6.0)
    assert ((block(x) - block(moved))[0, 0].abs() > 1e-6).all()


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 2).eval(), torch.randn(3, 5, 8)
    known = nn.TransformerEncoderLayer(8, 2, 32, dropout=0, activation="gelu", batch_first=True, norm_first=True).eval()
    pairs = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj.": "out.",
        "linear1.": "up.",
        "linear2.": "down.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    own = block.state_dict()
    known.load_state_dict({a + kind: own[b + kind] for a, b in pairs.items() for kind in ("weight", "bias")})
    torch.testing.assert_close(block(x), known(x))


def test_the_tied_head_counts_once_and_is_no_block() -> None:
    model = gpt()
    assert model.head.weight is model.embed.weight
    names = ["blocks.0.qkv.weight", "blocks.0.out.weight", "blocks.0.up.weight", "blocks.0.down.weight"]
    assert prunable_names(model) == ["embed.weight", *names]
    assert block_names(model) == names
    assert sum(p.numel() for p in model.parameters()) == 7 * 6 + 8 * 6 + (12 * 36 + 13 * 6) + 2 * 6


def test_a_seed_gives_the_same_weights() -> None:
    for make in (gpt, lambda seed: ViT((1, 4, 4), 3, width=6, heads=2, depth=1, seed=seed)):
        one, same, other = make(seed=3), make(seed=3), make(seed=4)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_hessian_with_tied_weights_is_that_of_torch(reference_hessian: Callable[..., Tensor]) -> None:
    model, data = gpt(), (CODES[:, :8], CODES[:, 1:])
    names = ["embed.weight", "blocks.0.out.weight"]
    adapted = adapt(model, cross_entropy, data)
    operator = HessianOperator(adapted.model, adapted.loss_fn, adapted.batches, prunable=names, dtype=torch.float64)
    # A head apart from the embedding would differ: there, the Hessian has no term between the two uses.
    weights = [dict(model.named_parameters())[name] for name in names]
    expected = dense_hessian(model.double(), weights, token_loss, data)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-6, atol=1e-9)


def test_hessian_of_a_vision_transformer_is_that_of_torch(reference_hessian: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(5, 1, 4, 4, generator=generator), torch.randint(0, 3, (5,), generator=generator)
    model = ViT((1, 4, 4), 3, width=4, heads=2, depth=1, seed=0)
    operator = HessianOperator(model, cross_entropy, data, dtype=torch.float64)
    weights = [dict(model.named_parameters())[name] for name in prunable_names(model)]
    torch.testing.assert_close(operator.dense(), dense_hessian(model.double(), weights, cross_entropy, data))


def dense_hessian(
    model: nn.Module, weights: list[nn.Parameter], loss_fn: Callable[..., Tensor], data: tuple[Tensor, Tensor]
) -> Tensor:
    """Differentiate each entry of the gradient, with attention written out."""
    inputs, targets = (part.double() if part.is_floating_point() else part for part in data)

    def plain(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if is_causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores.softmax(-1) @ value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", plain)
        parts = torch.autograd.grad(loss_fn(model(inputs), targets), weights, create_graph=True)
    rows = []
    for entry in torch.cat([part.flatten() for part in parts]):
        row = torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in row]))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["formula", "directional", "measured"])
def test_a_limit_of_the_blocks_is_predicted(method: str) -> None:
    model = gpt()
    limit = predict_limit(
        model,
        cross_entropy,
        (CODES[:, :8], CODES[:, 1:]),
        prunable=block_names(model),
        epsilon=0.01,
        method=method,
        steps=8,
        progress=False,
    )
    assert limit.total == 12 * 36
    assert 0 < limit.sparsity < 1


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: gpt(heads=4), r"^heads=4 must divide width=6"),
        (lambda: gpt(depth=0), r"^depth=0 must"),
        (lambda: gpt()(torch.zeros(1, 9, dtype=torch.int64)), r"^codes has 9 symbols"),
        (lambda: ViT((1, 5, 4), 3), r"^patch=2 must divide"),
        (lambda: ViT((1, 4, 4), 0), r"^num_classes=0 must"),
        (lambda: block_names(mlp([4, 3])), r"^model=Sequential keeps no blocks"),
    ],
)
def test_bad_sizes_are_refused(make: Callable[[], object], pattern: str) -> None:
    with pytest.raises(PruneLimitError, match=pattern):
        make()
