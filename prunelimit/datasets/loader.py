"""From a name to verified arrays in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from prunelimit.datasets.device import DeviceSplit
from prunelimit.datasets.prepare import MANIFEST, prepare_dataset, read_manifest
from prunelimit.datasets.sources import DATASETS, NOISY, POOLED, SOURCES, SPLITS, content_digest
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.files import data_folder


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Verified images and labels in memory-mapped arrays.

    Attributes:
        name: Name of the data set.
        images: Split name to ``(N, H, W, C)`` uint8.
        labels: Split name to ``(N,)`` uint8.
        num_classes: Number of classes.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel.
        scale: Largest value of a pixel.
        digests: Split name to its content digest.
    """

    name: str
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: int
    digests: dict[str, str]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, as networks want them."""
        height, width, channels = self.images["train"].shape[1:]
        return channels, height, width

    def on_device(self, split: str, device: str | torch.device = "cpu", size: int | None = None) -> DeviceSplit:
        """Copy a split to a device.

        Args:
            split: ``"train"`` or ``"test"``.
            device: Where to.
            size: Only the first so many images; ``None`` for all.

        Returns:
            The split, ready for training and evaluation.

        Raises:
            PruneLimitError: If the split is unknown or the size is not within it.
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        total = len(self.labels[split])
        if size is not None and not 1 <= size <= total:
            raise PruneLimitError(f"size={size} must lie between 1 and {total}, the images of {self.name} {split}.")
        images = torch.from_numpy(np.array(self.images[split][:size])).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(self.labels[split][:size].astype(np.int64))
        return DeviceSplit(images.to(device), labels.to(device), self.mean, self.std, self.scale)


def load_dataset(name: str, folder: Path | None = None, *, download: bool = True) -> Dataset:
    """Load a data set, from disk or, the first time, from where it is published.

    Args:
        name: One of ``DATASETS``.
        folder: The data folder; by default ``$PRUNELIMIT_DATA`` or a folder in the user's cache.
        download: Whether the official files may be downloaded if they are nowhere on this machine.

    Returns:
        The data set, verified against its pinned digests or, of Tiny-ImageNet, those of its conversion.

    Raises:
        PruneLimitError: If the name is unknown, the data cannot be had, or they are corrupted.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    if name == "digits":
        return _digits()
    if name in NOISY:
        original, share = NOISY[name]
        return _mislabelled(name, load_dataset(original, folder, download=download), share)
    if name in POOLED:
        return _pooled(name, load_dataset(POOLED[name], folder, download=download))
    source = SOURCES[name]
    home = (folder or data_folder()) / name
    needed = [f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")]
    if not all((home / file).is_file() for file in (needed if source.digests else [*needed, MANIFEST])):
        prepare_dataset(name, home, download=download)
    if not source.digests:
        source = read_manifest(source, home)
    images: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for split, digest in zip(SPLITS, source.digests, strict=True):
        try:
            images[split] = np.lib.format.open_memmap(home / f"{split}_images.npy", mode="r")
            labels[split] = np.lib.format.open_memmap(home / f"{split}_labels.npy", mode="r")
            fits = images[split].shape[1:] == source.shape and images[split].dtype == labels[split].dtype == np.uint8
            intact = fits and labels[split].ndim == 1 and content_digest(images[split], labels[split]) == digest
        except (ValueError, OSError, EOFError):
            intact = False
        if not intact:
            raise PruneLimitError(
                f"data={str(home)!r} is corrupted ({split}): delete that folder and run `prunelimit data {name}` again."
            )
    digests = dict(zip(SPLITS, source.digests, strict=True))
    return Dataset(name, images, labels, source.classes, source.mean, source.std, source.scale, digests)


def _digits() -> Dataset:
    """Build the digits of scikit-learn: 1,797 images of 8 x 8 pixels, of which 360 are for testing."""
    from sklearn.datasets import load_digits  # a second of import time that the other data sets do not need

    raw = load_digits()
    pixels = raw.images.astype(np.uint8)[..., None]
    classes = raw.target.astype(np.uint8)
    # The files are ordered by writer, so a cut without a shuffle would test on other hands than it trains on.
    order = np.random.RandomState(0).permutation(len(pixels))
    parts = {"train": order[360:], "test": order[:360]}
    images, labels = {s: pixels[i] for s, i in parts.items()}, {s: classes[i] for s, i in parts.items()}
    unit = images["train"] / 16
    digests = {s: content_digest(images[s], labels[s]) for s in SPLITS}
    return Dataset("digits", images, labels, 10, (float(unit.mean()),), (float(unit.std()),), 16, digests)


def _mislabelled(name: str, right: Dataset, share: float) -> Dataset:
    """Give a share of the training images another class, drawn at random; the same ones each time."""
    rng = np.random.RandomState(0)
    labels, count = right.labels["train"].copy(), len(right.labels["train"])
    chosen = rng.permutation(count)[: round(share * count)]
    shift = rng.randint(1, right.num_classes, len(chosen))
    labels[chosen] = (labels[chosen] + shift) % right.num_classes
    digest = content_digest(right.images["train"], labels)
    every = right.labels | {"train": labels}
    return dataclasses.replace(right, name=name, labels=every, digests=right.digests | {"train": digest})


def _pooled(name: str, whole: Dataset) -> Dataset:
    """Average squares of 2 x 2 pixels, rounded to the nearest byte; the digests stay those of the whole images."""
    images = {}
    for split, full in whole.images.items():
        count, height, width, channels = full.shape
        squares = full.reshape(count, height // 2, 2, width // 2, 2, channels)
        images[split] = ((squares.sum(axis=(2, 4), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    unit = images["train"].reshape(-1, channels) / whole.scale
    mean, std = (tuple(float(v) for v in part) for part in (unit.mean(axis=0), unit.std(axis=0)))
    return dataclasses.replace(whole, name=name, images=images, mean=mean, std=std)
