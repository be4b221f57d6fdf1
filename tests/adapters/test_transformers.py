"""Models of transformers through their own interface: keyword batches, outputs with logits, own losses, tied weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit import layer_limits, predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import GGNOperator, HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.models import prunable_names
from prunelimit.models.gpt import block_names

transformers = pytest.importorskip("transformers")

SIZES: dict[str, int] = {
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
}
TOKENS = torch.randint(3, 11, (6, 7), generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
IMAGES = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
PADDING = torch.ones_like(TOKENS)
PADDING[0, 4:] = PADDING[3, 2:] = 0
#: Labels of a language model, which shifts them itself: of each row the first is never a target.
WORDS = TOKENS.clone()
WORDS[0, :3] = WORDS[4] = -100

Batch = dict[str, Tensor]


def bert(**options: Any) -> tuple[nn.Module, Batch]:
    config = transformers.BertConfig(vocab_size=11, max_position_embeddings=7, num_labels=3, **SIZES, **options)
    model = transformers.BertForSequenceClassification(config)
    return model, {"input_ids": TOKENS, "attention_mask": PADDING, "labels": CLASSES}


def gpt2(**options: Any) -> tuple[nn.Module, Batch]:
    config = transformers.GPT2Config(
        vocab_size=11,
        n_positions=7,
        n_embd=4,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
        **options,
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": TOKENS, "labels": WORDS}


def vit(**options: Any) -> tuple[nn.Module, Batch]:
    config = transformers.ViTConfig(image_size=4, patch_size=2, num_channels=1, num_labels=3, **SIZES, **options)
    return transformers.ViTForImageClassification(config), {"pixel_values": IMAGES, "labels": CLASSES}


Maker = Callable[..., tuple[nn.Module, Batch]]
MAKERS: dict[str, Maker] = {"bert": bert, "gpt2": gpt2, "vit": vit}


def made(make: Maker, **options: Any) -> tuple[nn.Module, Batch]:
    """Build a network whose weights are large enough for a loss that bends."""
    torch.manual_seed(0)
    model, batch = make(**options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model, batch


def dense_hessian(model: nn.Module, batch: Batch) -> Tensor:
    """Differentiate each entry of the gradient of the model's own loss, in float64."""
    model = model.double().eval()
    weights = [dict(model.named_parameters())[name] for name in prunable_names(model)]
    moved = {name: part.double() if part.is_floating_point() else part for name, part in batch.items()}
    parts = torch.autograd.grad(model(**moved).loss, weights, create_graph=True)
    rows = []
    for entry in torch.cat([part.flatten() for part in parts]):
        row = torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in row]))
    return torch.stack(rows)


def halves(batch: Batch) -> list[Batch]:
    return [{name: part[rows] for name, part in batch.items()} for rows in (slice(0, 4), slice(4, None))]


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("name", MAKERS)
def test_own_loss_has_the_dense_hessian(name: str, cut: bool) -> None:
    model, batch = made(MAKERS[name])
    assert model.config._attn_implementation == "sdpa"  # whose fused kernels have no second derivative
    adapted = adapt(model, None, halves(batch) if cut else batch)
    operator = HessianOperator(adapted.model, adapted.loss_fn, adapted.batches, dtype=torch.float64)
    found = operator.dense()
    plain, _ = made(MAKERS[name], attn_implementation="eager")
    torch.testing.assert_close(
        found, dense_hessian(plain, batch), rtol=1e-4, atol=1e-6
    )  # eager takes its softmax in float32
    assert found.abs().max() > 1e-3
    assert operator.loss == pytest.approx(
        plain(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()}).loss.item()
    )


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_logits_serve_a_loss_of_ours(name: str) -> None:
    model, batch = made(MAKERS[name])
    own, given = (adapt(model, loss, batch) for loss in (None, cross_entropy))
    hessians = [HessianOperator(a.model, a.loss_fn, a.batches, dtype=torch.float64).dense() for a in (own, given)]
    torch.testing.assert_close(*hessians)
    ggn = GGNOperator(given.model, given.loss_fn, given.batches, dtype=torch.float64).dense()
    assert torch.linalg.eigvalsh(ggn).min() > -1e-12
    assert ggn.norm() > 0.01


def test_a_language_model_counts_the_targets_that_are_not_ignored() -> None:
    model, batch = made(gpt2)
    adapted = adapt(model, None, halves(batch))
    wanted = [int((part["labels"][:, 1:] != -100).sum()) for part in halves(batch)]
    assert [len(targets) for _, targets in adapted.batches] == wanted
    assert wanted[0] != 2 * wanted[1]  # or counting rows would do as well
    assert adapted.terms == "targets"
    # In place, the same labels are another loss: of the present symbol, not of the next one.
    in_place = adapt(model, cross_entropy, batch)
    loss = HessianOperator(in_place.model, in_place.loss_fn, in_place.batches).loss
    assert abs(loss - model.eval()(**batch).loss.item()) > 0.01


def test_tied_embeddings_count_once() -> None:
    model, _ = made(gpt2)
    assert model.lm_head.weight is model.transformer.wte.weight
    names = prunable_names(model)
    assert names[0] == "transformer.wte.weight"
    assert "lm_head.weight" not in names
    assert [name.removeprefix("transformer.h.0.") for name in block_names(model)] == [
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    ]


@pytest.mark.parametrize("method", ["formula", "cut", "directional", "refit", "measured"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_method_gives_a_limit(name: str, method: str) -> None:
    model, batch = made(MAKERS[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    limit = predict_limit(model, None, batch, epsilon=0.05, method=method, steps=12, progress=False)
    assert 0 <= limit.sparsity < 1
    assert limit.total == sum(dict(model.named_parameters())[n].numel() for n in prunable_names(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training


def test_layers_of_an_encoder_have_limits() -> None:
    model, batch = made(bert)
    table = layer_limits(model, None, batch, epsilon=0.05, prunable=block_names(model)).table
    assert len(table) == 6
    assert not table.layer.str.contains("classifier|pooler").any()


def test_attention_without_a_second_derivative_is_named() -> None:
    """An attention function of one's own is called as it is: the library switches off fused kernels of torch alone."""

    def flash(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
        return found.transpose(1, 2).contiguous(), None

    if not hasattr(transformers, "AttentionInterface"):
        pytest.skip("this release of transformers takes no attention function of one's own")
    transformers.AttentionInterface.register("fused_for_a_test", flash)
    model, batch = made(vit, attn_implementation="fused_for_a_test")
    fix = r"cannot be differentiated twice \(.*flash_attention.*load the model with attn_implementation='eager'\.$"
    with pytest.raises(PruneLimitError, match=fix):
        predict_limit(model, None, batch, epsilon=0.05, steps=4, progress=False)


def test_transformers_is_never_imported_otherwise() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch, prunelimit; from prunelimit import predict_limit; import prunelimit.experiments.transformers;"
        "predict_limit(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, (torch.randn(9, 3), torch.randn(9, 2)),"
        "epsilon=0.1, steps=2); print(sorted(m for m in sys.modules if m.partition('.')[0] in"
        "('transformers', 'timm', 'sentence_transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
