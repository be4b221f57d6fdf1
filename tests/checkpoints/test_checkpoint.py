"""save_checkpoint and load_checkpoint: shards, round trip, corruption, and a crash at every step of the writing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunelimit import checkpoints
from prunelimit.checkpoints import SHARD_BYTES, load_checkpoint, save_checkpoint
from prunelimit.errors import PruneLimitError


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors"))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[n].dtype == other[n].dtype and one[n].shape == other[n].shape and torch.equal(one[n], other[n]) for n in one
    )


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_round_trip_of_types(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)}
    save_checkpoint(tmp_path, 1, tensors, {})
    assert same(load_checkpoint(tmp_path)[0], tensors)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4)])
def test_round_trip_of_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"a": torch.full(shape, 2.5), "after": torch.arange(3)}
    save_checkpoint(tmp_path, 1, tensors, {})
    assert same(load_checkpoint(tmp_path)[0], tensors)


def test_non_contiguous_and_shared_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "transposed": base.T, "column": base[:, 1]}
    save_checkpoint(tmp_path, 1, tensors, {})
    assert same(load_checkpoint(tmp_path)[0], tensors)


def test_names_may_hold_any_sign(tmp_path: Path) -> None:
    tensors = {"a@1": torch.ones(2), "a": torch.zeros(2), "layer.0/weight ü": torch.ones(1)}
    save_checkpoint(tmp_path, 1, tensors, {})
    assert same(load_checkpoint(tmp_path)[0], tensors)


def test_metadata_come_back(tmp_path: Path) -> None:
    metadata = {"history": [{"epoch": 1, "loss": 0.1 + 0.2}], "name": "ü", "none": None}
    save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, metadata)
    assert load_checkpoint(tmp_path)[1] == metadata


def test_metadata_with_nan_are_refused_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"a": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 2, {"a": torch.zeros(1)}, {"loss": float("nan")})
    assert load_checkpoint(tmp_path)[0]["a"] == 1


def test_tensor_larger_than_a_shard_is_cut(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "small": torch.randn(10, generator=generator),
        "large": torch.randn(3000, 3000, generator=generator),  # 36 MB
        "end": torch.randn(7, generator=generator, dtype=torch.float64),
    }
    path = save_checkpoint(tmp_path, 3, tensors, {})
    assert len(shards(path)) == 3
    assert max(file.stat().st_size for file in shards(path)) <= SHARD_BYTES
    assert same(load_checkpoint(tmp_path)[0], tensors)


def test_many_small_tensors_fit_their_shards(tmp_path: Path) -> None:
    # Once wrong: 64 KiB are set aside for the header, but it takes about 150 bytes for each tensor.
    tensors = {f"model.stage{i:04d}.block.normalisation.running_variance": torch.ones(4000) for i in range(1000)}
    path = save_checkpoint(tmp_path, 1, tensors, {})
    assert max(file.stat().st_size for file in shards(path)) <= SHARD_BYTES


@settings(max_examples=10)  # each waits for the disk
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_any_sizes_survive_small_shards(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dtype: torch.dtype
) -> None:
    tensors = {str(i): torch.arange(n, dtype=dtype) for i, n in enumerate(sizes)}
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SHARD_BYTES", 2**16 + 257)
        save_checkpoint(folder, 1, tensors, {})
    assert same(load_checkpoint(folder)[0], tensors)


def test_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, step, {"a": torch.tensor(step)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000100"]
    assert load_checkpoint(tmp_path)[0]["a"] == 100


@pytest.mark.parametrize("steps", [(2, 10), (999_999, 1_000_000)])
def test_newest_of_several_is_read(tmp_path: Path, steps: tuple[int, int]) -> None:
    # Once wrong: step-1000000 comes before step-999999 in the alphabet.
    for step in steps:
        other = save_checkpoint(tmp_path / str(step), step, {"a": torch.tensor(step)}, {})
        shutil.copytree(other, tmp_path / other.name)
    assert load_checkpoint(tmp_path)[0]["a"] == steps[1]


def test_same_step_may_be_saved_again(tmp_path: Path) -> None:
    for value in (1, 2):
        save_checkpoint(tmp_path, 5, {"a": torch.tensor(value)}, {})
    assert load_checkpoint(tmp_path)[0]["a"] == 2


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", range(8))
def test_crash_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    save_checkpoint(tmp_path, 1, {"a": torch.ones(3)}, {"step": 1})
    count = 0

    def crashing(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count > call:
                raise Crash
            return real(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crashing(os.fsync))
        patch.setattr(os, "replace", crashing(os.replace))
        patch.setattr(checkpoints, "save_file", crashing(checkpoints.save_file))
        # Not even the clean-up of a temporary folder happens after a kill.
        patch.setattr(shutil, "rmtree", crashing(shutil.rmtree))
        try:
            save_checkpoint(tmp_path, 2, {"a": torch.zeros(3)}, {"step": 2})
        except Crash:
            pass
        else:
            assert count <= call
    tensors, metadata = load_checkpoint(tmp_path)
    assert metadata["step"] in (1, 2)
    assert tensors["a"].tolist() == [2 - metadata["step"]] * 3


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, 1, {"a": torch.arange(100.0)}, {"step": 1})


def test_changed_shard_is_noticed(saved: Path) -> None:
    raw = bytearray(shards(saved)[0].read_bytes())
    raw[-1] ^= 1
    shards(saved)[0].write_bytes(raw)
    with pytest.raises(PruneLimitError, match=r"^checkpoint=.*corrupted \(000.safetensors\).*delete"):
        load_checkpoint(saved.parent)


def test_shortened_shard_is_noticed(saved: Path) -> None:
    shards(saved)[0].write_bytes(shards(saved)[0].read_bytes()[:-4])
    with pytest.raises(PruneLimitError, match="corrupted"):
        load_checkpoint(saved.parent)


def test_missing_shard_is_noticed(saved: Path) -> None:
    shards(saved)[0].unlink()
    with pytest.raises(PruneLimitError, match=r"^checkpoint=.*cannot be read"):
        load_checkpoint(saved.parent)


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]", b"\xff\xfe\x00", b'{"files": {}, "metadata": {}}', b"null"])
def test_unreadable_index_is_noticed(saved: Path, text: bytes) -> None:
    # Once wrong: only JSONDecodeError, KeyError and OSError are caught, and not around the tensors.
    (saved / "index.json").write_bytes(text)
    with pytest.raises(PruneLimitError, match=r"^checkpoint="):
        load_checkpoint(saved.parent)


def test_index_that_names_fewer_files_is_noticed(saved: Path) -> None:
    # Once wrong: see test_unreadable_index_is_noticed.
    index = json.loads((saved / "index.json").read_text())
    index["files"] = {}
    (saved / "index.json").write_text(json.dumps(index))
    with pytest.raises(PruneLimitError, match=r"^checkpoint="):
        load_checkpoint(saved.parent)


def test_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneLimitError, match=r"^folder="):
        save_checkpoint(tmp_path / "file" / "run", 1, {"a": torch.ones(1)}, {})
