r"""Same accuracy: CPU seconds until d(mu) is within 5 and 10 percent of the truth, which all eigenvalues together give.

For each number of steps every method starts afresh, with the same start vectors, and its estimates are averaged over them in
the same way. The error is the root mean square over groups of start vectors, relative to the truth. It holds the error of
the start vectors too, which no number of steps removes; what it must be is computed from the eigenvalues and recorded, and
where it alone is above half of a tolerance that entry says little.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.competitors import Ours, available, integrate, start_vectors
from benchmarks.measure import Clock
from benchmarks.problems import Problem, dense_eigenvalues, load_problem
from benchmarks.records import Record, told

#: mu in units of the largest eigenvalue.
SCALES = np.logspace(-2, -5, 7)

STEPS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

TOLERANCES = (0.05, 0.10)

#: At least so many times the seconds of our own.
TARGET = 8.0

#: Our own methods; the others are measured by the first of them that took part.
OURS = ("prunelimit-joint", "prunelimit")


def exact_dimension(eigenvalues: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """Compute d(mu) from all eigenvalues."""
    magnitudes = np.abs(eigenvalues)
    return np.array([(magnitudes / (magnitudes + m)).sum() for m in mu])


def probe_noise(eigenvalues: np.ndarray, mu: np.ndarray, probes: int) -> np.ndarray:
    """Compute the relative standard deviation of d(mu) that start vectors on the sphere leave."""
    magnitudes, total = np.abs(eigenvalues), len(eigenvalues)
    first = exact_dimension(eigenvalues, mu)
    square = np.array([((magnitudes / (magnitudes + m)) ** 2).sum() for m in mu])
    variance = 2 * total / (total + 2) * (square - first**2 / total) / probes
    return np.sqrt(np.maximum(variance, 0)) / first


def estimate(name: str, problem: Problem, mu: np.ndarray, steps: int, probes: int, seed: int) -> np.ndarray:
    """Estimate d(mu) by a method, from opening it to the numbers."""
    session = available([name])[name].open(problem)
    if isinstance(session, Ours):
        return session.effective_dimension(mu, steps, probes, seed)
    return integrate(session.rules(start_vectors(problem, probes, seed), steps), mu, problem.dimension)


def reached(errors: list[list[float]], seconds: list[float], tolerance: float, column: int) -> tuple[float | None, int]:
    """Find the first number of steps whose error, and that of the next one, are within a tolerance.

    Args:
        errors: Per number of steps, the errors for each mu.
        seconds: Per number of steps, the CPU seconds.
        tolerance: Relative.
        column: Which mu.

    Returns:
        Seconds, ``None`` if it was never reached, and the place in the list.
    """
    good = [row[column] <= tolerance for row in errors]
    for place in range(len(good) - 1):
        if good[place] and good[place + 1]:
            return seconds[place], place
    return None, -1


def compare(
    record: Record, network: str, *, probes: int, groups: int, steps: tuple[int, ...], names: list[str] | None
) -> None:
    """Run every method at every number of steps.

    Args:
        record: Where results go.
        network: A key of ``PROBLEMS``, of less than 10,000 weights.
        probes: Start vectors per estimate.
        groups: Estimates per number of steps.
        steps: Numbers of steps, in order; a method stops when two in a row are within 5 percent for every mu.
        names: Methods; prunelimit with and without a joint Krylov space, PyHessian, curvlinops and the released routine by
            default.
    """
    problem = load_problem(network)
    told(f"{network}: all {problem.dimension} eigenvalues")
    eigenvalues = dense_eigenvalues(problem)
    mu = SCALES * np.abs(eigenvalues).max()
    truth, noise = exact_dimension(eigenvalues, mu), probe_noise(eigenvalues, mu, probes)
    methods = available(names or [*OURS, "pyhessian", "curvlinops", "released"])
    record.save(
        problem=problem.about(),
        scales=SCALES,
        truth=truth,
        largest=np.abs(eigenvalues).max(),
        probes=probes,
        groups=groups,
        probe_noise=noise,
        zero_share=float((np.abs(eigenvalues) < 1e-12 * np.abs(eigenvalues).max()).mean()),
        methods={name: method.about() for name, method in methods.items()},
    )
    curves: dict[str, Any] = {name: {"steps": [], "errors": [], "bias": [], "cpu": [], "wall": []} for name in methods}
    running = set(methods)
    for name in methods:
        estimate(name, problem, mu, min(4, steps[0]), 1, seed=0)
    for count in steps:
        clocks: dict[str, Clock] = {name: Clock() for name in methods}
        found: dict[str, list[np.ndarray]] = {name: [] for name in methods}
        for group in range(groups):
            for name in [name for name in methods if name in running]:
                with clocks[name].measure():
                    found[name].append(estimate(name, problem, mu, count, probes, seed=group * probes))
        for name in sorted(running):
            off = np.array(found[name]) / truth - 1
            curve, clock = curves[name], clocks[name].to_dict()
            errors = np.sqrt(np.mean(off**2, axis=0))
            for key, value in (("steps", count), ("errors", errors.tolist()), ("bias", off.mean(0).tolist())):
                curve[key].append(value)
            curve["cpu"].append(clock["cpu_median"])
            curve["wall"].append(clock["wall_median"])
            told(f"  {count:4d} steps {name:12s} {clock['cpu_median']:8.3f} s CPU, worst {np.nanmax(errors):.3f}")
            if len(curve["steps"]) > 1 and np.max(curve["errors"][-2:]) <= min(TOLERANCES):
                running.discard(name)
        record.save(curves=curves)
        if not running:
            break
    record.save(complete=True, table=table(curves, noise), target=TARGET)


def table(curves: dict[str, Any], noise: np.ndarray) -> list[dict[str, Any]]:
    """List, for each tolerance and mu, every method's seconds and their ratio to ours."""
    rows = []
    for tolerance in TOLERANCES:
        for column, scale in enumerate(SCALES):
            row: dict[str, Any] = {
                "tolerance": tolerance,
                "scale": scale,
                "probe_limited": noise[column] > tolerance / 2,
            }
            for name, curve in curves.items():
                seconds, place = reached(curve["errors"], curve["cpu"], tolerance, column)
                row[name] = {
                    "cpu": seconds,
                    "steps": None if seconds is None else curve["steps"][place],
                    # A method that never arrives has spent at least this.
                    "at_least": curve["cpu"][-1] if seconds is None and curve["cpu"] else None,
                }
            best = next((name for name in OURS if name in curves), None)
            ours = None if best is None else row[best]["cpu"]
            for name in curves:
                spent = row[name]["cpu"] or row[name]["at_least"]
                if name != best and ours and spent:
                    row[name]["times_ours"] = spent / ours
            rows.append(row)
    return rows
