"""Tiny-ImageNet from a tiny archive of the same shape: three classes, a grey image, whole and damaged."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunelimit import load_dataset
from prunelimit.datasets import SOURCES, content_digest, prepare_dataset
from prunelimit.errors import PruneLimitError

#: Not in the order of their names, so that only wnids.txt can give it.
WNIDS = ("n03", "n01", "n02")
FILE = "tiny-imagenet-200.zip"
ROOT = "tiny-imagenet-200/"

Members = dict[str, bytes]


def jpeg(level: int, *, grey: bool = False, size: int = 64) -> bytes:
    """One flat colour, which JPEG keeps to a level or two: red of the given level, or grey."""
    image = Image.new("L" if grey else "RGB", (size, size), level if grey else (level, 0, 255 - level))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def level(split: str, place: int, turn: int) -> int:
    """Tell every image of the archive apart by its colour, 8 levels from the next."""
    return 8 * (place + 3 * turn) + (128 if split == "test" else 0)


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Members:
    """The members of the archive: four training and two validation images of every class."""
    source = dataclasses.replace(SOURCES["tinyimagenet"], classes=3, per_class=(4, 2))
    monkeypatch.setitem(SOURCES, "tinyimagenet", source)
    found = {"wnids.txt": "".join(f"{w}\n" for w in WNIDS).encode(), "words.txt": b"n01\tgoldfish\n"}
    lines = []
    for place, wnid in enumerate(WNIDS):
        found[f"train/{wnid}/{wnid}_boxes.txt"] = b"n01_0.JPEG\t0\t10\t63\t58\n"
        for turn in range(4):
            grey = (place, turn) == (1, 2)
            found[f"train/{wnid}/images/{wnid}_{turn}.JPEG"] = jpeg(level("train", place, turn), grey=grey)
        for turn in range(2):
            name = f"val_{2 * place + turn}.JPEG"
            found[f"val/images/{name}"] = jpeg(level("test", place, turn))
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    found["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    found["test/images/test_0.JPEG"] = jpeg(0)  # without a label: not ours
    return found


def write(folder: Path, members: Members, root: str = ROOT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(root + name, content)
    return folder / FILE


# A whole archive


def test_images_and_labels_are_those_of_the_archive(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members)
    found = load_dataset("tinyimagenet", tmp_path, download=False)
    assert found.image_shape == (3, 64, 64)
    assert found.num_classes == 3
    # One of every class in turn, the classes in the order of wnids.txt.
    assert found.labels["train"].tolist() == [0, 1, 2] * 4
    # In the order of val_annotations.txt, which this archive has backwards.
    assert found.labels["test"].tolist() == [2, 2, 1, 1, 0, 0]
    for split, turns in (("train", range(4)), ("test", range(2))):
        images, labels = found.images[split], found.labels[split]
        assert images.dtype == labels.dtype == np.uint8
        pairs = [(int(y), t) for t in turns for y in range(3)]
        order = pairs if split == "train" else [(y, t) for y in (2, 1, 0) for t in (1, 0)]
        for image, (place, turn) in zip(images, order, strict=True):
            red, green, blue = image.reshape(-1, 3).mean(axis=0)
            wanted = level(split, place, turn)
            grey = split == "train" and (place, turn) == (1, 2)
            assert (red, green, blue) == pytest.approx((wanted,) * 3 if grey else (wanted, 0, 255 - wanted), abs=3)


def test_a_grey_image_has_three_equal_channels(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members)
    image = load_dataset("tinyimagenet", tmp_path, download=False).images["train"][2 * 3 + 1]
    assert (image == image[..., :1]).all()


def test_the_first_images_hold_all_classes_alike(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members)
    data = load_dataset("tinyimagenet", tmp_path, download=False).on_device("train", size=6)
    assert data.labels.bincount().tolist() == [2, 2, 2]


def test_it_is_normalised_by_its_own_moments(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members)
    found = load_dataset("tinyimagenet", tmp_path, download=False)
    unit = found.images["train"].reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, unit.mean(axis=0), atol=5.1e-5)
    np.testing.assert_allclose(found.std, unit.std(axis=0), atol=5.1e-5)


def test_an_archive_without_an_outer_folder_will_do(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members, root="")
    assert len(load_dataset("tinyimagenet", tmp_path, download=False).labels["train"]) == 12


def test_an_archive_in_another_folder(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "elsewhere", members)
    assert prepare_dataset("tinyimagenet", tmp_path / "tinyimagenet", origin=tmp_path / "elsewhere").is_dir()
    assert len(load_dataset("tinyimagenet", tmp_path, download=False).labels["test"]) == 6


def test_a_download_is_checked_against_the_digest(
    tmp_path: Path, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def retrieve(url: str, digest: str, name: str, folder: Path, progressbar: bool) -> str:
        asked.append((url, digest))
        return str(write(tmp_path / "net", members))

    monkeypatch.setattr("pooch.retrieve", retrieve)
    load_dataset("tinyimagenet", tmp_path / "data")
    source = SOURCES["tinyimagenet"]
    assert asked == [(source.base + FILE, f"md5:{source.files[FILE]}")]


# What was found at conversion is kept


def test_the_second_load_needs_no_archive(tmp_path: Path, members: Members) -> None:
    path = write(tmp_path / "tinyimagenet", members)
    first = load_dataset("tinyimagenet", tmp_path, download=False)
    path.unlink()
    second = load_dataset("tinyimagenet", tmp_path, download=False)
    assert (second.digests, second.mean, second.std) == (first.digests, first.mean, first.std)
    for split in ("train", "test"):
        assert second.digests[split] == content_digest(first.images[split], first.labels[split])


@pytest.mark.parametrize("file", ["train_images", "test_labels"])
def test_changed_arrays_are_noticed(tmp_path: Path, members: Members, file: str) -> None:
    write(tmp_path / "tinyimagenet", members)
    load_dataset("tinyimagenet", tmp_path, download=False)
    path = tmp_path / "tinyimagenet" / f"{file}.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(PruneLimitError, match=r"^data=.*corrupted.*prunelimit data tinyimagenet"):
        load_dataset("tinyimagenet", tmp_path, download=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("digests"),
        lambda found: found.update(digests={"train": "0"}),
        lambda found: found.update(mean=[0.5]),
        lambda found: found.update(std=[0.2, 0, 0.2]),
        lambda found: found.update(std="wide"),
        lambda found: found.update(mean=None),
    ],
)
def test_a_damaged_manifest_is_reported(tmp_path: Path, members: Members, change: Callable[[dict], object]) -> None:
    write(tmp_path / "tinyimagenet", members)
    load_dataset("tinyimagenet", tmp_path, download=False)
    path = tmp_path / "tinyimagenet" / "manifest.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(PruneLimitError, match=r"^data=.*corrupted \(manifest\.json\): delete that file"):
        load_dataset("tinyimagenet", tmp_path, download=False)


def test_a_manifest_that_is_no_json_is_reported(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members)
    load_dataset("tinyimagenet", tmp_path, download=False)
    (tmp_path / "tinyimagenet" / "manifest.json").write_text("[")
    with pytest.raises(PruneLimitError, match=r"manifest\.json"):
        load_dataset("tinyimagenet", tmp_path, download=False)


def test_without_its_manifest_it_is_converted_again(tmp_path: Path, members: Members) -> None:
    write(tmp_path / "tinyimagenet", members)
    first = load_dataset("tinyimagenet", tmp_path, download=False)
    (tmp_path / "tinyimagenet" / "manifest.json").unlink()
    assert load_dataset("tinyimagenet", tmp_path, download=False).digests == first.digests


def test_an_interrupted_conversion_leaves_no_manifest(
    tmp_path: Path, members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "tinyimagenet", members)
    load_dataset("tinyimagenet", tmp_path, download=False)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("tinyimagenet", tmp_path / "tinyimagenet", download=False)
    names = sorted(path.name for path in (tmp_path / "tinyimagenet").iterdir())
    arrays = [f"{split}_{kind}.npy" for split in ("test", "train") for kind in ("images", "labels")]
    assert names == sorted([FILE, *arrays])  # the old arrays, and no part of a new one


# Damaged and wrong archives


def drop(name: str) -> Callable[[Members], None]:
    return lambda members: members.pop(name) and None


def put(name: str, content: bytes) -> Callable[[Members], None]:
    return lambda members: members.update({name: content})


def annotate(old: bytes, new: bytes) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members["val/val_annotations.txt"] = members["val/val_annotations.txt"].replace(old, new)

    return change


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (drop("wnids.txt"), "has no wnids.txt"),
        (put("wnids.txt", b"n01\nn02\n"), "names 2 classes in place of 3"),
        (put("wnids.txt", b"n01\nn02\nn02\n"), "names 2 classes in place of 3"),
        (put("wnids.txt", b"n01\nn02\nn09\n"), "n03, which wnids.txt does not name"),
        (put("wnids.txt", b"\xff\xfe\xfa"), "not a readable archive"),
        (drop("train/n02/images/n02_3.JPEG"), "has 3 images of a class in place of 4 (train; so in 1 of 3 classes)"),
        (put("train/n02/images/n02_9.JPEG", jpeg(0)), "has 5 images of a class in place of 4 (train"),
        (put("train/n07/images/n07_0.JPEG", jpeg(0)), "n07, which wnids.txt does not name"),
        (drop("val/val_annotations.txt"), "not a readable archive"),
        (drop("val/images/val_3.JPEG"), "not a readable archive"),
        (annotate(b"val_5.JPEG\tn02", b"val_5.JPEG\tn01"), "in place of 2 (test"),
        (annotate(b"val_5.JPEG\tn02", b"val_5.JPEG\tn99"), "names no class of wnids.txt"),
        (annotate(b"val_5.JPEG\tn02\t", b"val_5.JPEG"), "names no class of wnids.txt"),
        (annotate(b"val_5.JPEG", b"val_4.JPEG"), "names an image twice"),
        (put("val/val_annotations.txt", b""), "has 0 images of a class in place of 2 (test"),
        (put("train/n02/images/n02_3.JPEG", b"<html></html>"), "n02_3.JPEG, which is not a whole image"),
        (put("train/n02/images/n02_3.JPEG", jpeg(9)[:-200]), "n02_3.JPEG, which is not a whole image"),
        (put("val/images/val_3.JPEG", jpeg(9, size=32)), "val_3.JPEG of 32 x 32 pixels"),
    ],
)
def test_a_wrong_archive_is_reported(
    tmp_path: Path, members: Members, damage: Callable[[Members], None], problem: str
) -> None:
    damage(members)
    write(tmp_path / "tinyimagenet", members)
    with pytest.raises(PruneLimitError, match=r"^origin=.*get") as caught:
        load_dataset("tinyimagenet", tmp_path, download=False)
    assert problem in str(caught.value)
    assert FILE in str(caught.value)
    assert not list((tmp_path / "tinyimagenet").glob("*.npy"))


def flip(raw: bytes) -> bytes:
    """Change the packed bytes of the first image, so that its checksum is wrong."""
    start = raw.index(b"n03_0.JPEG") + 40
    return raw[:start] + bytes(byte ^ 0xFF for byte in raw[start : start + 40]) + raw[start + 40 :]


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda _: b"<html></html>", lambda _: b"", flip])
def test_a_damaged_archive_is_reported(tmp_path: Path, members: Members, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "tinyimagenet", members)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PruneLimitError, match=r"^origin="):
        load_dataset("tinyimagenet", tmp_path, download=False)


def test_nothing_is_extracted(tmp_path: Path, members: Members) -> None:
    members["../../escaped.JPEG"] = jpeg(0)
    write(tmp_path / "tinyimagenet", members)
    load_dataset("tinyimagenet", tmp_path, download=False)
    assert not list(tmp_path.rglob("*.JPEG"))
    assert not list(tmp_path.parent.glob("*.JPEG"))


# Missing


def test_a_failed_download_says_where_to_put_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("pooch.retrieve", fail)
    with pytest.raises(PruneLimitError, match=r"downloading failed \(ConnectionError\)") as caught:
        load_dataset("tinyimagenet", tmp_path)
    assert FILE in str(caught.value)
    assert str(tmp_path / "tinyimagenet") in str(caught.value)
    assert "prunelimit data tinyimagenet --from FOLDER" in str(caught.value)


def test_the_official_archive_has_200_classes_of_500_and_50_images() -> None:
    source = SOURCES["tinyimagenet"]
    assert (source.classes, source.per_class, source.shape) == (200, (500, 50), (64, 64, 3))
