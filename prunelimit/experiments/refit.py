"""The refitted limit of a trained network, in a record of its own: it costs hundreds of products."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.experiments.prepare import prepare
from prunelimit.experiments.runner import as_plain
from prunelimit.experiments.specs import RefitSpec
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.limit import default_epsilon
from prunelimit.pruning.magnitude import MagnitudePath
from prunelimit.refit import refit_limit
from prunelimit.threads import suited_threads
from prunelimit.training import evaluate

EXPERIMENT = "refit"


def run_refit(
    spec: RefitSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of one refitted limit, or return the one there is.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which training is not continued.
        progress: Whether to show the progress of the training.

    Returns:
        The record, or ``None`` if the deadline passed during training.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    ready = prepare(spec, device, deadline, progress)
    if ready is None:
        return None
    data, model, sample = ready.data, ready.model, ready.sample
    with suited_threads(model):
        epsilon = default_epsilon(model, cross_entropy, list(data.batches(128)))
        dense = evaluate(model, data)
        operator = HessianOperator(model, cross_entropy, sample)
        limit = refit_limit(operator, MagnitudePath(model), epsilon, tolerance=spec.tolerance)
        source = provenance(device, torch.get_num_threads())
    record = {
        "label": label or {},
        "data": ready.dataset.digests,
        "provenance": source,
        "seconds": {"refit": round(limit.cost["seconds"], 2)},
        "dense": {"train_loss": dense[0], "train_accuracy": dense[1]},
        "refit": as_plain(limit),
    }
    return save_record(EXPERIMENT, spec, record)
