"""Growth: seconds against examples, weights and steps, with fitted exponents; row norms; the curve of 1,000 sparsities."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Clock, fitted_exponent
from benchmarks.problems import Problem, load_problem, wide_mlp
from benchmarks.records import Record, told
from prunelimit.curvature import HessianOperator, lanczos
from prunelimit.curvature.lanczos import sphere_vector
from prunelimit.pruning.magnitude import MagnitudePath


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the sweeps.

    Attributes:
        examples: N, for a network of ``base`` weights.
        parameters: Weights, for 256 examples.
        steps: Lanczos steps, for ``base`` weights and 500 examples.
        base: Weights where they do not vary.
        network: Network of the row norms and of the curve.
        rows: Rows that are computed one at a time; the time for all D is extrapolated from them.
        points: Sparsities of the curve.
        dataset: Data of the sweeps.
    """

    examples: tuple[int, ...] = (500, 1000, 2000, 4000, 8000)
    parameters: tuple[float, ...] = (1e5, 3e5, 1e6, 3e6, 1e7, 2.5e7)
    steps: tuple[int, ...] = (16, 32, 64, 128, 256)
    base: float = 1e6
    network: str = "fc5"
    rows: int = 20
    points: int = 1000
    dataset: str = "cifar10"


QUICK = Sizes((50, 100), (7e4, 1.4e5), (2, 4), 7e4, "quick-mlp", 3, 10, "digits")


def _operator(problem: Problem) -> HessianOperator:
    return HessianOperator(problem.model, problem.loss_fn, (problem.inputs, problem.targets))


def _measured(task: Callable[[], Any], repeats: int) -> Clock:
    clock = Clock()
    for _ in range(repeats):
        with clock.measure():
            task()
    return clock


def _sweep(name: str, sizes: list[float], tasks: list[Callable[[], Any]], repeats: int) -> dict[str, Any]:
    clocks = []
    for size, task in zip(sizes, tasks, strict=True):
        clocks.append(_measured(task, repeats))
        told(f"  {name} {size:12,.0f} {clocks[-1].seconds:9.4f} s CPU")
    seconds = [clock.seconds for clock in clocks]
    local = [fitted_exponent(sizes[i : i + 2], seconds[i : i + 2]) for i in range(len(sizes) - 1)]
    return {
        "sizes": sizes,
        "clocks": [clock.to_dict() for clock in clocks],
        "exponent": fitted_exponent(sizes, seconds),
        "local_exponents": local,
    }


def _product_task(problem: Problem) -> Callable[[], Any]:
    operator, vector = _operator(problem), sphere_vector(problem.dimension, 0)
    operator @ vector  # settles rule, batch and states
    return lambda: operator @ vector


