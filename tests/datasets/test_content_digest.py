"""content_digest: of the images with their labels, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunelimit.datasets import content_digest


def split(seed: int, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 3, (count, 2, 2, 1), dtype=np.uint8), generator.integers(0, 3, count, dtype=np.uint8)


@given(seed=st.integers(0, 10**6), order=st.permutations(range(6)))
def test_order_does_not_matter(seed: int, order: list[int]) -> None:
    images, labels = split(seed)
    assert content_digest(images[order], labels[order]) == content_digest(images, labels)


def test_label_belongs_to_its_image() -> None:
    images, labels = split(0)
    labels = np.arange(6, dtype=np.uint8)
    assert content_digest(images, np.roll(labels, 1)) != content_digest(images, labels)


@given(seed=st.integers(0, 10**6), index=st.integers(0, 23))
def test_every_pixel_matters(seed: int, index: int) -> None:
    images, labels = split(seed)
    changed = images.copy()
    changed.reshape(-1)[index] ^= 128
    assert content_digest(changed, labels) != content_digest(images, labels)


def test_repeated_image_matters() -> None:
    images, labels = split(0)
    twice = np.concatenate([images, images[:1]]), np.concatenate([labels, labels[:1]])
    assert content_digest(*twice) != content_digest(images, labels)


def test_memory_layout_does_not_matter() -> None:
    images, labels = split(0)
    assert content_digest(np.asfortranarray(images), labels) == content_digest(images, labels)


def test_numbers_of_images_and_labels_must_match() -> None:
    images, labels = split(0)
    with pytest.raises(ValueError, match="zip"):
        content_digest(images, labels[1:])
