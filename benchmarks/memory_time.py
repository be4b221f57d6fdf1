"""Memory against time: a product with its graph kept, and with the graph of ever fewer rows at once (Linux)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.competitors import best_rows, start_vectors
from benchmarks.measure import apart, gradient, interleave, reset_peak, resident
from benchmarks.memory import TARGET
from benchmarks.problems import load_problem
from benchmarks.records import Record, told
from benchmarks.same_work import TARGETS
from prunelimit.curvature import HessianOperator

#: Rows per pass of products that build their graph anew; zero stands for what ``predict_limit`` chooses by itself.
FULL, QUICK = (0, 100, 44, 11, 3, 1), (0, 7)

#: Images of the products before the base line.
WARM_ROWS = 32


def one(network: str, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    """Measure one choice in this process.

    Args:
        network: A key of ``PROBLEMS``.
        rows: Rows per pass; zero for the operator's own choice.
        steps: Lanczos steps whose basis the memory is added to.
        repeats: Rounds of a gradient and a product.

    Returns:
        The rule in use, rows per pass, bytes of the basis and of a product's peak, both together in sizes of the basis, CPU
        seconds, and gradients per product.
    """
    problem = load_problem(network)
    vector = start_vectors(problem, 1, seed=0)[0]
    options: dict[str, Any] = {"batch_size": rows, "rule": "fresh"} if rows else {}
    few = problem.first(WARM_ROWS)
    for _ in range(2):
        HessianOperator(few.model, few.loss_fn, (few.inputs, few.targets), **options) @ vector
    base = reset_peak()
    operator = HessianOperator(problem.model, problem.loss_fn, (problem.inputs, problem.targets), **options)
    operator @ vector
    operator @ vector
    peak = resident()[1] - base
    tasks = {"gradient": lambda: gradient(problem, best_rows(problem)), "product": lambda: operator @ vector}
    clocks = interleave(tasks, repeats, told)
    basis = 4 * problem.dimension * steps
    return {
        "rule": operator.rule,
        "rows_per_pass": max(len(targets) for _, targets in operator.batches),
        "basis": basis,
        "peak": peak,
        "ratio": (basis + peak) / basis,
        "seconds": {name: clock.to_dict() for name, clock in clocks.items()},
        "gradients": clocks["product"].seconds / clocks["gradient"].seconds,
    }


def compare(record: Record, network: str, *, choices: Sequence[int], steps: int, repeats: int) -> None:
    """Measure every choice in a process of its own, so that none inherits another's memory.

    Args:
        record: Where results go.
        network: A key of ``PROBLEMS``.
        choices: Rows per pass, as for :func:`one`.
        steps: Lanczos steps whose basis the memory is added to.
        repeats: Rounds.
    """
    found: list[dict[str, Any]] = []
    aims = {"ratio": TARGET, "gradients": TARGETS.get(network, {}).get("gradients")}
    record.save(problem=load_problem(network).about(), steps=steps, rounds=repeats, targets=aims)
    for rows in choices:
        words = ["--rows", str(rows), "--steps", str(steps), "--repeats", str(repeats)]
        found.append(apart("memory-time-one", network, *words))
        told(f"  {rows:4d} rows: {found[-1]['ratio']:.3f} bases, {found[-1]['gradients']:.2f} gradients")
        record.save(choices=found)
    record.save(complete=True)
