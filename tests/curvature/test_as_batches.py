"""as_batches: what counts as data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from prunelimit.curvature.operator import as_batches
from prunelimit.errors import PruneLimitError


def test_pair_of_tensors_is_split_with_a_short_last_batch() -> None:
    batches = as_batches((torch.arange(5), torch.arange(5)), batch_size=2)
    assert [targets.tolist() for _, targets in batches] == [[0, 1], [2, 3], [4]]


def test_generator_is_consumed_once() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(2, 3), torch.zeros(2)
        yield torch.zeros(1, 3), torch.zeros(1)

    assert [len(targets) for _, targets in as_batches(batches())] == [2, 1]


def test_data_loader_is_accepted() -> None:
    loader = DataLoader(TensorDataset(torch.zeros(5, 3), torch.arange(5)), batch_size=2)
    assert [targets.tolist() for _, targets in as_batches(loader)] == [[0, 1], [2, 3], [4]]


def test_two_batches_in_a_tuple_are_two_batches() -> None:
    batch = (torch.zeros(3, 2), torch.zeros(3))
    assert len(as_batches((batch, batch))) == 2


def test_inputs_need_not_be_tensors() -> None:
    batches = as_batches([({"ids": torch.zeros(2)}, torch.zeros(2))])
    assert len(batches) == 1


@pytest.mark.parametrize("data", [7, None, [1, 2], torch.nn.Linear(1, 1)])
def test_anything_else_is_refused(data: object) -> None:
    with pytest.raises(PruneLimitError, match=r"^data="):
        as_batches(data)


def test_mismatched_batch_is_named_by_number() -> None:
    good, bad = (torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(PruneLimitError, match="batch 1 has 3 inputs and 2 targets"):
        as_batches([good, bad])
