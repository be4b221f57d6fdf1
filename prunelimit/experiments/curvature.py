"""The spectrum of a trained network, from samples of several sizes: how far the formula's number is resolved."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator, Spectrum, spectrum
from prunelimit.curvature.reduce import reduced_operator
from prunelimit.experiments.prepare import prepare
from prunelimit.experiments.runner import recorded_distance
from prunelimit.experiments.specs import CurvatureSpec
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder, write_json
from prunelimit.limit import default_epsilon, formula_limit
from prunelimit.pruning.magnitude import MagnitudePath
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime, evaluate

EXPERIMENT = "curvature"


def run_curvature(
    spec: CurvatureSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of one spectrum, or return the one there is.

    The Lanczos process lies in the cache folder: a run that was stopped goes on from its last product, and a spec that
    differs by more steps continues the process of the one with fewer.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which no product is begun.
        progress: Whether to show progress.

    Returns:
        The record, or ``None`` if the deadline passed.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    ready = prepare(spec, device, deadline, progress)
    if ready is None:
        return None
    data, model, sample = ready.data, ready.model, ready.sample
    begun = time.monotonic()
    with suited_threads(model):
        path = MagnitudePath(model)
        epsilon = default_epsilon(model, cross_entropy, list(data.batches(128)))
        dense = evaluate(model, data)
        operator, reduced = reduced_operator(HessianOperator, model, cross_entropy, sample)

        def watch(known: Spectrum) -> dict[str, Any]:
            limit = formula_limit(known, path.distance, epsilon)
            return {"limit": f"{limit.interval[0]:.4f} to {limit.interval[1]:.4f}"}

        def each() -> None:
            if deadline is not None and time.monotonic() > deadline:
                raise OutOfTime

        # The same process whatever the number of steps.
        folder = cache_folder() / "lanczos" / dataclasses.replace(spec, steps=1).hash
        spent = _seconds(folder / "seconds.json")
        try:
            found = spectrum(
                operator,
                steps=spec.steps,
                probes=spec.probes,
                seed=spec.train.seed,
                nullity=0 if reduced is None else reduced.nullity,
                folder=folder,
                progress=progress,
                watch=watch,
                each=each,
            )
        except OutOfTime:
            return None
        finally:
            spent += time.monotonic() - begun
            write_json(folder / "seconds.json", spent)
        source = provenance(device, torch.get_num_threads())
    record = {
        "label": label or {},
        "data": ready.dataset.digests,
        "provenance": source,
        "seconds": {"spectrum": round(spent, 2)},
        "dense": {"train_loss": dense[0], "train_accuracy": dense[1]},
        "epsilon": epsilon,
        "total": path.total,
        "radius": recorded_distance(path),
        "examples": operator.examples,
        "products": sum(len(probe.alpha) for probe in found.probes),
        "reduced": None if reduced is None else {"inputs": list(reduced.inputs), "dead": list(reduced.dead)},
        "spectrum": found.to_dict(),
    }
    return save_record(EXPERIMENT, spec, record)


def _seconds(path: Path) -> float:
    """Read what earlier parts of a process took."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0.0
