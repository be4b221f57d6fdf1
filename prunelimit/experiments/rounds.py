"""Iterative pruning, with the limit computed anew after each round: does removing weights make more of them removable?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator, spectrum
from prunelimit.curvature.active import ActiveOperator
from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.prepare import curvature_sample
from prunelimit.experiments.prune_specs import RoundsSpec
from prunelimit.experiments.runner import as_plain, recorded_distance
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.limit import default_epsilon
from prunelimit.predict import predict_limit
from prunelimit.pruning.iterative import IterativeSpec, Round, iterative_rounds
from prunelimit.pruning.magnitude import MagnitudePath, flatten
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime, evaluate_both, initial_network

EXPERIMENT = "rounds"


def run_rounds(
    spec: RoundsSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of the limits of all rounds, or return the one there is.

    Args:
        spec: What to run; its method is iterative pruning.
        label: Comparison and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.
        progress: Whether to show progress.

    Returns:
        The record, or ``None`` if the deadline passed; the next call goes on from the last finished round.

    Raises:
        PruneLimitError: If the method is another one.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    settings = spec.settings
    if not isinstance(settings, IterativeSpec):
        raise PruneLimitError(f"method={spec.method!r} has no rounds: use 'iterative'.")
    dataset = load_dataset(spec.train.dataset)
    data, test = dataset.on_device("train", device, spec.train.train_size), dataset.on_device("test", device)
    initial = initial_network(spec.train, dataset).to(device)
    folder = cache_folder() / "rounds" / spec.hash
    steps = Steps(folder / "steps.json", deadline, spec.train.title if progress else None)
    found = []
    with suited_threads(initial):
        rounds = iterative_rounds(
            initial, data, settings, folder=folder / "networks", deadline=deadline, progress=progress
        )
        try:
            for one in rounds:
                found.append(one.summary | _limits(spec, one, data, test, steps, folder / f"lanczos-{one.number}"))
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads())
    if len(found) <= settings.rounds:
        return None
    record = {"label": label or {}, "data": dataset.digests, "provenance": source, "rounds": found}
    record["seconds"] = {"limits": round(sum(step["seconds"] for step in steps.done.values()), 2)}
    return save_record(EXPERIMENT, spec, record)


def kept_operator(model: nn.Module, sample: tuple[Tensor, Tensor], masks: dict[str, Tensor]) -> ActiveOperator:
    """Restrict the Hessian to the kept weights: a pruned one stays zero, so the sublevel set has no extent along it.

    Args:
        model: The pruned network.
        sample: Inputs and targets behind the Hessian.
        masks: Parameter name to a 0-1 tensor of its shape.

    Returns:
        The restricted operator; its ``nullity`` counts the pruned weights.
    """
    operator = HessianOperator(model, cross_entropy, sample)
    return ActiveOperator(operator, flatten([masks[name] for name in operator.names]).bool())


def _limits(
    spec: RoundsSpec, one: Round, data: DeviceSplit, test: DeviceSplit, steps: Steps, folder: Path
) -> dict[str, Any]:
    """Measure one network, and compute its limits: fractions of all D weights, those that are gone already included."""
    model, name = one.model, f"round {one.number}"
    sample = curvature_sample(data, spec.examples, spec.train.seed)

    def probe() -> dict[str, Any]:
        operator = kept_operator(model, sample, one.masks)
        options: dict[str, Any] = {"steps": spec.steps, "probes": spec.probes, "seed": spec.train.seed}
        found = spectrum(operator, nullity=operator.nullity, folder=folder, each=steps.check_time, **options)
        return found.to_dict() | {"examples": len(sample[1])}

    def measured() -> dict[str, Any]:
        epsilon = default_epsilon(model, cross_entropy, list(data.batches(128)))
        whole = list(data.batches(2000))
        return as_plain(predict_limit(model, cross_entropy, whole, epsilon=epsilon, method="measured"))

    path = MagnitudePath(model)
    return {
        **steps(f"{name} evaluated", lambda: evaluate_both(model, data, test)),
        "total": path.total,
        "radius": recorded_distance(path),
        "measured": steps(f"{name} measured", measured),
        "spectrum": steps(f"{name} spectrum", probe),
    }
