"""Limits of trained networks, computed by an engine instead of in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prunelimit.experiments.engines import Engine, from_wall_clock, run_all, to_wall_clock
from prunelimit.experiments.runner import EXPERIMENT, run_limit
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.store import save_record
from prunelimit.throughput import Runtime


def run_limits(
    cells: Sequence[tuple[LimitSpec, dict[str, str], bool]],
    engine: Engine,
    *,
    device: str = "cpu",
    deadline: float | None = None,
    runtime: Runtime | None = None,
) -> Iterator[tuple[LimitSpec, dict[str, Any] | None]]:
    """Make the records of :func:`~prunelimit.experiments.runner.run_limit` by an engine, and write them here.

    Args:
        cells: What to run, its label, and whether to compute even if there is a record or a checkpoint; the most valuable
            first.
        engine: Where.
        device: Where each run computes.
        deadline: Value of ``time.monotonic()`` before which everything is saved.
        runtime: Memory layout and compilation of the training.

    Yields:
        Spec and record, in the order in which they end; ``None`` where the deadline passed.
    """
    ends = to_wall_clock(deadline)
    with engine:
        tasks = ((spec, _run, (spec, label, device, ends, fresh, runtime)) for spec, label, fresh in cells)
        for spec, record in run_all(engine, tasks):
            if record is not None:
                save_record(EXPERIMENT, spec, record)
            yield spec, record


def _run(
    spec: LimitSpec, label: dict[str, str], device: str, ends: float | None, fresh: bool, runtime: Runtime | None
) -> dict[str, Any] | None:
    """Make a record in another process, and leave it to this one to write it."""
    options: dict[str, Any] = {"fresh": fresh, "keep": False, "progress": False, "runtime": runtime}
    return run_limit(spec, label=label, device=device, deadline=from_wall_clock(ends), **options)
