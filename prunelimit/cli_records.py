"""The commands that make records of experiments, and the one that lists them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from prunelimit.cli_engines import CpusPerRun, EngineName, GpusPerRun, RayAddress, Retries, choose_engine
from prunelimit.cli_options import (
    OUT_OF_TIME,
    Budget,
    Comparison,
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
from prunelimit.errors import PruneLimitError, unknown_name


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
    together: Annotated[
        bool, typer.Option("--together", help="Train small networks many at once first; results differ by rounding.")
    ] = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus_per_run: CpusPerRun = 1,
    gpus_per_run: GpusPerRun = 0,
    retries: Retries = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Compile the training; by default on CUDA, where it is long."),
    ] = None,
) -> None:
    """Train, prune, predict and measure; write one record per seed into results/.

    The most valuable cells come first: one seed of every task before a second one of any. A run may be stopped at any
    moment, by any means: the next call goes on from the last saved state or step. With `all`, a cell whose data are not on
    this machine is skipped. Started by torchrun, the processes share the work in every cell, and the first one writes and prints.

    Example: `prunelimit run all --profile paper --device cuda --missing --time-budget 540`
    """
    from prunelimit.processes import joined_processes

    cluster = choose_engine(engine, device, ray_address, cpus_per_run, gpus_per_run, retries)
    if cluster and together:
        raise PruneLimitError("together=True trains in this process: leave it out, or leave out --engine ray.")
    deadline = deadline_of(time_budget)
    use_threads(threads)
    with joined_processes(device) as rank:
        out.quiet = rank > 0
        _fill((experiment, profile, seeds), missing, again, together, cluster, device, deadline, compiled)


def _fill(
    which: tuple[str, str, int],
    missing: bool,
    again: bool,
    together: bool,
    cluster: Any,
    device: str,
    deadline: float | None,
    compiled: bool | None,
) -> None:
    """Compute the cells of a task or all of them, a profile and so many seeds, and say what became of each."""
    from prunelimit.experiments.catalogue import PROFILES, find_tasks
    from prunelimit.experiments.elsewhere import run_limits
    from prunelimit.experiments.order import most_valuable_first
    from prunelimit.experiments.runner import EXPERIMENT, check_seeds, run_limit
    from prunelimit.experiments.store import load_record
    from prunelimit.processes import from_first, processes
    from prunelimit.throughput import Runtime
    from prunelimit.training_many import train_groups

    experiment, profile, seeds = which
    rank, world = processes(None)
    if world > 1 and (cluster or together):
        raise PruneLimitError("torchrun's processes share every cell: leave out --together and --engine, or torchrun.")
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    every = experiment == "all"
    tasks = [t for t in find_tasks(None if every else experiment) if not every or profile in t.profiles]
    absent: dict[str, bool] = {}
    cells = most_valuable_first(tasks, profile, check_seeds(seeds))
    if together:
        wanted = [spec.train for _, _, spec in cells if load_record(EXPERIMENT, spec) is None]
        here = [train for train in wanted if not (every and _is_absent(train.dataset, absent))]
        train_groups(here, device=device, deadline=deadline, progress=True)
    options: dict[str, Any] = {"device": device, "deadline": deadline, "runtime": Runtime(compiled=compiled)}
    names: dict[Any, str] = {}
    waiting: list[tuple[Any, dict[str, str], bool]] = []
    for task, seed, spec in cells:
        name = f"{task.name} {profile} seed {seed}"
        recorded = from_first(load_record(EXPERIMENT, spec) is not None, world)
        if recorded and not again:
            if not missing:
                say(f"{name}: recorded already ({spec.hash}); --again computes it anew")
            continue
        if every and _is_absent(spec.train.dataset, absent):
            say(f"{name}: skipped, {spec.train.dataset} is not here")
            continue
        label = {"task": task.name, "profile": profile}
        if cluster:
            names[spec] = name
            waiting.append((spec, label, recorded))
            continue
        start = time.monotonic()
        record = run_limit(spec, label=label, fresh=recorded, progress=rank == 0, **options)
        _told(name, spec, record, time.monotonic() - start)
        if record is None:
            return
    if cluster and waiting:
        for spec, record in run_limits(waiting, cluster, **options):
            _told(names[spec], spec, record)


def _told(name: str, spec: Any, record: dict[str, Any] | None, seconds: float | None = None) -> None:
    """Say what became of a cell."""
    if record is None:
        say(f"{name}: {OUT_OF_TIME}")
        return
    limit, rate = record["measured"]["sparsity"], record["provenance"]["throughput"].get("images_per_second")
    took = "" if seconds is None else f", {seconds:.0f} s"
    speed = "" if rate is None else f", trained at {rate:,.0f} images/s"
    say(f"{name}: recorded ({spec.hash}), measured limit {limit:.1%}{took}{speed}")


def _is_absent(dataset: str, known: dict[str, bool]) -> bool:
    """Whether a data set cannot be had without a download; says why the first time."""
    from prunelimit.datasets import load_dataset

    if dataset not in known:
        try:
            load_dataset(dataset, download=False)
            known[dataset] = False
        except PruneLimitError as error:
            say(str(error))
            known[dataset] = True
    return known[dataset]


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


def prune(
    experiment: Comparison = "all",
    profile: Profile = "quick",
    seeds: Seeds = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Prune one network by every method of a comparison, to every sparsity; one record per pruned network.

    A run may be stopped at any moment: the next call goes on from the last finished epoch, round or network.

    Example: `prunelimit prune fc5-cifar10 --profile quick --seeds 3`
    """
    from prunelimit.experiments.comparisons import Comparison, find_comparisons
    from prunelimit.experiments.prune import run_prune

    options: dict[str, Any] = {"find": find_comparisons}
    _record((experiment, profile, seeds), Comparison.specs, run_prune, device, time_budget, threads, **options)


