"""Products spread over two processes by torchrun, against one process; and how rows are dealt out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from prunelimit.curvature.distributed import own_part
from prunelimit.curvature.operator import HessianOperator
from prunelimit.errors import PruneLimitError
from prunelimit.processes import processes

#: Run by every process, and with one process by the test itself; rank 0 writes what it found.
SCRIPT = """
import sys
import torch
from torch import distributed, nn
from torch.nn import functional
from prunelimit.curvature.operator import GGNOperator, HessianOperator
from prunelimit.errors import PruneLimitError

torch.set_num_threads(1)
world = int(sys.argv[2])
if world > 1:
    distributed.init_process_group("gloo")
rank = distributed.get_rank() if world > 1 else 0
torch.manual_seed(0)
mlp = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
conv = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.layer(inputs["x"])


x, y = torch.randn(101, 6), torch.arange(101) % 3
images = x[:, None]
batches = list(zip(images.split([40, 40, 21]), y.split([40, 40, 21])))
cases = {
    "mlp": (mlp, (x, y), {}),
    "conv": (conv, batches, {}),
    "fresh": (conv, batches, {"rule": "fresh", "batch_size": 7}),
    "float64": (conv, batches, {"dtype": torch.float64}),
    "one row": (mlp, (x[:1], y[:1]), {}),
    "one row, graph": (conv, (images[:1], y[:1]), {}),
    "dictionaries": (Named(), [({"x": a}, b) for a, b in zip(x.split(40), y.split(40))], {}),
}
found = {}
for kind in (HessianOperator, GGNOperator):
    for name, (model, data, options) in cases.items():
        operator = kind(model, functional.cross_entropy, data, **options)
        block = torch.randn(operator.dimension, 2, generator=torch.Generator().manual_seed(3))
        first, second = operator @ block, operator @ block
        key = f"{kind.__name__} {name}"
        found |= {f"{key} block": first, f"{key} again": second, f"{key} vector": operator @ block[:, 0]}
        found |= {f"{key} gradient": operator.gradient, f"{key} loss": torch.tensor(operator.loss).double()}
        assert operator.products == 5
        assert operator.examples == (1 if "one" in name else 101)

alone = HessianOperator(mlp, functional.cross_entropy, (x, y), shard=False)
found["alone"] = alone @ torch.ones(alone.dimension)
if world > 1:
    # A failure in one process ends the product in all, instead of leaving the others waiting.
    def failing(output, targets):
        if rank == 1:
            raise ZeroDivisionError
        return functional.cross_entropy(output, targets)

    try:
        HessianOperator(conv, failing, batches) @ torch.ones(60)
    except (PruneLimitError, ZeroDivisionError) as error:
        found["failure"] = torch.tensor(isinstance(error, ZeroDivisionError))
    # Lanczos takes the same turns everywhere only if all processes have the very same numbers.
    copies = [torch.empty_like(found["HessianOperator conv block"]) for _ in range(world)]
    distributed.all_gather(copies, found["HessianOperator conv block"].contiguous())
    assert all(torch.equal(one, copies[0]) for one in copies)
    if rank == 1:
        assert found["failure"]
if rank == 0:
    torch.save(found, sys.argv[1])
if world > 1:
    distributed.barrier()
    distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, run_processes: Callable[..., None]
) -> dict[int, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("sharding")
    (folder / "script.py").write_text(SCRIPT)
    results = {}
    for world in (1, 2):
        run_processes(folder / "script.py", folder / f"{world}.pt", world, world=world)
        results[world] = torch.load(folder / f"{world}.pt")
    return results


def test_two_processes_give_what_one_gives(found: dict[int, dict[str, torch.Tensor]]) -> None:
    one, two = found[1], found[2]
    assert set(one) < set(two)
    for name, expected in one.items():
        difference = (two[name] - expected).norm()
        assert difference <= 1e-6 * expected.norm(), name


def test_failure_in_the_other_process_is_reported(found: dict[int, dict[str, torch.Tensor]]) -> None:
    assert not found[2]["failure"]


def test_process_that_does_not_share_has_all_data(found: dict[int, dict[str, torch.Tensor]]) -> None:
    torch.testing.assert_close(found[2]["alone"], found[1]["alone"])


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), world=st.integers(1, 12))
def test_parts_of_all_processes_are_the_data(sizes: list[int], world: int) -> None:
    rows = torch.arange(sum(sizes))
    batches = list(zip(rows.split(sizes), rows.split(sizes), strict=True))
    parts = [own_part(batches, rank, world) for rank in range(world)]
    assert torch.cat([inputs for part in parts for inputs, _ in part]).tolist() == rows.tolist()
    counts = [sum(len(targets) for _, targets in part) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_batches_that_cannot_be_cut_are_dealt_out() -> None:
    batches = [({"x": torch.zeros(2)}, torch.full((2,), k)) for k in range(5)]
    assert [[int(t[0]) for _, t in own_part(batches, rank, 2)] for rank in range(2)] == [[0, 2, 4], [1, 3]]


def test_sharing_without_processes_is_refused() -> None:
    with pytest.raises(PruneLimitError, match=r"^shard=True needs processes.*torchrun"):
        HessianOperator(torch.nn.Linear(2, 2), functional.mse_loss, (torch.zeros(2, 2), torch.zeros(2, 2)), shard=True)


def test_a_process_of_its_own_shares_nothing() -> None:
    assert processes(None) == processes(False) == (0, 1)
