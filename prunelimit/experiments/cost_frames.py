"""Tables of what a prediction costs, and where the model of it leads beyond what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from prunelimit.checks import positive
from prunelimit.experiments.benchmark_frames import COMPARISONS, load_benchmark
from prunelimit.experiments.cost_model import (
    FLOAT,
    SMALLEST,
    CostFit,
    LinearFit,
    fit_cost,
    held_out,
    memory_frame,
    time_frame,
)

#: Collectives of D numbers in a product whose parameters are sharded, see :mod:`prunelimit.curvature.sharded`; and in one whose
#: data alone are, where one sum is two of them.
SHARDED, SUMMED = 7, 2

#: Ways to spread the work.
ONE, DATA, PARAMETERS = "one process", "data sharded", "parameters sharded"


def held_out_frame() -> pd.DataFrame:
    """Compare the model with benchmarks that it was not fitted to.

    Returns:
        One row per quantity: prediction with the interval of the fit, measurement, their ratio, and whether it is ``inside``.
    """
    names = ["network", "weights", "examples", "work", "what", "predicted", "low", "high", "measured"]
    table = pd.DataFrame(held_out(fit_cost()), columns=names)
    table["ratio"] = table.measured / table.predicted
    return table.assign(inside=(table.low <= table.measured) & (table.measured <= table.high))


def shape_factor() -> float:
    """Return by which factor the model typically misses a product of a network that it was not fitted to.

    Returns:
        The exponential of the root mean square of the logarithms, at least one.
    """
    return math.exp(fit_cost().shapes)


def coefficient_frame() -> pd.DataFrame:
    """List the coefficients of the model.

    Returns:
        One row each: estimate, standard error, interval, number of measurements, and the typical relative residual of the fit.
    """
    fit = fit_cost()
    rows: list[tuple[str, str, float, float, float, float, int, float]] = []

    def add(part: str, found: LinearFit, names: Sequence[str], logs: bool = False) -> None:
        residual = found.deviation if part != "memory" else found.deviation / abs(found.coefficients[0])
        for name, value, error in zip(names, found.coefficients, found.errors, strict=True):
            ends = [value - found.quantile * error, value + found.quantile * error]
            if logs:  # of the logarithm, so that the error is relative
                value, error, ends = math.exp(value), error * math.exp(value), [math.exp(end) for end in ends]
            rows.append((part, name, value, error, ends[0], ends[1], found.points, residual))

    add("product", fit.product, ("a, logarithm of seconds", "b, exponent of examples", "d, exponent of multiply-adds"))
    add("other work", fit.besides, ("c, seconds per weight and step", "q, the same per vector of the basis"), logs=True)
    if fit.memory is not None:
        add("memory", fit.memory, ("v, vectors",))
    columns = ["part", "coefficient", "estimate", "standard error", "low", "high", "measurements", "residual"]
    return pd.DataFrame(rows, columns=columns)


def projection_frame(
    sizes: Sequence[float] = (1e6, 1e7, 1e8, 1e9),
    examples: int = 2000,
    steps: int = 64,
    workers: int = 64,
    bandwidth: float = 1.25e9,
) -> pd.DataFrame:
    """Say what a prediction costs at some sizes, in every mode.

    Work on the data is taken to be shared evenly. A network between workers is not in the benchmarks: its speed is given.

    Args:
        sizes: Weights D, each used once per example.
        examples: N.
        steps: Lanczos steps.
        workers: Processes, where there are several.
        bandwidth: Bytes that a worker receives per second.

    Returns:
        One row per size and mode: CPU ``hours`` of each worker with their interval for networks of any shape, hours of
        communication, GiB of each worker beside the network's activations (its weights included), and whether the size is
        ``extrapolated``.

    Raises:
        PruneLimitError: If a number is not positive.
    """
    for name, value in {"examples": examples, "steps": steps, "workers": workers, "bandwidth": bandwidth}.items():
        positive(name, value)
    fit = fit_cost()
    modes = [(ONE, True, 1), (ONE, False, 1), (DATA, False, workers), (PARAMETERS, False, workers)]
    rows = []
    for size in sizes:
        for how, basis, count in modes:
            own = size / count if how == PARAMETERS else size
            product = fit.product_seconds(examples, size, shapes=True)
            besides = fit.besides_seconds(own, steps, basis)
            hours = [(steps * p / count + b) / 3600 for p, b in zip(product, besides, strict=True)]
            sums = {ONE: 0, DATA: SUMMED, PARAMETERS: SHARDED}[how]
            sent = steps * sums * FLOAT * size * (1 - 1 / count) / bandwidth / 3600
            held = fit.bytes(own, steps, basis)
            memory = [math.nan] * 3 if held is None else [(one + FLOAT * own) / 2**30 for one in held]
            mode = "basis" if basis else "no basis"
            rows.append((size, mode, how, count, *hours, sent, memory[0], memory[2], size > fit.largest))
    names = [
        "weights",
        "mode",
        "spread",
        "workers",
        "hours",
        "from",
        "to",
        "communication",
        "GiB",
        "GiB at most",
        "extrapolated",
    ]
    return pd.DataFrame(rows, columns=names)


#: Panels of the figure.
PRODUCT, BESIDES, MEMORY = "product", "besides", "memory"


def point_frame() -> pd.DataFrame:
    """List the measurements as points of the figure.

    Returns:
        One row per point: ``panel``, ``group``, ``x``, ``y``, and its ``role``: fitted, left out (too small) or held out.
    """
    fit, table = fit_cost(), time_frame()
    rows: list[tuple[str, str, float, float, str]] = []
    names = ["examples", "weights", "steps", "seconds", "product"]
    for timed, part in table.groupby("timed", sort=False):
        for examples, weights, steps, seconds, product in part[names].to_numpy(dtype=float).tolist():
            role = "fitted" if weights >= SMALLEST else "left out"
            if timed == "product":
                rows.append((PRODUCT, "growth", weights, seconds / examples, role))
            elif role == "fitted" and seconds > steps * product:
                rows.append((BESIDES, "growth", steps, (seconds / steps - product) / weights, role))
    for entry in held_out(fit):
        if entry["what"] == "one product":
            rows.append((PRODUCT, entry["network"], entry["work"], entry["measured"] / entry["examples"], "held out"))
    for weights, steps, peak in memory_frame()[["weights", "steps", "bytes"]].to_numpy().tolist():
        rows.append((MEMORY, _mode(int(steps)), weights, peak / 2**30, "fitted"))
    return pd.DataFrame(rows, columns=["panel", "group", "x", "y", "role"])


def curve_frame(examples: int = 2000, largest: float = 1e9) -> pd.DataFrame:
    """List the model as curves of the figure.

    Args:
        examples: N of the product, whose seconds are divided by it.
        largest: Weights at which the curves end.

    Returns:
        One row per point of a curve: ``panel``, ``group``, ``x``, ``y``, ``low``, ``high``, ``wide_low`` and ``wide_high`` (for
        networks of any shape), and whether it is ``extrapolated``.

    Raises:
        PruneLimitError: If the number of examples is not positive.
    """
    positive("examples", examples)
    fit = fit_cost()
    rows: list[tuple[str, str, float, float, float, float, float, float, bool]] = []
    for size in np.geomspace(SMALLEST, max(largest, fit.largest), 60):
        value, low, high = (one / examples for one in fit.product_seconds(examples, size))
        _, *wide = (one / examples for one in fit.product_seconds(examples, size, shapes=True))
        rows.append((PRODUCT, "fit", size, value, low, high, wide[0], wide[1], size > fit.largest))
    timed = time_frame()
    counts = timed[timed.timed == "process"].steps.to_numpy(dtype=float)
    for steps in np.geomspace(counts.min(), counts.max(), 30):
        found = [one / steps for one in fit.besides_seconds(1.0, steps)]
        rows.append((BESIDES, "fit", steps, *found, found[1], found[2], False))
    return pd.DataFrame(
        rows + _memory_curves(fit, largest),
        columns=["panel", "group", "x", "y", "low", "high", "wide_low", "wide_high", "extrapolated"],
    )


def _memory_curves(
    fit: CostFit, largest: float
) -> list[tuple[str, str, float, float, float, float, float, float, bool]]:
    """Give the curves of the memory, one per mode that was measured."""
    table, rows = memory_frame(), []
    for steps in sorted({int(steps) for steps in table.steps}):
        weights = table[table.steps == steps].weights.to_numpy(dtype=float)
        for size in np.geomspace(weights.min(), max(largest, weights.max()), 60):
            found = fit.bytes(size, steps, basis=steps > 0)
            if found is not None:
                value, low, high = (one / 2**30 for one in found)
                rows.append((MEMORY, _mode(steps), size, value, low, high, low, high, bool(size > weights.max())))
    return rows


def _mode(steps: int) -> str:
    return f"basis, {steps} steps" if steps else "no basis"


def cost_origin() -> pd.DataFrame:
    """List the records behind the model, with machine and command."""
    rows = []
    for name in ("growth", "footprint", *COMPARISONS["same-work"], *COMPARISONS["memory"], "size"):
        record = load_benchmark(name)
        if record is not None:
            about, role = record["provenance"], "fitted" if name in {"growth", "footprint"} else "held out"
            rows.append(
                (name, role, f"{about['processor']}, {about['threads']} thread", about["torch"], record["command"])
            )
    return pd.DataFrame(rows, columns=["benchmark", "role", "processor", "torch", "command"])
