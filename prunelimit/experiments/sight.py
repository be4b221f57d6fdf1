"""The limits of a trained network along the line of sight: a spectrum, and a few steps to sparse points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator, Spectrum
from prunelimit.curvature.reduce import reduced_operator
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.curvature import run_curvature
from prunelimit.experiments.prepare import prepare
from prunelimit.experiments.runner import as_plain, recorded_distance
from prunelimit.experiments.specs import SightSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.limit import PruningLimit
from prunelimit.pruning.magnitude import MagnitudePath
from prunelimit.sight import SUBSPACES, Sight, sight_along, sight_limit
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime

EXPERIMENT = "sight"


def run_sight(
    spec: SightSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of the limits for each kind of subspace, or return the one there is.

    The record of its spectrum is made first if there is none. Every line of sight is remembered, so a run that was stopped
    goes on from the last one.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which no line of sight is begun.
        progress: Whether to show the progress of training and spectrum.

    Returns:
        The record, or ``None`` if the deadline passed.

    Raises:
        PruneLimitError: If the spectrum is recorded and the network trained here is another one.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    probed = run_curvature(spec.spectrum, label=label, device=device, deadline=deadline, progress=progress)
    ready = None if probed is None else prepare(spec, device, deadline, progress)
    if probed is None or ready is None:
        return None
    path = MagnitudePath(ready.model)
    if not np.allclose(recorded_distance(path), probed["radius"], rtol=1e-4):
        raise PruneLimitError(
            f"train={spec.train.hash} gives another network on this machine than the one whose spectrum is recorded "
            f"({spec.spectrum.hash}): delete that record, or run where it was made."
        )
    title = f"{spec.train.title}, line of sight" if progress else None
    memo = Steps(cache_folder() / "sights" / spec.hash / "steps.json", deadline, title)
    with suited_threads(ready.model):
        operator, reduced = reduced_operator(HessianOperator, ready.model, cross_entropy, ready.sample)
        restrict = None if reduced is None else reduced.restrict

        def look(sparsity: float) -> Sight:
            def probe() -> dict[str, Any]:
                return sight_along(operator, path.displacement(sparsity), spec.sight_steps, restrict).to_dict()

            return Sight.from_dict(memo(f"{sparsity:.12f}", probe))

        try:
            found = Spectrum.from_dict(probed["spectrum"])
            options = {"tolerance": spec.tolerance, "examples": probed["examples"]}
            limits: dict[str, PruningLimit] = {}
            for name in SUBSPACES:
                tried = [s for limit in limits.values() for s in limit.curve.sparsity]
                limits[name] = sight_limit(look, found, path, probed["epsilon"], name, tried=tried, **options)
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads())
    seconds = sum(step["seconds"] for step in memo.done.values())
    record = {
        "label": label or {},
        "data": ready.dataset.digests,
        "provenance": source,
        "seconds": {"sights": round(seconds, 2), "spectrum": probed["seconds"]["spectrum"]},
        "spectrum": spec.spectrum.hash,
        "limits": {name: as_plain(limit) for name, limit in limits.items()},
        "sights": [{"sparsity": float(name)} | step["value"] for name, step in sorted(memo.done.items())],
    }
    return save_record(EXPERIMENT, spec, record)
