"""Reader of Tiny-ImageNet's official archive.

Tiny-ImageNet (Stanford's CS231n) is 200 classes of ImageNet at 64 x 64 pixels: 500 training images and 50 validation
images of each. The validation images are our test split, since the official test images have no labels.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prunelimit.datasets.sources import SPLITS, Source
from prunelimit.errors import PruneLimitError
from prunelimit.progress import ProgressLine

Split = tuple[np.ndarray, np.ndarray]


def read_tiny_imagenet(path: Path, source: Source) -> dict[str, Split]:
    """Read ``tiny-imagenet-200.zip``; members are read, never extracted.

    A class is the place of its name in ``wnids.txt``. Training images are interleaved, one of every class in turn, so
    that the first so many of them hold all classes alike. Grey images, of which there are some, get three equal channels.

    Args:
        path: The archive.
        source: Shape of the images, number of classes and images per class and split, which the archive must have.

    Returns:
        Images ``(N, H, W, 3)`` and labels ``(N,)``, both uint8, for ``"train"`` and ``"test"``.

    Raises:
        PruneLimitError: If the archive cannot be read, or does not hold what it should.
    """
    from PIL import Image  # only needed here

    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, source)
            total = sum(len(found) for found in members.values())
            with ProgressLine("decoding Tiny-ImageNet", total, True) as line:
                splits, done = {}, 0
                for split, found in members.items():
                    images = np.empty((len(found), *source.shape), np.uint8)
                    for place, (name, _) in enumerate(found):
                        images[place] = _decode(archive.read(name), name, source)
                        line.update(done + place + 1)
                    done += len(found)
                    splits[split] = (images, np.array([label for _, label in found], np.uint8))
    except PruneLimitError as error:
        raise PruneLimitError(f"origin={str(path)!r} {error}: get the official archive.") from None
    # A damaged archive shows in the zip's own checks, in a missing member, or in the decoder; an encrypted one as RuntimeError.
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, RuntimeError, Image.DecompressionBombError) as error:
        raise PruneLimitError(f"origin={str(path)!r} is not a readable archive ({error}): get it again.") from error
    return splits


def _members(archive: zipfile.ZipFile, source: Source) -> dict[str, list[tuple[str, int]]]:
    """List the archive's images of each split with their labels, and check how many there are."""
    names = archive.namelist()
    root = next((name.removesuffix("wnids.txt") for name in names if Path(name).name == "wnids.txt"), None)
    if root is None:
        raise PruneLimitError("has no wnids.txt")
    classes = archive.read(f"{root}wnids.txt").decode().split()
    if len(classes) != source.classes or len(set(classes)) != len(classes):
        raise PruneLimitError(f"names {len(set(classes))} classes in place of {source.classes}")
    label = {name: place for place, name in enumerate(classes)}

    by_class: list[list[str]] = [[] for _ in classes]
    for name in sorted(names):
        parts = name.removeprefix(f"{root}train/").split("/")
        if name.startswith(f"{root}train/") and parts[1:2] == ["images"] and name.endswith(".JPEG"):
            if parts[0] not in label:
                raise PruneLimitError(f"has images of {parts[0]}, which wnids.txt does not name")
            by_class[label[parts[0]]].append(name)
    _check_counts([len(found) for found in by_class], source, 0)
    train = [(name, place) for turn in zip(*by_class, strict=True) for place, name in enumerate(turn)]

    test = []
    for line in archive.read(f"{root}val/val_annotations.txt").decode().splitlines():
        name, wnid = [*line.split("\t"), "", ""][:2]
        if wnid not in label:
            raise PruneLimitError(f"says {line[:60]!r} in val_annotations.txt, which names no class of wnids.txt")
        test.append((f"{root}val/images/{name}", label[wnid]))
    if len({name for name, _ in test}) != len(test):
        raise PruneLimitError("names an image twice in val_annotations.txt")
    _check_counts(np.bincount([y for _, y in test], minlength=len(classes)).tolist(), source, 1)
    return {"train": train, "test": test}


def _check_counts(counts: Sequence[int], source: Source, split: int) -> None:
    """Refuse a split that does not have the official number of images of every class."""
    wanted = source.per_class[split]
    wrong = [count for count in counts if count != wanted]
    if wrong:
        raise PruneLimitError(
            f"has {wrong[0]} images of a class in place of {wanted} ({SPLITS[split]}; so in {len(wrong)} of {len(counts)} classes)"
        )


def _decode(raw: bytes, name: str, source: Source) -> np.ndarray:
    """Decode one JPEG to ``(H, W, 3)`` bytes."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(raw))
        size = (image.height, image.width)
        pixels = np.asarray(image.convert("RGB")) if size == source.shape[:2] else None
    except OSError as error:
        raise PruneLimitError(f"holds {Path(name).name}, which is not a whole image ({error})") from error
    if pixels is None:
        raise PruneLimitError(f"holds {Path(name).name} of {size[0]} x {size[1]} pixels")
    return pixels
