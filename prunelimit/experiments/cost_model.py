"""What a prediction costs: seconds and memory against weights, examples, steps and workers, fitted to the recorded benchmarks.

The model of the time is ``steps * (product + weights * (c + q * steps))``. A product goes through the data, and its price is a power
of the number of examples and of the multiply-adds of one example, which are the weights where each weight is used once. The
second term is work on vectors: ``c`` for each step, and ``q`` for each vector that a new one is orthogonalised against. Memory is
``4 * weights * (steps + v)`` bytes in float32: a basis, if there is one, and ``v`` further vectors.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.benchmark_frames import load_benchmark, load_benchmarks

#: Bytes of a number in float32.
FLOAT = 4

#: Probability with which intervals are to hold.
LEVEL = 0.95

#: Smaller networks lie in the processor's cache, where they are fast in a way that larger ones are not.
SMALLEST = 9e5

#: Shape of the images of the benchmarks whose multiply-adds are counted.
_SHAPE = (3, 32, 32)


@dataclasses.dataclass(frozen=True)
class LinearFit:
    """A least-squares fit.

    Attributes:
        names: What each coefficient belongs to.
        coefficients: ``(p,)`` estimates.
        covariance: ``(p, p)`` of the estimates.
        deviation: Standard deviation of the residuals.
        points: Measurements.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    deviation: float
    points: int

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of the coefficients, ``(p,)``."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def quantile(self) -> float:
        """How many standard errors an interval reaches to either side, by Student's distribution."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.points - len(self.coefficients)))

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict new measurements.

        Args:
            rows: ``(n, p)`` regressors.

        Returns:
            ``(n,)`` values and ``(n,)`` standard deviations, those of the residuals included.
        """
        spread = np.einsum("ij,jk,ik->i", rows, self.covariance, rows)
        return rows @ self.coefficients, np.sqrt(spread + self.deviation**2)


def fit_linear(names: Sequence[str], rows: np.ndarray, values: np.ndarray) -> LinearFit:
    """Fit by ordinary least squares.

    Args:
        names: What each column is.
        rows: ``(n, p)`` regressors, more rows than columns.
        values: ``(n,)`` what is to be explained.

    Returns:
        The fit.

    Raises:
        PruneLimitError: If there are too few measurements.
    """
    count, width = rows.shape
    if count <= width:
        raise PruneLimitError(f"smallest leaves {count} measurements for {width} coefficients: lower it.")
    found, *_ = np.linalg.lstsq(rows, values, rcond=None)
    variance = float(np.sum((values - rows @ found) ** 2)) / (count - width)
    return LinearFit(tuple(names), found, variance * np.linalg.inv(rows.T @ rows), math.sqrt(variance), count)


@dataclasses.dataclass(frozen=True)
class CostFit:
    """The fitted model.

    Attributes:
        product: Logarithm of the seconds of a product: constant, logarithm of examples, logarithm of multiply-adds.
        besides: Logarithms of ``c`` and ``q``, the seconds of a step besides its product, per weight: constant, and per step
            before it; residuals are logarithms.
        memory: Vectors besides the basis; a constant. ``None`` if memory was not measured.
        largest: The most weights among the measurements of the time.
        shapes: Root mean square of the logarithmic error of a product for networks of another shape than those of the fit.
    """

    product: LinearFit
    besides: LinearFit
    memory: LinearFit | None
    largest: float
    shapes: float

    def product_seconds(self, examples: float, work: float, shapes: bool = False) -> tuple[float, float, float]:
        """Predict the CPU seconds of a product.

        Args:
            examples: N.
            work: Multiply-adds of one example.
            shapes: Whether the interval is to hold for networks of other shapes too.

        Returns:
            Value and interval.
        """
        value, deviation = self.product.predict(np.array([[1.0, math.log(examples), math.log(work)]]))
        width = self.product.quantile * math.hypot(deviation[0], self.shapes if shapes else 0.0)
        return math.exp(value[0]), math.exp(value[0] - width), math.exp(value[0] + width)

    def besides_seconds(self, weights: float, steps: int, basis: bool = True) -> tuple[float, float, float]:
        """Predict the CPU seconds of a whole process besides its products.

        Args:
            weights: D.
            steps: Lanczos steps.
            basis: Whether there is a basis.

        Returns:
            Value and interval.
        """
        c, q = np.exp(self.besides.coefficients)
        value = float(c + q * steps) if basis else float(c)
        _, deviation = self.besides.predict(np.array([[c / value, 1 - c / value]]))
        factor = math.exp(self.besides.quantile * deviation[0])
        scale = weights * steps * value
        return scale, scale / factor, scale * factor

    def bytes(self, weights: float, steps: int, basis: bool = True) -> tuple[float, float, float] | None:
        """Predict the peak of the memory above the network itself, activations apart.

        Args:
            weights: D.
            steps: Lanczos steps.
            basis: Whether there is a basis.

        Returns:
            Value and interval; ``None`` if memory was not measured.
        """
        if self.memory is None:
            return None
        value, deviation = self.memory.predict(np.ones((1, 1)))
        width, kept = self.memory.quantile * deviation[0], steps if basis else 0
        low, high = max(0.0, value[0] - width), value[0] + width
        unit = FLOAT * weights
        return unit * (kept + value[0]), unit * (kept + low), unit * (kept + high)


