"""GGN eigenvalues: equal to those of a dense matrix made by another route, for networks of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional

from prunelimit.curvature import ggn
from prunelimit.curvature.ggn import GGNSpectrum, ggn_eigenvalues
from prunelimit.errors import PruneLimitError
from prunelimit.models import mlp

Loss = Callable[[Tensor, Tensor], Tensor]
Data = tuple[Tensor, Tensor]

#: Eigenvalues are right to this part of the largest.
TOLERANCE = 1e-12


def dense_ggn(model: nn.Module, loss_fn: Loss, data: Data, names: list[str]) -> Tensor:
    """Form J' H J from the whole Jacobian and the whole Hessian of the mean loss in all outputs of all examples."""
    model = copy.deepcopy(model).double().eval()
    inputs, targets = (part.double() if part.is_floating_point() else part for part in data)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    outputs = functional_call(model, parameters, (inputs,))
    chosen = {name: parameters[name] for name in names}
    parts = jacrev(lambda replaced: functional_call(model, {**parameters, **replaced}, (inputs,)).flatten())(chosen)
    jacobian = torch.cat([parts[name].flatten(1) for name in names], 1)
    middle = hessian(lambda flat: loss_fn(flat.reshape(outputs.shape), targets))(outputs.detach().flatten())
    return jacobian.T @ middle @ jacobian


def batch_norm_network() -> nn.Module:
    """Convolutions, batch norm with used statistics, a group norm and a linear layer on top."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    for _ in range(3):
        model(2 * torch.randn(16, 2, 7, 7) + 1)
    return model


class TiedByFunction(nn.Module):
    """An autoencoder whose decoder is the encoder's weight, used without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(functional.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T)))


class TiedModules(nn.Module):
    """Two linear modules with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Twice(nn.Module):
    """One linear module called twice, and a layer that is not used at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(torch.tanh(self.body(x)))))


