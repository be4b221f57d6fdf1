"""Small networks get one thread, large ones keep theirs, and all are given back."""

import pytest
import torch
from torch import nn

from prunelimit.threads import suited_threads


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "expected"), [(10, 1), (400, 3)])
def test_threads_depend_on_the_size(three_threads, width, expected):
    with suited_threads(nn.Linear(width, width)):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


def test_threads_come_back_after_an_error(three_threads):
    with pytest.raises(KeyError), suited_threads(nn.Linear(2, 2)):
        raise KeyError
    assert torch.get_num_threads() == 3
