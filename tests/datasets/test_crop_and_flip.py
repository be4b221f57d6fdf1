"""crop_and_flip: every output is one of the 162 windows of its padded input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunelimit.datasets import crop_and_flip


def windows(image: Tensor, border: int) -> dict[tuple[int, int, bool], Tensor]:
    """All shifted and mirrored windows, cut from an array padded by NumPy."""
    height, width = image.shape[1:]
    padded = np.pad(image.numpy(), ((0, 0), (border, border), (border, border)))
    found = {}
    for row in range(2 * border + 1):
        for column in range(2 * border + 1):
            window = padded[:, row : row + height, column : column + width]
            found[row, column, False] = torch.tensor(window.copy())
            found[row, column, True] = torch.tensor(window[:, :, ::-1].copy())
    return found


def identify(output: Tensor, choices: dict[tuple[int, int, bool], Tensor]) -> list[tuple[int, int, bool]]:
    return [key for key, window in choices.items() if torch.equal(output, window)]


@given(seed=st.integers(0, 10**6), channels=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5))
def test_every_output_is_a_window_of_its_input(seed: int, channels: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, channels, height, width), generator=generator, dtype=torch.uint8)
    for image, output in zip(images, crop_and_flip(images, generator, border=2), strict=True):
        assert identify(output, windows(image, 2))


def test_every_window_occurs_about_as_often() -> None:
    # Distinct pixels, and a border smaller than the image, make the window recognisable.
    image = torch.arange(1, 31, dtype=torch.uint8).reshape(1, 6, 5)
    choices = {window.numpy().tobytes(): key for key, window in windows(image, 2).items()}
    assert len(choices) == 50
    outputs = crop_and_flip(image.expand(20_000, 1, 6, 5), torch.Generator().manual_seed(0), border=2)
    counts = dict.fromkeys(choices.values(), 0)
    for output in outputs:
        counts[choices[output.numpy().tobytes()]] += 1
    # 400 each, with a deviation of 20; five deviations.
    assert min(counts.values()) > 300
    assert max(counts.values()) < 500


def test_default_border_is_four_pixels() -> None:
    images = torch.ones(2000, 1, 8, 8)
    outputs = crop_and_flip(images, torch.Generator().manual_seed(0))
    blank_rows = (outputs.sum(3) == 0).sum(2)
    assert int(blank_rows.max()) == 4


def test_channels_move_together() -> None:
    images = torch.rand(16, 1, 6, 6).expand(16, 3, 6, 6)
    outputs = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert torch.equal(outputs[:, 0], outputs[:, 1])
    assert torch.equal(outputs[:, 0], outputs[:, 2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shape_and_type_stay_and_the_input_is_untouched(dtype: torch.dtype) -> None:
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(dtype)
    before = images.clone()
    outputs = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert (outputs.shape, outputs.dtype) == (images.shape, dtype)
    assert torch.equal(images, before)


def test_generator_decides() -> None:
    images = torch.rand(8, 1, 6, 6)
    one, same, other = (crop_and_flip(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
