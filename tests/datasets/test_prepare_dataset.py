"""prepare_dataset: official files in tiny form, whole and damaged."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunelimit import load_dataset
from prunelimit.datasets import SOURCES, content_digest, prepare_dataset
from prunelimit.errors import PruneLimitError

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def random_splits(shape: tuple[int, int, int], classes: int, train: int, test: int) -> Splits:
    generator = np.random.default_rng(0)
    return {
        split: (
            generator.integers(0, 256, (n, *shape), dtype=np.uint8),
            generator.integers(0, classes, n, dtype=np.uint8),
        )
        for split, n in (("train", train), ("test", test))
    }


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Splits], None]:
    """Make the digests of given arrays those of a data set, and hide packages of the system."""

    def apply(name: str, splits: Splits) -> None:
        digests = tuple(content_digest(*splits[split]) for split in ("train", "test"))
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], digests=digests, system=""))

    return apply


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, splits: Splits, *, compress: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, split in (("train", "train"), ("t10k", "test")):
        images, labels = splits[split]
        for stem, array in ((f"{prefix}-images-idx3-ubyte", images[..., 0]), (f"{prefix}-labels-idx1-ubyte", labels)):
            if compress:
                (folder / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / stem).write_bytes(idx(array))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def cifar_rows(images: np.ndarray, *labels: np.ndarray) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(label[:, None] for label in labels), planes], 1).astype(np.uint8).tobytes()


def write_sheets(folder: Path, splits: Splits) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, sheets in (("train", [f"data_batch_{i}.png" for i in range(1, 6)]), ("test", ["test_batch.png"])):
        images, labels = splits[split]
        for sheet, part in zip(sheets, np.array_split(images, len(sheets)), strict=True):
            Image.fromarray(part.reshape(len(part), 1024, 3)).save(folder / sheet)
        (folder / f"{split}_lables.json").write_text(json.dumps(labels.tolist()))


def assert_loads(name: str, folder: Path, splits: Splits) -> None:
    found = load_dataset(name, folder, download=False)
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(found.images[split], images)
        np.testing.assert_array_equal(found.labels[split], labels)


@pytest.fixture
def mnist(pin: Callable[[str, Splits], None]) -> Splits:
    splits = random_splits((28, 28, 1), 10, 11, 4)
    pin("mnist", splits)
    return splits


@pytest.fixture
def cifar10(pin: Callable[[str, Splits], None]) -> Splits:
    splits = random_splits((32, 32, 3), 10, 10, 3)
    pin("cifar10", splits)
    return splits


# Whole files


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_beside_the_arrays(tmp_path: Path, mnist: Splits, compress: bool) -> None:
    write_idx(tmp_path / "mnist", mnist, compress=compress)
    assert_loads("mnist", tmp_path, mnist)


def test_idx_files_from_another_folder(tmp_path: Path, mnist: Splits) -> None:
    write_idx(tmp_path / "elsewhere", mnist)
    assert prepare_dataset("mnist", tmp_path / "mnist", origin=tmp_path / "elsewhere") == tmp_path / "mnist"
    assert_loads("mnist", tmp_path, mnist)


def test_idx_files_of_a_system_package(tmp_path: Path, mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "usr", mnist, compress=False)
    monkeypatch.setitem(SOURCES, "mnist", dataclasses.replace(SOURCES["mnist"], system=str(tmp_path / "usr")))
    assert_loads("mnist", tmp_path / "data", mnist)


def test_cifar10_archive(tmp_path: Path, cifar10: Splits) -> None:
    (images, labels), (test_images, test_labels) = cifar10["train"], cifar10["test"]
    members = {
        "cifar-10-batches-bin/batches.meta.txt": b"airplane\n",
        "cifar-10-batches-bin/data_batch_1.bin": cifar_rows(images[:6], labels[:6]),
        "cifar-10-batches-bin/data_batch_2.bin": cifar_rows(images[6:], labels[6:]),
        "cifar-10-batches-bin/test_batch.bin": cifar_rows(test_images, test_labels),
    }
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members)
    assert_loads("cifar10", tmp_path, cifar10)


def test_cifar100_archive_has_fine_labels(tmp_path: Path, pin: Callable[[str, Splits], None]) -> None:
    splits = random_splits((32, 32, 3), 100, 7, 3)
    pin("cifar100", splits)
    members = {
        f"cifar-100-binary/{split}.bin": cifar_rows(images, np.full_like(labels, 19), labels)
        for split, (images, labels) in splits.items()
    }
    write_tar(tmp_path / "cifar100" / "cifar-100-binary.tar.gz", members)
    assert_loads("cifar100", tmp_path, splits)


def test_cifar10_sheets_of_the_npm_package(tmp_path: Path, cifar10: Splits) -> None:
    write_sheets(tmp_path / "package", cifar10)
    prepare_dataset("cifar10", tmp_path / "cifar10", origin=tmp_path / "package")
    assert_loads("cifar10", tmp_path, cifar10)


def test_downloaded_files_are_checked_by_pooch(tmp_path: Path, mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def retrieve(url: str, digest: str, name: str, folder: Path, progressbar: bool) -> str:
        asked.append((url, digest))
        if len(asked) == 1:
            write_idx(tmp_path / "net", mnist)
        return str(tmp_path / "net" / name)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    found = load_dataset("mnist", tmp_path / "data")
    assert len(found.labels["train"]) == 11
    assert asked == [(SOURCES["mnist"].base + name, f"md5:{digest}") for name, digest in SOURCES["mnist"].files.items()]


def test_conversion_happens_once(tmp_path: Path, mnist: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "mnist", mnist)
    load_dataset("mnist", tmp_path)
    monkeypatch.setattr("prunelimit.datasets.loader.prepare_dataset", lambda *_, **__: pytest.fail("converted again"))
    assert_loads("mnist", tmp_path, mnist)


# Damaged and wrong files

FIRST = "train-images-idx3-ubyte.gz"


def cut_gzip(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flip_inside(raw: bytes) -> bytes:
    return raw[:30] + bytes(byte ^ 0xFF for byte in raw[30:60]) + raw[60:]


def not_gzip(_: bytes) -> bytes:
    return b"<html>captive portal</html>"


def cut_inside(raw: bytes) -> bytes:
    return gzip.compress(gzip.decompress(raw)[:-1])


def wrong_magic(raw: bytes) -> bytes:
    return gzip.compress(b"\0\0\x0d\x03" + gzip.decompress(raw)[4:])


def only_magic(_: bytes) -> bytes:
    return gzip.compress(b"\0\0\x08\x03\0")


def fewer_images(raw: bytes) -> bytes:
    whole = gzip.decompress(raw)
    count = struct.unpack(">I", whole[4:8])[0] - 1
    return gzip.compress(whole[:4] + struct.pack(">I", count) + whole[8:-784])


def other_pixels(raw: bytes) -> bytes:
    whole = gzip.decompress(raw)
    return gzip.compress(whole[:16] + bytes(byte ^ 1 for byte in whole[16:]))


@pytest.mark.parametrize(
    "damage", [cut_gzip, flip_inside, not_gzip, cut_inside, wrong_magic, only_magic, fewer_images, other_pixels]
)
def test_damaged_idx_files_are_reported(tmp_path: Path, mnist: Splits, damage: Callable[[bytes], bytes]) -> None:
    # BUG (reported) for cut_gzip, flip_inside, not_gzip, only_magic and fewer_images: EOFError, BadGzipFile (or
    # zlib.error), struct.error and ValueError come through.
    write_idx(tmp_path / "mnist", mnist)
    path = tmp_path / "mnist" / FIRST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PruneLimitError, match=r"^origin=.*get"):
        load_dataset("mnist", tmp_path, download=False)
    assert not list((tmp_path / "mnist").glob("*.npy"))


@pytest.mark.parametrize(
    "content",
    [
        {"cifar-10-batches-py/data_batch_1": b"\x80\x02pickle", "cifar-10-batches-py/test_batch": b"\x80\x02pickle"},
        {"train.bin": bytes(3073 * 2 + 1), "test.bin": bytes(3073)},
        {"data_batch_1.bin": bytes(3073)},
        {},
    ],
    ids=["the Python version", "another record size", "no test split", "empty"],
)
def test_wrong_archive_is_reported(tmp_path: Path, cifar10: Splits, content: dict[str, bytes]) -> None:
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", content)
    with pytest.raises(PruneLimitError, match=r"^origin=.*does not hold the binary version"):
        load_dataset("cifar10", tmp_path, download=False)


def test_archive_with_other_images_is_reported(tmp_path: Path, cifar10: Splits) -> None:
    members = {"data_batch_1.bin": bytes(3073 * 2), "test_batch.bin": bytes(3073)}
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members)
    with pytest.raises(PruneLimitError, match=r"^origin=.*does not hold the official cifar10 \(train\)"):
        load_dataset("cifar10", tmp_path, download=False)


def flip_middle(raw: bytes) -> bytes:
    half = len(raw) // 2
    return raw[:half] + bytes(byte ^ 0xFF for byte in raw[half : half + 40]) + raw[half + 40 :]


@pytest.mark.parametrize("damage", [cut_gzip, flip_inside, flip_middle, not_gzip])
def test_damaged_archive_is_reported(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    # BUG (reported) for flip_middle: zlib.error comes through.
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    # Compressible, so that the damage meets a code and not a stored byte.
    rows = np.random.default_rng(0).choice([0, 255], 3073 * 8, p=[0.9, 0.1]).astype(np.uint8).tobytes()
    write_tar(path, {"data_batch_1.bin": rows, "test_batch.bin": rows})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PruneLimitError, match=r"^origin="):
        load_dataset("cifar10", tmp_path, download=False)


def test_archive_members_are_never_extracted(tmp_path: Path, cifar10: Splits) -> None:
    (images, labels), (test_images, test_labels) = cifar10["train"], cifar10["test"]
    members = {
        "../../escaped.bin": cifar_rows(images, labels),
        "/tmp/test_batch.bin": cifar_rows(test_images, test_labels),
    }
    write_tar(tmp_path / "cifar10" / "cifar-10-binary.tar.gz", members)
    load_dataset("cifar10", tmp_path, download=False)
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.parent.glob("escaped.bin"))


def drop_sheet(folder: Path) -> None:
    (folder / "data_batch_3.png").unlink()


def drop_labels(folder: Path) -> None:
    (folder / "test_lables.json").unlink()


def break_labels(folder: Path) -> None:
    (folder / "test_lables.json").write_text("[1, 2")


def fewer_labels(folder: Path) -> None:
    (folder / "train_lables.json").write_text("[1, 2]")


def break_sheet(folder: Path) -> None:
    (folder / "data_batch_2.png").write_bytes(b"<html></html>")


def cut_sheet(folder: Path) -> None:
    path = folder / "data_batch_2.png"
    path.write_bytes(path.read_bytes()[:2000])


def narrow_sheet(folder: Path) -> None:
    Image.fromarray(np.zeros((2, 100, 3), np.uint8)).save(folder / "data_batch_2.png")


def other_images(folder: Path) -> None:
    Image.fromarray(np.zeros((2, 1024, 3), np.uint8)).save(folder / "data_batch_2.png")


@pytest.mark.parametrize(
    "damage",
    [drop_sheet, drop_labels, break_labels, fewer_labels, break_sheet, cut_sheet, narrow_sheet, other_images],
)
def test_damaged_sheets_are_reported(tmp_path: Path, cifar10: Splits, damage: Callable[[Path], None]) -> None:
    # BUG (reported) from fewer_labels to narrow_sheet: ValueError, UnidentifiedImageError and OSError come through.
    write_sheets(tmp_path / "package", cifar10)
    damage(tmp_path / "package")
    with pytest.raises(PruneLimitError, match=r"^origin="):
        prepare_dataset("cifar10", tmp_path / "cifar10", origin=tmp_path / "package")


def test_pillow_keeps_its_guard(tmp_path: Path, cifar10: Splits) -> None:
    before = Image.MAX_IMAGE_PIXELS
    write_sheets(tmp_path / "package", cifar10)
    prepare_dataset("cifar10", tmp_path / "cifar10", origin=tmp_path / "package")
    assert before == Image.MAX_IMAGE_PIXELS


def test_origin_without_the_files_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PruneLimitError, match=r"cifar-10-binary\.tar\.gz is not on this machine"):
        prepare_dataset("cifar10", tmp_path / "cifar10", origin=tmp_path / "nothing")


def test_digits_have_nothing_to_prepare() -> None:
    with pytest.raises(PruneLimitError, match="dataset='digits'"):
        prepare_dataset("digits")


def test_folder_below_a_regular_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneLimitError, match=r"^folder="):
        prepare_dataset("mnist", tmp_path / "file" / "mnist", download=False)