def time_frame() -> pd.DataFrame:
    """List the measurements of the time that the model is fitted to.

    Returns:
        One row each: ``timed`` (``product`` or ``process``), ``examples``, ``weights``, ``steps``, ``seconds`` and, of a
        process, the seconds of one ``product`` of the same size, measured in the same record.
    """
    rows: list[tuple[str, float, float, float, float, float | None]] = []
    for record in load_benchmarks("growth"):
        parts = record["parts"]
        examples, parameters, steps = parts["examples"], parts["parameters"], parts["steps"]
        by_examples = dict(zip(examples["sizes"], _seconds(examples), strict=True))
        by_weights = dict(zip(parameters["product"]["sizes"], _seconds(parameters["product"]), strict=True))
        rows += [("product", n, examples["dimension"], 1, seconds, None) for n, seconds in by_examples.items()]
        few = parameters["examples"]
        rows += [("product", few, weights, 1, seconds, None) for weights, seconds in by_weights.items()]
        sweep = zip(parameters["process"]["sizes"], _seconds(parameters["process"]), strict=True)
        rows += [("process", few, d, parameters["steps"], seconds, by_weights[d]) for d, seconds in sweep]
        many = by_examples[steps["examples"]]
        sweep = zip(steps["sizes"], _seconds(steps), strict=True)
        rows += [("process", steps["examples"], steps["dimension"], k, seconds, many) for k, seconds in sweep]
    return pd.DataFrame(rows, columns=["timed", "examples", "weights", "steps", "seconds", "product"])


def _seconds(sweep: dict[str, Any]) -> list[float]:
    return [clock["cpu_median"] for clock in sweep["clocks"]]


def memory_frame() -> pd.DataFrame:
    """List the measurements of the memory that the model is fitted to.

    Returns:
        One row each: ``weights``, ``steps`` (zero without a basis), ``bytes`` of the peak above the network, and ``vectors``, the same
        in float32 vectors of so many weights, the basis taken off.
    """
    record = load_benchmark("footprint")
    rows = [] if record is None else [(s["weights"], s["steps"] or 0, s["peak"]) for s in record["sizes"]]
    table = pd.DataFrame(rows, columns=["weights", "steps", "bytes"])
    return table.assign(vectors=table.bytes / (FLOAT * table.weights) - table.steps)


def fit_cost(smallest: float = SMALLEST) -> CostFit:
    """Fit the model to the recorded benchmarks.

    Args:
        smallest: Networks with fewer weights have no part in the fit of the time.

    Returns:
        The model.

    Raises:
        PruneLimitError: If there are too few measurements.
    """
    table = time_frame()
    table = table[table.weights >= smallest]
    products, whole = table[table.timed == "product"], table[table.timed == "process"]
    logs = np.log(products[["examples", "weights"]].to_numpy(dtype=float)) if len(products) else np.zeros((0, 2))
    rows = np.column_stack([np.ones(len(logs)), logs])
    names = ("constant", "logarithm of examples", "logarithm of weights")
    product = fit_linear(names, rows, np.log(products.seconds.to_numpy(dtype=float)))
    scale = (whole.seconds / whole.steps - whole["product"].astype(float)) / whole.weights
    besides = _fit_besides(whole.steps.to_numpy(dtype=float), scale.to_numpy(dtype=float))
    vectors = memory_frame().vectors.to_numpy(dtype=float)
    memory = fit_linear(("constant",), np.ones((len(vectors), 1)), vectors) if len(vectors) > 1 else None
    known = CostFit(product, besides, memory, float(table.weights.max()), 0.0)
    errors = [math.log(one["measured"] / one["predicted"]) for one in held_out(known) if one["what"] == "one product"]
    return dataclasses.replace(known, shapes=math.sqrt(sum(e**2 for e in errors) / len(errors)) if errors else 0.0)


