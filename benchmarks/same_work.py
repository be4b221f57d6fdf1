"""Same work: the same number of Lanczos steps from the same start vector, to nodes and weights; and the price of one product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.competitors import available, best_rows, start_vectors
from benchmarks.measure import Clock, gradient, interleave
from benchmarks.problems import load_problem
from benchmarks.records import Record, told

#: The most of a competitor's CPU time that we may take, and the most gradients that a product may cost.
TARGETS = {"fc5": {"share": 0.45, "gradients": 1.2}, "resnet20": {"share": 0.60, "gradients": 2.0}}

#: The targets speak of these.
LIBRARIES = ("pyhessian", "pyhessian-loader", "curvlinops")

Rules = list[tuple[np.ndarray, np.ndarray]]


def compare(
    record: Record, network: str, *, steps: int, repeats: int, examples: int | None, names: list[str] | None
) -> None:
    """Run every method in turn, all of them ``repeats`` times, and record medians.

    Opening a session counts: it is where PyHessian builds its graph. A round of one step each comes first, unmeasured.

    Args:
        record: Where results go.
        network: A key of ``PROBLEMS``.
        steps: Lanczos steps.
        repeats: Rounds.
        examples: Fewer images than the problem has.
        names: Methods; all that are installed by default.
    """
    problem = load_problem(network)
    problem = problem if examples is None else problem.first(examples)
    methods = available(names)
    starts = start_vectors(problem, 1, seed=0)
    found: dict[str, Rules] = {}

    def task(name: str) -> Callable[[], None]:
        def run() -> None:
            found[name] = methods[name].open(problem).rules(starts, steps)

        return run

    record.save(
        problem=problem.about(),
        steps=steps,
        rows=best_rows(problem),
        methods={name: method.about() for name, method in methods.items()},
    )
    record.save(product=product_price(problem, repeats, TARGETS.get(network, {}).get("gradients")))
    for method in methods.values():
        method.open(problem).rules(starts, 2)
    clocks: dict[str, Clock] = {name: Clock() for name in methods}
    for number in range(repeats):
        told(f"round {number + 1} of {repeats}")
        order = list(methods)[number % len(methods) :] + list(methods)[: number % len(methods)]
        for name, clock in interleave({name: task(name) for name in order}, 1, told).items():
            clocks[name].cpu += clock.cpu
            clocks[name].wall += clock.wall
        record.save(rounds=number + 1, seconds={name: clock.to_dict() for name, clock in clocks.items()})
    record.save(complete=True, agreement=agreement(found), shares=shares(network, clocks))


def product_price(problem: Any, repeats: int, target: float | None) -> dict[str, Any]:
    """Measure what one of our products costs in gradients, the states being kept if the operator keeps them.

    Args:
        problem: The problem.
        repeats: Rounds.
        target: The most gradients that it may cost.

    Returns:
        Clocks, the ratio of the medians, the rule in use and whether the target is met.
    """
    session = available(["prunelimit"])["prunelimit"].open(problem)
    vector, rows = session.prepared(start_vectors(problem, 1, seed=1)[0]), best_rows(problem)
    first = Clock()
    with first.measure():
        session.product(vector)
    gradient(problem, rows)
    tasks = {"gradient": lambda: gradient(problem, rows), "product": lambda: session.product(vector)}
    clocks = interleave(tasks, max(3, repeats), told)
    ratio = clocks["product"].seconds / clocks["gradient"].seconds
    operator = getattr(session, "operator", None)
    return {
        "first_product_cpu": first.seconds,
        **{name: clock.to_dict() for name, clock in clocks.items()},
        "gradients": ratio,
        "target": target,
        "met": None if target is None else ratio <= target,
        "rule": getattr(operator, "rule", None),
        "rows_per_pass": max(len(targets) for _, targets in getattr(operator, "batches", [(None, vector)])),
    }


def shares(network: str, clocks: dict[str, Clock]) -> dict[str, Any]:
    """Divide our CPU seconds by each competitor's.

    Args:
        network: Which targets hold.
        clocks: All clocks.

    Returns:
        Competitor to share, the range over rounds, the target and whether it is met.
    """
    ours, table = clocks.get("prunelimit"), {}
    if ours is None:
        return {}
    for name, clock in clocks.items():
        if name == "prunelimit":
            continue
        rounds = [a / b for a, b in zip(ours.cpu, clock.cpu, strict=True)]
        target = TARGETS.get(network, {}).get("share") if name in LIBRARIES else None
        share = ours.seconds / clock.seconds
        table[name] = {
            "share": share,
            "range": [min(rounds), max(rounds)],
            "target": target,
            "met": None if target is None else share <= target,
        }
    return table


def agreement(found: dict[str, Rules]) -> dict[str, Any]:
    """Show that all methods did the same work: the same largest Ritz value and the same first moment."""
    table = {}
    for name, rules in found.items():
        nodes, weights = rules[0]
        held = np.abs(nodes) if name != "released" else np.abs(nodes[np.nan_to_num(weights) > 0])
        table[name] = {
            "largest": float(held.max(initial=0.0)),
            "first_moment": float(torch.tensor(nodes) @ torch.tensor(weights).to(torch.tensor(nodes))),
        }
    return table
