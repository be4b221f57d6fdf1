"""Records survive the way to disk and back, and nothing else does."""

import json
import subprocess

import pytest

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.store import load_record, provenance, record_path, results_folder, save_record
from prunelimit.training import TrainSpec

SPEC = TrainSpec(dataset="digits", model="fc5-quick")


def test_a_record_comes_back_as_it_was_saved():
    save_record("test", SPEC, {"value": 0.1, "many": [1, 2.5]})
    record = load_record("test", SPEC)
    assert record["value"] == 0.1
    assert record["many"] == [1, 2.5]
    assert record["spec"] == SPEC.to_dict()


def test_no_file_is_no_record():
    assert load_record("nowhere", SPEC) is None


@pytest.mark.parametrize("damage", ["cut", "edit", "list"])
def test_a_damaged_record_is_refused(damage):
    save_record("damaged", SPEC, {"value": 0.1})
    path = record_path("damaged", SPEC)
    text = path.read_text()
    path.write_text({"cut": text[: len(text) // 2], "edit": text.replace("0.1", "0.2"), "list": "[]"}[damage])
    with pytest.raises(PruneLimitError, match="is corrupted"):
        load_record("damaged", SPEC)


def test_a_record_with_nan_is_never_written():
    spec = TrainSpec(dataset="digits", model="fc5-quick", seed=77)
    with pytest.raises(ValueError, match="JSON"):
        save_record("test", spec, {"value": float("nan")})
    assert not record_path("test", spec).exists()


def test_looking_for_a_record_leaves_a_trace_whether_or_not_it_exists(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNELIMIT_TRACE", str(tmp_path / "trace"))
    load_record("nowhere", SPEC)
    assert (tmp_path / "trace").read_text() == f"{record_path('nowhere', SPEC)}\n"


def test_provenance_names_commit_versions_and_device():
    found = provenance("cpu", 1)
    assert {"commit", "changed", "device", "threads", "torch", "python", "prunelimit"} <= set(found)
    assert json.dumps(found)


def test_provenance_tells_whether_code_differs_from_the_commit(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    def changed():
        return provenance("cpu", 1)["changed"]

    monkeypatch.setattr("prunelimit.experiments.store.repository", lambda: tmp_path)
    assert changed() is None
    for place in ("prunelimit/deep", "benchmarks", "results"):
        (tmp_path / place).mkdir(parents=True)
    git("init", "--quiet")
    (tmp_path / "prunelimit" / "a.py").write_text("one")
    git("add", "--all")
    git("commit", "--quiet", "--message", "first")
    (tmp_path / "results" / "record.json").write_text("{}")
    assert changed() is False
    for place in ("prunelimit/a.py", "prunelimit/deep/new.py", "benchmarks/new.py"):
        (tmp_path / place).write_text("two")
        assert changed() is True, place
        git("add", place)
        git("commit", "--quiet", "--message", "more")
        assert changed() is False, place


def test_the_results_folder_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNELIMIT_RESULTS", str(tmp_path))
    assert results_folder() == tmp_path
