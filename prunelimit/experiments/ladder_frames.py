"""Data frames of the recorded ladders: limits rung by rung, where quadratics lead, other directions, other distances."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import LadderTask, find_ladders, find_profiles, find_seeds
from prunelimit.experiments.frames import in_percent
from prunelimit.experiments.ladder import EXPERIMENT
from prunelimit.experiments.provenance_frames import missing_frame, origin_frame
from prunelimit.experiments.specs import LadderSpec
from prunelimit.experiments.store import load_record

#: Rungs on which the kept weights may move, from the formula to what training does: key to its name and the assumption
#: of the theory page that it gives back.
SUBSPACE = {
    "formula": ("the formula, all eigenvalues", ""),
    "rotated": ("|H|, random subspaces", "6"),
    "perpendicular": ("… perpendicular to the step", "1"),
    "shuffled": ("|H|, random coordinates", "1"),
    "pruned": ("|H|, the kept weights", "1"),
    "ball": ("… moving by at most R(s)", "2"),
    "signs": ("… H with its signs", "5"),
    "slope": ("… and the gradient", "3"),
    "judged": ("the step of |H|, judged by the loss", "2"),
    "reached": ("the loss, kept weights refitted", "2"),
    "refit": ("… for the objective of the training", "3"),
    "fine_tuned": ("trained on, beside a dense control", "2"),
}

#: Rungs on which the kept weights stay, from the formula to accuracy.
ONE_SHOT = {
    "formula": ("the formula, all eigenvalues", ""),
    "absolute": ("|H| along the cut", "4"),
    "signed": ("H along the cut", "5"),
    "sloped": ("H and gradient along the cut", "3"),
    "measured": ("the loss itself", "2"),
    "accuracy": ("test accuracy ≥ dense", "7"),
}

#: Branch to its title and rungs.
BRANCHES = {"subspace": ("Kept weights may move", SUBSPACE), "one-shot": ("Kept weights stay", ONE_SHOT)}

#: Steps as long as that of the cut: what each is called.
KINDS = {
    "cut": "the cut",
    "opposite": "the cut, backwards",
    "flipped": "random signs",
    "support": "random, in removed weights",
    "sphere": "random, in all weights",
    "others": "weights removed at random",
}

#: Expansions of the rise of the loss along a step.
EXPANSIONS = {"absolute": "|H|", "signed": "H", "sloped": "H and gradient"}


@dataclasses.dataclass(frozen=True)
class LadderCell:
    """One recorded ladder.

    Attributes:
        task: The network.
        profile: The profile it was run in.
        seed: The training seed.
        spec: What was run.
        record: What came out.
    """

    task: LadderTask
    profile: str
    seed: int
    spec: LadderSpec
    record: dict[str, Any]

    @property
    def title(self) -> str:
        """Name of the network, its penalty and the data."""
        return f"{self.task.title}, {self.spec.train.dataset}"

    @property
    def keys(self) -> dict[str, Any]:
        """What every row begins with."""
        return {"title": self.title, "task": self.task.name, "profile": self.profile, "seed": self.seed}


def load_ladders(
    tasks: str | Sequence[str] | None = None, profile: str | None = None, seeds: int | Sequence[int] = (0, 1, 2)
) -> list[LadderCell]:
    """Load the recorded ladders, the most faithful profile first.

    Args:
        tasks: Names; ``None`` for all.
        profile: A profile; ``None`` for all.
        seeds: Training seeds.

    Returns:
        What there is.

    Raises:
        PruneLimitError: If there is nothing, or a name is unknown.
    """
    cells, seeds = [], find_seeds(seeds)
    for name in find_profiles(profile, None):
        for task in find_ladders(tasks):
            for seed in seeds:
                for spec in task.specs(name, seed):
                    if record := load_record(EXPERIMENT, spec):
                        cells.append(LadderCell(task, name, seed, spec, record))
    if not cells:
        raise PruneLimitError(
            f"tasks={tasks!r}, profile={profile!r} have no record: make them with `prunelimit ladder`."
        )
    return cells


def rungs_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """List every limit of every ladder.

    Args:
        cells: Recorded ladders.

    Returns:
        One row per network, seed, branch and rung: ``rung``, its ``label`` and ``place``, the limit ``sparsity`` with
        ``low`` and ``high``, which are the bracket or the spread over random subspaces.
    """
    rows = []
    for cell in cells:
        limits = cell.record["limits"]
        for branch, (_, rungs) in BRANCHES.items():
            for place, (rung, (label, _)) in enumerate(rungs.items()):
                found = limits[rung]
                value = found["sparsity"]
                ends = {"low": found.get("low", value), "high": found.get("high", value)}
                row = {"branch": branch, "rung": rung, "place": place, "label": label, "sparsity": value}
                rows.append(cell.keys | row | ends)
    return pd.DataFrame(rows)


def rungs_table(frame: pd.DataFrame, branch: str) -> pd.DataFrame:
    """Average the limits of one branch over seeds.

    Args:
        frame: Output of :func:`rungs_frame`.
        branch: A key of ``BRANCHES``.

    Returns:
        One row per rung, one column per network: mean and standard deviation over seeds in per cent, as text.
    """
    rungs = BRANCHES[branch][1]
    part = frame[frame.branch == branch]
    titles = list(dict.fromkeys(part.title))
    table = pd.DataFrame({"rung": [label for label, _ in rungs.values()]})
    table["assumption"] = [number for _, number in rungs.values()]
    for title in titles:
        values = part[part.title == title].groupby("rung").sparsity
        table[title] = [in_percent(values.get_group(rung)) for rung in rungs]
    return table


def landings_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Tabulate where the quadratics lead: what they promise there, and what the loss says.

    Args:
        cells: Recorded ladders.

    Returns:
        One row per network, seed and rung: the limit ``sparsity``, the rises ``promised`` by the quadratic, ``reached`` by
        the loss, and of the loss at the ``unmoved`` sparse point, in units of epsilon; ``length`` of the kept weights'
        move in units of R.
    """
    rows = []
    for cell in cells:
        for rung in ("pruned", "ball", "signs", "slope"):
            found, epsilon = cell.record["limits"][rung], cell.record["epsilon"]
            rises = {name: found[name] / epsilon for name in ("promised", "reached", "unmoved")}
            label = f"{SUBSPACE[rung][0]}".replace("… ", "")
            row = {"rung": rung, "label": label, "sparsity": found["sparsity"], "length": found["length"]}
            rows.append(cell.keys | row | rises)
    return pd.DataFrame(rows)


