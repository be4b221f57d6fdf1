"""The command that records the limits of the dense parents of a grid."""

from __future__ import annotations

from typing import Annotated

import typer

from prunelimit.cli_options import OUT_OF_TIME, Budget, Device, Threads, check_device, deadline_of, say, use_threads


def synthesis(
    grid: Annotated[str, typer.Argument(help="epochs, batch-size, learning-rate, rho, or all.")] = "all",
    profile: Annotated[
        str, typer.Option(help="quick (digits), laptop (a small network on CIFAR-10) or paper (one GPU).")
    ] = "quick",
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
    from prunelimit.experiments.regime_grids import GRIDS, find_grid
    from prunelimit.experiments.store import load_record
    from prunelimit.experiments.synthesis import EXPERIMENT, parent_specs, run_parents

    check_device(device)
    deadline = deadline_of(time_budget)
    use_threads(threads)
    every = grid == "all"
    for one in GRIDS.values() if every else [find_grid(grid)]:
        if every and profile not in one.profiles:
            continue
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
    """Register the command of this module.

    Args:
        app: The command line.
    """
    app.command()(synthesis)
