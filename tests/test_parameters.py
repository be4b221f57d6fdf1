"""Parameters of the notebooks: a wrong one is refused in a sentence by the function that takes it, never by Python's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell

from prunelimit.checks import integers, pick_names, several
from prunelimit.errors import PruneLimitError
from prunelimit.experiments import (
    advice_cells,
    advice_frames,
    benchmark_frames,
    cost_frames,
    diagram_frames,
    distribution_frames,
    frames,
    geometry_frames,
    ladder_frames,
    path_frames,
    prune_frames,
    quadratic,
    quadratic_frames,
    rescaling,
    rounds_frames,
    row_frames,
    settings_frames,
    synthesis_frames,
    synthesis_relations,
    theory_frames,
    training_frames,
    transformer_frames,
    verdict,
)
from prunelimit.experiments.store import repository
from prunelimit.geometry import transition_window

Call = Callable[[Any], object]


@pytest.fixture(scope="module", autouse=True)
def committed_records() -> Iterator[None]:
    """Read the records that the pages read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNELIMIT_RESULTS", str(Path(str(repository())) / "results"))
        yield


#: Functions of the pages that take seeds; each is called with the seeds alone.
SEEDS: dict[str, Call] = {
    "limits": lambda seeds: frames.load_cells("fc5-cifar10", "best", seeds),
    "limits that are missing": lambda seeds: frames.missing_cells("fc5-cifar10", seeds),
    "pruners": lambda seeds: prune_frames.prune_frame("fc5-cifar10", "best", seeds),
    "pruners that are missing": lambda seeds: prune_frames.missing_networks("fc5-cifar10", seeds),
    "rounds": lambda seeds: rounds_frames.rounds_frame("fc5-cifar10", "best", seeds),
    "rounds that are missing": lambda seeds: rounds_frames.missing_rounds("fc5-cifar10", seeds),
    "rows that are missing": lambda seeds: row_frames.missing_rows("fc5-cifar10", seeds),
    "spectra": lambda seeds: settings_frames.slq_frame("alexnet-cifar10", None, seeds),
    "ladders": lambda seeds: ladder_frames.load_ladders(None, None, seeds),
    "ladders that are missing": lambda seeds: ladder_frames.missing_ladders(None, seeds),
    "distributions": lambda seeds: distribution_frames.load_distributions("fc5-cifar10", "quick", seeds),
    "distributions that are missing": lambda seeds: distribution_frames.missing_distributions("fc5-cifar10", seeds),
}

PROFILES: dict[str, Call] = {
    "pruners": lambda profile: prune_frames.prune_frame(None, profile),
    "predicted limits": lambda profile: prune_frames.predicted_limits(None, profile),
    "rounds": lambda profile: rounds_frames.rounds_frame(None, profile),
    "training": lambda profile: training_frames.training_frame(None, profile),
    "spectra": lambda profile: settings_frames.slq_frame(None, profile),
    "ladders": lambda profile: ladder_frames.load_ladders(None, profile),
    "distributions": lambda profile: distribution_frames.load_distributions(None, profile),
    "grids": lambda profile: advice_cells.load_grids(None, [profile]),
    "diagrams": lambda profile: diagram_frames.load_frames(None, [profile]),
    "synthesis": lambda profile: synthesis_frames.all_cells([profile]),
}

GRIDS: dict[str, Call] = {
    "advice": advice_cells.load_grids,
    "diagrams": diagram_frames.load_frames,
    "diagrams that are missing": diagram_frames.diagrams_missing,
    "synthesis": lambda grids: synthesis_frames.all_cells(["quick"], grids),
}


def wells() -> dict[str, quadratic.QuadraticWell]:
    return quadratic.family_wells(20, 0.02)


NONE: Any = None

