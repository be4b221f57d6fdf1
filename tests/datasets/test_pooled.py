"""Data sets that are another one averaged over squares of pixels."""

import dataclasses

import numpy as np
import pytest

from prunelimit import load_dataset
from prunelimit.datasets import SOURCES, content_digest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten and five images that pass for MNIST."""
    rng = np.random.default_rng(0)
    home, digests = tmp_path / "mnist", []
    home.mkdir()
    for split, count in (("train", 10), ("test", 5)):
        images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        np.save(home / f"{split}_images.npy", images)
        np.save(home / f"{split}_labels.npy", labels)
        digests.append(content_digest(images, labels))
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], digests=tuple(digests)))
    return tmp_path


def test_a_pixel_is_the_rounded_mean_of_four(folder):
    whole, small = (load_dataset(name, folder, download=False) for name in ("mnist", "mnist-14"))
    for split in ("train", "test"):
        full = whole.images[split].astype(int)
        means = (full[:, ::2, ::2] + full[:, 1::2, ::2] + full[:, ::2, 1::2] + full[:, 1::2, 1::2]) / 4
        assert small.images[split].dtype == np.uint8
        assert np.abs(small.images[split] - means).max() <= 0.5
        np.testing.assert_array_equal(small.labels[split], whole.labels[split])
    assert (small.name, small.image_shape, small.digests) == ("mnist-14", (1, 14, 14), whole.digests)


def test_it_is_normalised_to_mean_zero_and_variance_one(folder):
    inputs, _ = load_dataset("mnist-14", folder, download=False).on_device("train").tensors()
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.std(correction=0)) == pytest.approx(1, abs=1e-5)