def rounds(
    experiment: Comparison = "all",
    profile: Profile = "quick",
    seeds: Seeds = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Prune iteratively, and compute and measure the limit anew after every round.

    Example: `prunelimit rounds fc5-cifar10 --profile quick`
    """
    from prunelimit.experiments.comparisons import Comparison, find_comparisons
    from prunelimit.experiments.rounds import run_rounds

    options: dict[str, Any] = {"find": find_comparisons}
    _record((experiment, profile, seeds), Comparison.rounds_specs, run_rounds, device, time_budget, threads, **options)


def distributions(
    experiment: Experiment = "all",
    profile: Profile = "quick",
    seeds: Seeds = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Compare the weights of independent runs; one record per task, with all seeds.

    Example: `prunelimit distributions fc5-cifar10`
    """
    from prunelimit.experiments.distribution_frames import distributions_spec
    from prunelimit.experiments.distributions import run_distributions

    def list_specs(task: Any, name: str, seed: int) -> list[Any]:
        return [distributions_spec(task, name, range(seeds))] if seed == 0 and name in task.profiles else []

    _record((experiment, profile, seeds), list_specs, run_distributions, device, time_budget, threads)


def status(seeds: Annotated[int, typer.Option(help="How many seeds to look for.")] = 3) -> None:
    """Show the catalogue: which cells are recorded, by task and profile.

    Example: `prunelimit status`
    """
    from prunelimit.experiments.catalogue import LADDERS, PROFILES, TASKS
    from prunelimit.experiments.ladder import EXPERIMENT as LADDER
    from prunelimit.experiments.regime_grids import GRIDS
    from prunelimit.experiments.regimes import EXPERIMENT as REGIMES
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
    table = Table("grid", *profiles, title="recorded cells of the three-regime grids")
    for grid in GRIDS.values():
        found = [grid.settings(p) if p in grid.profiles else None for p in profiles]
        table.add_row(grid.name, *(count(REGIMES, [s.spec(*c) for c in s.cells()] if s else []) for s in found))
    out.print(table)
    say("fill them with: prunelimit regimes GRID --profile PROFILE --missing")


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this module.

    Args:
        app: The command line.
    """
    for command in (run, resolve, refit, rows, sight, ladder, prune, rounds, distributions, status):
        app.command()(command)
