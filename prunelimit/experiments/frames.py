"""From records to tidy data frames: every number that a page shows passes through here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.curvature.quadrature import Spectrum
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import PROFILES, Task, find_profiles, find_seeds, find_tasks
from prunelimit.experiments.curvature import EXPERIMENT as CURVATURE
from prunelimit.experiments.provenance_frames import missing_frame, origin_frame
from prunelimit.experiments.refit import EXPERIMENT as REFIT
from prunelimit.experiments.runner import EXPERIMENT, run_limit
from prunelimit.experiments.sight import EXPERIMENT as SIGHT
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.store import load_record
from prunelimit.limit import ROOT_STEPS, PruningLimit, finer_distance, formula_limit
from prunelimit.pruning.magnitude import effective_sparsity

#: Grid onto which the recorded 1,001 distances are interpolated before the root is sought.
FINE_GRID = ROOT_STEPS + 1

#: Column of the limits table to what a reader sees.
MEASURES = {
    "formula": "formula",
    "cone": "formula, exact cone",
    "cut": "formula, for the cut",
    "directional": "directional",
    "refit": "refit",
    "emp": "EMP: no curvature",
    "measured": "one-shot: loss ≤ dense + ε",
    "accuracy": "one-shot: accuracy ≥ dense",
    "accuracy_slack": "one-shot: accuracy ≥ dense − 0.1",
    "fine_tuned": "fine-tuned: loss ≤ control + ε",
    "seen": "sparsest seen: loss ≤ dense + ε",
}


def fine_distance(record: dict[str, Any]) -> np.ndarray:
    """Return a record's distances R, interpolated onto the grid on which the root is sought, ``(FINE_GRID,)``."""
    return finer_distance(np.array(record["radius"]), ROOT_STEPS)


def network_title(network: str, dataset: str, profile: str) -> str:
    """Name a network, the data it saw and the profile, as all tables and figures do."""
    return f"{network}{' stand-in' if profile == 'quick' else ''} on {dataset} ({profile})"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One recorded run of the catalogue.

    Attributes:
        task: The task.
        profile: The profile it was run in.
        seed: The training seed.
        spec: What was run.
        record: What came out.
    """

    task: Task
    profile: str
    seed: int
    spec: LimitSpec
    record: dict[str, Any]

    @functools.cached_property
    def limit(self) -> PruningLimit:
        """The formula's limit, solved now from the recorded Lanczos coefficients and distances."""
        fine = fine_distance(self.record)
        found = Spectrum.from_dict(self.record["spectrum"])
        cost = {"products": self.record["spectrum"]["products"], "seconds": self.record["seconds"]["spectrum"]}
        examples = self.record["spectrum"]["examples"]
        return formula_limit(found, fine, self.record["epsilon"], examples=examples, cost=cost)

    @functools.cached_property
    def refit(self) -> dict[str, Any] | None:
        """The refitted limit, if it is recorded."""
        records = (load_record(REFIT, spec) for spec in self.task.refit_specs(self.profile, self.seed))
        return next((record["refit"] for record in records if record), None)

    @functools.cached_property
    def sight(self) -> dict[str, Any]:
        """The limits along the line of sight, by kind of subspace, from the most images that are recorded."""
        records = [load_record(SIGHT, spec) for spec in self.task.sight_specs(self.profile, self.seed)]
        return next((record["limits"] for record in reversed(records) if record), {})

    @property
    def title(self) -> str:
        """Name of the network, the data it saw and the profile."""
        return network_title(self.task.title, self.spec.train.dataset, self.profile)


def load_cells(
    tasks: str | Sequence[str] | None = None,
    profile: str = "best",
    seeds: int | Sequence[int] = (0, 1, 2),
    *,
    run_missing: bool = False,
) -> list[Cell]:
    """Load the recorded cells of some tasks.

    Args:
        tasks: Task names; ``None`` for all.
        profile: A profile, or ``"best"`` for the most faithful one of which every task has a record.
        seeds: Training seeds.
        run_missing: Whether to run cells without a record now; meant for the quick profile.

    Returns:
        The cells that there are, ordered by task and seed.

    Raises:
        PruneLimitError: If a task or the profile is unknown, or the seeds are none.
    """
    profiles, seeds = find_profiles(profile), find_seeds(seeds)
    cells = []
    for task in find_tasks(tasks):
        for name in profiles:
            if name not in task.profiles:
                continue
            specs = {seed: task.spec(name, seed) for seed in seeds}
            if run_missing:
                label = {"task": task.name, "profile": name}
                records = {seed: run_limit(spec, label=label) for seed, spec in specs.items()}
            else:
                records = {seed: load_record(EXPERIMENT, spec) for seed, spec in specs.items()}
            found = [Cell(task, name, seed, specs[seed], record) for seed, record in records.items() if record]
            cells += found
            if found:
                break
    return cells


