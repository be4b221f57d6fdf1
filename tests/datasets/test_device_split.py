"""DeviceSplit: normalisation, batches and samples."""

from __future__ import annotations

import pytest
import torch

from prunelimit.datasets import DeviceSplit
from prunelimit.errors import PruneLimitError


@pytest.fixture
def split() -> DeviceSplit:
    images = torch.arange(7 * 2 * 3 * 3, dtype=torch.uint8).reshape(7, 2, 3, 3)
    return DeviceSplit(images, torch.arange(7), (0.5, 0.25), (0.2, 0.4), 255)


def test_normalisation_is_per_channel_on_the_unit_scale(split: DeviceSplit) -> None:
    mean, std = torch.tensor([0.5, 0.25]).reshape(1, 2, 1, 1), torch.tensor([0.2, 0.4]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(split.normalise(split.images), (split.images / 255 - mean) / std)


def test_batches_go_through_the_split_once_with_a_short_last_one(split: DeviceSplit) -> None:
    assert [labels.tolist() for _, labels in split.batches(3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_batches_are_normalised_and_keep_labels_with_images(split: DeviceSplit) -> None:
    for images, labels in split.batches(3, torch.Generator().manual_seed(0)):
        torch.testing.assert_close(images, split.normalise(split.images[labels]))


def test_order_is_a_permutation(split: DeviceSplit) -> None:
    found = [int(y) for _, labels in split.batches(3, torch.Generator().manual_seed(1)) for y in labels]
    assert sorted(found) == list(range(7))
    assert found != list(range(7))


def test_tensors_are_the_first_images(split: DeviceSplit) -> None:
    inputs, targets = split.tensors(4)
    assert targets.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(inputs, split.normalise(split.images[:4]))
    assert len(split.tensors()[1]) == len(split.tensors(100)[1]) == 7


def test_tensors_with_a_generator_are_a_sample_without_repetition(split: DeviceSplit) -> None:
    _, targets = split.tensors(5, torch.Generator().manual_seed(0))
    assert len(set(targets.tolist())) == 5
    assert targets.tolist() != [0, 1, 2, 3, 4]


def test_no_images_are_refused() -> None:
    with pytest.raises(PruneLimitError, match="data has no images"):
        DeviceSplit(torch.zeros(0, 1, 2, 2), torch.zeros(0), (0.0,), (1.0,), 255)


def test_labels_must_match_images() -> None:
    with pytest.raises(PruneLimitError, match="3 images and 2 labels"):
        DeviceSplit(torch.zeros(3, 1, 2, 2), torch.zeros(2), (0.0,), (1.0,), 255)
