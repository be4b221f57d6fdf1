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

from prunelimit import cli, predict_limit

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


@pytest.mark.parametrize(("bound", "expected"), [("0.0", 0), ("0.999", 1)])
def test_status_tells_whether_the_limit_is_high_enough(call: Callable[..., tuple], bound: str, expected: int) -> None:
    status, shown, _ = call(*OWN, "--at-least", bound)
    assert status == expected
    assert "PruningLimit by formula" in shown


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ((*OWN, "--model", "nowhere_at_all:network"), "needs the module 'nowhere_at_all'"),
        ((*OWN, "--model", "mine_of_a_user:netwrk"), "Did you mean 'network'"),
        ((*OWN, "--model", "mine_of_a_user:number"), "made a int: let it return a torch module"),
        ((*OWN, "--model", "fc5"), "needs a network of your own"),
        ((*OWN, "--loss", "cross_entrpy"), "Did you mean 'cross_entropy'"),
        ((*OWN, "--report", "report.docx"), "has no known ending"),
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
