"""Memory: the peak of a fresh process above what it held before, against the size of the Lanczos basis (Linux)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.competitors import available, best_rows, start_vectors
from benchmarks.measure import gradient, reset_peak, resident
from benchmarks.problems import load_problem
from benchmarks.records import Record, told

#: The most memory that we may take, in sizes of the basis.
TARGET = 1.1

#: Images of the run before the base line.
WARM_ROWS = 32


def one(network: str, name: str, steps: int) -> dict[str, Any]:
    """Measure one method, in this process.

    The base line is the memory in use once network and data are loaded and the method has made two steps with a few images,
    so that libraries are loaded.

    Args:
        network: A key of ``PROBLEMS``.
        name: A method.
        steps: Lanczos steps.

    Returns:
        Bytes: base line, peaks above it, and the size of the basis.
    """
    problem = load_problem(network)
    starts = start_vectors(problem, 1, seed=0)
    method = available([name])[name]
    method.open(problem.first(WARM_ROWS)).rules(starts, 2)
    before = reset_peak()
    gradient(problem, best_rows(problem))
    of_gradient = resident()[1] - before
    base = reset_peak()
    method.open(problem).rules(starts, steps)
    peak = resident()[1] - base
    basis = 4 * problem.dimension * steps
    return {"base": base, "gradient": of_gradient, "peak": peak, "basis": basis, "ratio": peak / basis}


def compare(record: Record, network: str, *, steps: int, names: list[str] | None) -> None:
    """Measure every method in a process of its own.

    Args:
        record: Where results go.
        network: A key of ``PROBLEMS``.
        steps: Lanczos steps.
        names: Methods; all that are installed by default.
    """
    table: dict[str, Any] = {}
    record.save(problem=load_problem(network).about(), steps=steps)
    for name in available(names):
        command = [sys.executable, "-m", "benchmarks", "memory-one", "--network", network]
        done = subprocess.run([*command, "--methods", name, "--steps", str(steps)], capture_output=True, text=True)
        if done.returncode:  # most likely killed for its memory
            told(f"  {name}: ended with {done.returncode}")
            table[name] = {"failed": done.returncode}
        else:
            table[name] = json.loads(done.stdout.splitlines()[-1])
            told(f"  {name:20s} {table[name]['peak'] / 2**20:9.1f} MiB = {table[name]['ratio']:.3f} bases")
        record.save(bytes=table)
    ours = table.get("prunelimit", {}).get("ratio")
    record.save(complete=True, target=TARGET, met=None if ours is None else ours <= TARGET)
