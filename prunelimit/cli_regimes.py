"""The commands that make the records of the three-regime paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunelimit.cli_engines import CpusPerRun, EngineName, GpusPerRun, RayAddress, Retries, choose_engine
from prunelimit.cli_options import OUT_OF_TIME, Budget, Device, Threads, check_device, deadline_of, say, use_threads

if TYPE_CHECKING:
    from prunelimit.experiments.regime_grids import Grid

GridName = Annotated[str, typer.Argument(help="epochs, batch-size, learning-rate, rho, or all.")]
GridProfile = Annotated[
    str, typer.Option(help="quick (digits), laptop (a small network on CIFAR-10) or paper (one GPU).")
]


def _grids(name: str, profile: str) -> list[Grid]:
    """List the grid of a name; of all grids, those that have the profile."""
    from prunelimit.experiments.regime_grids import GRIDS, find_grid

    return [grid for grid in GRIDS.values() if profile in grid.profiles] if name == "all" else [find_grid(name)]


def regimes(
    grid: GridName = "all",
    profile: GridProfile = "quick",
    network: Annotated[str | None, typer.Option(help="Another network than the grid's own.")] = None,
    distribution: Annotated[
        str | None, typer.Option(help="Prune each layer alike (uniform), or by one magnitude for all (global).")
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Say nothing of cells that are recorded already.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes to run large networks side by side in.")] = 1,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    cpus_per_run: CpusPerRun = 1,
    gpus_per_run: GpusPerRun = 0,
    retries: Retries = 3,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Train, prune, retrain and compare over a grid of temperature and density; one record per cell.

    The most valuable cells come first. A run may be stopped at any moment: the next call goes on from the last saved networks.

    Examples: `prunelimit regimes epochs --profile laptop --workers 2`,
    `prunelimit regimes epochs --profile paper --engine ray --device cuda --gpus-per-run 0.25`
    """
    from prunelimit.experiments.regimes import EXPERIMENT, run_regimes
    from prunelimit.experiments.store import load_record

    beside = workers if workers > 1 else None
    cluster = choose_engine(engine, device, ray_address, cpus_per_run, gpus_per_run, retries, beside)
    deadline = deadline_of(time_budget)
    use_threads(threads)
    for one in _grids(grid, profile):
        settings = one.settings(profile).varied(network, distribution)
        cells = {settings.spec(*cell): cell for cell in settings.by_worth()}
        known = {spec for spec in cells if load_record(EXPERIMENT, spec)}
        wanted, label = (
            [spec for spec in cells if not missing or spec not in known],
            {"grid": one.name, "profile": profile},
        )
        done = 0
        for spec, record in run_regimes(
            wanted, label=label, device=device, workers=workers, engine=cluster, deadline=deadline, progress=True
        ):
            value, density, seed = cells[spec]
            pair, name = (
                record["pairs"][0],
                f"{one.name} {profile}: {one.title} {value:g}, density {density:g}, seed {seed}",
            )
            state = "recorded already" if spec in known else f"recorded, connectivity {pair['lmc']:.3f}"
            say(f"{name}: {state} ({spec.hash})")
            done += 1
        if done < len(wanted):
            say(f"{one.name} {profile}: {OUT_OF_TIME}")
            return


def synthesis(
    grid: GridName = "all",
    profile: GridProfile = "quick",
    missing: Annotated[
        bool, typer.Option("--missing", help="Say nothing of parents that are recorded already.")
    ] = False,
    time_budget: Budget = None,
    threads: Threads = 0,
    device: Device = "cpu",
) -> None:
    """Compute the limits of the dense parents of a grid, before anything is retrained; one record per parent.

    Parents that `prunelimit regimes` trained on this machine are loaded, others are trained. A run may be stopped at any moment:
    the next call goes on from the last finished limit.

    Example: `prunelimit synthesis epochs --profile quick`
    """
    from prunelimit.experiments.store import load_record
    from prunelimit.experiments.synthesis import EXPERIMENT, parent_specs, run_parents

    check_device(device)
    deadline = deadline_of(time_budget)
    use_threads(threads)
    for one in _grids(grid, profile):
        specs = parent_specs(one.settings(profile), profile)
        known = {spec for spec in specs if load_record(EXPERIMENT, spec)}
        wanted = [spec for spec in specs if not missing or spec not in known]
        label = {"grid": one.name, "profile": profile}
        for spec, record in run_parents(wanted, label=label, device=device, deadline=deadline, progress=True):
            name = f"{one.name} {profile}: {spec.about()}"
            if record is None:
                say(f"{name}: {OUT_OF_TIME}")
                return
            state = "recorded already" if spec in known else "recorded"
            limits = ", ".join(f"{key} {record[key]['sparsity']:.1%}" for key in ("formula", "directional", "measured"))
            say(f"{name}: {state} ({spec.hash}), {limits}")


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this module.

    Args:
        app: The command line.
    """
    for command in (regimes, synthesis):
        app.command()(command)
