"""atomic_file and atomic_folder: whatever happens, only whole files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.files import atomic_file, atomic_folder, cache_folder, data_folder, make_folder


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert entries(target.parent) == ["file.txt"]


def test_old_file_stays_when_the_body_raises(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["file.txt"]


def test_old_file_stays_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"), atomic_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["file.txt"]


def test_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), real_sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b)))
    with atomic_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert calls == ["sync", "rename"]


def test_others_may_read_the_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o644


def test_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert entries(target) == ["two"]
    assert entries(tmp_path) == ["folder"]


def test_old_folder_stays_when_the_body_raises(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "one").write_text("1")

    def write_half() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "two").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert entries(target) == ["one"]
    assert entries(tmp_path) == ["folder"]


def test_old_folder_stays_when_the_new_one_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Once wrong: the old folder is moved away first, and nothing brings it back.
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "one").write_text("1")
    real = os.replace

    def fail(source: Path, goal: Path) -> None:
        if Path(goal) == target and Path(source).suffix == ".part":
            raise OSError("disk full")
        real(source, goal)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"), atomic_folder(target) as temporary:
        (temporary / "two").write_text("2")
    assert target.is_dir()
    assert entries(target) == ["one"]


def test_path_below_a_regular_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneLimitError, match=r"^folder=.*PRUNELIMIT_CACHE"):
        make_folder(tmp_path / "file" / "below")


def test_path_that_is_a_regular_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneLimitError, match=r"^folder="):
        make_folder(tmp_path / "file")


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PRUNELIMIT_DATA", str(tmp_path / "data"))
    assert cache_folder() == tmp_path / "cache"
    assert data_folder() == tmp_path / "data"


def test_data_live_in_the_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNELIMIT_CACHE", str(tmp_path))
    monkeypatch.delenv("PRUNELIMIT_DATA")
    assert data_folder() == tmp_path / "data"
