"""GGNOperator: every kind of network and rule against a dense Gauss-Newton matrix; HessianOperator on attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunelimit.curvature.operator import CurvatureOperator, GGNOperator, HessianOperator
from prunelimit.errors import PruneLimitError

Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def plain_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


def dense_truth(model: nn.Module, loss_fn: Loss, data: tuple[Tensor, Tensor], names: list[str]) -> tuple[Tensor, ...]:
    """Form Hessian and Gauss-Newton matrix in float64 by torch.func, with no code of the library."""
    model = copy.deepcopy(model).double().eval()
    inputs, targets = (part.double() if part.is_floating_point() else part for part in data)
    named = dict(model.named_parameters())
    chosen = {name: named[name].detach() for name in names}
    sizes = [p.numel() for p in chosen.values()]

    def output(weights: Tensor) -> Tensor:
        parts = weights.split(sizes)
        moved = {name: part.reshape(p.shape) for (name, p), part in zip(chosen.items(), parts, strict=True)}
        return functional_call(model, moved, (inputs,))

    weights = torch.cat([p.reshape(-1) for p in chosen.values()])
    with plain_attention():
        z = output(weights).detach()
        jacobian = jacrev(output)(weights).reshape(z.numel(), -1)
        curved = hessian(lambda flat: loss_fn(flat.reshape(z.shape), targets))(z.reshape(-1))
        whole = jacrev(jacrev(lambda w: loss_fn(output(w), targets)))(weights)
    return whole, jacobian.T @ curved @ jacobian


class Tied(nn.Module):
    """Two layers that share one weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Attention(nn.Module):
    """Self-attention over three tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Transformer(nn.Module):
    """A whole encoder layer, which has a fused path for evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    """An LSTM, whose fused kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0][:, -1])


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))


def conv() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3)
    )
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model


def frozen() -> nn.Module:
    model = plain()
    model[0].weight.requires_grad_(False)
    return model


#: A network, the shape of one input, and the parameters, where the default leaves attention out.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str] | None]] = {
    "plain": (plain, (4,), None),
    "conv": (conv, (1, 4, 4), None),
    "tied": (Tied, (4,), None),
    "frozen": (frozen, (4,), None),
    "biases": (plain, (4,), ["0.bias", "3.weight"]),
    "attention": (Attention, (3, 4), ["attention.in_proj_weight", "attention.out_proj.weight", "last.weight"]),
    "transformer": (Transformer, (3, 4), ["layer.self_attn.in_proj_weight", "layer.linear1.weight", "last.weight"]),
    "recurrent": (Recurrent, (3, 4), ["layer.weight_ih_l0", "layer.weight_hh_l0", "last.weight"]),
}


def case(name: str, loss: str = "cross_entropy") -> tuple[nn.Module, Loss, tuple[Tensor, Tensor], list[str] | None]:
    torch.manual_seed(0)
    build, shape, prunable = NETWORKS[name]
    inputs = torch.randn(11, *shape)
    targets = torch.arange(11) % 3 if loss == "cross_entropy" else torch.randn(11, 3)
    return build(), getattr(functional, loss), (inputs, targets), prunable


def short_batches(data: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split([4, 4, 3]), data[1].split([4, 4, 3]), strict=True))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse_loss"])
@pytest.mark.parametrize("rule", ["auto", "retained", "fresh"])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_matrices_match_dense_truth(name: str, rule: str, loss: str) -> None:
    model, loss_fn, data, prunable = case(name, loss)
    for operator_type, place in ((HessianOperator, 0), (GGNOperator, 1)):
        operator = operator_type(model, loss_fn, short_batches(data), prunable=prunable, rule=rule)
        truth = dense_truth(model, loss_fn, data, operator.names)[place]
        torch.testing.assert_close(operator.dense(), truth, rtol=1e-4, atol=2e-6)
        assert rule in {operator.rule, "auto"}


@pytest.mark.parametrize("name", ["plain", "conv", "attention"])
@pytest.mark.parametrize("operator_type", [HessianOperator, GGNOperator])
def test_float64_products_of_a_float32_network(operator_type: type[CurvatureOperator], name: str) -> None:
    model, loss_fn, data, prunable = case(name)
    operator = operator_type(model, loss_fn, data, prunable=prunable, dtype=torch.float64)
    truth = dense_truth(model, loss_fn, data, operator.names)[operator_type is GGNOperator]
    torch.testing.assert_close(operator.dense(), truth, rtol=1e-10, atol=1e-12)
    assert operator.dtype == (operator @ torch.zeros(operator.dimension)).dtype == torch.float64
    assert operator.gradient.dtype == torch.float64
    assert all(p.dtype == torch.float32 for p in (*model.parameters(), *operator.parameters))


@pytest.mark.parametrize("name", ["plain", "conv", "attention"])
@pytest.mark.parametrize("operator_type", [HessianOperator, GGNOperator])
def test_bfloat16_products_are_close(operator_type: type[CurvatureOperator], name: str) -> None:
    model, loss_fn, data, prunable = case(name)
    exact = operator_type(model, loss_fn, data, prunable=prunable)
    for rule in ("retained", "fresh"):
        rough = operator_type(model, loss_fn, data, prunable=prunable, dtype=torch.bfloat16, rule=rule)
        vector = torch.randn(exact.dimension, generator=torch.Generator().manual_seed(1))
        found, expected = rough @ vector, exact @ vector
        assert found.dtype == torch.float32
        assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_converted_copy_follows_the_weights() -> None:
    model, loss_fn, data, _ = case("plain")
    operator = HessianOperator(model, loss_fn, data, dtype=torch.float64)
    before = operator @ torch.ones(35)
    with torch.no_grad():
        model[0].weight.mul_(2)
    found = operator @ torch.ones(35)
    assert not torch.equal(found, before)
    assert torch.equal(found, HessianOperator(model, loss_fn, data, dtype=torch.float64) @ torch.ones(35))


def test_loss_module_with_class_weights_is_converted_too() -> None:
    model, _, data, _ = case("plain")
    loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    operator = GGNOperator(model, loss_fn, data, dtype=torch.float64)
    expected = dense_truth(model, copy.deepcopy(loss_fn).double(), data, operator.names)[1]
    torch.testing.assert_close(operator.dense(), expected)
    assert loss_fn.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    model, loss_fn, data, _ = case("plain")
    with pytest.raises(PruneLimitError, match=r"^dtype=torch\.(float16|int64)"):
        HessianOperator(model, loss_fn, data, dtype=dtype)


def test_analytic_rule_is_refused_by_name_where_it_does_not_apply() -> None:
    model, loss_fn, data, _ = case("conv")
    with pytest.raises(PruneLimitError, match=r"^rule='mlp'"):
        HessianOperator(model, loss_fn, data, rule="mlp")


def test_plain_mlp_takes_the_analytic_rule() -> None:
    model, loss_fn, data, _ = case("plain")
    assert HessianOperator(model, loss_fn, data).rule == GGNOperator(model, loss_fn, data).rule == "mlp"


def test_rule_is_known_after_the_first_product() -> None:
    operator = GGNOperator(*case("conv")[:3])
    assert operator.rule is None
    _ = operator @ torch.zeros(operator.dimension)
    assert operator.rule == "retained"


@pytest.mark.parametrize("rule", ["auto", "retained", "fresh"])
def test_gradient_and_loss_of_both_operators_agree(rule: str) -> None:
    model, loss_fn, data, _ = case("conv")
    one, other = (kind(model, loss_fn, data, rule=rule) for kind in (HessianOperator, GGNOperator))
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    torch.testing.assert_close(one.gradient, other.gradient)


@pytest.mark.parametrize("rule", ["auto", "retained", "fresh"])
def test_loss_linear_in_the_output_has_no_gauss_newton_matrix(rule: str) -> None:
    model, _, data, _ = case("conv")
    operator = GGNOperator(model, lambda output, targets: output.mean(), data, rule=rule)
    assert not (operator @ torch.ones(operator.dimension)).any()


class Cube(torch.autograd.Function):
    """A cube without forward mode and without a second derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * upstream


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Cube.apply(self.layer(x))


