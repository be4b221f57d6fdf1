"""`prunelimit predict` on networks of one's own: by name, with weights from files, with statuses for scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from prunelimit import apply_masks, cli, cli_predict, limit_report, magnitude_masks, predict_limit
from prunelimit.loading import load_object
from prunelimit.pruning import UnitOrder, save_sparse, structured

MODULE = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

def batches():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(300, 4, generator=generator), torch.arange(300) % 3

def dictionaries():
    inputs, labels = batches()
    for i, t in zip(inputs.split(100), labels.split(100)):
        yield {"x": i, "labels": t}

def loss(output, targets):
    return nn.functional.cross_entropy(output, targets)

number = 3

class Attentive(nn.Module):
    # in_proj_weight belongs to no linear layer
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = x[:, None] * torch.ones(1, 2, 1)
        return self.head(self.mix(x, x, x)[0].mean(1))

def heads(model):
    numbers = torch.arange(2).repeat_interleave(2)
    return {"mix.in_proj_weight": numbers.repeat(3)[:, None], "mix.out_proj.weight": numbers[None, :]}

def nothing(model):
    return None

def failing():
    return 1 / 0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's module, in which the command is called."""
    (tmp_path / "mine_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mine_of_a_user", None)
    return tmp_path


@pytest.fixture
def call(mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prunelimit", "predict", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


OWN = ("--model", "mine_of_a_user:network", "--data", "mine_of_a_user:batches", "--epsilon", "0.02", "--steps", "8")


def test_own_network_has_the_limit_of_the_library(call: Callable[..., tuple]) -> None:
    status, shown, errors = call(*OWN, "--json")
    assert status == 0, errors
    import mine_of_a_user as mine

    expected = predict_limit(mine.network(), functional.cross_entropy, mine.batches(), epsilon=0.02, steps=8)
    found = json.loads(shown)
    assert found["sparsity"] == expected.sparsity
    assert found["examples"] == 300


@pytest.mark.parametrize(
    ("model", "data", "loss"),
    [("Own", "dictionaries", "own"), ("network", "batches", "mine_of_a_user:loss")],
)
def test_other_losses(call: Callable[..., tuple], model: str, data: str, loss: str) -> None:
    expected = json.loads(call(*OWN, "--json", "--method", "measured")[1])
    words = ("--model", f"mine_of_a_user:{model}", "--data", f"mine_of_a_user:{data}", "--loss", loss)
    status, shown, errors = call(*words, "--epsilon", "0.02", "--json", "--method", "measured")
    assert status == 0, errors
    assert json.loads(shown)["sparsity"] == expected["sparsity"]


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_from_a_file_are_used(mine: Path, call: Callable[..., tuple], name: str) -> None:
    from prunelimit.models import mlp

    torch.manual_seed(5)
    state = {str(int(key[0]) - 1) + key[1:]: value for key, value in mlp([4, 6, 3]).state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, mine / name)
    plain, loaded = (json.loads(call(*OWN, "--json", *more)[1]) for more in ((), ("--weights", name)))
    assert loaded["radius"] != plain["radius"]
    assert loaded["total"] == plain["total"] == 42


@pytest.mark.parametrize("ending", ["html", "json", "txt", "svg"])
def test_report_is_written(mine: Path, call: Callable[..., tuple], ending: str) -> None:
    status, shown, errors = call(*OWN, "--report", f"out/report.{ending}", "--json")
    assert status == 0, errors
    found = json.loads(shown)
    assert list(found["limits"]) == ["formula", "directional", "refit", "measured"]
    written = (mine / "out" / f"report.{ending}").read_text()
    starts = {"html": "<!DOCTYPE html>", "json": "{", "txt": "Pruning report", "svg": "<?xml"}
    assert written.startswith(starts[ending])
    if ending != "svg":
        assert "mine_of_a_user:network" in written


def test_report_and_bound(call: Callable[..., tuple]) -> None:
    assert call(*OWN, "--report", "r.txt", "--at-least", "0.999")[0] == 1


def test_methods_of_a_report_can_be_chosen(call: Callable[..., tuple]) -> None:
    words = (*OWN, "--report", "r.json", "--json", "--low-memory")
    found = json.loads(call(*words, "--methods", "directional,formula,measured")[1])
    assert list(found["limits"]) == ["directional", "formula", "measured"]
    assert list(json.loads(call(*words, "--methods", "directional,formula", "--method", "formula")[1])["limits"]) == [
        "formula",
        "directional",
    ]


def test_low_memory_reaches_the_report(call: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(*given: object, **options: object) -> object:
        seen.append(options["low_memory"])
        return limit_report(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("prunelimit.report.limit_report", watched)
    for more in ((), ("--low-memory",)):
        assert call(*OWN, "--report", "r.txt", "--methods", "formula", *more)[0] == 0
    assert seen == [False, True]


def test_targets_say_what_has_to_change(call: Callable[..., tuple]) -> None:
    words = (*OWN, "--report", "r.html", "--methods", "formula", "--targets", "0.9, 0.95")
    found = json.loads(call(*words, "--json")[1])
    assert [change["sparsity"] for change in found["changes"]] == [0.9, 0.95]
    assert "limit to be 95.0%" in call(*words)[1]


ATTENTIVE = ("--model", "mine_of_a_user:Attentive", "--data", "mine_of_a_user:batches", "--epsilon", "0.02")


def test_what_is_not_counted_is_said(call: Callable[..., tuple]) -> None:
    _, shown, _ = call(*ATTENTIVE, "--method", "measured")
    (line,) = [line for line in shown.splitlines() if "Not counted" in line]
    assert "in no linear or convolution layer: mix.in_proj_weight (MultiheadAttention, 48)" in line
    assert "--prunable default,NAME" in line
    found = json.loads(call(*ATTENTIVE, "--method", "measured", "--json")[1])
    assert found["total"] == 16 + 12
    parts = {"in no linear or convolution layer": ["mix.in_proj_weight"]}
    parts["biases and normalisation"] = ["mix.in_proj_bias", "mix.out_proj.bias", "head.bias"]
    assert {why: part["parameters"] for why, part in found["left_out"].items()} == parts
    assert found["left_out"]["biases and normalisation"]["weights"] == 12 + 4 + 3


@pytest.mark.parametrize(
    ("pattern", "total"),
    [
        ("default", 28),
        ("default,*.in_proj_weight", 76),
        ("mix.in_proj_weight", 48),
        ("mix.*_weight, head.*", 48 + 12),
        ("*weight", 76),
    ],
)
def test_prunable_by_patterns(call: Callable[..., tuple], pattern: str, total: int) -> None:
    status, shown, errors = call(*ATTENTIVE, "--method", "directional", "--prunable", pattern, "--json")
    assert status == 0, errors
    assert json.loads(shown)["total"] == total


@pytest.mark.parametrize("unit", ["channel", "input", "channels"])
def test_units_are_those_of_the_library(call: Callable[..., tuple], unit: str) -> None:
    shown = call(*OWN, "--method", "measured", "--units", unit, "--json")[1]
    import mine_of_a_user as mine

    network = mine.network()
    masks = UnitOrder(network, unit.removesuffix("s")).masks
    expected = predict_limit(
        network, functional.cross_entropy, mine.batches(), epsilon=0.02, method="measured", masks=masks
    )
    assert json.loads(shown)["sparsity"] == expected.sparsity
    single = json.loads(call(*OWN, "--method", "measured", "--units", "weights", "--json")[1])
    assert single["sparsity"] == json.loads(call(*OWN, "--method", "measured", "--json")[1])["sparsity"]


def test_units_by_a_function(call: Callable[..., tuple]) -> None:
    words = (*ATTENTIVE, "--units", "mine_of_a_user:heads", "--json")
    found = json.loads(call(*words, "--method", "measured")[1])
    assert found["total"] == 48 + 16
    named = json.loads(call(*ATTENTIVE, "--units", "heads", "--json", "--method", "measured")[1])
    assert (named["total"], named["sparsity"]) == (found["total"], found["sparsity"])
    report = json.loads(call(*words, "--report", "r.html", "--methods", "measured")[1])
    assert report["limits"]["measured"]["sparsity"] == found["sparsity"]
    assert [row["layer"] for row in report["layers"]["layers"]] == ["mix.in_proj_weight", "mix.out_proj.weight"]


def test_units_are_those_that_the_help_lists() -> None:
    assert cli_predict.UNITS == structured.UNITS


def test_pruned_weights_of_save_sparse_are_used(mine: Path, call: Callable[..., tuple]) -> None:
    network = load_object("mine_of_a_user:network", "model")()
    masks = magnitude_masks(network, 0.5)
    save_sparse(mine / "pruned.safetensors", apply_masks(network, masks), masks)
    status, shown, errors = call(*OWN, "--weights", "pruned.safetensors", "--method", "measured", "--json")
    assert status == 0, errors
    assert json.loads(shown)["sparsity"] >= 0.5  # the zeros can go again


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--at-least", "0.001"), 0),
        (("--at-least", "0.999"), 1),
        (("--steps", "1"), 0),
        (("--steps", "1", "--need-resolved"), 3),
        (("--steps", "1", "--need-resolved", "--at-least", "0.999"), 1),
        (("--method", "measured", "--need-resolved"), 0),
        (("--method", "measurd"), 2),
        (("--no-such-option",), 2),
    ],
)
def test_statuses(call: Callable[..., tuple], more: tuple[str, ...], expected: int) -> None:
    assert call(*OWN, *more)[0] == expected


def test_help_tells_the_statuses(call: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, shown, _ = call("--help")
    assert status == 0
    told = " ".join(shown.split())
    for part in (
        "Status 0: done",
        "1: the limit is lower",
        "2: the input cannot be used",
        "3: the limit is not resolved",
    ):
        assert part in told
    assert "default,*.in_proj_weight adds" in told.replace(" │ │ ", " ")  # no asterisk lost as emphasis


@pytest.mark.parametrize(("bound", "expected"), [("0.0", 0), ("0.999", 1)])
def test_status_tells_whether_the_limit_is_high_enough(call: Callable[..., tuple], bound: str, expected: int) -> None:
    status, shown, _ = call(*OWN, "--at-least", bound)
    assert status == expected
    assert "PruningLimit by formula" in shown


def test_examples_of_own_data_are_drawn(call: Callable[..., tuple]) -> None:
    found = [json.loads(call(*OWN, "--json", *more)[1]) for more in ((), ("--examples", "0"), ("--examples", "50"))]
    assert found[0]["dimension"] == found[1]["dimension"] != found[2]["dimension"]
    assert [limit["examples"] for limit in found] == [300, 300, 50]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ((*OWN, "--model", "nowhere_at_all:network"), "needs the module 'nowhere_at_all'"),
        ((*OWN, "--model", "mine_of_a_user:netwrk"), "Did you mean 'network'"),
        ((*OWN, "--model", "mine_of_a_user:number"), "made a int: let it return a torch module"),
        ((*OWN, "--model", "fc5"), "needs a network of your own"),
        ((*OWN, "--loss", "cross_entrpy"), "Did you mean 'cross_entropy'"),
        ((*OWN, "--report", "report.docx"), "has no known ending"),
        ((*OWN, "--methods", "formula,measured"), "methods serves a report"),
        ((*OWN, "--targets", "0.9"), "targets serves a report"),
        ((*OWN, "--report", "r.html", "--methods", "formula,mesured"), "Did you mean 'measured'"),
        ((*OWN, "--report", "r.html", "--methods", "measured", "--targets", "0.9"), "targets needs the formula"),
        ((*OWN, "--report", "r.html", "--targets", "0.9,most"), "targets has 'most'"),
        ((*OWN, "--report", "r.html", "--targets", "90"), "targets has 90.0"),
        ((*OWN, "--prunable", "0.wait"), "Did you mean '0.weight'"),
        ((*OWN, "--prunable", "conv*"), "prunable='conv*' is unknown"),
        ((*OWN, "--prunable", ""), "names no parameter"),
        ((*OWN, "--prunable", "*.bias"), "prunable='*.bias' is unknown"),
        ((*OWN, "--units", "chanel"), "Did you mean 'channel'"),
        ((*OWN, "--at-least", "90"), "at_least=90.0 must lie between 0 and 1"),
        ((*OWN, "--at-least", "nan"), "at_least=nan must lie between 0 and 1"),
        ((*OWN, "--arch", "fc5"), "arch='fc5' serves a file of weights"),
        (("--model", "fc5-quick", "--data", "digits", "--arch", "fc5"), "'fc5-quick' is none"),
        ((*OWN, "--examples", "-1"), "examples=-1 must not be negative"),
        ((*OWN, "--examples", "10", "--report", "r.html"), "let your function give fewer batches"),
        ((*OWN, "--examples", "10", "--method", "measured"), "serves the methods formula"),
        ((*OWN, "--units", "heads"), "has no attention whose weights are called"),
        ((*OWN, "--shard-parameters"), "needs processes: start them with torchrun"),
        ((*OWN, "--shard-parameters", "--method", "cut"), "choose one of formula, directional, measured"),
        ((*OWN, "--units", "mine_of_a_user:nothing"), "gave a NoneType: let it map"),
        ((*OWN, "--units", "mine_of_a_user:heads"), "' is unknown"),
        ((*OWN, "--model", "mine_of_a_user:failing"), "fails, with ZeroDivisionError (division by zero)"),
        ((*OWN, "--weights", "no.safetensors"), "is not a file"),
        ((*OWN, "--weights", "pickled.pt"), "which can run code when loaded"),
        (("--model", "fc5-quick", "--data", "digits", "--weights", "pickled.pt"), "weights needs --model"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[..., tuple], words: tuple[str, ...], fragment: str) -> None:
    torch.save(torch.nn.Linear(2, 2), "pickled.pt")
    status, shown, errors = call(*words)
    assert (status, shown) == (2, "")
    assert fragment in errors
    assert len(errors.splitlines()) == 1


def test_a_folder_is_searched_from_a_program_of_its_own(mine: Path) -> None:
    command = [sys.executable, "-c", "from prunelimit.cli import main; main()", "predict", *OWN, "--method", "measured"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=mine)
    assert done.returncode == 0, done.stderr
    assert "PruningLimit by measured" in done.stdout