def beside(
    tasks: str | Sequence[str] | None, profile: str, seeds: int | Sequence[int], *, run_missing: bool = True
) -> list[Cell]:
    """Return the best recorded cells and, beside them, those of ``profile``; quick ones without a record run now if wanted.

    Whoever wants them to run wants at least one: without any, that is a PruneLimitError.
    """
    best = load_cells(tasks, "best", seeds)
    extra = load_cells(tasks, profile, seeds, run_missing=run_missing and profile == "quick")
    known = {cell.spec.hash for cell in best}
    cells = best + [cell for cell in extra if cell.spec.hash not in known]
    if run_missing and not cells:
        raise PruneLimitError(
            f"tasks={tasks!r}, profile={profile!r}, seeds={seeds!r} have no record: make one with prunelimit run."
        )
    order = [task.name for task in find_tasks(tasks)]
    return sorted(cells, key=lambda c: (order.index(c.task.name), PROFILES.index(c.profile), c.seed))


def limits_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Tabulate every limit of every cell, as fractions removed.

    Args:
        cells: Recorded cells.

    Returns:
        One row per cell; a value that was not recorded is missing. ``control`` is how far the further training moved the loss
        of the unpruned network, in units of epsilon: the fine-tuned limit is measured from there. ``seen`` is the sparsest of all
        networks tried, cut or trained on, whose training loss is within epsilon of the dense network's own.
    """
    rows = []
    for cell in cells:
        record, limit = cell.record, cell.limit
        tuned = record.get("fine_tuned") or {}
        moved = tuned.get("reference_loss", np.nan) - record["dense"]["train_loss"]
        refit, sight = cell.refit or {}, cell.sight
        rows.append(
            {
                "task": cell.task.name,
                "network": cell.task.title,
                "profile": cell.profile,
                "seed": cell.seed,
                "title": cell.title,
                "formula": limit.sparsity,
                "formula_low": limit.interval[0],
                "formula_high": limit.interval[1],
                # A sample never resolves, however many products are made with it.
                "resolved": limit.resolved and cell.spec.curvature_examples is None,
                "lower": limit.lower,
                "upper": limit.upper,
                "cone": sight.get("cone", {}).get("sparsity", np.nan),
                "cut": sight.get("cut", {}).get("sparsity", np.nan),
                "directional": record["directional"]["sparsity"],
                "refit": refit.get("sparsity", np.nan),
                "emp": effective_sparsity(np.array(record["radius"]), record["total"]),
                "measured": record["measured"]["sparsity"],
                "accuracy": record["accuracy"]["accuracy"],
                "accuracy_slack": record["accuracy"]["accuracy_slack"],
                "fine_tuned": tuned.get("sparsity", np.nan),
                "seen": sparsest_seen(record),
                "control": moved / record["epsilon"],
                "exact": (record.get("exact") or {}).get("sparsity", np.nan),
                "epsilon": record["epsilon"],
                "radius": limit.radius,
                "dimension": limit.dimension,
                "total": record["total"],
                "examples": record["spectrum"]["examples"],
                "products": record["spectrum"]["products"],
                "train_loss": record["dense"]["train_loss"],
                "test_accuracy": record["dense"]["test_accuracy"],
            }
        )
    return pd.DataFrame(rows)


def sparsest_seen(record: dict[str, Any]) -> float:
    """Find the sparsest network of a record in the theorem's own sublevel set, that of the dense network.

    Args:
        record: Body of a limit record.

    Returns:
        The largest fraction removed at which a network, cut once or trained on with its mask, was seen to have a training loss
        within epsilon of the dense network's. Sparser ones may exist: this bounds from below what can be removed.
    """
    most = record["dense"]["train_loss"] + record["epsilon"]
    tried = (record.get("fine_tuned") or {}).get("points", [])
    return max([record["measured"]["sparsity"], *(sparsity for sparsity, loss in tried if loss <= most)])


def in_percent(values: pd.Series) -> str:
    """Write fractions as their mean and, of several, their standard deviation, in per cent; "—" if there are none."""
    there = values.dropna() * 100
    if there.empty:
        return "—"
    return f"{there.mean():.1f}" + (f" ± {there.std(ddof=1):.1f}" if len(there) > 1 else "")


def mean_and_spread(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Average columns over seeds.

    Args:
        frame: Output of :func:`limits_frame`.
        columns: Numeric columns.

    Returns:
        One row per task and profile; each column as text, mean and standard deviation over seeds in per cent, or "—".
    """
    keys = ["title", "profile"]
    grouped = frame.groupby(keys, sort=False)
    table = grouped[list(columns)].agg(in_percent)
    table.insert(0, "seeds", grouped.size())
    return table.reset_index().drop(columns="profile").rename(columns={"title": "network, data, profile"})


