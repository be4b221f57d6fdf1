"""Networks and data that are cut, counted or differentiated in an unusual way: graphs, several targets, compiled parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from prunelimit import PruneLimitError, predict_limit
from prunelimit.adapters import adapt
from prunelimit.curvature import HessianOperator

CE = functional.cross_entropy
GENERATOR = torch.Generator().manual_seed(0)
NODES = torch.randn(90, 4, generator=GENERATOR)
LABELS = torch.randint(0, 3, (90,), generator=GENERATOR)
LINKS = (torch.rand(90, 90, generator=GENERATOR) < 0.05).float() + torch.eye(90)


class Graph(nn.Module):
    """Two layers that mix neighbours; the graph is an input or a buffer."""

    def __init__(self, links: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("links", links)

    def forward(self, x: Tensor, links: Tensor | None = None) -> Tensor:
        links = self.links if links is None else links
        return self.last(links @ torch.tanh(self.first(links @ x)))


def few(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return NODES[:count], LINKS[:count, :count], LABELS[:count]


def given(count: int, form: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Any]:
    nodes, links, labels = few(count)
    return Graph(), [(nodes, form(links), labels)]


def held(count: int, form: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Any]:
    nodes, links, labels = few(count)
    return Graph(form(links)), (nodes, labels)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("count", [30, 90])  # fewer and more than the rows on which calls are tried
@pytest.mark.parametrize("form", [Tensor.clone, Tensor.to_sparse, Tensor.to_sparse_csr])
@pytest.mark.parametrize("make", [given, held])
def test_a_graph_is_never_cut(
    make: Callable[..., tuple[nn.Module, Any]],
    form: Callable[[Tensor], Tensor],
    count: int,
    reference_hessian: Callable[..., Tensor],
) -> None:
    # Once wrong: some of the nodes do not fit the matrix, and torch's own error came, also for any sparse matrix.
    nodes, links, labels = few(count)
    adapted = adapt(*(made := make(count, form))[:1], CE, made[1])
    operator = HessianOperator(adapted.model, adapted.loss_fn, adapted.batches)
    assert (operator.examples, len(operator.batches)) == (count, 1)
    truth = reference_hessian(Graph(links), CE, (nodes, labels))
    torch.testing.assert_close(operator.dense(), truth, rtol=1e-4, atol=1e-6)


def test_a_large_graph_in_one_piece_is_told_how_to_be_given() -> None:
    links, nodes, labels = torch.eye(1200), torch.ones(1200, 4), torch.zeros(1200, dtype=torch.long)
    with pytest.raises(PruneLimitError, match=r"graph, give one batch, \[\(inputs, targets\)\]\.$"):
        predict_limit(Graph(links), CE, (nodes, labels), epsilon=0.1)
    assert len(adapt(Graph(links), CE, [(nodes, labels)]).batches) == 1


def test_sparse_inputs_have_no_rows_to_cut() -> None:
    linear = nn.Linear(4, 3)
    adapted = adapt(linear, CE, (NODES.to_sparse(), LABELS))
    dense = HessianOperator(linear, CE, (NODES, LABELS)).dense()
    found = HessianOperator(linear, adapted.loss_fn, adapted.batches).dense()
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-6)


class Pairs(Dataset[Any]):
    """A class and a point for each example."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return NODES[index], (LABELS[index], NODES[index, :2])


class Boxes(nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, images: Any) -> list[Tensor]:
        return [self.layer(image).mean() for image in images]


def both(output: Tensor, targets: Any) -> Tensor:
    return CE(output, targets[0]) + functional.mse_loss(output[:, :2], targets[1])


def spread(output: list[Tensor], targets: Any) -> Tensor:
    return torch.stack(output).square().mean()


IMAGES = [torch.ones(3, 4) for _ in range(5)]
FOUND = [{"boxes": torch.ones(count, 4)} for count in (1, 2, 3, 1, 1)]
#: Model, loss, data, and the number of examples in each batch.
COUNTS: dict[str, tuple[Callable[[], nn.Module], Any, Any, list[int]]] = {
    # Once wrong: [2, 2, 2], the number of tensors in the list that torch's DataLoader makes of two targets.
    "list of two kinds": (lambda: nn.Linear(4, 3), both, DataLoader(Pairs(), batch_size=16), [16, 16, 8]),
    # Once wrong: the symbols of all examples together, as in CTC's targets.
    "one behind the other": (
        lambda: nn.Linear(4, 3),
        lambda output, targets: output.square().mean(),
        [(NODES[:6], (torch.arange(13), torch.ones(6))), (NODES[:4], (torch.arange(5), torch.ones(4)))],
        [6, 4],
    ),
    # Once wrong: the number of boxes in the first image.
    "tuple of dictionaries": (Boxes, spread, [(tuple(IMAGES), tuple(FOUND)), (IMAGES[:2], FOUND[1:3])], [5, 2]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_targets_of_several_tensors_count_by_examples(name: str) -> None:
    make, loss, data, counts = COUNTS[name]
    assert [len(targets) for _, targets in adapt(make(), loss, data).batches] == counts


class Parts(nn.Module):
    """A network whose middle was compiled."""

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, middle = nn.Linear(4, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 3))
        self.middle = torch.compile(middle, backend="aot_eager") if compiled else middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self.first(x))


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_compiled_parts_run_as_they_were_written(curvature: str) -> None:
    # Once wrong: torch's RuntimeError about donated buffers; only a module compiled as a whole was looked behind.
    loss = torch.compile(CE, backend="aot_eager")
    found, plain = (
        predict_limit(Parts(compiled), function, (NODES, LABELS), epsilon=0.05, curvature=curvature)
        for compiled, function in ((True, loss), (False, CE))
    )
    assert found.sparsity == plain.sparsity


def test_torchscript_has_a_limit_if_its_parameters_are_named() -> None:
    # Once wrong: RuntimeError, get_parameter is not supported on ScriptModules.
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    names = ["0.weight", "2.weight"]
    traced = torch.jit.trace(plain, NODES)
    for model in (torch.jit.script(plain), traced):
        found = predict_limit(model, CE, (NODES, LABELS), epsilon=0.05, prunable=names, method="directional")
        truth = predict_limit(plain, CE, (NODES, LABELS), epsilon=0.05, method="directional")
        assert found.sparsity == truth.sparsity


class Observed(nn.Module):
    """Counts its calls, and keeps the last mean, in evaluation mode as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mean(0)
        return self.layer(x)


@pytest.mark.parametrize("method", ["formula", "cut", "directional", "refit", "measured"])
def test_buffers_that_a_pass_changes_are_put_back(method: str) -> None:
    # Once wrong: the counter had gone on, and the mean was that of the last batch.
    model = Observed()
    calls, last = model.calls, model.last
    predict_limit(model, CE, (NODES, LABELS), epsilon=0.05, method=method, steps=5)
    assert int(calls) == 0
    assert model.calls is calls
    assert model.last is last
    assert not last.any()
