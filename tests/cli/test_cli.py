"""The command line teaches, computes, and answers bad input with one sentence and status 2."""

import dataclasses
import json
import subprocess
import sys

import pytest
from rich.console import Console

from prunelimit import cli
from prunelimit.cli_options import parameter_of

COMMANDS = (
    "predict",
    "run",
    "resolve",
    "refit",
    "rows",
    "ladder",
    "figure",
    "book",
    "data",
    "status",
    "doctor",
    "regimes",
    "synthesis",
)


@dataclasses.dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process: starting Python and torch for each would take minutes."""
    monkeypatch.setattr(cli, "out", Console(width=200))

    def run(*words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["prunelimit", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        shown = capsys.readouterr()
        return Done(status, shown.out, shown.err)

    return run


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "prunelimit.cli", "run", "fc6-cifar10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("prunelimit: task='fc6-cifar10' is unknown.")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command, call):
    done = call(command, "--help")
    assert done.returncode == 0
    assert f"prunelimit {command}" in done.stdout


def test_predict_trains_a_small_network_and_prints_json(call):
    done = call("predict", "--model", "fc5-quick", "--data", "digits", "--method", "directional", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["method"] == "directional"
    assert 0.5 < found["sparsity"] < 1
    assert found["total"] == 5920


def test_predict_reads_weights_from_a_file(tmp_path, call):
    from safetensors.torch import save_file

    from prunelimit.models import build_model

    path = tmp_path / "net.safetensors"
    save_file(build_model("fc5-quick", input_shape=(1, 8, 8), seed=0).state_dict(), path)
    words = ("predict", "--model", str(path), "--arch", "fc5-quick", "--data", "digits", "--steps", "4")
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert "PruningLimit by formula" in done.stdout


def test_rows_says_what_is_recorded_for_each_order(call):
    from prunelimit.experiments.store import repository

    done = call("rows", "fc5-cifar10", PRUNELIMIT_RESULTS=str(repository() / "results"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["fc5-cifar10 quick seed 0"] * 2
    assert ["order 1" in lines[0], "order 2" in lines[1]] == [True, True]


@pytest.mark.parametrize("command", ["rows", "resolve"])
def test_a_run_without_time_says_how_to_go_on(command, tmp_path, call):
    words = (command, "fc5-cifar10", "--time-budget", "1e-9")
    done = call(*words, PRUNELIMIT_RESULTS=str(tmp_path), PRUNELIMIT_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("out of time; call again to go on")
    assert len(done.stdout.splitlines()) == 1


def test_status_shows_every_task(call):
    done = call("status")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("fc5-cifar10", "fc12-cifar10", "resnet20-cifar10", "learning-rate"))


def test_data_prints_its_folder_in_one_piece(call, tmp_path):
    # Once wrong: as the title of a table it was broken in the middle of a name.
    folder = tmp_path / "a-folder-with-a-name-that-is-longer-than-the-table-below-it"
    done = call("data", PRUNELIMIT_DATA=str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"data folder: {folder}"


def test_doctor_finds_nothing_wrong(call):
    done = call("doctor")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


def test_doctor_reports_a_damaged_record(tmp_path, call):
    from prunelimit.experiments.catalogue import TASKS

    path = tmp_path / "limit" / f"{TASKS['fc5-cifar10'].spec('quick', 0).hash}.json"
    path.parent.mkdir()
    path.write_text("{")
    done = call("doctor", PRUNELIMIT_RESULTS=str(tmp_path))
    assert done.returncode == 2
    assert "is corrupted" in done.stderr


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("predict", "--model", "fc5-quik", "--data", "digits"), "Did you mean 'fc5-quick'"),
        (("predict", "--model", "fc5-quick", "--data", "digit"), "Did you mean 'digits'"),
        (("predict", "--model", "fc5-quick", "--data", "digits", "--method", "formul"), "Did you mean 'formula'"),
        (
            ("predict", "--model", "fc5-quick", "--data", "digits", "--epsilon", "-1"),
            "epsilon=-1.0 must be a positive number",
        ),
        (("predict", "--model", "no.safetensors", "--data", "digits"), "is not a file"),
        (("predict", "--model", "fc5", "--data", "digits"), "has no recipe for digits"),
        (("run", "fc6-cifar10"), "Did you mean 'fc5-cifar10'"),
        (("run", "fc5-cifar10", "--profile", "papers"), "Did you mean 'paper'"),
        (("run", "fc5-cifar10", "--seeds", "0"), "seeds=0 must be at least 1"),
        (("run", "fc5-cifar10", "--time-budget", "-5"), "time_budget=-5.0 must be positive"),
        (("run", "fc5-cifar10", "--threads", "-1"), "threads=-1 must be positive"),
        (("run", "fc5-cifar10", "--device", "cuda:9"), "device='cuda:9' is not available"),
        (("rows", "fc5-cifar"), "Did you mean 'fc5-cifar10'"),
        (("rows", "fc5-cifar10", "--profile", "labtop"), "Did you mean 'laptop'"),
        (("rows", "fc12-cifar10", "--profile", "laptop"), "has nothing of this kind for fc12-cifar10"),
        (("rows", "fc5-cifar10", "--seeds", "0"), "seeds=0 must be at least 1"),
        (("ladder", "fc3-weak"), "Did you mean 'fc3-weak-l1'"),
        (("ladder", "fc3-weak-l1", "--profile", "paper"), "has nothing of this kind for fc3-weak-l1"),
        (("resolve", "fc5-cifar10", "--time-budget", "0"), "time_budget=0.0 must be positive"),
        (("figure", "fig99"), "notebook='fig99' is unknown"),
        (("figure", "phase", "-p", "rotation=3"), "Did you mean 'rotations'"),
        (("figure", "phase", "-p", "rotations"), "parameter='rotations' has no value"),
        (("figure", "phase", "-p", "totals=[20"), "parameter='totals=[20' cannot be read"),
        (("data", "cifar11"), "Did you mean 'cifar10'"),
        (("data", "cifar10", "--from", "/no/such/folder"), "is not a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(words, fragment, call):
    done = call(*words)
    assert done.returncode == 2
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_figure_with_a_wrong_parameter_is_one_sentence(call, tmp_path):
    done = call("figure", "tab06", "-p", "profile=huge", "--folder", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("prunelimit: notebooks/tab06, cell 4: profile='huge' is unknown.")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("quick", "quick"),
        ("'null'", "null"),
        ("1e-3", 0.001),
        ("[20, 40]", [20, 40]),
        ("[quick, laptop]", ["quick", "laptop"]),
        ("None", None),
        ("null", None),
    ],
)
def test_a_parameter_is_python_or_yaml(text, value):
    assert parameter_of(f"some={text}") == ("some", value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, call):
    (tmp_path / "file").write_text("")
    done = call(
        "run", "fc5-cifar10", PRUNELIMIT_CACHE=str(tmp_path / "file" / "cache"), PRUNELIMIT_RESULTS=str(tmp_path)
    )
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_networks_of_a_profile_are_trained_together_first(call, tmp_path, monkeypatch):
    from prunelimit.checkpoints import load_checkpoint
    from prunelimit.experiments import runner

    seen = []

    def record(spec, **options):
        found = load_checkpoint(tmp_path / "checkpoints" / spec.train.hash)
        seen.append((spec.train.seed, found[1]["history"][-1]["epoch"], found[1]["history"][-1]["stacked"]))
        return {"measured": {"sparsity": 0.5}, "provenance": {"throughput": {}}}

    monkeypatch.setattr(runner, "run_limit", record)
    folders = {"PRUNELIMIT_CACHE": str(tmp_path), "PRUNELIMIT_RESULTS": str(tmp_path / "results")}
    done = call("run", "mlpnet-mnist", "--seeds", "2", "--together", **folders)
    assert done.returncode == 0
    assert seen == [(0, 100, 2), (1, 100, 2)]


def test_a_grid_stops_at_its_time_and_says_how_to_go_on(call, tmp_path):
    folders = {"PRUNELIMIT_CACHE": str(tmp_path), "PRUNELIMIT_RESULTS": str(tmp_path / "results")}
    done = call("regimes", "epochs", "--time-budget", "0.001", **folders)
    assert done.returncode == 0
    assert "epochs quick: out of time" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("epoch",), "grid='epoch' is unknown"),
        (("rho", "--profile", "laptop"), "profile='laptop' is not defined for rho"),
        (("rho", "--network", "vgg17"), "network='vgg17' is unknown"),
        (("rho", "--distribution", "even"), "distribution='even' is unknown"),
    ],
)
def test_grids_that_do_not_exist_are_refused(words, message, call, tmp_path):
    done = call("regimes", *words, PRUNELIMIT_RESULTS=str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