def sweep_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Stack the recorded sweeps: columns sparsity, train_loss, test_loss, their accuracies, and the cell's keys."""
    parts = [
        pd.DataFrame(cell.record["sweep"]).assign(title=cell.title, seed=cell.seed)
        for cell in cells
        if cell.record["sweep"]
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def missing_cells(tasks: str | Sequence[str] | None = None, seeds: int | Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """List the catalogue's cells without a record, with the command that fills them.

    Args:
        tasks: Task names; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``task``, ``profile``, ``seeds without a record`` and ``command``.
    """
    runs = [(task.name, task.profiles, lambda *cell, task=task: [task.spec(*cell)]) for task in find_tasks(tasks)]
    return missing_frame("run", EXPERIMENT, runs, seeds, options=" --missing")


def origin(cells: Sequence[Cell]) -> pd.DataFrame:
    """Say where the numbers of a page come from: profile, seeds, devices, commits, and the command that makes them again."""
    return origin_frame("run", [(cell.task.name, cell.profile, cell.seed, cell.record) for cell in cells])


def rerun(task: str, seed: int = 0) -> pd.DataFrame:
    """Train and measure one quick cell again, here and now, and put it beside its record.

    Args:
        task: Name of the task.
        seed: Training seed.

    Returns:
        One row per quantity, with the recorded value and the one of this machine.
    """
    spec = find_tasks(task)[0].spec("quick", seed)
    short = dataclasses.replace(spec, exact=False, tune_epochs=0, sweep=())
    live = run_limit(short, fresh=True, keep=False)
    record = load_record(EXPERIMENT, spec)
    assert live is not None  # there is no deadline
    found = {"here and now": live} | ({"recorded": record} if record else {})
    frames = {}
    for name, values in found.items():
        row = limits_frame([Cell(find_tasks(task)[0], "quick", seed, spec, values)]).iloc[0]
        frames[name] = row[["train_loss", "test_accuracy", "epsilon", "formula", "directional", "measured", "accuracy"]]
    return pd.DataFrame(frames)


def resolution_frame(cells: Sequence[Cell], step_counts: Sequence[int] = ()) -> pd.DataFrame:
    """Tabulate what the recorded spectra of some cells say about the formula's limit.

    Args:
        cells: Recorded cells; their spectra are looked up by profile and seed.
        step_counts: Numbers of products after which to look as well; the last is always there.

    Returns:
        One row per spectrum and step count: the limit, its certified interval ``low`` to ``high`` and the spread
        ``tail_low`` to ``tail_high`` of the rules behind the value.
    """
    rows = []
    for cell in cells:
        for spec in cell.task.curvature_specs(cell.profile, cell.seed):
            record = load_record(CURVATURE, spec)
            if record is None:
                continue
            fine = fine_distance(record)
            whole = Spectrum.from_dict(record["spectrum"])
            for steps in sorted({k for k in step_counts if k < whole.steps} | {whole.steps}):
                found = whole.truncated(steps)
                limit = formula_limit(found, fine, record["epsilon"], examples=record["examples"])
                tail = formula_limit(found, fine, record["epsilon"], bounds="tail")
                rows.append(
                    {
                        "title": cell.title,
                        "task": cell.task.name,
                        "profile": cell.profile,
                        "seed": cell.seed,
                        "examples": record["examples"],
                        "steps": steps,
                        "last": steps == whole.steps,
                        "sparsity": limit.sparsity,
                        "low": limit.interval[0],
                        "high": limit.interval[1],
                        "tail_low": tail.interval[0],
                        "tail_high": tail.interval[1],
                        "resolved": limit.resolved,
                        "dimension": limit.dimension,
                        "nullity": whole.nullity,
                        "largest": found.largest,
                        "mu": 2 * record["epsilon"] / limit.radius**2,
                        "measured": cell.record["measured"]["sparsity"],
                        "accuracy": cell.record["accuracy"]["accuracy"],
                        "fine_tuned": (cell.record.get("fine_tuned") or {}).get("sparsity", np.nan),
                        "seconds": record["seconds"]["spectrum"],
                        "device": record["provenance"]["device"],
                        "commit": (record["provenance"]["commit"] or "none")[:10],
                        "command": f"prunelimit resolve {cell.task.name} --profile {cell.profile}",
                    }
                )
    return pd.DataFrame(rows)