def directions_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Stack the rises along steps as long as that of the cut.

    Args:
        cells: Recorded ladders.

    Returns:
        One row per step: ``place``, ``kind``, its ``length`` in units of R, the share ``removed``, and the rise of the loss
        with its three expansions, in units of epsilon.
    """
    rows = []
    for cell in cells:
        epsilon, total = cell.record["epsilon"], cell.record["total"]
        for found in cell.record["directions"]:
            rises = {name: found[name] / epsilon for name in ("rise", *EXPANSIONS)}
            rest = {"kind": found["kind"], "length": found["length"], "removed": found["removed"] / total}
            rows.append(cell.keys | {"place": found["place"]} | rest | rises)
    return pd.DataFrame(rows)


def directions_table(frame: pd.DataFrame, place: str) -> pd.DataFrame:
    """Average the rises over draws and seeds.

    Args:
        frame: Output of :func:`directions_frame`.
        place: At which limit, ``"formula"`` or ``"measured"``.

    Returns:
        One row per network and kind: mean and standard deviation of the true rise, the means of its expansions, of the
        length and of the share removed.
    """
    part = frame[frame.place == place]
    grouped = part.groupby(["title", "kind"], sort=False)
    table = grouped.agg(
        rise=("rise", "mean"),
        spread=("rise", lambda values: values.std(ddof=0)),
        **{name: (name, "mean") for name in EXPANSIONS},
        length=("length", "mean"),
        removed=("removed", "mean"),
    ).reset_index()
    table["kind"] = table.kind.map(KINDS)
    return table


def path_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Stack the rises at sparse points, true and expanded, in units of epsilon, with the formula's limit."""
    parts = []
    for cell in cells:
        found, epsilon = cell.record["path"], cell.record["epsilon"]
        columns = {name: np.array(found[name]) / epsilon for name in ("rise", *EXPANSIONS)}
        limits = {name: cell.record["limits"][name]["sparsity"] for name in ("formula", "measured")}
        parts.append(pd.DataFrame({"sparsity": found["sparsity"]} | columns).assign(**limits, **cell.keys))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def domain_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Tabulate how far the expansion of the loss holds: true over expanded rise, on the way to the formula's limit.

    Args:
        cells: Recorded ladders.

    Returns:
        One row per network and seed: the ratio after a ``quarter``, ``half`` and all (``whole``) of the step to the
        formula's limit, and at the ``measured`` limit.
    """
    rows = []
    for cell in cells:
        line = cell.record["line"]
        ratio = dict(zip(line["share"], np.array(line["rise"]) / np.array(line["sloped"]), strict=True))
        cut = next(r for r in cell.record["directions"] if (r["place"], r["kind"]) == ("measured", "cut"))
        shares = {"quarter": ratio[0.25], "half": ratio[0.5], "whole": ratio[1.0]}
        rows.append(cell.keys | shares | {"measured": cut["rise"] / cut["sloped"]})
    return pd.DataFrame(rows)


def gradient_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Tabulate what the gradient is made of, and what it makes of the cut at the measured limit.

    Args:
        cells: Recorded ladders.

    Returns:
        One row per network and seed: ``norm`` of the gradient and of the penalty's slope, the ``cosine`` between them over
        all, the ``kept`` and the ``removed`` weights, and the first-order rise along the cut, ``linear``, beside what
        stationarity says it is, ``stationary``, in units of epsilon.
    """
    rows = []
    for cell in cells:
        found, epsilon = cell.record["gradient"], cell.record["epsilon"]
        cut = found["cuts"]["measured"]
        cosines = {"cosine": found["cosine"], "kept": cut["cosine_kept"], "removed": cut["cosine_removed"]}
        rises = {"linear": cut["linear"] / epsilon, "stationary": cut["stationary"] / epsilon}
        rows.append(cell.keys | {"norm": found["norm"], "penalty": found["penalty_norm"]} | cosines | rises)
    return pd.DataFrame(rows)


