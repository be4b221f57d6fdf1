"""The analytic rule for plain MLPs: dense truth, and what is not a plain MLP."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

from prunelimit.curvature import mlp as mlp_module
from prunelimit.curvature.mlp import linear_chain, mlp_rule
from prunelimit.errors import PruneLimitError

Loss = Callable[[Tensor, Tensor], Tensor]

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(),
    nn.GELU(),
    nn.SiLU(),
    nn.ELU(inplace=True),
]


def network(activation: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(6, 5), activation, nn.Dropout(0.3), nn.Linear(5, 4), copy.deepcopy(activation)]
    return nn.Sequential(*layers, nn.Linear(4, 3)).double().eval()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 2, 3, generator=generator).double(), torch.randint(3, (7,), generator=generator)


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


def cut(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]


def dense_ggn(model: nn.Module, loss: Loss, names: list[str], inputs: Tensor, targets: Tensor) -> Tensor:
    """J' H J with the Jacobian and the output Hessian formed whole."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}
    jacobian = jacrev(lambda p: functional_call(model, p, (inputs,)))(parameters)
    output = model(inputs).detach()
    rows = torch.cat([jacobian[name].reshape(output.numel(), -1) for name in names], 1)
    hessian = torch.func.hessian(lambda o: loss(o, targets))(output).reshape(output.numel(), output.numel())
    return rows.T @ hessian @ rows


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'inplace', '')}")
@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (functional.cross_entropy, ["1.weight", "4.weight", "6.weight"]),
        (functional.cross_entropy, ["4.weight"]),
        (functional.cross_entropy, ["1.weight", "1.bias", "6.weight", "6.bias"]),
        (lambda output, _: (output**3).mean(), ["1.weight", "1.bias", "4.weight", "4.bias"]),
    ],
    ids=["weights", "middle", "with-biases", "cubic"],
)
def test_products_are_the_dense_matrices(
    activation: nn.Module, loss: Loss, names: list[str], reference_hessian: Callable[..., Tensor]
) -> None:
    model, data = network(activation), batch()
    parameters = [dict(model.named_parameters())[name] for name in names]
    rule = mlp_rule(model, loss, parameters)
    assert rule is not None
    state = rule.state(*data)
    vector = torch.randn(sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(1)).double()
    for matrix, hessian in (
        (reference_hessian(model, loss, data, names), True),
        (dense_ggn(model, loss, names, *data), False),
    ):
        found = flat(rule.product(state, cut(vector, parameters), hessian=hessian))
        torch.testing.assert_close(found, matrix @ vector, rtol=1e-9, atol=1e-12)
    expected = loss(model(data[0]), data[1])
    torch.testing.assert_close(state.loss, expected.detach())
    torch.testing.assert_close(flat(state.gradients), flat(torch.autograd.grad(expected, parameters)))


@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 20), columns=st.lists(st.integers(0, 6), min_size=20, max_size=20)
)
def test_zeros_right_of_a_staircase_change_nothing_but_the_work(seed: int, rows: int, columns: list[int]) -> None:
    model, generator = network(nn.ReLU()), torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator).double()
    for row, width in zip(inputs, columns, strict=False):
        row[width:] = 0
    targets = torch.randint(3, (rows,), generator=generator)
    parameters = [model[1].weight, model[1].bias, model[4].weight]
    vector = cut(torch.randn(sum(p.numel() for p in parameters), generator=generator).double(), parameters)
    rule = mlp_rule(model, functional.cross_entropy, parameters)
    assert rule is not None
    whole = rule.state(inputs, targets)
    with mock.patch.object(mlp_module, "_STEP", 3):
        cut_up = rule.state(inputs, targets)
    by_rows, by_columns = (torch.zeros_like(inputs, dtype=torch.bool) for _ in range(2))
    for part, needed in cut_up.rows:
        by_rows[part, needed] = True
    for part, needed in cut_up.columns:
        by_columns[needed, part] = True
    for covered in (by_rows, by_columns):
        assert not inputs[~covered].any()
    if rows > 3 and max(columns[:rows]) <= 4:
        assert not by_rows.all()
    for hessian in (True, False):
        found = rule.product(cut_up, vector, hessian=hessian)
        torch.testing.assert_close(
            flat(found), flat(rule.product(whole, vector, hessian=hessian)), rtol=1e-12, atol=1e-14
        )


