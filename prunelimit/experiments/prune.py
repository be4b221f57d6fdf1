"""One network, pruned by one method to several sparsities: what it costs and what is left."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunelimit.datasets import load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.prune_specs import PruneSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.pruning.magnitude import prunable_parameters, removed_count
from prunelimit.pruning.methods import find_method
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime, evaluate_both, initial_network, train

EXPERIMENT = "prune"


def run_prune(
    spec: PruneSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of one network pruned by one method, or return the one there is.

    Args:
        spec: What to run.
        label: Comparison and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.
        progress: Whether to show progress.

    Returns:
        The record, or ``None`` if the deadline passed; the next call goes on from where this one stopped.

    Raises:
        PruneLimitError: If the pruner does not keep the wanted number of weights, or not all others are zero.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    dataset, method = load_dataset(spec.train.dataset), find_method(spec.method)
    trained = train(spec.train, device=device, dataset=dataset, deadline=deadline, progress=progress)
    if len(trained.history) < spec.train.epochs:
        return None
    data, test = dataset.on_device("train", device, spec.train.train_size), dataset.on_device("test", device)
    start_network = trained.model
    if method.spec.begins == "initial":
        start_network = initial_network(spec.train, dataset).to(device)
    folder = cache_folder() / "pruned" / spec.hash
    steps = Steps(folder / "steps.json", deadline, f"{spec.train.title}, {spec.method}" if progress else None)

    def measure(sparsity: float) -> dict[str, Any]:
        place = folder / ("state" if spec.settings.nested else f"state-{sparsity:.8f}")
        options: dict[str, Any] = {"folder": place, "deadline": deadline, "progress": progress}
        begun = time.monotonic()
        pruned = method.prune(start_network, data, sparsity, spec.settings, **options)
        if pruned is None:
            raise OutOfTime
        seconds = time.monotonic() - begun
        network = pruned.applied(start_network)
        counts = count_kept(network, pruned.masks)
        total, kept = sum(n for n, _ in counts.values()), sum(k for _, k in counts.values())
        if kept != total - removed_count(sparsity, total):
            raise PruneLimitError(
                f"method={spec.method!r} kept {kept:,} of {total:,} weights: sparsity={sparsity} asks for another number."
            )
        return {
            "sparsity": sparsity,
            **evaluate_both(network, data, test),
            "kept": kept,
            "layers": {name: k / n for name, (n, k) in counts.items()},
            "epochs": pruned.epochs,
            "seconds": round(seconds, 2),  # in the process that finished it
        }

    with suited_threads(trained.model):
        try:
            networks = [steps(f"{s:.8f}", functools.partial(measure, s)) for s in spec.sparsities]
        except OutOfTime:
            return None
        record = {
            "label": label or {},
            "data": dataset.digests,
            "provenance": provenance(device, torch.get_num_threads()),
            "seconds": {"train": round(sum(e["seconds"] for e in trained.history), 1)},
            "dense": evaluate_both(trained.model, data, test),
            "total": sum(p.numel() for p in prunable_parameters(trained.model).values()),
            "epochs": spec.train.epochs,
            "networks": networks,
        }
    plain = save_record(EXPERIMENT, spec, record)
    shutil.rmtree(folder, ignore_errors=True)  # the state of finished pruners
    return plain


def count_kept(network: torch.nn.Module, masks: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Count the weights of every prunable parameter, and those that a mask keeps.

    Args:
        network: The pruned network.
        masks: Parameter name to a 0-1 tensor of its shape.

    Returns:
        Parameter name to its number of weights and how many are kept.

    Raises:
        PruneLimitError: If a weight is not zero where its mask is.
    """
    counts = {}
    for name, weight in prunable_parameters(network).items():
        mask = masks[name].to(weight.device).bool()
        if bool((weight.detach()[~mask] != 0).any()):
            raise PruneLimitError(f"masks[{name!r}] removes weights that are not zero in the pruned network.")
        counts[name] = (weight.numel(), int(mask.sum()))
    return counts