#: The other parameters: what to call, and what the sentence begins with.
CASES: dict[str, tuple[Callable[[], object], str]] = {
    "verdict, no seeds": (lambda: verdict.error_table([]), r"^seeds=\[\] is empty"),
    "limits, no records": (lambda: frames.beside(None, "laptop", [77]), r"^tasks=None, profile='laptop', seeds=\[77\]"),
    "limits, no tasks": (lambda: frames.load_cells([]), r"^task=\[\] is empty"),
    "pruners, no networks": (lambda: prune_frames.prune_frame([]), r"^comparison=\[\] is empty"),
    "training, profile": (
        lambda: training_frames.training_frame("mlpnet-mnist", "paper"),
        "^profile='paper' is not def",
    ),
    "spectra, profile": (lambda: settings_frames.slq_frame("mlpnet-mnist", "paper"), "^profile='paper' is not defined"),
    "phase, eta": (lambda: geometry_frames.window_frame(NONE, NONE, 0.7), r"^eta=0\.7 must lie between 0 and 0\.5"),
    "phase, eta 2": (lambda: geometry_frames.window_frame(NONE, NONE, 2), "^eta=2 must lie between"),
    "quadratic, eta": (lambda: transition_window(5, "0.1"), "^eta='0.1' must lie between 0 and 1"),  # type: ignore[arg-type]
    "phase, rotations": (lambda: geometry_frames.thresholds_frame([12], 0), "^rotations=0"),
    "phase, totals": (lambda: geometry_frames.thresholds_frame([1], 1), "^totals=1 .* at least 2"),
    "fig01, total": (
        lambda: geometry_frames.dimension_frame(["ball"], 1, [2], ["random"], 9),
        "^total=1 .* at least 3",
    ),
    "fig01, distances": (
        lambda: geometry_frames.dimension_frame(["ball"], 9, [0.01], ["random"], 9),
        r"^distances=\[0.01\] all lie inside",
    ),
    "fig01, draws": (lambda: geometry_frames.concentration_frame([9], 0.4, 1), "^draws=1 .* at least 2"),
    "quadratic, trials": (lambda: quadratic_frames.success_frame(wells(), trials=0), "^trials=0"),
    "quadratic, draws": (lambda: quadratic_frames.orientation_frame(wells()["power law"], draws=0), "^draws=0"),
    "quadratic, shown": (lambda: quadratic.family_titles(["nil"]), "^shown='nil' is unknown. Did you mean 'null'"),
    "quadratic, weights": (lambda: quadratic.family_wells(20, 0.02, "cauchy"), "^weights='cauchy' is unknown"),
    "quadratic, dimension": (lambda: quadratic.family_wells(20.5, 0.02), r"^dimension=20\.5"),  # type: ignore[arg-type]
    "quadratic, ball": (lambda: quadratic_frames.ball_frame([1], 0.1), "^dimensions=1"),
    "fig06, factors": (lambda: theory_frames.scaling_frame([], []), r"^factors=\[\] is empty"),
    "fig06, hidden": (lambda: rescaling.small_network([], 1, 0, 0), r"^hidden=\[\] is empty"),
    "fig06, growth": (lambda: rescaling.growth_frame(NONE, NONE, 0.1, [-1]), "^growth=-1"),
    "fig06, exchange": (lambda: rescaling.rescaling_frame(NONE, NONE, 0.1, 0, []), r"^exchange=\[\] is empty"),
    "scale, examples": (lambda: cost_frames.curve_frame(-5), "^examples=-5"),
    "scale, workers": (lambda: cost_frames.projection_frame(workers="two"), "^workers='two'"),  # type: ignore[arg-type]
    "benchmarks": (
        lambda: benchmark_frames.accuracy_frame(0.5),
        r"^tolerance=0\.5 is not recorded: choose 0\.05 or 0\.1",
    ),
    "transformers": (lambda: transformer_frames.load_cases([]), r"^network=\[\] is empty"),
    "tune_rho, default": (lambda: advice_frames.nearest(pd.Series([0.0, 0.1]), -1), "^default=-1"),
    "tune_rho, quantile": (
        lambda: advice_frames.thresholds_for(advice_cells.stack([]), 0.1, quantile=2),
        "^quantile=2 must lie between 0 and 1",
    ),
    "tune_rho, profile": (
        lambda: advice_cells.load_grids(["rho"], ["laptop"]),
        "^profile='laptop' is not defined for rho",
    ),
    "synthesis, draws": (lambda: synthesis_relations.relation_frame(pd.DataFrame(), 0), "^draws=0"),
    "paths, densities": (lambda: path_frames.cell_pairs([1], []), r"^densities=\[\] is empty"),
}