@given(seed=st.integers(0, 10**6))
def test_parameters_may_come_in_any_order(seed: int) -> None:
    model, data = network(nn.Tanh(), seed % 7), batch(seed % 11)
    forwards = [model[1].weight, model[4].weight, model[6].weight]
    vectors = [torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).double() for p in forwards]
    products = []
    for order in ([0, 1, 2], [2, 0, 1]):
        rule = mlp_rule(model, functional.cross_entropy, [forwards[k] for k in order])
        found = rule.product(rule.state(*data), [vectors[k] for k in order], hessian=True)
        products.append([found[order.index(k)] for k in range(3)])
    for one, other in zip(*products, strict=True):
        torch.testing.assert_close(one, other)


def test_one_state_serves_many_products() -> None:
    model, data = network(nn.GELU()), batch()
    parameters = list(model.parameters())
    rule = mlp_rule(model, functional.cross_entropy, parameters)
    state = rule.state(*data)
    vectors = [torch.randn_like(p) for p in parameters]
    first = rule.product(state, vectors, hessian=True)
    rule.product(state, [2 * v for v in vectors], hessian=False)
    for one, other in zip(first, rule.product(state, vectors, hessian=True), strict=True):
        assert torch.equal(one, other)


def test_sequences_of_vectors_are_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    inputs, targets = torch.randn(5, 7, 4).double(), torch.randn(5, 7, 2).double()
    parameters = [model[0].weight, model[2].weight]
    rule = mlp_rule(model, functional.mse_loss, parameters)
    vectors = [torch.randn_like(p) for p in parameters]
    grads = torch.autograd.grad(functional.mse_loss(model(inputs), targets), parameters, create_graph=True)
    expected = torch.autograd.grad(grads, parameters, vectors)
    for one, other in zip(rule.product(rule.state(inputs, targets), vectors, hessian=True), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_loss_that_is_linear_in_the_output_has_no_gauss_newton_part() -> None:
    model, (inputs, targets) = network(nn.ReLU()), batch()
    parameters = [model[1].weight, model[4].weight]
    rule = mlp_rule(model, lambda output, _: output.mean(), parameters)
    state = rule.state(inputs, targets)
    vectors = [torch.randn_like(p) for p in parameters]
    assert not flat(rule.product(state, vectors, hessian=False)).any()
    assert flat(rule.product(state, vectors, hessian=True)).any()


def test_memory_is_foretold() -> None:
    model, data = network(nn.Tanh()), batch()
    parameters = list(model.parameters())
    rule = mlp_rule(model, functional.cross_entropy, parameters)
    state = rule.state(*data)
    assert state.nbytes <= rule.row_bytes * 7 + sum(p.nbytes for p in parameters)


def hooked() -> nn.Module:
    model = network(nn.ReLU())
    model[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "model",
    [
        hooked(),
        tied(),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)),
        nn.Sequential(nn.Linear(3, 3), nn.Softmax(1), nn.Linear(3, 3)),
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 3), nn.Flatten(), nn.Linear(3, 3)),
        nn.Sequential(Doubled(3, 3), nn.Linear(3, 2)),
        nn.ModuleList([nn.Linear(3, 3)]),
        nn.Sequential(),
    ],
    ids=["hook", "tied", "last-activation", "norm", "softmax", "conv", "flatten-inside", "subclass", "list", "empty"],
)
def test_anything_else_is_not_a_plain_mlp(model: nn.Module) -> None:
    assert linear_chain(model) is None


def test_pruned_and_parametrised_layers_are_left_to_autograd() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.utils.prune.random_unstructured(model[0], "weight", 0.5)
    assert mlp_rule(model, functional.mse_loss, [model[0].weight_orig]) is None
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    assert mlp_rule(model, functional.mse_loss, list(model[0].parameters())) is None


def test_foreign_parameter_is_not_covered() -> None:
    model = network(nn.ReLU())
    assert mlp_rule(model, functional.cross_entropy, [nn.Parameter(torch.ones(3))]) is None


def test_loss_must_be_a_scalar() -> None:
    model, data = network(nn.ReLU()), batch()
    rule = mlp_rule(model, lambda o, t: functional.cross_entropy(o, t, reduction="none"), [model[1].weight])
    with pytest.raises(PruneLimitError, match="loss_fn"):
        rule.state(*data)
