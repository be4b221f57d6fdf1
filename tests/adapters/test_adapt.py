"""adapt: every way to give a network, its loss and its data is the same problem, checked against dense truth."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from prunelimit import PruneLimitError, predict_limit
from prunelimit.adapters import Adapted, adapt
from prunelimit.curvature import GGNOperator, HessianOperator
from prunelimit.curvature.data import Counted, mean_loss
from prunelimit.limit import default_epsilon
from prunelimit.models import mlp, prunable_names

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(300, 4, generator=GENERATOR)
TARGETS = torch.randint(0, 3, (300,), generator=GENERATOR)
TOKENS = torch.randint(0, 5, (12, 6), generator=GENERATOR)
LABELS = torch.randint(0, 5, (12, 6), generator=GENERATOR)


@dataclasses.dataclass
class Output:
    """What many libraries' models return."""

    logits: Tensor
    loss: Tensor | None = None


class Net(nn.Module):
    """A network whose output is made by a function, and whose arguments have names."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.wrap = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), wrap

    def forward(self, x: Tensor, scale: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = self.net(x if scale is None else x * scale)
        if labels is not None:
            return Output(logits, functional.cross_entropy(logits, labels))
        return self.wrap(logits)


class Nested(Net):
    """The same, with one dictionary as its input."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.net(batch["x"])


