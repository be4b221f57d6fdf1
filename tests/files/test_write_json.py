"""write_json and sha256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunelimit.files import sha256, write_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json")


@settings(max_examples=10)  # each waits for the disk
@given(value=values)
def test_round_trip(folder: Path, value: object) -> None:
    path = folder / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [1.0, float("nan")], object()])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, bad)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", {"a": 1, "b": 2})
    write_json(tmp_path / "two.json", {"b": 2, "a": 1})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_sha256_of_bytes_and_of_arrays() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert sha256(array) == sha256(array.tobytes()) == hashlib.sha256(bytes(range(6))).hexdigest()