def networks_frame(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Tabulate the networks themselves: size, data, loss, accuracy, tolerance and signs of the curvature."""
    rows = []
    for cell in cells:
        record = cell.record
        names = ("train_loss", "test_accuracy")
        shares = {name: record["curvature"][name] for name in ("largest", "smallest", "negative_share", "null_share")}
        sizes = {"total": record["total"], "examples": record["examples"], "epsilon": record["epsilon"]}
        rows.append(cell.keys | sizes | {name: record["dense"][name] for name in names} | shares)
    return pd.DataFrame(rows)


def ladder_origin(cells: Sequence[LadderCell]) -> pd.DataFrame:
    """Say where the numbers come from: seeds, device, commit, time, and the command that makes them again."""
    table = origin_frame("ladder", [(cell.task.name, cell.profile, cell.seed, cell.record) for cell in cells])
    seconds = pd.DataFrame([cell.keys | {"seconds": sum(cell.record["seconds"].values())} for cell in cells])
    means = seconds.groupby(["task", "profile"], sort=False).seconds.mean()
    table.insert(len(table.columns) - 1, "seconds per seed", [f"{mean:.0f}" for mean in means])
    return table


def missing_ladders(tasks: str | Sequence[str] | None = None, seeds: int | Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """List the ladders of the catalogue without a record, with the command that fills them.

    Args:
        tasks: Names; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``task``, ``profile``, ``seeds without a record`` and ``command``.
    """
    return missing_frame("ladder", EXPERIMENT, [(t.name, t.profiles, t.specs) for t in find_ladders(tasks)], seeds)
