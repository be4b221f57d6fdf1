"""Options of commands whose runs an engine may compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prunelimit.cli_options import check_device
from prunelimit.errors import PruneLimitError, unknown_name

if TYPE_CHECKING:
    from prunelimit.experiments.engines import RayEngine

ENGINES = ("local", "ray")

EngineName = Annotated[
    str, typer.Option("--engine", help="local: this machine; ray: a Ray cluster, see --ray-address.")
]
RayAddress = Annotated[
    str | None, typer.Option(help="The cluster; by default $RAY_ADDRESS, else Ray is started here. For --engine ray.")
]
CpusPerRun = Annotated[float, typer.Option(help="Cores, and threads, of each run. For --engine ray.")]
GpusPerRun = Annotated[float, typer.Option(help="GPUs of each run; 0.25 lets four share one. For --engine ray.")]
Retries = Annotated[
    int, typer.Option(help="How often a run whose process was lost is started again; -1: always. For --engine ray.")
]


def choose_engine(
    name: str, device: str, address: str | None, cpus: float, gpus: float, retries: int, workers: int | None = None
) -> RayEngine | None:
    """Make the engine that the options of a command describe.

    Args:
        name: One of ``ENGINES``.
        device: Where each run computes; on a cluster it is for the machines there to have it.
        address: The cluster.
        cpus: Cores per run.
        gpus: GPUs per run.
        retries: How often a lost run is started again.
        workers: Runs at once, where Ray is started on this machine.

    Returns:
        The engine, not yet entered; ``None`` for the command's own way on this machine.

    Raises:
        PruneLimitError: If the options contradict each other.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if name == "local":
        check_device(device)
        if address or gpus:
            raise PruneLimitError("engine='local' knows neither --ray-address nor --gpus-per-run: use --engine ray.")
        return None
    if device not in {"cpu", "cuda"}:
        raise PruneLimitError(f"device={device!r} must be cpu or cuda with --engine ray, which hands out the GPUs.")
    if (device == "cuda") != (gpus > 0):
        raise PruneLimitError(
            f"device={device!r} does not go with gpus_per_run={gpus:g}: use --device cuda and, for example, --gpus-per-run 0.25."
        )
    from prunelimit.experiments.engines import RayEngine

    return RayEngine(address, workers, cpus, gpus, retries)
