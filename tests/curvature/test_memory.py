"""Products when memory is short: rows per pass, halving, and nothing counted twice."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunelimit.curvature.memory import free_memory, is_out_of_memory
from prunelimit.curvature.operator import CurvatureOperator, GGNOperator, HessianOperator
from prunelimit.errors import PruneLimitError

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(40, 1, 4, 4), torch.arange(40) % 3


def tight(rows: int, error: Callable[[], Exception], seen: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss for which memory runs out above some number of rows."""

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(targets))
        if len(targets) > rows:
            raise error()
        return functional.cross_entropy(output, targets)

    return loss


@pytest.mark.parametrize(
    "error", [lambda: torch.OutOfMemoryError("CUDA out of memory"), lambda: RuntimeError(ALLOCATOR)]
)
@pytest.mark.parametrize("rule", ["auto", "retained", "fresh"])
@pytest.mark.parametrize("operator_type", [HessianOperator, GGNOperator])
def test_rows_are_halved_until_they_fit(
    data: tuple[Tensor, Tensor],
    operator_type: type[CurvatureOperator],
    rule: str,
    error: Callable[[], Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, block = conv(), torch.randn(114, 2)
    expected = operator_type(model, functional.cross_entropy, data)
    operator = operator_type(model, tight(16, error, []), data, rule=rule)
    with caplog.at_level(logging.WARNING, "prunelimit"):
        torch.testing.assert_close(operator @ block, expected @ block)
    assert [len(targets) for _, targets in operator.batches] == [10, 10, 10, 10]
    assert [record.message for record in caplog.records] == ["Out of memory: products go on with 10 rows per pass."]
    assert operator.products == 2
    torch.testing.assert_close(operator.gradient, expected.gradient)
    assert operator.loss == pytest.approx(expected.loss, rel=1e-6)


def test_memory_that_runs_out_in_the_middle_counts_nothing_twice(
    data: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    model, vector, calls = conv(), torch.randn(114), []

    def third_fails(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return functional.cross_entropy(output, targets)

    operator = HessianOperator(model, third_fails, data, batch_size=10, rule="retained")
    torch.testing.assert_close(operator @ vector, HessianOperator(model, functional.cross_entropy, data) @ vector)
    assert calls == [10] * 7
    assert operator.rule == "fresh"
    assert "nothing kept" in caplog.text


def test_batches_given_as_pairs_of_tensors_are_cut_as_well(data: tuple[Tensor, Tensor]) -> None:
    model, vector = conv(), torch.randn(114)
    batches = list(zip(data[0].split([23, 17]), data[1].split([23, 17]), strict=True))
    loss = tight(8, lambda: torch.OutOfMemoryError("CUDA out of memory"), [])
    found = HessianOperator(model, loss, batches, rule="fresh") @ vector
    torch.testing.assert_close(found, HessianOperator(model, functional.cross_entropy, data) @ vector)


def test_one_row_that_does_not_fit_is_explained(data: tuple[Tensor, Tensor]) -> None:
    model = conv().train()
    before = copy.deepcopy(model.state_dict())
    operator = HessianOperator(model, tight(0, lambda: torch.OutOfMemoryError("CUDA out of memory"), []), data)
    with pytest.raises(PruneLimitError, match=r"^data: .*does not fit into memory"):
        operator @ torch.ones(114)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert operator.products == 0


@pytest.mark.parametrize("operator_type", [HessianOperator, GGNOperator])
def test_analytic_rule_halves_its_rows(data: tuple[Tensor, Tensor], operator_type: type[CurvatureOperator]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    loss = tight(16, lambda: torch.OutOfMemoryError("CUDA out of memory"), [])
    operator = operator_type(model, loss, data)
    vector = torch.randn(operator.dimension)
    expected = operator_type(model, functional.cross_entropy, data, rule="fresh") @ vector
    torch.testing.assert_close(operator @ vector, expected)
    assert operator.rule == "mlp"


def test_rows_per_pass_follow_the_free_memory(data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for free in (2**40, 2**19, 2**16, 0):
        monkeypatch.setattr("prunelimit.curvature.operator.free_memory", lambda device, free=free: free)
        operator = HessianOperator(conv(), functional.cross_entropy, data)
        _ = operator @ torch.ones(114)
        sizes.append(len(operator.batches[0][1]))
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (40, 1)
    assert 1 < sizes[2] < 40


def test_measured_bytes_are_those_of_the_graph(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(conv(), functional.cross_entropy, data, rule="fresh")
    with operator._network.ready():
        _, slope = operator._measure()
    # What a row needs at the very least: the input, 32 activations before and after tanh, three logits.
    assert 4 * (16 + 64 + 3) <= slope <= 4 * 20 * (16 + 64 + 3)


def test_pieces_are_views_of_the_data(data: tuple[Tensor, Tensor]) -> None:
    operator = HessianOperator(conv(), functional.cross_entropy, data, batch_size=7)
    _ = operator @ torch.ones(114)
    assert all(
        inputs.untyped_storage().data_ptr() == data[0].untyped_storage().data_ptr() for inputs, _ in operator.batches
    )


@pytest.mark.parametrize("batch_size", [0, -3, 2.5])
def test_rows_per_pass_must_be_a_positive_integer(data: tuple[Tensor, Tensor], batch_size: float) -> None:
    with pytest.raises(PruneLimitError, match=r"^batch_size="):
        HessianOperator(conv(), functional.cross_entropy, data, batch_size=batch_size)  # type: ignore[arg-type]


def test_only_a_lack_of_memory_counts_as_one() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError(ALLOCATOR))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError(ALLOCATOR))


def test_free_memory_is_less_than_the_machine_has() -> None:
    free = free_memory(torch.device("cpu"))
    assert 2**20 < free < 2**50


def test_container_without_a_limit_leaves_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr("prunelimit.curvature.memory.CONTROL_GROUP", tmp_path)
    assert free_memory(torch.device("cpu")) < 2**50


def test_container_with_a_limit_counts_cached_files_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "inactive_file 300\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("prunelimit.curvature.memory.CONTROL_GROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == 400