@pytest.mark.parametrize("rule", ["auto", "retained", "fresh"])
@pytest.mark.parametrize("operator_type", [HessianOperator, GGNOperator])
def test_python_function_without_a_second_derivative_is_named(
    operator_type: type[CurvatureOperator], rule: str
) -> None:
    _, loss_fn, data, _ = case("plain")
    operator = operator_type(Custom(), loss_fn, data, rule=rule)
    with pytest.raises(PruneLimitError, match=r"differentiated twice \(Cube\)"):
        operator @ torch.ones(12)


class ForwardCube(Cube):
    """The same with forward mode, which is all that the Gauss-Newton matrix asks for."""

    @staticmethod
    def jvp(ctx: torch.autograd.function.FunctionCtx, change: Tensor) -> Tensor:
        return 3 * ctx.point**2 * change

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.point = x
        return Cube.forward(ctx, x)


@pytest.mark.parametrize("rule", ["auto", "fresh"])
def test_first_derivatives_suffice_for_the_gauss_newton_matrix(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    _, loss_fn, data, _ = case("plain")
    model, apply = Custom(), ForwardCube.apply
    monkeypatch.setattr(Cube, "apply", lambda x: x**3)
    truth = dense_truth(model, loss_fn, data, ["layer.weight"])[1]
    monkeypatch.setattr(Cube, "apply", apply)
    operator = GGNOperator(model, loss_fn, data, rule=rule)
    torch.testing.assert_close(operator.dense(), truth, rtol=1e-4, atol=1e-6)
    assert operator.rule == "fresh"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def test_output_that_is_no_tensor_is_refused() -> None:
    _, _, data, _ = case("plain")
    operator = GGNOperator(Pair(), lambda output, targets: output[0].square().mean(), data)
    with pytest.raises(PruneLimitError, match=r"^model returned tuple"):
        operator @ torch.ones(12)


def test_fused_attention_setting_is_restored() -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    operator = GGNOperator(*case("transformer")[:3])
    _ = operator @ torch.ones(operator.dimension)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == before


SYMMETRIC = {
    (kind, name): kind(*case(name)[:3]) for kind in (HessianOperator, GGNOperator) for name in ("plain", "conv")
}


@pytest.mark.parametrize("which", SYMMETRIC, ids=lambda which: f"{which[0].__name__}-{which[1]}")
@given(seed=st.integers(0, 10**6), scale=st.floats(-10, 10))
def test_products_are_symmetric_and_linear(which: tuple[type[CurvatureOperator], str], seed: int, scale: float) -> None:
    operator = SYMMETRIC[which]
    u, v = torch.randn(2, operator.dimension, generator=torch.Generator().manual_seed(seed))
    hu, hv = operator @ u, operator @ v
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(operator @ (u + scale * v), hu + scale * hv, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "conv"])
@given(seed=st.integers(0, 10**6))
def test_gauss_newton_matrix_has_no_negative_curvature(name: str, seed: int) -> None:
    operator = SYMMETRIC[GGNOperator, name]
    v = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(seed))
    assert float(v @ (operator @ v)) >= -1e-6