def sentence_of(call: Callable[[], object]) -> str:
    with pytest.raises(PruneLimitError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_parameter_is_named(name: str) -> None:
    call, pattern = CASES[name]
    message = sentence_of(call)
    assert re.search(pattern, message), message


@pytest.mark.parametrize("name", SEEDS)
def test_one_seed_counts_as_a_list_and_no_seed_is_refused(name: str) -> None:
    call = SEEDS[name]
    one, same = (
        found.to_dict() if isinstance(found := call(seeds), pd.DataFrame) else len(found) for seeds in (0, [0])
    )  # type: ignore[arg-type]
    assert str(one) == str(same)
    assert sentence_of(lambda: call([])).startswith("seeds=[] is empty")
    assert sentence_of(lambda: call([0, 0])).startswith("seeds=[0, 0] has a number twice")
    assert sentence_of(lambda: call("[0, 1]")).startswith("seeds='[0, 1]' is text: give numbers")


@pytest.mark.parametrize("name", PROFILES)
def test_an_unknown_profile_is_refused(name: str) -> None:
    assert "profile='quik' is unknown. Did you mean 'quick'?" in sentence_of(lambda: PROFILES[name]("quik"))


@pytest.mark.parametrize("name", GRIDS)
def test_a_string_is_the_name_of_one_grid(name: str) -> None:
    one, same = (GRIDS[name](grids) for grids in ("epochs", ["epochs"]))
    assert str(one) == str(same)
    assert "grid='epoch' is unknown. Did you mean 'epochs'?" in sentence_of(lambda: GRIDS[name]("epoch"))


def test_a_profile_that_only_some_grids_have_leaves_out_the_others() -> None:
    assert {frame.grid.iloc[0] for frame in advice_cells.load_grids(None, "laptop")} <= {"epochs"}


def test_one_number_counts_as_a_list() -> None:
    assert set(geometry_frames.thresholds_frame(5, 2).total) == {5}
    assert set(quadratic_frames.ball_frame(50, 0.1).dimension) == {50}
    assert path_frames.cell_pairs(1, [0.1, 0.2]) == [(1, 0.1), (1, 0.2)]
    assert quadratic.family_titles("power") == ["power law"]
    assert len(transformer_frames.load_cases("vit")) == 1


def test_the_command_for_a_missing_seed_reaches_it() -> None:
    (command,) = set(frames.missing_cells("fc5-cifar10", [77]).query("profile == 'quick'").command)
    assert "--seeds 78" in command


@pytest.mark.parametrize(
    ("notebook", "name", "value"),
    [("own", "epochs", -1), ("slq", "steps", 5), ("slq", "steps", 0), ("transformers", "updates", 0)],
)
def test_what_only_a_page_takes_is_refused_there(notebook: str, name: str, value: int) -> None:
    cells = json.loads((Path(str(repository())) / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))[
        "cells"
    ]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {}
    exec(sources[0], namespace)
    namespace[name] = value

    def run() -> None:
        for source in sources[1:]:
            if "integer" in source:  # the cell that imports the check, and the one that needs it
                exec(source, namespace)

    assert sentence_of(run).startswith(f"{name}={value} must be a whole number, at least")


@given(st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_distinct_numbers_come_back_in_their_order(numbers: list[int]) -> None:
    assert integers("seeds", tuple(numbers), least=0) == numbers
    assert integers("seeds", numbers[0], least=0) == numbers[:1]


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_names_come_back_once(wanted: list[str]) -> None:
    found = pick_names("letter", wanted, "abc")
    assert set(found) == set(wanted)
    assert len(found) == len(set(wanted))
    assert found[0] == wanted[0]
    assert pick_names("letter", wanted[0], "abc") == several("letter", wanted[0])
    assert pick_names("letter", None, "abc") == ["a", "b", "c"]


def test_a_notebook_shows_the_sentence_and_no_traceback() -> None:
    shell = InteractiveShell()
    shown: list[str] = []
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)  # type: ignore[method-assign,assignment]
    shell.run_cell("from prunelimit.checks import integer\ninteger('steps', 5, 16)")
    assert shown == ["PruneLimitError: steps=5 must be a whole number, at least 16."]
