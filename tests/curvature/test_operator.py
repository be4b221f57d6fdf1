"""HessianOperator on tiny networks: every way to use it against torch.func.hessian."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunelimit.curvature import HessianOperator
from prunelimit.errors import PruneLimitError


class Tied(nn.Module):
    """Two layers that share one weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Square(torch.autograd.Function):
    """A square whose backward pass refuses a second derivative."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * upstream


class Attention(nn.Module):
    """Attention that insists on the fused kernel, whose backward pass has no derivative of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.layer(x).reshape(1, 1, -1, 4)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return functional.scaled_dot_product_attention(heads, heads, heads)[0, 0]


class Distances(nn.Module):
    """Distances to fixed points, whose backward pass has no derivative either."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.layer(x), torch.eye(3))


class OnceOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(self.layer(x))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def conv() -> nn.Module:
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)]
    model = nn.Sequential(*layers)
    model[1].running_mean.uniform_(-1, 1)
    model[1].running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(17, 4), torch.arange(17) % 3


@pytest.fixture
def image_data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(9, 1, 4, 4), torch.arange(9) % 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def cut(data: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(list(sizes)), data[1].split(list(sizes)), strict=True))


def test_short_last_batch_counts_by_its_size(
    data: tuple[Tensor, Tensor], reference_hessian: Callable[..., Tensor]
) -> None:
    model = plain()
    dense = HessianOperator(model, functional.cross_entropy, cut(data, 7, 7, 3)).dense()
    torch.testing.assert_close(dense, reference_hessian(model, functional.cross_entropy, data), rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_weight_batches_by_size(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    whole = HessianOperator(model, functional.cross_entropy, data)
    parts = HessianOperator(model, functional.cross_entropy, cut(data, 12, 5))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    torch.testing.assert_close(parts.gradient, whole.gradient)


def test_pair_of_tensors_is_cut_by_batch_size(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(plain(), functional.cross_entropy, data, batch_size=5)
    assert [len(targets) for _, targets in operator.batches] == [5, 5, 5, 2]
    assert operator.examples == 17


def test_convolution_and_batch_norm_in_evaluation_mode(
    image_data: tuple[Tensor, Tensor], reference_hessian: Callable[..., Tensor]
) -> None:
    model = conv()
    dense = HessianOperator(model, functional.cross_entropy, cut(image_data, 5, 4)).dense()
    assert dense.shape == (18 + 96, 18 + 96)
    torch.testing.assert_close(
        dense, reference_hessian(model, functional.cross_entropy, image_data), rtol=1e-4, atol=1e-6
    )


def test_batch_norm_statistics_are_not_moved(image_data: tuple[Tensor, Tensor]) -> None:
    model = conv().train()
    before = copy.deepcopy(model.state_dict())
    HessianOperator(model, functional.cross_entropy, image_data).dense()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_shared_weight_is_differentiated_once_through_both_uses(
    data: tuple[Tensor, Tensor], reference_hessian: Callable[..., Tensor]
) -> None:
    model = Tied()
    operator = HessianOperator(model, functional.cross_entropy, data)
    assert operator.names == ["first.weight", "last.weight"]
    expected = reference_hessian(model, functional.cross_entropy, data, operator.names)
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-4, atol=1e-6)


def test_frozen_weight_is_left_out(data: tuple[Tensor, Tensor], reference_hessian: Callable[..., Tensor]) -> None:
    model = plain()
    model[0].weight.requires_grad_(False)
    operator = HessianOperator(model, functional.cross_entropy, data)
    assert operator.names == ["2.weight"]
    expected = reference_hessian(model, functional.cross_entropy, data, ["2.weight"])
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-4, atol=1e-6)


def test_biases_can_be_chosen(data: tuple[Tensor, Tensor], reference_hessian: Callable[..., Tensor]) -> None:
    model = plain()
    operator = HessianOperator(model, functional.cross_entropy, data, prunable=["0.bias", "2.weight"])
    expected = reference_hessian(model, functional.cross_entropy, data, ["0.bias", "2.weight"])
    torch.testing.assert_close(operator.dense(), expected, rtol=1e-4, atol=1e-6)


def test_weight_that_the_loss_does_not_reach_has_zero_rows(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    model.add_module("unused", nn.Identity())
    model.unused.spare = nn.Linear(2, 2)
    dense = HessianOperator(model, functional.cross_entropy, data).dense()
    assert dense.shape == (39, 39)
    assert not dense[35:].any()
    assert dense[:35].any()


def test_loss_linear_in_the_weights_has_zero_hessian(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(nn.Linear(4, 1), lambda output, targets: output.mean(), data)
    assert torch.equal(operator @ torch.ones(4), torch.zeros(4))


@pytest.mark.parametrize("sizes", [(17,), (7, 7, 3)])
def test_retained_and_fresh_graphs_agree(data: tuple[Tensor, Tensor], sizes: tuple[int, ...]) -> None:
    model, block = plain(), torch.randn(35, 4)
    products = [
        HessianOperator(model, functional.cross_entropy, cut(data, *sizes), rule=rule) @ block
        for rule in ("retained", "fresh", "auto")
    ]
    torch.testing.assert_close(products[0], products[1])
    torch.testing.assert_close(products[0], products[2])


@pytest.mark.parametrize("rule", ["retained", "fresh"])
def test_second_product_equals_the_first(data: tuple[Tensor, Tensor], rule: str) -> None:
    operator = HessianOperator(plain(), functional.cross_entropy, cut(data, 9, 8), rule=rule)
    vector = torch.randn(35)
    assert torch.equal(operator @ vector, operator @ vector)


def test_auto_builds_graphs_anew_when_memory_is_short(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, vector = plain(), torch.randn(35)
    expected = HessianOperator(model, functional.cross_entropy, data) @ vector
    monkeypatch.setattr("prunelimit.curvature.operator.free_memory", lambda device: 0)
    operator = HessianOperator(model, functional.cross_entropy, data, rule="auto")
    torch.testing.assert_close(operator @ vector, expected)
    assert operator._kept is None


@pytest.mark.parametrize("rule", ["retained", "fresh"])
def test_block_of_vectors_equals_its_columns(data: tuple[Tensor, Tensor], rule: str) -> None:
    operator = HessianOperator(plain(), functional.cross_entropy, cut(data, 9, 8), rule=rule)
    block = torch.randn(35, 3)
    columns = torch.stack([operator @ column for column in block.T], 1)
    torch.testing.assert_close(operator @ block, columns)


def test_products_are_counted_per_vector(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(plain(), functional.cross_entropy, data)
    _ = operator @ torch.zeros(35), operator @ torch.zeros(35, 4)
    assert operator.products == 5


def test_products_have_the_type_of_the_weights(data: tuple[Tensor, Tensor]) -> None:
    model = plain().double()
    operator = HessianOperator(model, functional.cross_entropy, (data[0].double(), data[1]))
    assert operator.dtype == torch.float64
    assert (operator @ torch.ones(35)).dtype == torch.float64


def test_works_where_gradients_are_switched_off(data: tuple[Tensor, Tensor]) -> None:
    model, vector = plain(), torch.ones(35)
    expected = HessianOperator(model, functional.cross_entropy, data) @ vector
    with torch.no_grad():
        found = HessianOperator(model, functional.cross_entropy, data) @ vector
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected)


def test_mode_of_every_module_is_restored(image_data: tuple[Tensor, Tensor]) -> None:
    model = conv().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    _ = HessianOperator(model, functional.cross_entropy, image_data) @ torch.ones(114)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("rule", ["retained", "fresh"])
def test_model_is_restored_when_the_loss_raises(data: tuple[Tensor, Tensor], rule: str) -> None:
    model = plain().train()
    before = copy.deepcopy(model.state_dict())
    calls = []

    def failing(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return functional.cross_entropy(output, targets)

    operator = HessianOperator(model, failing, cut(data, 9, 8), rule=rule)
    with pytest.raises(RuntimeError, match="out of memory"):
        operator @ torch.ones(35)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_operator_recovers_after_a_failure(data: tuple[Tensor, Tensor]) -> None:
    model, vector, broken = plain(), torch.ones(35), [True]

    def sometimes(output: Tensor, targets: Tensor) -> Tensor:
        if broken and len(targets) == 8:
            broken.clear()
            raise RuntimeError("out of memory")
        return functional.cross_entropy(output, targets)

    operator = HessianOperator(model, sometimes, cut(data, 9, 8))
    with pytest.raises(RuntimeError):
        operator @ vector
    torch.testing.assert_close(operator @ vector, HessianOperator(model, functional.cross_entropy, data) @ vector)


def test_gradients_that_the_user_accumulated_stay(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    functional.cross_entropy(model(data[0]), data[1]).backward()
    before = [p.grad.clone() for p in model.parameters()]
    _ = HessianOperator(model, functional.cross_entropy, data) @ torch.ones(35)
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


def test_no_gradient_is_left_behind(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    _ = HessianOperator(model, functional.cross_entropy, data) @ torch.ones(35)
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off(data: tuple[Tensor, Tensor]) -> None:
    layers = plain()
    noisy = nn.Sequential(layers[0], layers[1], nn.Dropout(0.9), layers[2]).train()
    quiet = HessianOperator(layers, functional.cross_entropy, data) @ torch.ones(35)
    torch.testing.assert_close(HessianOperator(noisy, functional.cross_entropy, data) @ torch.ones(35), quiet)


def test_operation_without_a_second_derivative_is_explained(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(Attention(), functional.cross_entropy, data)
    with pytest.raises(PruneLimitError, match=r"cannot be differentiated twice \(.*scaled_dot_product"):
        operator @ torch.ones(16)


@pytest.mark.parametrize("rule", ["retained", "fresh", "auto"])
def test_operation_that_torch_refuses_is_named(data: tuple[Tensor, Tensor], rule: str) -> None:
    operator = HessianOperator(Distances(), functional.cross_entropy, data, rule=rule)
    with pytest.raises(PruneLimitError, match=r"cannot be differentiated twice \(.*_cdist_backward"):
        operator @ torch.ones(12)


def test_function_marked_once_differentiable_is_explained(data: tuple[Tensor, Tensor]) -> None:
    # Once wrong: autograd.grad never reaches the node that would raise, so the product silently lacks a term.
    operator = HessianOperator(OnceOnly(), functional.cross_entropy, data)
    with pytest.raises(PruneLimitError, match=r"cannot be differentiated twice \(Square\)"):
        operator @ torch.ones(12)


@pytest.mark.parametrize("shape", [(34,), (36, 2), (35, 1, 1), ()])
def test_vector_of_another_length_is_refused(data: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> None:
    operator = HessianOperator(plain(), functional.cross_entropy, data)
    with pytest.raises((PruneLimitError), match="vectors has shape"):
        operator @ torch.zeros(shape)


def test_vector_with_nan_is_refused(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(plain(), functional.cross_entropy, data)
    with pytest.raises(PruneLimitError, match="NaN"):
        operator @ torch.full((35,), torch.nan)


def test_dense_of_a_large_network_is_refused() -> None:
    model = nn.Linear(200, 101)
    operator = HessianOperator(model, functional.mse_loss, (torch.zeros(1, 200), torch.zeros(1, 101)))
    with pytest.raises(PruneLimitError, match="20200"):
        operator.dense()


def test_weights_changed_between_products_are_noticed(data: tuple[Tensor, Tensor]) -> None:
    # Once wrong: the hooks that count bytes switch off autograd's version check, so a kept graph mixes old
    # activations with new weights and the product is silently that of neither network.
    model = plain()
    operator = HessianOperator(model, functional.cross_entropy, data, rule="retained")
    _ = operator @ torch.ones(35)
    with torch.no_grad():
        model[2].weight.mul_(2)
    expected = HessianOperator(model, functional.cross_entropy, data) @ torch.ones(35)
    torch.testing.assert_close(operator @ torch.ones(35), expected)


def test_loss_and_gradient_follow_changed_weights(data: tuple[Tensor, Tensor]) -> None:
    model = plain()
    operator = HessianOperator(model, functional.cross_entropy, data, rule="retained")
    before = operator.loss
    with torch.no_grad():
        model[2].weight.mul_(2)
    fresh = HessianOperator(model, functional.cross_entropy, data)
    assert operator.loss == fresh.loss != before
    torch.testing.assert_close(operator.gradient, fresh.gradient)


def test_works_in_inference_mode(data: tuple[Tensor, Tensor]) -> None:
    for model in (plain(), Tied()):
        expected = HessianOperator(model, functional.cross_entropy, data)
        with torch.inference_mode():
            operator = HessianOperator(model, functional.cross_entropy, data)
            found = operator @ torch.ones(operator.dimension)
        torch.testing.assert_close(found, expected @ torch.ones(operator.dimension))


def test_data_parallel_and_compiled_wrappers_are_looked_behind(data: tuple[Tensor, Tensor]) -> None:
    # Neither can be differentiated twice itself; compiling is lazy, and never happens here.
    model = Tied()
    expected = HessianOperator(model, functional.cross_entropy, data) @ torch.ones(28)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        for dtype in (None, torch.float64):
            operator = HessianOperator(wrapped, functional.cross_entropy, data, dtype=dtype)
            torch.testing.assert_close((operator @ torch.ones(28)).float(), expected)


def test_parameter_that_was_replaced_is_followed(data: tuple[Tensor, Tensor]) -> None:
    # Once wrong: the old tensor is no longer used by the network, and the product is silently zero.
    model = plain()
    operator = HessianOperator(model, functional.cross_entropy, data, rule="fresh")
    _ = operator @ torch.ones(35)
    model[2].weight = nn.Parameter(torch.randn(3, 5))
    expected = HessianOperator(model, functional.cross_entropy, data, rule="fresh") @ torch.ones(35)
    assert torch.equal(operator @ torch.ones(35), expected)
    assert operator.parameters[1] is model[2].weight


@pytest.mark.parametrize("rule", ["mlp", "retained", "fresh"])
def test_changed_buffers_are_noticed(data: tuple[Tensor, Tensor], rule: str) -> None:
    model = plain() if rule == "mlp" else nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    operator = HessianOperator(model, functional.cross_entropy, data, rule=rule)
    _ = operator @ torch.ones(35)
    with torch.no_grad():
        (model[0].bias if rule == "mlp" else model[1].running_var).add_(1)
    expected = HessianOperator(model, functional.cross_entropy, data, rule=rule) @ torch.ones(35)
    torch.testing.assert_close(operator @ torch.ones(35), expected)


@pytest.mark.parametrize("targets", [1, 3])
def test_inputs_may_be_nested(data: tuple[Tensor, Tensor], targets: int) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs: dict[str, list[Tensor]]) -> Tensor:
            return self.layer(inputs["x"][0])

    model = Named()
    expected = HessianOperator(model.layer, functional.cross_entropy, data).dense()
    batches = [({"x": [x]}, y) for x, y in zip(data[0].split(6 * targets), data[1].split(6 * targets), strict=True)]
    for dtype, rule in ((None, "auto"), (None, "fresh"), (torch.float64, "retained")):
        operator = HessianOperator(model, functional.cross_entropy, batches, dtype=dtype, rule=rule)
        torch.testing.assert_close(operator.dense(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", ["auto", "retained", "fresh"])
def test_gpu_agrees_with_cpu_and_takes_data_from_it(image_data: tuple[Tensor, Tensor], rule: str) -> None:
    model, vector = conv(), torch.randn(114)
    expected = HessianOperator(model, functional.cross_entropy, image_data) @ vector
    operator = HessianOperator(model.cuda(), functional.cross_entropy, image_data, rule=rule)
    found = operator @ vector
    assert found.device.type == operator.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-5)
