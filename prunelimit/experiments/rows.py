"""The norms of all rows of a trained network's Hessian from a few products, checked on rows that are computed exactly."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.curvature.rows import RowNorms, exact_rows, row_norm_bound, row_norms
from prunelimit.experiments.prepare import prepare
from prunelimit.experiments.runner import round_significant
from prunelimit.experiments.specs import RowsSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime, evaluate

EXPERIMENT = "rows"

#: Shares of the rows, largest first, at which the recorded curve is read: even ones, and closer ones at the top.
CURVE = np.unique(np.concatenate([np.linspace(0, 1, 181), np.geomspace(1e-6, 5e-3, 20)]))

#: Quantiles that are recorded of each parameter's row norms.
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)

#: Values of mu at which the bound on the effective dimension is recorded, eight per decade.
MU_GRID = np.logspace(-9, 3, 97)

#: Exact rows between two looks at the clock.
BLOCK = 16


def run_rows(
    spec: RowsSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of one network's row norms, or return the one there is.

    Finished parts lie in the cache folder: a run that was stopped goes on from there, and the exact rows serve the
    specs of both orders.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.
        progress: Whether to show progress.

    Returns:
        The record, or ``None`` if the deadline passed.
    """
    if found := load_record(EXPERIMENT, spec):
        return found
    ready = prepare(spec, device, deadline, progress)
    if ready is None:
        return None
    data, model, sample = ready.data, ready.model, ready.sample
    cache, both = cache_folder() / "rows", dataclasses.replace(spec, order=1, probes=2)
    estimating = Steps(cache / spec.hash / "steps.json", deadline)
    checking = Steps(cache / f"exact-{both.hash}" / "steps.json", deadline)
    with suited_threads(model):
        operator = HessianOperator(model, cross_entropy, sample)
        picked = np.sort(np.random.default_rng(spec.train.seed).choice(operator.dimension, spec.checked, replace=False))
        try:
            dense = estimating("dense", lambda: evaluate(model, data))
            estimating.check_time()
            _ = operator.gradient  # what is kept between products is made before the clock of the products starts
            body = estimating("norms", lambda: _estimate(operator, spec, picked, progress))
            blocks = [picked[start : start + BLOCK] for start in range(0, spec.checked, BLOCK)]
            parts = [checking(f"rows {k}", partial(_exact, operator, block)) for k, block in enumerate(blocks)]
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads())
    exact = [value for part in parts for value in part[f"order {spec.order}"]]
    checks = body.pop("picked")
    seconds = {"norms": body.pop("seconds"), "exact": round(sum(part["seconds"] for part in parts), 4)}
    each = seconds["exact"] / max(spec.checked, 1)
    record = {
        "label": label or {},
        "data": ready.dataset.digests,
        "provenance": source,
        "seconds": seconds,
        "cost": {
            "products": spec.probes,
            "exact_rows": spec.checked,
            "seconds_per_exact_row": each,
            # Not run: one product for each of the D rows, at the speed of the exact ones.
            "seconds_all_rows_extrapolated": each * operator.dimension,
        },
        "dense": {"train_loss": dense[0], "train_accuracy": dense[1]},
        "examples": operator.examples,
        "total": operator.dimension,
        **body,
        "checks": {"row": picked.tolist(), **checks, "exact": exact},
    }
    return save_record(EXPERIMENT, spec, record)


def _estimate(operator: HessianOperator, spec: RowsSpec, picked: np.ndarray, progress: bool | None) -> dict[str, Any]:
    """Estimate all norms and say what is kept of them: millions of numbers become a few hundred.

    The seconds are those of products, estimates and error bars together.
    """
    begun = time.perf_counter()
    norms = row_norms(operator, probes=spec.probes, seed=spec.train.seed, order=spec.order, progress=progress)
    seconds = round(time.perf_counter() - begun, 4)
    order = np.argsort(-norms.values)
    ranks = np.unique(np.round(CURVE * (len(order) - 1)).astype(int))
    bars = {"low": norms.low, "high": norms.high}
    found = {
        "seconds": seconds,
        "zero": float(norms.zero.mean()),
        "sum": float(norms.values.sum()),
        "curve": _entries({"norm": norms.values} | bars, order[ranks])
        | {"share": round_significant(ranks / max(len(order) - 1, 1))},
        "parameters": _by_parameter(norms),
        "picked": _entries({"estimate": norms.values} | bars, picked),
    }
    if spec.order == 2:
        bound = round_significant(row_norm_bound(norms.values, MU_GRID))
        found["bound"] = {"mu": round_significant(MU_GRID), "dimension": bound}
    return found


def _entries(arrays: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, list[float]]:
    return {name: round_significant(values[rows], 6) for name, values in arrays.items()}


def _by_parameter(norms: RowNorms) -> list[dict[str, Any]]:
    """Summarise the rows of each parameter."""
    values, zero = norms.by_parameter(), norms.by_parameter("zero")
    return [
        {
            "name": name,
            "shape": list(norms.shapes[name]),
            "rows": part.numel(),
            "zero": float(zero[name].double().mean()),
            "sum": float(part.sum()),
            "median": float(np.median(part.numpy())),
            "quantiles": dict(
                zip(map(str, QUANTILES), round_significant(np.quantile(part.numpy(), QUANTILES), 6), strict=True)
            ),
        }
        for name, part in values.items()
    ]


def _exact(operator: HessianOperator, picked: np.ndarray) -> dict[str, Any]:
    """Compute some rows and keep their norms of both orders."""
    begun = time.perf_counter()
    rows = exact_rows(operator, picked)
    seconds = round(time.perf_counter() - begun, 4)
    norms = {f"order {p}": torch.linalg.vector_norm(rows, ord=p, dim=1, dtype=torch.float64).tolist() for p in (1, 2)}
    return {"seconds": seconds} | norms
