"""The commands that make records of experiments, and the one that lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from prunelimit.cli_options import (
    OUT_OF_TIME,
    Budget,
    Device,
    Experiment,
    Profile,
    Seeds,
    Threads,
    check_device,
    deadline_of,
    out,
    say,
    use_threads,
)
from prunelimit.errors import unknown_name


def run(
    experiment: Experiment = "all",
    profile: Annotated[
        str, typer.Option(help="quick (digits, seconds), laptop (CIFAR-10 on a CPU) or paper (one GPU).")
    ] = "quick",
    seeds: Seeds = 3,
    missing: Annotated[bool, typer.Option("--missing", help="Say nothing of cells that are recorded already.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Compute recorded cells anew and replace their records.")
    ] = False,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Train, prune, predict and measure; write one record per seed into results/.

    A run may be stopped at any moment, by any means: the next call goes on from the last finished epoch or step.

    Example: `prunelimit run fc5-cifar10 --profile laptop --seeds 3 --missing --time-budget 540`
    """
    from prunelimit.experiments.catalogue import PROFILES, find_tasks
    from prunelimit.experiments.runner import EXPERIMENT, check_seeds, run_limit
    from prunelimit.experiments.store import load_record

    check_device(device)
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    deadline = deadline_of(time_budget)
    use_threads(threads)
    tasks = [
        t
        for t in find_tasks(None if experiment == "all" else experiment)
        if experiment != "all" or profile in t.profiles
    ]
    for task in tasks:
        for seed in check_seeds(seeds):
            spec, name = task.spec(profile, seed), f"{task.name} {profile} seed {seed}"
            recorded = load_record(EXPERIMENT, spec) is not None
            if recorded and not again:
                if not missing:
                    say(f"{name}: recorded already ({spec.hash}); --again computes it anew")
                continue
            start = time.monotonic()
            label = {"task": task.name, "profile": profile}
            record = run_limit(spec, label=label, device=device, deadline=deadline, fresh=recorded, progress=True)
            if record is None:
                say(f"{name}: {OUT_OF_TIME}")
                return
            limit = record["measured"]["sparsity"]
            say(f"{name}: recorded ({spec.hash}), measured limit {limit:.1%}, {time.monotonic() - start:.0f} s")


def _record(
    wanted: tuple[str, str, int],
    list_specs: Callable[[Any, str, int], Sequence[Any]],
    make: Callable[..., dict[str, Any] | None],
    device: str,
    time_budget: float | None,
    threads: int,
    told: Callable[[Any], str] = lambda spec: "",
    **options: Any,
) -> None:
    """Make the records of one kind for a task or all of them, a profile and so many seeds, and say what became of each."""
    from prunelimit.experiments.several import make_records

    options |= {"device": check_device(device), "deadline": deadline_of(time_budget)}
    use_threads(threads)
    for name, spec, done in make_records(*wanted, list_specs, make, **options):
        say(f"{name}: recorded ({spec.hash}){told(spec)}" if done else f"{name}: {OUT_OF_TIME}")


