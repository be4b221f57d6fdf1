"""From a spec to a record: train, prune, probe, measure; interruptible between any two steps.

Processes that torchrun started all make the same calls. They share training, curvature and evaluation; clock, files and the
numbers on which decisions rest are the first one's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator, Spectrum, spectrum
from prunelimit.curvature.data import Batches
from prunelimit.curvature.lanczos import basis_bytes
from prunelimit.curvature.operator import CurvatureOperator
from prunelimit.curvature.reduce import reduced_operator
from prunelimit.curvature.slq import SAVE_EVERY
from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.prepare import curvature_sample
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.limit import CURVE_POINTS, PruningLimit, default_epsilon, exact_limit
from prunelimit.path_limits import directional_limit, measured_limit
from prunelimit.precision import full_float32
from prunelimit.processes import from_first, own_folder, processes
from prunelimit.pruning.adaptive import adaptive_sweep
from prunelimit.pruning.magnitude import MagnitudePath, prunable_parameters
from prunelimit.pruning.measured import fine_tuned_limit, largest_sparsity, sweep
from prunelimit.pruning.paths import PruningPath
from prunelimit.threads import suited_threads
from prunelimit.throughput import Runtime, throughput
from prunelimit.training import MEASURES, WRITE_SPEED, OutOfTime, TrainedModel, TrainSpec, evaluate, train

EXPERIMENT = "limit"

#: Folder, inside that of a run, of what goes on when the run does; removed before the record is written.
UNFINISHED = "unfinished"

#: Width of the bracket in sparsity of the limits along the pruning path.
PATH_TOLERANCE = 0.001

#: Tenths of a point: how far below the dense accuracy the third accuracy-based limit may go.
ACCURACY_SLACK = 0.001


def round_significant(values: np.ndarray, digits: int = 8) -> list[float]:
    """Round to significant digits, so that a curve of 1,000 points stays at a few kB."""
    return [float(f"{v:.{digits}g}") for v in np.asarray(values, dtype=float)]


def recorded_distance(path: PruningPath, points: int = CURVE_POINTS, digits: int = 8) -> list[float]:
    """Return the distances R at equally spaced sparsities, few enough for a record; ``frames.fine_distance`` reads them."""
    places = np.linspace(0, len(path.distance) - 1, points + 1).round().astype(int)
    return round_significant(path.distance[places], digits)


def as_plain(limit: PruningLimit) -> dict[str, Any]:
    """Return a limit with the points of its search as plain JSON values."""
    return limit.to_dict() | {"points": limit.curve.round(8).to_dict("list")}


def run_limit(
    spec: LimitSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    fresh: bool = False,
    keep: bool = True,
    progress: bool | None = None,
    runtime: Runtime | None = None,
) -> dict[str, Any] | None:
    """Make the record of one trained network and its limits, or return the one there is.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` before which everything is saved.
        fresh: Compute even if there is a record or a checkpoint.
        keep: Whether to write the record.
        progress: Whether to show progress.
        runtime: Memory layout and compilation of the training; by default what suits the device.

    Returns:
        The record, or ``None`` if the deadline passed; the next call goes on from where this one stopped.
    """
    rank, world = processes(None)
    if not fresh and (found := from_first(load_record(EXPERIMENT, spec), world)):
        return found
    dataset = load_dataset(spec.train.dataset)
    folder = run_folder(spec, "live" if fresh else "runs")
    if fresh and rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    from_first(None, world)  # nobody reads before that
    steps = Steps(folder / "steps.json", deadline, spec.train.title if progress else None)
    options: dict[str, Any] = {"deadline": deadline, "progress": progress, "runtime": runtime}
    own = folder / "checkpoints" if fresh else None
    trained = train(spec.train, device=device, dataset=dataset, folder=own, **options)
    if len(trained.history) < spec.train.epochs:
        return None
    data, test = dataset.on_device("train", device, spec.train.train_size), dataset.on_device("test", device)
    with suited_threads(trained.model), full_float32(data.device):
        try:
            body = _measure(spec, trained, data, test, steps, progress)
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads()) | {"throughput": throughput(trained.history)}
        source |= {"processes": world} if world > 1 else {}
    seconds = steps.seconds | {"train": round(sum(entry["seconds"] for entry in trained.history), 1)}
    record = {"label": label or {}, "data": dataset.digests, "provenance": source, "seconds": seconds, **body}
    # Before the record: of a process that is killed in between the finished steps are left, which make the record again.
    if rank == 0:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        if keep:
            save_record(EXPERIMENT, spec, record)
    plain: dict[str, Any] = from_first(json.loads(json.dumps(record)), world)
    return plain


def run_folder(spec: LimitSpec, kind: str = "runs") -> Path:
    """Return the folder, in the cache, of the finished steps and of the state of the unfinished one."""
    return cache_folder() / kind / spec.hash


def _measure(
    spec: LimitSpec,
    trained: TrainedModel,
    data: DeviceSplit,
    test: DeviceSplit,
    steps: Steps,
    progress: bool | None,
) -> dict[str, Any]:
    """Fill the record's body, one remembered step after the other."""
    model = trained.model
    path = MagnitudePath(model)
    sample = curvature_sample(data, spec.curvature_examples, spec.train.seed)
    whole = list(data.batches(2000))
    unfinished = steps.path.parent / UNFINISHED

    dense = steps("dense", lambda: [*evaluate(model, data), *evaluate(model, test)])
    dense = dict(zip(MEASURES, dense, strict=True))
    epsilon = steps("epsilon", lambda: default_epsilon(model, cross_entropy, list(data.batches(128))))

    def accuracies() -> dict[str, float]:
        wanted = {"accuracy": dense["test_accuracy"], "accuracy_slack": dense["test_accuracy"] - ACCURACY_SLACK}
        return largest_sparsity(model, test, wanted, spec.accuracy_step, path, steps)

    def points() -> dict[str, list[float]]:
        if spec.sweep_evaluations:
            found = adaptive_sweep(model, data, test, epsilon, spec.sweep_evaluations, path, steps)
        else:
            found = sweep(model, data, test, spec.sweep, path, steps)
        plain = [dataclasses.asdict(point) for point in found]
        return {key: [point[key] for point in plain] for key in plain[0]} if plain else {}

    body = {
        "dense": dense,
        "epsilon": epsilon,
        "total": path.total,
        "radius": recorded_distance(path),
        "spectrum": steps("spectrum", lambda: _probe(spec, model, sample, steps, unfinished / "lanczos", progress)),
        "directional": along_path("directional", model, whole, sample, path, epsilon, steps),
        "measured": along_path("measured", model, whole, sample, path, epsilon, steps),
        "accuracy": steps("accuracy", accuracies),
        "sweep": steps("sweep", points),
        "history": [
            {k: e[k] for k in ("epoch", "loss", "accuracy", "test_loss", "test_accuracy") if k in e}
            for e in trained.history
        ],
    }
    if spec.exact:
        body["exact"] = steps("exact", lambda: _exact(trained, sample, path, epsilon))
    if spec.tune_epochs:
        tune = further_training(spec.train, spec.tune_epochs)
        guess = min(max(body["measured"]["sparsity"], 0.05), 0.95)
        kept: dict[str, Any] = {
            "memo": steps,
            "folder": unfinished,
            "deadline": steps.deadline,
            "progress": progress,
        }
        limit = fine_tuned_limit(model, data, tune, epsilon=epsilon, guess=guess, tolerance=spec.tune_tolerance, **kept)
        body["fine_tuned"] = dataclasses.asdict(limit)
    return body


def _probe(
    spec: LimitSpec, model: nn.Module, sample: Any, steps: Steps, folder: Path, progress: bool | None
) -> dict[str, Any]:
    """Probe the spectrum of all prunable weights."""
    options = {"steps": spec.steps, "probes": spec.probes, "seed": spec.train.seed}
    found, operator = probe_spectrum(model, sample, None, options, steps, folder, progress)
    products = sum(len(probe.alpha) for probe in found.probes)
    return found.to_dict() | {"examples": operator.examples, "products": products}


def along_path(
    method: str,
    model: nn.Module,
    whole: Batches,
    sample: tuple[Tensor, Tensor],
    path: PruningPath,
    epsilon: float,
    steps: Steps,
    prunable: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Find a limit along the pruning path, as a remembered step whose parts are remembered too.

    Args:
        method: ``"directional"`` or ``"measured"``, which is also the step's name.
        model: The trained network.
        whole: All training images, in batches.
        sample: Those behind the curvature.
        path: The sparse points.
        epsilon: Tolerated rise of the loss.
        steps: Where the step is remembered.
        prunable: Names of the prunable parameters; all by default.

    Returns:
        The limit as plain JSON values, with its cost.
    """

    def directional() -> dict[str, Any]:
        # A sample's gradient is mostly noise where the whole one nearly vanishes, so all images have a say in it.
        gradient = HessianOperator(model, cross_entropy, whole, prunable=prunable, rule="fresh").gradient
        operator = HessianOperator(model, cross_entropy, sample, prunable=prunable)
        limit = directional_limit(operator, path, epsilon, gradient=gradient, tolerance=PATH_TOLERANCE, memo=steps)
        cost = {"products": len(limit.curve)}  # of every process that had a part in it
        return as_plain(limit) | {"cost": cost, "gradient_examples": sum(len(labels) for _, labels in whole)}

    def measured() -> dict[str, Any]:
        options: dict[str, Any] = {"tolerance": PATH_TOLERANCE, "memo": steps}
        parameters = prunable_parameters(model, prunable)
        limit = measured_limit(model, cross_entropy, whole, path, parameters, epsilon, **options)
        return as_plain(limit) | {"cost": {"evaluations": len(limit.curve)}}

    return steps(method, {"directional": directional, "measured": measured}[method])


def probe_spectrum(
    model: nn.Module,
    sample: Any,
    prunable: Sequence[str] | None,
    options: dict[str, Any],
    steps: Steps,
    folder: Path,
    progress: bool | None,
) -> tuple[Spectrum, CurvatureOperator]:
    """Probe the spectrum of the Hessian; the Lanczos process lies in a folder until it is finished.

    Args:
        model: The trained network.
        sample: Images and labels behind the Hessian.
        prunable: Names of the prunable parameters; ``None`` for all.
        options: ``steps``, ``probes`` and ``seed`` of :func:`~prunelimit.curvature.spectrum`.
        steps: Tells whether there is time for another product.
        folder: Of the unfinished process; each of several processes has one inside.
        progress: Whether to show progress.

    Returns:
        The spectrum and the operator it is of.
    """
    operator, reduced = reduced_operator(HessianOperator, model, cross_entropy, sample, prunable)
    # New vectors are written every so many products; the longest product and the vectors' way to the disk must fit in.
    vectors = SAVE_EVERY * basis_bytes(operator.dimension, 1, options["probes"], operator.dtype) / WRITE_SPEED
    clock = [time.monotonic(), 0.0]
    folder = own_folder(folder)

    def each() -> None:
        now = time.monotonic()
        clock[:] = now, max(clock[1], now - clock[0])
        steps.check_time(clock[1] + vectors)

    found = spectrum(
        operator,
        **options,
        nullity=0 if reduced is None else reduced.nullity,
        folder=folder,
        progress=progress,
        each=each,
    )
    shutil.rmtree(folder, ignore_errors=True)
    return found, operator


def _exact(trained: TrainedModel, sample: Any, path: MagnitudePath, epsilon: float) -> dict[str, float]:
    """Solve the formula with all eigenvalues: the truth that the quadrature's interval has to hold."""
    matrix = HessianOperator(trained.model, cross_entropy, sample).dense()
    eigenvalues = torch.linalg.eigvalsh(matrix).cpu().numpy()

    return {
        "sparsity": exact_limit(eigenvalues, path.distance, epsilon),
        "largest": float(eigenvalues[-1]),
        "smallest": float(eigenvalues[0]),
        "negative_share": float((eigenvalues < -1e-7 * eigenvalues[-1]).mean()),
        "null_share": float((np.abs(eigenvalues) <= 1e-7 * eigenvalues[-1]).mean()),
    }


def further_training(train: TrainSpec, epochs: int) -> TrainSpec:
    """Give the settings with which a trained network is trained on, mask fixed: its own, L1 included, in another order.

    A constant rate stays. One that has fallen falls again, over the new number of epochs: at the rate on which it ended,
    no network would get anywhere, and the fine-tuned limit would be the one-shot limit.

    Args:
        train: Settings of the training.
        epochs: Length of the further training.

    Returns:
        Settings with another seed and without warm-up.
    """
    milestones = tuple(round(m * epochs / train.epochs) for m in train.milestones)
    return dataclasses.replace(train, epochs=epochs, seed=train.seed + 1000, warmup_epochs=0, milestones=milestones)


def check_seeds(count: int) -> range:
    """Return the seeds 0 to count - 1, or say that there must be at least one."""
    if count < 1:
        raise PruneLimitError(f"seeds={count!r} must be at least 1.")
    return range(count)