def _fit_besides(steps: np.ndarray, seconds: np.ndarray) -> LinearFit:
    """Fit ``c + q * steps`` to seconds by least squares of logarithms, which keep ``c`` and ``q`` positive."""
    # Where products alone took longer than the process that they are part of, nothing is known of the rest.
    steps, seconds = steps[seconds > 0], seconds[seconds > 0]

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.log(seconds) - np.logaddexp(logs[0], logs[1] + np.log(steps))

    begin = np.log([seconds.min(), seconds.max() / steps.max()])
    logs = optimize.least_squares(residuals, begin, x_scale=1.0).x
    share = np.exp(logs[0] - np.logaddexp(logs[0], logs[1] + np.log(steps)))
    # Linear about the solution, which is then that of the linear problem too.
    rows = np.column_stack([share, 1 - share])
    return fit_linear(("c", "q"), rows, rows @ logs + residuals(logs))


@functools.lru_cache
def multiply_adds(network: str) -> float:
    """Count the multiply-adds of one image of 32 by 32 pixels.

    Args:
        network: A name of ``build_model``, which the number of logits may follow.

    Returns:
        The count, of one forward pass.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from prunelimit.models import build_model

    name, _, logits = network.partition(" ")
    model = build_model(name, input_shape=_SHAPE, num_classes=int(logits or 10)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *_SHAPE))
    return counter.get_total_flops() / 2


def held_out(fit: CostFit) -> list[dict[str, Any]]:
    """Compare a model with benchmarks that it was not fitted to.

    Args:
        fit: The model.

    Returns:
        One entry per quantity: the network, what was measured (in seconds where it does not say GiB), the prediction with its
        interval, and the measurement.
    """
    rows: list[dict[str, Any]] = []

    def add(problem: dict[str, Any], what: str, predicted: tuple[float, float, float] | None, measured: float) -> None:
        if predicted is not None:
            value, low, high = predicted
            rows.append(
                {"network": problem["network"], "weights": problem["dimension"], "examples": problem["examples"]}
                | {"work": work, "what": what, "predicted": value, "low": low, "high": high, "measured": measured}
            )

    for record in load_benchmarks("same-work"):
        problem, steps = record["problem"], record["steps"]
        work = multiply_adds(problem["network"])
        product = fit.product_seconds(problem["examples"], work)
        besides = fit.besides_seconds(problem["dimension"], steps)
        add(problem, "one product", product, record["product"]["product"]["cpu_median"])
        whole = tuple(steps * one + other for one, other in zip(product, besides, strict=True))
        seconds = record["seconds"]["prunelimit"]["cpu_median"]
        add(problem, f"{steps} steps", (whole[0], whole[1], whole[2]), seconds)
    for record in load_benchmarks("memory"):
        problem, work = record["problem"], multiply_adds(record["problem"]["network"])
        found = fit.bytes(problem["dimension"], record["steps"])
        add(problem, f"GiB, {record['steps']} steps", _gib(found), record["bytes"]["prunelimit"]["peak"] / 2**30)
    size = load_benchmark("size")
    for record in [] if size is None else size["networks"].values():
        problem, work = record["problem"], multiply_adds(record["problem"]["network"])
        unit = record["seconds"]["gradient"]["cpu_median"]
        product = fit.product_seconds(problem["examples"], work)
        add(problem, "one product", product, record["gradients_per_product"] * unit)
        bare = fit.bytes(problem["dimension"], 0, basis=False)
        add(problem, "GiB, without a basis", _gib(bare), record["peak"] / 2**30)
    return rows


def _gib(found: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    return None if found is None else (found[0] / 2**30, found[1] / 2**30, found[2] / 2**30)
