"""From a spec to a record: train, prune, probe, measure; interruptible between any two steps."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator, spectrum
from prunelimit.curvature.reduce import reduced_operator
from prunelimit.datasets import DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.experiments.specs import LimitSpec
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder, write_json
from prunelimit.limit import (
    CURVE_POINTS,
    PruningLimit,
    default_epsilon,
    exact_limit,
)
from prunelimit.path_limits import directional_limit
from prunelimit.predict import predict_limit
from prunelimit.pruning.magnitude import MagnitudePath
from prunelimit.pruning.measured import fine_tuned_limit, largest_sparsity, sweep
from prunelimit.threads import suited_threads
from prunelimit.training import TrainedModel, evaluate, train

EXPERIMENT = "limit"

#: Tenths of a point: how far below the dense accuracy the third accuracy-based limit may go.
ACCURACY_SLACK = 0.001


class OutOfTime(Exception):
    """The time budget is used up; what was done so far is saved."""


class Steps:
    """Remember the finished steps of a run, with their seconds, so that a killed run goes on from there.

    Args:
        path: JSON file in the cache.
        deadline: Value of ``time.monotonic()`` after which no step is begun.
    """

    def __init__(self, path: Path, deadline: float | None = None) -> None:
        self.path, self.deadline = path, deadline
        try:
            self.done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.done = {}

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what the step gave, from the file or by running it.

        Args:
            name: Name of the step.
            compute: Its computation; the result must be plain JSON.

        Returns:
            The result.

        Raises:
            OutOfTime: If the deadline has passed before the step.
        """
        if name not in self.done:
            self.check_time()
            start = time.monotonic()
            value = compute()
            self.done[name] = {"value": json.loads(json.dumps(value)), "seconds": round(time.monotonic() - start, 2)}
            write_json(self.path, self.done)
        return self.done[name]["value"]

    def check_time(self) -> None:
        """Raise :class:`OutOfTime` once the deadline has passed."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime


def round_significant(values: np.ndarray, digits: int = 8) -> list[float]:
    """Round to significant digits, so that a curve of 1,000 points stays at a few kB."""
    return [float(f"{v:.{digits}g}") for v in np.asarray(values, dtype=float)]


def recorded_distance(path: MagnitudePath) -> list[float]:
    """Return the distances R at equally spaced sparsities, few enough for a record; ``frames.fine_distance`` reads them."""
    return round_significant(path.distance[np.linspace(0, path.total, CURVE_POINTS + 1).round().astype(int)])


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
) -> dict[str, Any] | None:
    """Make the record of one trained network and its limits, or return the one there is.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.
        fresh: Compute even if there is a record or a checkpoint.
        keep: Whether to write the record.
        progress: Whether to show progress.

    Returns:
        The record, or ``None`` if the deadline passed; the next call goes on from where this one stopped.
    """
    if not fresh and (found := load_record(EXPERIMENT, spec)):
        return found
    dataset = load_dataset(spec.train.dataset)
    folder = cache_folder() / ("live" if fresh else "runs") / spec.hash
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    steps = Steps(folder / "steps.json", deadline)
    own = folder / "checkpoints" if fresh else None
    trained = train(spec.train, device=device, dataset=dataset, folder=own, deadline=deadline, progress=progress)
    if len(trained.history) < spec.train.epochs:
        return None
    data, test = dataset.on_device("train", device, spec.train.train_size), dataset.on_device("test", device)
    with suited_threads(trained.model):
        try:
            body = _measure(spec, trained, data, test, steps, progress)
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads())
    seconds = {name: step["seconds"] for name, step in steps.done.items()}
    seconds["train"] = round(sum(entry["seconds"] for entry in trained.history), 1)
    record = {"label": label or {}, "data": dataset.digests, "provenance": source, "seconds": seconds, **body}
    if keep:
        save_record(EXPERIMENT, spec, record)
    return json.loads(json.dumps(record))


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
    generator = torch.Generator().manual_seed(spec.train.seed)  # another sample of images for every seed
    sample = data.tensors(spec.curvature_examples, None if spec.curvature_examples is None else generator)
    whole = list(data.batches(2000))

    dense = steps("dense", lambda: [*evaluate(model, data), *evaluate(model, test)])
    dense = dict(zip(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), dense, strict=True))
    epsilon = steps("epsilon", lambda: default_epsilon(model, cross_entropy, list(data.batches(128))))

    def probe() -> dict[str, Any]:
        operator, reduced = reduced_operator(HessianOperator, model, cross_entropy, sample)
        found = spectrum(
            operator,
            steps=spec.steps,
            probes=spec.probes,
            seed=spec.train.seed,
            nullity=0 if reduced is None else reduced.nullity,
            progress=progress,
        )
        return found.to_dict() | {"examples": operator.examples, "products": operator.products}

    def directional() -> dict[str, Any]:
        # A sample's gradient is mostly noise where the whole one nearly vanishes, so all images have a say in it.
        gradient = HessianOperator(model, cross_entropy, whole, rule="fresh").gradient
        operator = HessianOperator(model, cross_entropy, sample)
        return as_plain(directional_limit(operator, path, epsilon, gradient=gradient)) | {
            "gradient_examples": len(data)
        }

    def measured() -> dict[str, Any]:
        return as_plain(predict_limit(model, cross_entropy, whole, epsilon=epsilon, method="measured"))

    def accuracies() -> dict[str, float]:
        wanted = {"accuracy": dense["test_accuracy"], "accuracy_slack": dense["test_accuracy"] - ACCURACY_SLACK}
        return largest_sparsity(model, test, wanted, spec.accuracy_step, path)

    def points() -> dict[str, list[float]]:
        found = [dataclasses.asdict(p) for p in sweep(model, data, test, spec.sweep, path)]
        return {key: [point[key] for point in found] for key in found[0]} if found else {}

    body = {
        "dense": dense,
        "epsilon": epsilon,
        "total": path.total,
        "radius": recorded_distance(path),
        "spectrum": steps("spectrum", probe),
        "directional": steps("directional", directional),
        "measured": steps("measured", measured),
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
        tune = dataclasses.replace(
            spec.train,
            epochs=spec.tune_epochs,
            seed=spec.train.seed + 1000,
            schedule="constant",
            warmup_epochs=0,
            lr=trained.history[-1]["lr"] if trained.history[-1]["lr"] > 0 else spec.train.lr,
        )
        guess = min(max(body["measured"]["sparsity"], 0.05), 0.95)
        limit = fine_tuned_limit(
            model, data, tune, epsilon=epsilon, guess=guess, tolerance=spec.tune_tolerance, memo=steps
        )
        body["fine_tuned"] = dataclasses.asdict(limit)
    return body


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


def check_seeds(count: int) -> range:
    """Return the seeds 0 to count - 1, or say that there must be at least one."""
    if count < 1:
        raise PruneLimitError(f"seeds={count!r} must be at least 1.")
    return range(count)
