"""What is known about each data set before it is on this machine."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known about a data set before it is on this machine.

    Attributes:
        shape: Height, width and channels of an image.
        classes: Number of classes.
        mean: Mean of each channel over the training images, on the scale 0 to 1; empty if it is computed at conversion.
        std: Standard deviation of each channel; empty likewise.
        digests: Digest of the train and of the test split, see :func:`content_digest`; empty if none is pinned.
        base: Where the official files are.
        files: File name to MD5 digest, as published beside them; where it comes from otherwise is said there.
        system: Folder where a Debian package puts the files.
        scale: Largest value that a pixel can take.
        per_class: Images of every class in the train and in the test split, if that is checked.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digests: tuple[str, ...]
    base: str
    files: dict[str, str]
    system: str = ""
    scale: int = 255
    per_class: tuple[int, ...] = ()


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
    # No digest of its content is pinned, and none could be for good: a JPEG decoder may differ from another by one level
    # of a pixel. Digests, mean and std are computed at conversion and kept in a manifest beside the arrays.
    "tinyimagenet": Source(
        shape=(64, 64, 3),
        classes=200,
        mean=(),
        std=(),
        digests=(),
        base="https://cs231n.stanford.edu/",
        # No digest is published beside the archive: this is the one that public loaders check, Avalanche's among them.
        files={"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
        per_class=(500, 50),
    ),
}

#: Data sets whose images are those of another one, averaged over squares of 2 x 2 pixels.
POOLED = {"mnist-14": "mnist"}

#: Data sets whose images are those of another one, with this share of the training labels wrong; the test labels are right.
NOISY = {"digits-noisy": ("digits", 0.2)}

#: Every name that :func:`load_dataset` knows.
DATASETS = ("digits", *NOISY, *POOLED, *SOURCES)


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
