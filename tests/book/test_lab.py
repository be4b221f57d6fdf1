"""The lab sheet: its commands and scripts are ones that work, and its key says what the numbers say."""

import json
import re
import shlex

import pandas as pd
import pytest
import typer

from prunelimit.book import notebook_parameters
from prunelimit.cli import app
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import lab_frames
from prunelimit.experiments.store import repository

NOTEBOOKS = repository() / "notebooks"
CELLS = json.loads((NOTEBOOKS / "lab.ipynb").read_text(encoding="utf-8"))["cells"]
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
SCRIPTS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line[2:] for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
PARAMETERS: dict = {}
exec("".join(next("".join(c["source"]) for c in CELLS if c["metadata"].get("tags") == ["parameters"])), PARAMETERS)


@pytest.fixture(scope="module", autouse=True)
def records():
    """Read the records that the page reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(repository() / "results"))
        yield


@pytest.fixture(scope="module")
def bowl():
    return lab_frames.quadratic_answers(PARAMETERS["epsilons"])


@pytest.fixture(scope="module")
def network():
    return lab_frames.network_answers(PARAMETERS["examples"]).set_index(["run", "method"])


@pytest.fixture(scope="module")
def children():
    return lab_frames.regime_answers(PARAMETERS["values"], PARAMETERS["densities"])


def test_every_command_of_the_sheet_is_one():
    command, seen = typer.main.get_command(app), set()
    for line in LINES:
        program, *words = shlex.split(line.replace("--epsilon E", "--epsilon 0.01"))
        seen.add(program)
        if program == "prunelimit":
            name, *options = words
            command.commands[name].make_context(name, options)  # raises on an option that does not exist
        elif program == "papermill":
            known = notebook_parameters(repository() / words[0])
            given = [word.split(":")[0] for word in words[3::2]]
            assert given
            assert set(given) <= set(known)
    assert seen == {"source", "prunelimit", "python", "papermill"}


def test_scripts_of_the_sheet_are_python_and_import_what_exists():
    assert len(SCRIPTS) == 2
    for script in SCRIPTS:
        compile(script, "script", "exec")
        exec("\n".join(line for line in script.splitlines() if line.startswith("from ")), {})


@pytest.mark.slow
def test_the_first_script_prints_the_key(bowl, capsys, monkeypatch):
    for epsilon, part in bowl.groupby("epsilon"):
        monkeypatch.setattr("sys.argv", ["bowl.py", str(epsilon)])
        exec(SCRIPTS[0], {})
        printed = capsys.readouterr().out.splitlines()
        for row in part.itertuples():
            numbers = [float(word) for word in next(line for line in printed if f" {row.name} " in line).split()[-3:]]
            assert numbers == pytest.approx([row.formula, row.random, row.coordinates], abs=6e-4)


@pytest.mark.slow
def test_the_second_script_prints_every_cell_twice(capsys):
    exec(SCRIPTS[1], {})
    printed = capsys.readouterr().out
    assert printed.count("0.80") >= len(PARAMETERS["values"])
    assert "barrier" in printed
    assert "0.0    1.0" in printed


def test_the_limit_of_a_bowl_falls_by_less_than_the_tolerance(bowl):
    first, second = PARAMETERS["epsilons"]
    columns = ["formula", "random", "coordinates"]
    parts = {epsilon: part.set_index("name")[columns] for epsilon, part in bowl.groupby("epsilon")}
    kept = parts[second] / parts[first]
    assert (kept < 1).all(axis=None)
    assert (kept > 2 * second / first).all(axis=None)


def test_a_cut_goes_further_than_the_formula_above_one_half_and_a_random_subspace_always(bowl):
    assert ((bowl.coordinates > bowl.formula) == (bowl.formula > 0.5)).all()
    assert (bowl.formula > 0.5).nunique() == 2
    assert (bowl.random > bowl.formula).all()


def test_the_limits_of_the_network_differ_as_the_key_says(network):
    every = network.loc["all"]
    assert abs(every.sparsity["directional"] - every.sparsity["measured"]) < 0.01
    assert every.low["formula"] > every.high[["directional", "measured"]].max()
    assert not every.resolved["formula"]
    recorded = lab_frames.recorded_networks().set_index("seed")
    assert recorded.directional[0] == pytest.approx(every.sparsity["directional"], abs=0.01)
    assert every.low["formula"] < recorded.formula[0] < every.high["formula"]
    assert (recorded.formula > recorded.directional + 0.02).all()


def test_the_sample_changes_the_tolerance_and_hardly_anything_else(network):
    every, sample, same = (network.loc[run] for run in ("all", "sample", "sample, ε of all"))
    assert sample.epsilon["formula"] == every.epsilon["formula"]
    for method in ("directional", "measured"):
        assert sample.epsilon[method] < every.epsilon[method] / 5
        assert sample.sparsity[method] < every.sparsity[method] - 0.005
    assert ((same.sparsity - every.sparsity).abs() < 0.005).all()
    assert (same.epsilon == every.epsilon["formula"]).all()


def test_the_network_is_asked_what_the_command_asks(network):
    from typer.testing import CliRunner

    words = ["predict", "--model", "fc5-quick", "--data", "digits", "--json", "--method", "measured"]
    for run, more in (("all", []), ("sample", ["--examples", str(PARAMETERS["examples"])])):
        found = json.loads(CliRunner().invoke(app, words + more).stdout.splitlines()[-1])
        assert found["sparsity"] == pytest.approx(network.sparsity[run, "measured"], abs=1e-12)
        assert found["epsilon"] == pytest.approx(network.epsilon[run, "measured"])


def test_seeds_disagree_about_the_children_and_errors_are_shared(children):
    assert len(children) == 2 * len(PARAMETERS["values"]) * len(PARAMETERS["densities"])
    called = (children.regime == "I").groupby([children.value, children.density]).nunique()
    assert (called == 2).any()
    assert (children.cka > children.independent).all()
    for _, part in children.groupby("seed"):
        highest = part.loc[part.barrier.idxmax()]
        assert (highest.value, highest.density) != (max(PARAMETERS["values"]), min(PARAMETERS["densities"]))
    assert ((children.regime == "I") == (children.lmc < -0.05)).all()


def test_a_cell_that_is_not_recorded_is_refused():
    with pytest.raises(PruneLimitError, match=r"3 with 0\.02 is not recorded"):
        lab_frames.regime_answers([3], [0.02])


@pytest.mark.parametrize(
    "call", [lambda: lab_frames.quadratic_answers([]), lambda: lab_frames.regime_answers([], [0.8])]
)
def test_an_empty_list_is_refused(call):
    with pytest.raises(PruneLimitError, match="is empty"):
        call()


def test_two_classifiers_that_err_independently():
    assert lab_frames.independent_similarity(0, 0) == 1
    assert lab_frames.independent_similarity(0.9, 0.1) == pytest.approx(0)  # no better than chance
    assert lab_frames.independent_similarity(0.5, 0, classes=2) == pytest.approx(0)
    assert lab_frames.independent_similarity(0.01, 0.01) == pytest.approx((1 - 0.1 / 9) ** 4)


def test_a_table_has_the_headings_of_the_sheet():
    table = pd.DataFrame({"value": [40], "cka": [0.97531], "regime": ["II-B"]})
    html = lab_frames.styled(table).to_html()
    assert all(word in html for word in ("epochs", "CKA", "0.975", "II-B"))