class Tagger(nn.Module):
    """One class score per token."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda logits: logits, shift: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight  # tied
        self.wrap, self.shift = wrap, shift

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(torch.tanh(self.mix(self.embed(ids))))
        if labels is None:
            return self.wrap(logits)
        scores, wanted = (logits[:, :-1], labels[:, 1:]) if self.shift else (logits, labels)
        return Output(logits, functional.cross_entropy(scores.flatten(0, 1), wanted.flatten()))


def by_name() -> list[dict[str, Tensor]]:
    return [{"x": i, "labels": t} for i, t in zip(INPUTS.split(130), TARGETS.split(130), strict=True)]


def generated() -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(INPUTS.split(130), TARGETS.split(130), strict=True)


def own(output: Output, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output.logits, targets)


ONES = torch.ones(300, 1)
CE = functional.cross_entropy
#: Model, loss and data that all mean the cross-entropy of one network on one data set.
WAYS: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "pair": lambda: (Net(), CE, (INPUTS, TARGETS)),
    "arrays": lambda: (Net(), CE, (INPUTS.numpy(), TARGETS.numpy())),
    "generator": lambda: (Net(), CE, generated()),
    "loader": lambda: (Net(), CE, DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=70)),
    "dictionaries": lambda: (Net(), CE, by_name()),
    "other dictionaries": lambda: (Net(), CE, [UserDict(batch) for batch in by_name()]),
    "one dictionary": lambda: (Net(), CE, {"x": INPUTS, "labels": TARGETS}),
    "dictionary of arrays": lambda: (Net(), CE, {"x": INPUTS.numpy(), "target": TARGETS.numpy()}),
    "inputs by name": lambda: (Net(), CE, [({"x": INPUTS, "scale": ONES}, TARGETS)]),
    "nested inputs": lambda: (Nested(), CE, [({"x": INPUTS}, TARGETS)]),
    "several inputs": lambda: (Net(), CE, [(INPUTS, ONES, TARGETS)]),
    "inputs in a tuple": lambda: (Net(), CE, [((INPUTS, ONES), TARGETS)]),
    "object": lambda: (Net(Output), CE, (INPUTS, TARGETS)),
    "object, loss module": lambda: (Net(Output), nn.CrossEntropyLoss(), by_name()),
    "object, loss that takes it": lambda: (Net(Output), own, (INPUTS, TARGETS)),
    "tuple": lambda: (Net(lambda z: (z, None)), CE, (INPUTS, TARGETS)),
    "dictionary out": lambda: (Net(lambda z: {"logits": z}), CE, by_name()),
    "own loss": lambda: (Net(), None, by_name()),
    "own loss, one dictionary": lambda: (Net(), None, {"x": INPUTS, "labels": TARGETS}),
}


@pytest.fixture(scope="module")
def truth(reference_hessian: Callable[..., Tensor]) -> Tensor:
    return reference_hessian(Net(), CE, (INPUTS, TARGETS))


def operator_of(adapted: Adapted, **options: Any) -> HessianOperator:
    return HessianOperator(adapted.model, adapted.loss_fn, adapted.batches, **options)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_same_hessian(way: str, truth: Tensor) -> None:
    adapted = adapt(*WAYS[way]())
    operator = operator_of(adapted, batch_size=7)
    torch.testing.assert_close(operator.dense(), truth, rtol=1e-4, atol=1e-6)
    assert operator.examples == 300
    assert adapted.terms == "examples"
    assert mean_loss(adapted.model, adapted.loss_fn, adapted.batches)[0] == pytest.approx(operator.loss, rel=1e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if "own loss" not in way and "takes it" not in way])
def test_every_way_has_the_same_gauss_newton_matrix(way: str) -> None:
    adapted = adapt(*WAYS[way]())
    expected = GGNOperator(Net(), CE, (INPUTS, TARGETS)).dense()
    found = GGNOperator(adapted.model, adapted.loss_fn, adapted.batches, rule="fresh").dense()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_the_same_default_epsilon(way: str) -> None:
    adapted = adapt(*WAYS[way]())
    expected = default_epsilon(Net(), CE, [(INPUTS, TARGETS)])
    assert default_epsilon(adapted.model, adapted.loss_fn, adapted.batches) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["formula", "cut", "directional", "refit", "measured"])
@pytest.mark.parametrize("way", ["dictionaries", "own loss", "tuple"])
def test_every_method_gives_the_plain_limit(way: str, method: str) -> None:
    options: dict[str, Any] = {"epsilon": 0.02, "method": method, "steps": 35, "progress": False}
    expected = predict_limit(Net(), CE, (INPUTS, TARGETS), **options)
    assert predict_limit(*WAYS[way](), **options).sparsity == pytest.approx(expected.sparsity, abs=0.002)


# What a batch's loss is a mean over


def ragged(ignored: int = -100) -> list[tuple[Tensor, Tensor]]:
    """Batches in which 3, 40 and 5 targets count."""
    batches = []
    for rows, kept in ((4, 3), (7, 40), (1, 5)):
        labels = LABELS[:rows].clone()
        labels.view(-1)[kept:] = ignored
        batches.append((TOKENS[:rows], labels))
    return batches


def all_tokens(batches: list[tuple[Tensor, Tensor]], ignored: int) -> tuple[Tensor, Tensor]:
    """The same tokens, one a row."""
    ids, labels = (torch.cat([part.flatten() for part in column]) for column in zip(*batches, strict=True))
    return ids[labels != ignored][:, None], labels[labels != ignored]


def last_token(output: Tensor, targets: Tensor) -> Tensor:
    return CE(output[:, 0], targets)


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (CE, -100),
        (nn.CrossEntropyLoss(), -100),
        (nn.CrossEntropyLoss(ignore_index=0), 0),
        (partial(CE, ignore_index=1), 1),
        (None, -100),
    ],
)
@pytest.mark.parametrize("wrap", [lambda z: z, Output])
def test_targets_that_count_are_the_weights(
    loss: Any, ignored: int, wrap: Callable[[Tensor], Any], reference_hessian: Callable[..., Tensor]
) -> None:
    model, batches = Tagger(wrap), ragged(ignored)
    data: Any = [{"ids": i, "labels": t} for i, t in batches] if loss is None else batches
    adapted = adapt(model, loss, data)
    tokens = all_tokens(batches, ignored)
    expected = reference_hessian(Tagger(), last_token, tokens)
    torch.testing.assert_close(operator_of(adapted).dense(), expected, rtol=1e-4, atol=1e-6)
    assert adapted.terms == "targets"
    assert sum(len(targets) for _, targets in adapted.batches) == len(tokens[1])


def test_next_token_loss_counts_no_first_label() -> None:
    batches = [{"ids": TOKENS[:4], "labels": LABELS[:4]}, {"ids": TOKENS[:, :3], "labels": LABELS[:, :3]}]
    adapted = adapt(Tagger(shift=True), None, batches)
    assert [len(targets) for _, targets in adapted.batches] == [4 * 5, 12 * 2]
    assert [len(targets) for _, targets in adapt(Tagger(), None, batches).batches] == [4 * 6, 12 * 3]


def test_batch_in_which_nothing_counts_is_left_out() -> None:
    batches = [*ragged(), (TOKENS[:3], torch.full((3, 6), -100))]
    adapted = adapt(Tagger(), CE, batches)
    assert len(adapted.batches) == 3
    assert np.isfinite(operator_of(adapted).loss)


def contrastive(output: Tensor, targets: Tensor) -> Tensor:
    """Every row against all others of its batch."""
    return CE(output @ output.T, targets % len(output))


def test_loss_of_the_whole_batch_is_never_cut(reference_hessian: Callable[..., Tensor]) -> None:
    batches = [(INPUTS[:40], torch.arange(40)), (INPUTS[40:60], torch.arange(20))]
    adapted = adapt(Net(), contrastive, batches)
    parts = [reference_hessian(Net(), contrastive, batch) for batch in batches]
    expected = (2 * parts[0] + parts[1]) / 3
    torch.testing.assert_close(operator_of(adapted, batch_size=5).dense(), expected, rtol=1e-4, atol=1e-6)
    cut = operator_of(Adapted(Net(), contrastive, batches), batch_size=5).dense()
    assert (cut - expected).norm() > 0.1 * expected.norm()  # what this test is about


def test_data_in_one_piece_need_a_mean_over_rows() -> None:
    data = torch.randn(1500, 4), torch.arange(1500)
    with pytest.raises(PruneLimitError, match=r"^loss_fn is not a mean over rows"):
        adapt(Net(), contrastive, data)


# Weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    before = copy.deepcopy(model.state_dict())
    adapted = adapt(model, CE, (INPUTS.to(dtype), TARGETS))
    expected = HessianOperator(copy.deepcopy(model).float(), CE, (INPUTS.to(dtype).float(), TARGETS)).dense()
    operator = operator_of(adapted)
    assert operator.dtype == torch.float32
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == dtype


@pytest.mark.parametrize("method", ["formula", "measured"])
def test_half_precision_and_its_float_copy_have_one_limit(method: str) -> None:
    model = Net().to(torch.bfloat16)
    options: dict[str, Any] = {"epsilon": 0.02, "method": method, "steps": 10}
    expected = predict_limit(copy.deepcopy(model).float(), CE, (INPUTS, TARGETS), **options)
    assert predict_limit(model, CE, (INPUTS, TARGETS), **options).sparsity == expected.sparsity


def test_lazy_network_is_initialised_by_its_first_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3)).train()
    limit = predict_limit(model, CE, (INPUTS, TARGETS), epsilon=0.05, steps=4)
    assert limit.total == 35
    assert model.training


def test_frozen_and_tied_weights_are_counted_once_or_not_at_all() -> None:
    model = Tagger()
    assert prunable_names(model) == ["embed.weight", "mix.weight"]
    model.mix.weight.requires_grad_(False)
    batches = [(TOKENS[:4], LABELS[:4]), (TOKENS[4:], LABELS[4:])]
    assert predict_limit(model, CE, batches, epsilon=0.05, steps=4).total == 20


def test_linear_layers_of_transformers_are_prunable_by_name() -> None:
    kind = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    layer = kind()
    layer.weight, layer.bias = nn.Parameter(torch.ones(4, 12)), nn.Parameter(torch.ones(12))
    assert prunable_names(nn.Sequential(layer)) == ["0.weight"]


# What cannot be used


class Refusing(Net):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        raise KeyError("no such thing. Really")


#: Model, loss, data, and what the message must say.
BAD: dict[str, tuple[Callable[[], tuple[nn.Module, Any, Any]], str]] = {
    "single examples": (
        lambda: (Net(), CE, TensorDataset(INPUTS, TARGETS)),
        r"^data gives single examples.*DataLoader",
    ),
    "a list of two tensors": (lambda: (Net(), CE, [INPUTS, TARGETS]), r"^data=list has as batch 0 a Tensor"),
    "a function": (lambda: (Net(), CE, generated), r"^data=function is neither"),
    "no labels": (lambda: (Net(), CE, [{"x": INPUTS}]), r"^data has a batch with the keys 'x'.*labels"),
    "two labels": (lambda: (Net(), CE, [{"x": INPUTS, "label": TARGETS, "targets": TARGETS}]), r"^data .*'label'"),
    "an unknown keyword": (
        lambda: (Net(), CE, [{"y": INPUTS, "labels": TARGETS}]),
        r"^model failed on the first batch with TypeError \(.*'y'",
    ),
    "a model that fails": (lambda: (Refusing(), CE, (INPUTS, TARGETS)), r"^model failed .* with KeyError"),
    "a loss that fails": (
        lambda: (Net(), functional.binary_cross_entropy, (INPUTS, TARGETS)),
        r"^loss_fn failed on the first batch with",
    ),
    "no own loss": (lambda: (Net(Output), None, [{"x": INPUTS}]), r"^loss_fn=None needs a model that returns"),
    "own loss and pairs": (lambda: (Net(), None, (INPUTS, TARGETS)), r"^loss_fn=None needs batches that are dict"),
    "own loss and batches of pairs": (lambda: (Net(), None, [(INPUTS, TARGETS)]), r"^loss_fn=None needs batches"),
    "a sum": (
        lambda: (Net(), nn.CrossEntropyLoss(reduction="sum"), (INPUTS, TARGETS)),
        r"^loss_fn has reduction='sum'",
    ),
    "no weights": (lambda: (Net().to("meta"), CE, (INPUTS, TARGETS)), r"^model is on the meta device"),
    "all ignored": (lambda: (Tagger(), CE, (TOKENS, LABELS * 0 - 100)), r"^data has no target that counts"),
    "classes second or last": (
        lambda: (Tagger(Output), CE, (TOKENS[:, :5], LABELS[:, :5])),
        r"^model returned logits of shape \(12, 5, 5\).*give a loss_fn",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_misfit_is_explained_in_a_sentence(name: str) -> None:
    make, pattern = BAD[name]
    with pytest.raises(PruneLimitError, match=pattern) as caught:
        adapt(*make())
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert message.count(". ") <= 1


def test_own_loss_has_no_gauss_newton_matrix() -> None:
    with pytest.raises(PruneLimitError, match=r"^curvature='ggn' needs the loss"):
        predict_limit(Net(), None, by_name(), curvature="ggn")


def test_targets_of_several_parts_count_by_rows() -> None:
    def both(output: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return CE(output, targets["a"]) + output[:, 0].sub(targets["b"]).square().mean()

    data = [(INPUTS, {"a": TARGETS, "b": torch.ones(300)})]
    adapted = adapt(mlp([4, 3]), both, data)
    assert [(type(t), len(t)) for _, t in adapted.batches] == [(Counted, 300)]
    assert operator_of(adapted).loss == pytest.approx(both(adapted.model(INPUTS), data[0][1]).item(), rel=1e-5)
