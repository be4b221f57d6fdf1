"""Size: the limit of networks of 11 and 25 million weights, without a Lanczos basis, each in a process of its own (Linux)."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

from benchmarks.competitors import best_rows
from benchmarks.measure import apart, gradient, interleave
from benchmarks.problems import Problem, load_problem
from benchmarks.records import Record, told
from prunelimit import PruningLimit, predict_limit

#: The most memory that a whole process may take, in bytes.
LARGEST = 16 * 2**30

FULL, QUICK = ("resnet18", "resnet50"), ("quick-resnet",)

#: Tolerated rise of the loss, in nats: given, since its default needs more images than these.
EPSILON = 0.1

#: What the steps are divided by in the shorter of two predictions, whose difference is the price of a product.
SHORTER = 4

#: Images of the prediction before anything is timed.
WARM_ROWS = 8


def one(network: str, steps: int, repeats: int) -> dict[str, Any]:
    """Predict the limit of one network in this process, and time gradients of the same loss in between.

    Args:
        network: A key of ``PROBLEMS``.
        steps: Lanczos steps of the longer prediction.
        repeats: Rounds.

    Returns:
        Seconds, and what they are in gradients; bytes at the peak of the process, from its start.
    """
    problem = load_problem(network)
    rows = best_rows(problem)
    found: list[PruningLimit] = []

    def predict(count: int, problem: Problem = problem) -> None:
        data = problem.inputs, problem.targets
        options: dict[str, Any] = {"epsilon": EPSILON, "steps": count, "low_memory": True, "progress": False}
        found.append(predict_limit(problem.model, problem.loss_fn, data, **options))

    few = max(1, steps // SHORTER)
    # The first call of anything loads libraries and is slower.
    gradient(problem, rows)
    predict(1, problem.first(WARM_ROWS))
    tasks = {
        "gradient": lambda: gradient(problem, rows),
        "few": lambda: predict(few),
        "between": lambda: gradient(problem, rows),
        "many": lambda: predict(steps),
    }
    clocks = interleave(tasks, repeats, told)
    more = clocks.pop("between")
    clocks["gradient"].cpu += more.cpu
    clocks["gradient"].wall += more.wall
    unit, shorter, longer = (clocks[name].seconds for name in ("gradient", "few", "many"))
    product = (longer - shorter) / (steps - few) / unit
    limit = max(found, key=lambda limit: limit.cost["products"])
    return {
        "problem": problem.about(),
        "steps": [few, steps],
        "products": limit.cost["products"],
        "limit": limit.sparsity,
        "interval": list(limit.interval),
        "seconds": {name: clock.to_dict() for name, clock in clocks.items()},
        "gradients": longer / unit,
        "gradients_per_product": product,
        "gradients_besides": longer / unit - steps * product,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def compare(record: Record, *, networks: Sequence[str], steps: int, repeats: int) -> None:
    """Predict each limit in a process of its own, and hold its memory against what it may take.

    Args:
        record: Where results go.
        networks: Keys of ``PROBLEMS``.
        steps: Lanczos steps.
        repeats: Rounds.
    """
    found: dict[str, Any] = {}
    record.save(largest=LARGEST, epsilon=EPSILON, rounds=repeats)
    for network in networks:
        told(network)
        load_problem(network)  # trained here the first time, which has no part in the peak
        found[network] = apart("size-one", network, "--steps", str(steps), "--repeats", str(repeats))
        told(f"  {found[network]['gradients']:.1f} gradients, peak {found[network]['peak'] / 2**30:.2f} GiB")
        record.save(networks=found)
    record.save(complete=True, met=all(each["peak"] <= LARGEST for each in found.values()))