def refit(
    experiment: Experiment = "all",
    profile: Profile = "quick",
    seeds: Seeds = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Predict the limit if the kept weights are refitted, by trust-region steps; one record per seed.

    Example: `prunelimit refit fc5-cifar10`
    """
    from prunelimit.experiments.catalogue import Task
    from prunelimit.experiments.refit import run_refit

    _record((experiment, profile, seeds), Task.refit_specs, run_refit, device, time_budget, threads)


def sight(
    experiment: Experiment = "all",
    profile: Profile = "quick",
    seeds: Seeds = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Solve for the limits along the line of sight: the formula, knowing where the sparse point lies.

    Finished lines of sight are kept: a run that was stopped goes on from the last one.

    Example: `prunelimit sight fc5-cifar10 --profile laptop --seeds 1`
    """
    from prunelimit.experiments.catalogue import Task
    from prunelimit.experiments.sight import run_sight

    _record((experiment, profile, seeds), Task.sight_specs, run_sight, device, time_budget, threads)


def ladder(
    experiment: Annotated[str, typer.Argument(help="fc3-weak-l1, fc3-strong-l1, or all.")] = "all",
    profile: Annotated[str, typer.Option(help="quick (digits) or laptop (MNIST).")] = "quick",
    seeds: Seeds = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Go from the formula to the cut, assumption by assumption, on networks small enough for the dense Hessian.

    Finished parts are kept: a run that was stopped goes on from the last one.

    Example: `prunelimit ladder fc3-strong-l1`
    """
    from prunelimit.experiments.catalogue import LadderTask, find_ladders
    from prunelimit.experiments.ladder import run_ladder

    _record((experiment, profile, seeds), LadderTask.specs, run_ladder, device, time_budget, threads, find=find_ladders)


def resolve(
    experiment: Experiment = "all",
    profile: Profile = "quick",
    seeds: Seeds = 1,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Probe the spectrum with samples of several sizes, until the formula's number is resolved.

    The Lanczos process is kept: a run that was stopped, or that is given more products, goes on from the last one.

    Example: `prunelimit resolve fc5-cifar10 --profile laptop`
    """
    from prunelimit.experiments.catalogue import Task
    from prunelimit.experiments.curvature import run_curvature

    def told(spec: Any) -> str:
        return f", {spec.steps} products"

    _record((experiment, profile, seeds), Task.curvature_specs, run_curvature, device, time_budget, threads, told)


def rows(
    experiment: Experiment = "all",
    profile: Profile = "quick",
    seeds: Seeds = 1,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Estimate the norms of all rows of the Hessian from a few products, and check some of them exactly.

    Finished parts are kept: a run that was stopped goes on from the last one.

    Example: `prunelimit rows fc5-cifar10 --profile quick`
    """
    from prunelimit.experiments.catalogue import Task
    from prunelimit.experiments.rows import run_rows

    def told(spec: Any) -> str:
        return f", order {spec.order}, {spec.probes} products and {spec.checked} exact rows"

    _record((experiment, profile, seeds), Task.row_specs, run_rows, device, time_budget, threads, told)


def status(seeds: Annotated[int, typer.Option(help="How many seeds to look for.")] = 3) -> None:
    """Show the catalogue: which cells are recorded, by task and profile.

    Example: `prunelimit status`
    """
    from prunelimit.experiments.catalogue import LADDERS, PROFILES, TASKS
    from prunelimit.experiments.ladder import EXPERIMENT as LADDER
    from prunelimit.experiments.runner import EXPERIMENT, check_seeds
    from prunelimit.experiments.store import load_record, results_folder

    profiles = list(reversed(PROFILES))
    table = Table("task", *profiles, title=f"recorded seeds in {results_folder()}")

    def count(experiment: str, specs: Sequence[Any]) -> str:
        there = sum(load_record(experiment, spec) is not None for spec in specs)
        return f"{there} of {len(specs)}" if there else "none" if specs else "-"

    for task in TASKS.values():
        cells = [[task.spec(p, s) for s in check_seeds(seeds)] if p in task.profiles else [] for p in profiles]
        table.add_row(task.name, *(count(EXPERIMENT, specs) for specs in cells))
    for small in LADDERS.values():
        ladders = [[spec for s in check_seeds(seeds) for spec in small.specs(p, s)] for p in profiles]
        table.add_row(small.name, *(count(LADDER, specs) for specs in ladders))
    out.print(table)
    say("fill a cell with: prunelimit run TASK --profile PROFILE --missing")
    say(f"one of {' and '.join(LADDERS)} with: prunelimit ladder TASK --profile PROFILE")


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this module.

    Args:
        app: The command line.
    """
    for command in (run, resolve, refit, rows, sight, ladder, status):
        app.command()(command)