def by_examples(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure a product against the number of examples."""
    problem = wide_mlp(sizes.base, max(sizes.examples), sizes.dataset)
    tasks = [_product_task(problem.first(n)) for n in sizes.examples]
    return _sweep("examples", list(map(float, sizes.examples)), tasks, repeats) | {"dimension": problem.dimension}


def by_parameters(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure a product, and a whole process of 16 steps, against the number of weights."""
    found: dict[str, Any] = {"dimension": []}
    for kind in ("product", "process"):
        dimensions, tasks = [], []
        for parameters in sizes.parameters:
            problem = wide_mlp(parameters, 256, sizes.dataset)
            dimensions.append(float(problem.dimension))
            if kind == "product":
                tasks.append(_product_task(problem))
            else:
                start = sphere_vector(problem.dimension, 0)
                tasks.append(lambda problem=problem, start=start: lanczos(_operator(problem), start, 16))
        found[kind] = _sweep(f"weights, {kind}", dimensions, tasks, repeats)
        found["dimension"] = dimensions
    return found | {"examples": 256, "steps": 16}


def by_steps(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure a Lanczos process against the number of steps."""
    problem = wide_mlp(sizes.base, 500, sizes.dataset)
    start = sphere_vector(problem.dimension, 0)
    tasks = [lambda steps=steps: lanczos(_operator(problem), start, steps) for steps in sizes.steps]
    about = {"dimension": problem.dimension, "examples": 500}
    return _sweep("steps", list(map(float, sizes.steps)), tasks, repeats) | about


def row_norms_against_rows(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure estimated norms of all rows against rows one at a time, each a backward pass through a kept graph."""
    from prunelimit.curvature.rows import row_norms

    problem = load_problem(sizes.network)
    operator = _operator(problem)
    probes = 8
    all_rows = _measured(lambda: row_norms(operator, probes=probes), repeats)
    parameters = problem.parameters
    loss = problem.loss_fn(problem.model(problem.inputs), problem.targets)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    # Rows that the loss depends on: a row of zeros would be as dear.
    chosen = torch.randperm(len(slope), generator=torch.Generator().manual_seed(0))[: sizes.rows]
    exact = []
    clock = Clock()
    for index in chosen.tolist():
        with clock.measure():
            row = torch.autograd.grad(slope[index], parameters, retain_graph=True)
            exact.append(float(torch.cat([part.flatten() for part in row]).norm()))
    told(f"  row norms {all_rows.seconds:.3f} s CPU, one row {clock.seconds:.3f} s CPU")
    return {
        "dimension": problem.dimension,
        "probes": probes,
        "estimated": all_rows.to_dict(),
        "one_row": clock.to_dict(),
        "rows_measured": sizes.rows,
        "all_rows_extrapolated": clock.seconds * problem.dimension,
        "times": clock.seconds * problem.dimension / all_rows.seconds,
        "relative_error": _row_errors(operator, chosen, exact, probes),
    }


def _row_errors(operator: HessianOperator, chosen: torch.Tensor, exact: list[float], probes: int) -> dict[str, Any]:
    from prunelimit.curvature.rows import row_norms

    values, truth = row_norms(operator, probes=probes).values[chosen.numpy()], np.array(exact)
    held = truth > 0
    error = np.abs(values[held] / truth[held] - 1)
    return {"root_mean_square": float(np.sqrt(np.mean(error**2))) if held.any() else None, "rows": int(held.sum())}


def curve_against_copies(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """Measure R(s) at all sparsities from one sort, against a pruned copy of the network for each."""
    problem = load_problem(sizes.network)
    sparsities = np.arange(sizes.points) / sizes.points
    ours: list[np.ndarray] = []
    sort = _measured(lambda: ours.append(np.asarray(MagnitudePath(problem.model).radius(sparsities))), repeats)
    found: list[float] = []
    copies = _measured(lambda: found.extend(copied_radii(problem, sparsities)), 1)
    told(f"  curve of {sizes.points}: {sort.seconds:.3f} s CPU, by copies {copies.seconds:.3f} s CPU")
    return {
        "dimension": problem.dimension,
        "points": sizes.points,
        "one_sort": sort.to_dict(),
        "copies": copies.to_dict(),
        "times": copies.seconds / sort.seconds,
        "largest_difference": float(np.abs(ours[0] - np.array(found)).max()),
    }


def copied_radii(problem: Problem, sparsities: np.ndarray) -> list[float]:
    """Copy the network, prune the copy by a threshold and measure how far it is, for each sparsity.

    The thresholds come from one sort, which makes this faster than a search for each.

    Args:
        problem: The problem.
        sparsities: Fractions removed.

    Returns:
        Distances.
    """
    ordered = torch.cat([p.detach().abs().flatten() for p in problem.parameters]).sort().values
    radii = []
    with torch.no_grad():
        for sparsity in sparsities:
            pruned, removed = copy.deepcopy(problem.model), int(np.ceil(sparsity * len(ordered)))
            threshold, square = ordered[removed - 1] if removed else torch.tensor(-1.0), 0.0
            for own, other in zip(problem.parameters, [p for p in pruned.parameters() if p.requires_grad], strict=True):
                other.mul_(other.abs() > threshold)
                square += float((own - other).square().sum(dtype=torch.float64))
            radii.append(square**0.5)
    return radii


PARTS: dict[str, Callable[[Sizes, int], dict[str, Any]]] = {
    "examples": by_examples,
    "parameters": by_parameters,
    "steps": by_steps,
    "rows": row_norms_against_rows,
    "curve": curve_against_copies,
}


def compare(record: Record, *, sizes: Sizes, repeats: int, parts: list[str] | None) -> None:
    """Run the sweeps one after the other.

    Args:
        record: Where results go.
        sizes: How large.
        repeats: Measurements of each, of which the median counts.
        parts: Keys of ``PARTS``; all by default.
    """
    found: dict[str, Any] = {}
    for name in parts or PARTS:
        told(name)
        found[name] = PARTS[name](sizes, repeats)
        record.save(parts=found)
    record.save(complete=True)