class InPlace(nn.Module):
    """Operations that overwrite the outputs of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y.relu_()
        z = self.two(y)
        z.add_(y)
        return self.three(z.tanh_())


def sequence_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Flatten(), nn.Linear(12, 3))


def vectors(n: int = 12) -> Tensor:
    return torch.randn(n, 5)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: mlp([5, 7, 6, 3]), vectors),
    "mlp of a single layer": (lambda: nn.Linear(5, 3), vectors),
    "more rows than weights": (lambda: nn.Linear(2, 3, bias=False), lambda: torch.randn(12, 2)),
    "convolutions and batch norm": (batch_norm_network, lambda: torch.randn(12, 2, 7, 7)),
    "tied by a function": (TiedByFunction, vectors),
    "tied modules": (TiedModules, vectors),
    "module called twice": (Twice, vectors),
    "in place": (InPlace, vectors),
    "sequences": (sequence_network, lambda: torch.randn(12, 3, 3)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)),
        lambda: torch.randint(0, 6, (12, 2)),
    ),
}


def smoothed(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, label_smoothing=0.1)


def softmax_mse(output: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(output.softmax(1), functional.one_hot(targets, output.shape[1]).to(output))


def squares(output: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(output, functional.one_hot(targets, output.shape[1]).to(output))


LOSSES: dict[str, Loss] = {"cross entropy": functional.cross_entropy, "smoothed": smoothed, "squares": squares}


def eigenvalues_of(matrix: Tensor, count: int) -> np.ndarray:
    return torch.linalg.eigvalsh(matrix).numpy()[len(matrix) - count :]


def make(case: str) -> tuple[nn.Module, Data]:
    torch.manual_seed(1)
    build, draw = CASES[case]
    model, inputs = build(), draw()
    return model, (inputs, torch.arange(len(inputs)) % 3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", ["weights", "everything"])
def test_equals_the_dense_matrix(case: str, loss: str, which: str) -> None:
    model, data = make(case)
    names = [n for n, _ in model.named_parameters()] if which == "everything" else None
    found = ggn_eigenvalues(model, LOSSES[loss], data, prunable=names)
    chosen = names or list(ggn.prunable_parameters(model))
    dense = dense_ggn(model, LOSSES[loss], data, chosen)
    exact = torch.linalg.eigvalsh(dense).numpy()
    assert found.dimension == len(exact)
    assert found.nullity == found.dimension - len(found.eigenvalues)
    assert len(found.eigenvalues) <= found.examples * 3
    padded = np.concatenate([np.zeros(found.nullity), found.eigenvalues])
    np.testing.assert_allclose(padded, exact, rtol=0, atol=TOLERANCE * exact.max())
    mu = np.logspace(-6, 1, 8).reshape(2, 4) * exact.max()
    dimension = [np.trace(np.linalg.solve(dense + m * np.eye(len(exact)), dense)) for m in mu.reshape(-1)]
    np.testing.assert_allclose(found.effective_dimension(mu).reshape(-1), dimension, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("mlp", {"1.weight", "3.weight", "5.weight"}),
        ("tied by a function", {"head.weight"}),
        ("tied modules", {"head.weight"}),
        ("module called twice", {"head.weight"}),
        ("in place", {"one.weight", "two.weight", "three.weight"}),
        ("sequences", {"4.weight"}),
        ("convolutions and batch norm", {"8.weight"}),
    ],
)
def test_kronecker_rule_is_used_where_it_holds_and_only_there(
    case: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    plain = ggn._Gram._add_linear
    monkeypatch.setattr(ggn._Gram, "_add_linear", lambda self, layers: (seen.update(layers), plain(self, layers))[1])
    model, data = make(case)
    ggn_eigenvalues(model, functional.cross_entropy, data)
    assert seen == expected


@pytest.mark.parametrize("case", ["mlp", "convolutions and batch norm", "tied modules"])
def test_small_blocks_change_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make(case)
    whole = ggn_eigenvalues(model, functional.cross_entropy, data)
    monkeypatch.setattr(ggn, "BLOCK_BYTES", 1000)
    cut = ggn_eigenvalues(model, functional.cross_entropy, data)
    np.testing.assert_allclose(cut.eigenvalues, whole.eigenvalues, atol=TOLERANCE * whole.eigenvalues.max())


@pytest.mark.parametrize("case", ["mlp", "convolutions and batch norm"])
def test_batches_count_by_their_size(case: str) -> None:
    model, (inputs, targets) = make(case)
    whole = ggn_eigenvalues(model, functional.cross_entropy, (inputs, targets))
    batches = list(zip(inputs.split(5), targets.split(5), strict=True))
    assert len(batches[-1][0]) == 2
    cut = ggn_eigenvalues(model, functional.cross_entropy, batches)
    np.testing.assert_allclose(cut.eigenvalues, whole.eigenvalues, atol=TOLERANCE * whole.eigenvalues.max())


def test_cross_entropy_loses_one_row_per_example() -> None:
    model, data = make("mlp")
    found = ggn_eigenvalues(model, functional.cross_entropy, data)
    assert len(found.eigenvalues) == 12 * 2
    assert len(ggn_eigenvalues(model, squares, data).eigenvalues) == 12 * 3


def test_trained_digits_network_equals_products_with_the_dense_matrix(
    digits_model: nn.Module, digits_data: Data
) -> None:
    data = digits_data[0][:40], digits_data[1][:40]
    found = ggn_eigenvalues(digits_model, functional.cross_entropy, data)
    exact = torch.linalg.eigvalsh(
        dense_ggn(digits_model, functional.cross_entropy, data, list(ggn.prunable_parameters(digits_model)))
    ).numpy()
    np.testing.assert_allclose(
        found.eigenvalues[-360:], exact[-len(found.eigenvalues) :][-360:], atol=1e-12 * exact[-1]
    )
    assert len(found.eigenvalues) <= 360
    # Confident examples make eigenvalues down to 1e-10 of the largest, which are right too.
    mu = 1e-6 * exact[-1]
    assert float(found.effective_dimension(mu)) == pytest.approx(np.sum(exact / (exact + mu)), rel=1e-6)


def test_scores_of_a_sequence_are_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    inputs, targets = torch.randn(4, 5, 3), torch.randn(4, 5, 2)
    found = ggn_eigenvalues(model, functional.mse_loss, (inputs, targets))
    dense = dense_ggn(model, functional.mse_loss, (inputs, targets), ["weight"])
    np.testing.assert_allclose(found.eigenvalues, eigenvalues_of(dense, 6), rtol=1e-10)


def test_linear_loss_has_no_curvature() -> None:
    model, data = make("mlp")
    found = ggn_eigenvalues(model, lambda output, targets: output.mean(), data)
    assert (len(found.eigenvalues), found.nullity) == (0, found.dimension)
    assert float(found.effective_dimension(1.0)) == 0


def test_model_is_left_as_it_was() -> None:
    model, data = make("convolutions and batch norm")
    model.train()
    model[0].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    with torch.no_grad():
        ggn_eigenvalues(model, functional.cross_entropy, data)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [False] + [True] * 8
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_states_the_size(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = make("mlp")
    ggn_eigenvalues(model, functional.cross_entropy, data, progress=True)
    assert "24 x 24" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_effective_dimension_has_the_shape_of_mu(shape: tuple[int, ...]) -> None:
    found = GGNSpectrum(np.array([1.0, 3.0]), 5, 2)
    values = found.effective_dimension(np.full(shape, 1.0))
    assert values.shape == shape
    np.testing.assert_allclose(values, 1.25)


@pytest.mark.parametrize("mu", [0.0, -1.0, [1.0, np.nan]])
def test_bad_mu_is_refused(mu: float) -> None:
    with pytest.raises(PruneLimitError, match="mu="):
        GGNSpectrum(np.array([1.0]), 2, 1).effective_dimension(mu)


def test_too_many_rows_are_refused_with_the_number_that_would_do() -> None:
    data = torch.zeros(4001, 5), torch.zeros(4001, dtype=torch.long)
    with pytest.raises(PruneLimitError, match=r"data has 4001 examples.*at most 4000 examples"):
        ggn_eigenvalues(mlp([5, 3]), functional.cross_entropy, data)


def coupled(output: Tensor, targets: Tensor) -> Tensor:
    return output.mean(0).square().sum()


def tensor_loss(output: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(output, targets, reduction="none")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (softmax_mse, "loss_fn is not convex"),
        (coupled, "loss_fn couples"),
        (tensor_loss, "loss_fn returned shape"),
        (lambda output, targets: output.sum() * torch.nan, "loss_fn returned nan"),
    ],
)
def test_bad_losses_are_refused(loss: Loss, words: str) -> None:
    model, data = make("mlp")
    with torch.no_grad():
        model[-1].weight *= 20
    with pytest.raises(PruneLimitError, match=words):
        ggn_eigenvalues(model, loss, data)


class Wrong(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Conv1d(1, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x[:, None]).squeeze(2)
        if self.kind == "batch statistics":
            return y - y.mean(0)
        if self.kind == "branch":
            return y if float(y.sum()) > 0 else 2 * y
        return y.sum(0) if self.kind == "sum" else y + torch.randn(3)


@pytest.mark.parametrize("kind", ["branch", "sum", "random", "batch statistics"])
def test_bad_models_are_refused(kind: str) -> None:
    _, data = make("mlp")
    with pytest.raises(PruneLimitError, match="model"):
        ggn_eigenvalues(Wrong(kind), functional.cross_entropy, data)


def test_bad_data_and_names_are_refused() -> None:
    model, (inputs, targets) = make("mlp")
    with pytest.raises(PruneLimitError, match="data has inputs of type dict"):
        ggn_eigenvalues(model, functional.cross_entropy, [({"x": inputs}, targets)])
    with pytest.raises(PruneLimitError, match="data is empty"):
        ggn_eigenvalues(model, functional.cross_entropy, [])
    with pytest.raises(PruneLimitError, match="prunable='head'"):
        ggn_eigenvalues(model, functional.cross_entropy, (inputs, targets), prunable=["head"])
