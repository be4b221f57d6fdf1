"""Per-example gradients agree with autograd one by one, and the factored Fisher matrix with the dense one."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp, prunable_names
from prunelimit.pruning import fisher as module
from prunelimit.pruning.fisher import EmpiricalFisher, gradient_bytes, per_example_gradients

DAMPING = 1e-3


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.tanh(self.one(x.flatten(1))))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(3, 2, 2),
        nn.Flatten(),
        nn.Linear(2, 6),
    )


NETWORKS = {
    "mlp": (lambda: mlp([16, 5, 6]), (1, 4, 4)),
    "convolutions": (convolutions, (1, 4, 4)),
    "tied": (Tied, (1, 2, 3)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    build, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    model = build().double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return model, torch.randn(7, *shape, dtype=torch.float64), torch.randint(0, 6, (7,))


def one_by_one(model, inputs, targets, names):
    model.eval()
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        loss = functional.cross_entropy(model(x[None]), y[None])
        parts = torch.autograd.grad(loss, [dict(model.named_parameters())[name] for name in names])
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def test_rows_are_the_gradients_of_single_examples(case, monkeypatch):
    model, inputs, targets = case
    names = prunable_names(model)
    expected = one_by_one(model, inputs, targets, names)
    monkeypatch.setattr(module, "MOST_EXAMPLES", 3)  # pieces of unequal size
    model.train()
    found = per_example_gradients(model, inputs, targets, names)
    assert model.training
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    assert expected.norm() > 0.1


def test_columns_pick_entries(case):
    model, inputs, targets = case
    names = prunable_names(model)
    whole = per_example_gradients(model, inputs, targets, names)
    columns = torch.rand(whole.shape[1]) < 0.3
    torch.testing.assert_close(per_example_gradients(model, inputs, targets, names, columns), whole[:, columns])


def test_the_matrix_too_large_for_memory_is_refused_with_its_size(case, monkeypatch):
    model, inputs, targets = case
    names = prunable_names(model)
    width = per_example_gradients(model, inputs, targets, names).shape[1]
    monkeypatch.setattr(module, "MEMORY", gradient_bytes(7, width, 8) - 1)
    with pytest.raises(PruneLimitError, match=f"examples=7 gradients of {width}.*block"):
        per_example_gradients(model, inputs, targets, names)
    monkeypatch.setattr(module, "MEMORY", gradient_bytes(7, width, 8))
    per_example_gradients(model, inputs, targets, names)


def test_a_gradient_that_is_not_finite_is_refused(case):
    model, inputs, targets = case
    inputs[2] = torch.inf
    with pytest.raises(PruneLimitError, match="not finite"):
        per_example_gradients(model, inputs, targets, prunable_names(model))


@pytest.fixture(params=[(30, 9), (9, 9), (6, 20), (1, 5)], ids=["tall", "square", "wide", "one"])
def problem(request, monkeypatch):
    """Gradients, weights and the dense F, built without the library; wide and tall take different factors."""
    examples, weights = request.param
    monkeypatch.setattr(module, "PIECE", 37)  # so that every product goes piece by piece
    generator = torch.Generator().manual_seed(examples)
    gradients = torch.randn(examples, weights, generator=generator, dtype=torch.float64)
    dense = DAMPING * torch.eye(weights, dtype=torch.float64) + gradients.T @ gradients / examples
    return EmpiricalFisher(gradients, DAMPING), torch.randn(weights, generator=generator, dtype=torch.float64), dense


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_the_inverse_is_the_dense_one(problem):
    fisher, weights, dense = problem
    inverse = torch.linalg.inv(dense)
    close(fisher.diagonal(), dense.diagonal())
    close(fisher.inverse_diagonal(), inverse.diagonal())
    close(fisher.inverse_product(weights), inverse @ weights)
    close(fisher.backward(fisher.forward(weights)) + DAMPING * weights, dense @ weights)


def test_the_inverse_is_that_of_the_published_recursion(problem):
    fisher, _, dense = problem
    inverse = torch.eye(len(dense), dtype=torch.float64) / DAMPING
    for g in fisher.gradients:
        u = inverse @ g
        inverse -= torch.outer(u, u) / (fisher.examples + g @ u)
    close(fisher.inverse_diagonal(), inverse.diagonal())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_refit_is_the_update_of_the_optimal_brain_surgeon(problem, share):
    fisher, weights, dense = problem
    removed = torch.arange(len(weights)) < share * len(weights)
    inverse = torch.linalg.inv(dense)
    basis = torch.eye(len(weights), dtype=torch.float64)[:, removed]
    inner = torch.linalg.solve(basis.T @ inverse @ basis, weights[removed])
    found = fisher.refit(weights, ~removed)
    close(found, weights - inverse @ basis @ inner)
    assert (found[removed] == 0).all()


@pytest.mark.parametrize("first_order", [0.0, 0.5])
def test_refit_is_the_minimum_of_the_quadratic_model(problem, first_order):
    fisher, weights, dense = problem
    kept = torch.arange(len(weights)) % 3 > 0
    mean = fisher.gradients.mean(0)
    found = fisher.refit(weights, kept, first_order)
    slope = first_order * mean + dense @ (found - weights)
    assert slope[kept].abs().max() < 1e-9
    step = found - weights
    expected = float(first_order * mean @ step + step @ dense @ step / 2)
    assert fisher.loss_rise(step, first_order) == pytest.approx(expected, rel=1e-9)


def test_a_stiff_weight_keeps_a_positive_inverse_in_single_precision():
    gradients = torch.zeros(3, 8)
    gradients[:, 0] = 1e6
    gradients[:, 1:] = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    fisher = EmpiricalFisher(gradients, 1e-5)
    assert (fisher.inverse_diagonal() >= 1 / fisher.diagonal()).all()


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_positive(damping):
    with pytest.raises(PruneLimitError, match="damping="):
        EmpiricalFisher(torch.ones(2, 2), damping)


def test_there_must_be_a_gradient():
    with pytest.raises(PruneLimitError, match="no row"):
        EmpiricalFisher(torch.ones(0, 2), 1.0)
