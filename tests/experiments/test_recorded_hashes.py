"""Every committed record is still named by the hash of its spec, whatever fields the specs have gained since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunelimit.experiments import specs
from prunelimit.experiments.store import repository
from prunelimit.training import TrainSpec

SPECS = {
    "limit": specs.LimitSpec,
    "curvature": specs.CurvatureSpec,
    "rows": specs.RowsSpec,
    "refit": specs.RefitSpec,
    "sight": specs.SightSpec,
    "ladder": specs.LadderSpec,
}


@pytest.mark.parametrize("experiment", SPECS)
def test_file_name_is_the_hash_of_the_recorded_spec(experiment: str) -> None:
    files = sorted((Path(repository()) / "results" / experiment).glob("*.json"))
    assert files
    for file in files:
        values = json.loads(file.read_text(encoding="utf-8"))["spec"]
        spec = SPECS[experiment].from_dict(values)
        assert spec.hash == file.stem
        assert spec.to_dict() == values


def test_hash_of_a_training_is_that_of_its_checkpoints() -> None:
    # Taken before TrainSpec had a precision.
    assert TrainSpec(dataset="digits", model="fc5-quick").hash == "d646356bb641131a"
