"""Workers: curvature products by two processes that share the data (gloo) against one, and what sharing costs."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from benchmarks.measure import apart
from benchmarks.problems import load_problem
from benchmarks.records import Record, told
from prunelimit.curvature import HessianOperator
from prunelimit.curvature.lanczos import sphere_vector
from prunelimit.processes import joined_processes

WORLD = 2

FULL, QUICK = ("fc5", "resnet20"), ("quick-mlp",)


def _measured(operator: HessianOperator, vector: torch.Tensor, products: int) -> tuple[float, float]:
    """Give CPU and wall seconds of this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(products):
        operator @ vector
    return time.process_time() - cpu, time.perf_counter() - wall


def one(network: str, products: int, repeats: int) -> dict[str, Any] | None:
    """Measure in this process, one of those that torchrun started; alone and together in turn.

    While the first one works alone, the others wait without computing.

    Args:
        network: A key of ``PROBLEMS``.
        products: Products per measurement.
        repeats: Rounds.

    Returns:
        Seconds of every round, in the first process; ``None`` in the others.
    """
    with joined_processes() as rank:
        problem = load_problem(network)
        data, vector = (problem.inputs, problem.targets), sphere_vector(problem.dimension, 0)
        # Graphs of half the data may fit into memory where those of all do not: without analytic rule, nothing is kept.
        rule = HessianOperator(problem.model, problem.loss_fn, data).rule or "fresh"
        shared = HessianOperator(problem.model, problem.loss_fn, data, rule=rule)
        alone = HessianOperator(problem.model, problem.loss_fn, data, rule=rule, shard=False) if rank == 0 else None
        # Settles the batches.
        difference = shared @ vector
        if alone is not None:
            difference = (difference - (alone @ vector)).norm() / difference.norm()
        rounds: list[dict[str, Any]] = []
        for number in range(repeats):
            load = os.getloadavg()[0]
            distributed.barrier()
            single = _measured(alone, vector, products) if alone is not None else (0.0, 0.0)
            distributed.barrier()
            both = [(0.0, 0.0)] * distributed.get_world_size()
            distributed.all_gather_object(both, _measured(shared, vector, products))
            cpus, walls = zip(*both, strict=True)
            rounds.append({"load": load, "one": single, "cpu": cpus, "wall": max(walls)})
            if rank == 0:
                told(f"  {number + 1}/{repeats} one {single[0]:8.3f} s CPU, each of {len(cpus)} {max(cpus):8.3f} s")
    if rank:
        return None
    return {
        "problem": problem.about(),
        "products": products,
        "rule": rule,
        "rounds": rounds,
        "difference": float(difference),
        **efficiency(rounds),
    }


def efficiency(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sum up the rounds.

    Args:
        rounds: CPU and wall seconds of one process (``one``), the CPU seconds of each of the others and their wall seconds.

    Returns:
        Medians over rounds. ``efficiency``: CPU seconds of one process over those of all that share its work. ``balanced``:
        the same over the busiest one's times their number, which is what free cores would give without waiting.
        ``speedup``: wall seconds of one over those of all, with whatever else the machine did.
    """
    columns = {
        "efficiency": [r["one"][0] / sum(r["cpu"]) for r in rounds],
        "balanced": [r["one"][0] / (len(r["cpu"]) * max(r["cpu"])) for r in rounds],
        "speedup": [r["one"][1] / r["wall"] for r in rounds],
        "load": [r["load"] for r in rounds],
    }
    return {name: statistics.median(values) for name, values in columns.items()}


def compare(record: Record, *, networks: Sequence[str], products: int, repeats: int) -> None:
    """Measure every network by two processes.

    Args:
        record: Where results go.
        networks: Keys of ``PROBLEMS``.
        products: Products per measurement.
        repeats: Rounds.
    """
    found: dict[str, Any] = {}
    record.save(processes=WORLD, backend="gloo")
    for network in networks:
        told(network)
        load_problem(network)  # trained here the first time
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
        words = ["--steps", str(products), "--repeats", str(repeats)]
        found[network] = apart("workers-one", network, *words, start=start)
        told(f"  efficiency {found[network]['efficiency']:.2f}, load {found[network]['load']:.1f}")
        record.save(networks=found)
    record.save(complete=True)
