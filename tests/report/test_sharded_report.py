"""limit_report and the command line where two processes share the parameters, against one process that has them all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.nn import functional

from prunelimit import layer_limits, limit_report, predict_limit

#: Imported by the test for its networks and data, and run by two processes; the first one writes what they found.
SCRIPT = '''
import contextlib
import io
import json
import sys
import torch
from torch import distributed, nn
from torch.nn import functional


class Tied(nn.Module):
    """Attention and a linear layer, the embedding shared with the head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.block(self.embed(tokens)).mean(1))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    with torch.no_grad():
        model[2].weight.mul_(10)  # sure of its classes, so that pruning costs something
    return model


def batches():
    inputs = torch.randn(31, 6, generator=torch.Generator().manual_seed(1)).double()
    return [(part, network()(part).argmax(1)) for part in inputs.split(20)]


def tied():
    torch.manual_seed(2)
    model, tokens = Tied().double().eval(), torch.randint(0, 7, (11, 5))
    return model, (tokens, model(tokens).argmax(1))


OPTIONS = {"epsilon": 0.05, "groups": {"attention": ["block.self_attn.in_proj_weight"], "rest": ["embed.weight"]}}
COMMAND = ["--model", "script:network", "--data", "script:batches", "--json", "--epsilon", "0.05", "--steps", "8"]


def main(place):
    from prunelimit import cli, layer_limits, limit_report
    from prunelimit.curvature.sharded import shard_parameters
    from prunelimit.errors import PruneLimitError

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = {"errors": []}
    model, data = tied()
    found["flag"] = limit_report(
        model, functional.cross_entropy, data, methods=["directional", "refit"], shard_parameters=True, **OPTIONS
    ).to_dict()
    assert not any(hasattr(p, "placements") for p in model.parameters())
    small, data = shard_parameters(network()), batches()
    before = [p.to_local().clone() for p in small.parameters()]
    found["layers"] = layer_limits(
        small, functional.cross_entropy, data, method="measured", epsilon=0.05, tolerance=0.01
    ).to_dict()
    assert all(torch.equal(p.to_local(), old) for p, old in zip(small.parameters(), before))
    for options in ({"units": "channel"}, {"methods": ["refit"]}):
        try:
            limit_report(small, functional.cross_entropy, data, epsilon=0.05, **options)
        except PruneLimitError as error:
            found["errors"].append(str(error))
    for key, more in {
        "one": [],
        "report": ["--report", f"{place}.html", "--targets", "0.5,0.9"],
        "refused": ["--method", "refit"],
    }.items():
        sys.argv = ["prunelimit", "predict", *COMMAND, "--shard-parameters", *more]
        shown, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
            try:
                cli.main()
                status = 0
            except SystemExit as end:
                status = end.code
        found[key] = status, shown.getvalue(), told.getvalue()
    if distributed.get_rank() == 0:
        torch.save(found, place)
    else:
        assert found["one"][1] == ""  # the first process prints
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
'''


def alike(two: Any, one: Any, place: str = "") -> None:
    """Compare JSON values: numbers to 1e-5, and not what things cost."""
    if isinstance(one, dict):
        assert set(two) == set(one), place
        for key in set(one) - {"seconds", "cost", "products", "findings", "skipped"}:
            alike(two[key], one[key], f"{place}.{key}")
    elif isinstance(one, list):
        assert len(two) == len(one), place
        for number, (a, b) in enumerate(zip(two, one, strict=True)):
            alike(a, b, f"{place}[{number}]")
    elif place.endswith("curvature_high"):
        # A factor that large, or none, says that there is room for any curvature; its value is rounding.
        assert min(two or math.inf, 1e4) == pytest.approx(min(one or math.inf, 1e4), rel=1e-5), place
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5), place
    else:
        assert two == one, place


WHY = "which needs whole vectors in one process, and the parameters are sharded"


def test_report_is_that_of_one_process(found: dict[str, Any], names: dict[str, Any], script: Path) -> None:
    methods, options = ["formula", "directional", "measured"], {"epsilon": 0.05, "steps": 8, "name": "script:network"}
    one = limit_report(
        names["network"](),
        functional.cross_entropy,
        names["batches"](),
        methods=methods,
        targets=[0.5, 0.9],
        **options,
    )
    status, shown, told = found["report"]
    assert status == 0, told
    two = json.loads(shown)
    alike(two, one.to_dict())
    assert len(two["changes"]) == len(two["layers"]["layers"]) == 2
    assert two["skipped"] == {"refit": WHY}
    assert two["gain"] is None
    assert set(two["findings"]) - set(one.findings()) == {f"Left out: refit, {WHY}."}
    assert "Left out: refit" in Path(f"{script.with_suffix('.pt')}.html").read_text()


def test_command_shards_the_parameters(found: dict[str, Any], names: dict[str, Any]) -> None:
    one = predict_limit(names["network"](), functional.cross_entropy, names["batches"](), epsilon=0.05, steps=8)
    status, shown, told = found["one"]
    assert status == 0, told
    assert json.loads(shown)["sparsity"] == pytest.approx(one.sparsity, abs=1e-5)
    assert json.loads(shown)["interval"] == pytest.approx(one.interval, abs=1e-5)


def test_flag_shards_a_network_that_is_whole(found: dict[str, Any], names: dict[str, Any]) -> None:
    model, data = names["tied"]()
    one = limit_report(model, functional.cross_entropy, data, methods=["directional"], **names["OPTIONS"])
    alike(found["flag"], one.to_dict())
    assert list(found["flag"]["skipped"]) == ["refit"]
    assert [row["layer"] for row in found["flag"]["layers"]["layers"]] == ["attention", "rest"]


def test_layers_are_measured_alike(found: dict[str, Any], names: dict[str, Any]) -> None:
    one = layer_limits(
        names["network"](),
        functional.cross_entropy,
        names["batches"](),
        method="measured",
        epsilon=0.05,
        tolerance=0.01,
    ).to_dict()
    alike(found["layers"], one)
    assert np.ptp([row["sparsity"] for row in one["layers"]]) > 0.01


def test_what_needs_whole_vectors_is_refused(found: dict[str, Any]) -> None:
    units, methods = found["errors"]
    assert units.startswith("units= with sharded parameters: leave units out")
    assert methods.startswith("methods=['refit'] with sharded parameters: name one of formula, directional, measured")
    status, _, told = found["refused"]
    assert status == 2
    assert "method='refit' with --shard-parameters: choose one of formula, directional, measured" in told
