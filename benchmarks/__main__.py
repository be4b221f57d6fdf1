"""One command: ``python -m benchmarks`` runs every comparison, each in a process of its own, and writes results/benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

#: What ``all`` runs, and what it runs with ``--quick``.
FULL = (
    ("same-work", "--network", "fc5"),
    ("same-work", "--network", "resnet20"),
    ("memory", "--network", "fc5"),
    ("memory", "--network", "resnet20"),
    ("memory-time", "--network", "resnet20"),
    ("same-accuracy", "--network", "mlp-small"),
    ("same-accuracy", "--network", "resnet-small"),
    ("growth",),
    ("many",),
    ("size",),
    ("workers",),
)
SHORT = (
    ("same-work", "--network", "quick-mlp"),
    ("same-work", "--network", "quick-resnet"),
    ("memory", "--network", "quick-mlp"),
    ("memory-time", "--network", "quick-resnet"),
    ("same-accuracy", "--network", "quick-mlp"),
    ("growth",),
    ("many",),
    ("size",),
    ("workers",),
)

#: Comparisons whose one record is of all their networks.
SINGLE = ("growth", "many", "size", "workers")

#: Parts of comparisons, each in a process of its own, which the comparisons start.
ONE = ("memory-one", "memory-time-one", "size-one", "workers-one")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    several = ("same-work", "memory", "memory-time", "same-accuracy")
    commands = ("all", *several, *SINGLE, *ONE)
    parser.add_argument("command", nargs="?", default="all", choices=commands)
    parser.add_argument("--network", default="fc5", help="a name in benchmarks/problems.py")
    parser.add_argument("--steps", type=int, default=None, help="Lanczos steps (96; size: 8); workers: products (4)")
    parser.add_argument(
        "--repeats", type=int, default=None, help="rounds (5; size: 2; workers: 3), of which the median counts"
    )
    parser.add_argument("--examples", type=int, default=None, help="fewer images than the 2,000 of the comparison")
    parser.add_argument("--probes", type=int, default=None, help="start vectors per estimate (16), same-accuracy")
    parser.add_argument("--methods", nargs="+", default=None, help="only these methods")
    parser.add_argument("--rows", type=int, default=0, help="rows per pass of memory-time-one; 0: its own choice")
    parser.add_argument("--parts", nargs="+", default=None, help="only these parts of growth")
    parser.add_argument("--threads", type=int, default=1, help="threads of every method (1)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that everything runs; writes no records"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of the records (results/benchmarks)")
    return parser.parse_args()


def run_all(given: argparse.Namespace) -> int:
    """Run every comparison in a process of its own.

    Args:
        given: The command line.

    Returns:
        How many failed.
    """
    more = [*(["--quick"] if given.quick else []), "--threads", str(given.threads)]
    for name in ("steps", "repeats", "out"):
        value = getattr(given, name)
        more += [] if value is None else [f"--{name}", str(value)]
    failed = 0
    for words in SHORT if given.quick else FULL:
        print(" ".join(words), file=sys.stderr, flush=True)
        failed += subprocess.run([sys.executable, "-m", "benchmarks", *words, *more], check=False).returncode != 0
    return failed


def run_part(given: argparse.Namespace, steps: int, few: int, repeats: int) -> None:
    """Measure one part of a comparison in this process, and print it.

    Args:
        given: The command line.
        steps: Lanczos steps.
        few: The same of networks so large that there are fewer, or products.
        repeats: Rounds.
    """
    from benchmarks import memory, memory_time, records, size, workers

    parts = {
        "memory-one": lambda: memory.one(given.network, given.methods[0], steps),
        "memory-time-one": lambda: memory_time.one(given.network, given.rows, steps, repeats),
        "size-one": lambda: size.one(given.network, few, repeats),
        "workers-one": lambda: workers.one(given.network, few, repeats),
    }
    found = parts[given.command]()
    if found is not None:  # of processes that share a part, one speaks
        print(json.dumps(records.plain(found)))


def run_one(given: argparse.Namespace) -> None:
    """Run one comparison in this process."""
    import torch

    from benchmarks import growth, many, memory, memory_time, records, same_accuracy, same_work, size, workers

    torch.set_num_threads(given.threads)
    quick = given.quick
    steps, repeats = given.steps or (4 if quick else 96), given.repeats or (1 if quick else 5)
    few = given.steps or (4 if quick or "workers" in given.command else 8)
    if given.command in ONE:
        run_part(given, steps, few, repeats)
        return
    single = given.command in SINGLE
    name = given.command if single else f"{given.command}-{given.network}"
    out = given.out or (None if quick else records.folder())
    record = records.Record(name + ("-quick" if quick and single else ""), out)
    if given.command == "same-work":
        same_work.compare(
            record, given.network, steps=steps, repeats=repeats, examples=given.examples, names=given.methods
        )
    elif given.command == "memory":
        memory.compare(record, given.network, steps=steps, names=given.methods)
    elif given.command == "memory-time":
        choices, rounds = (memory_time.QUICK, 1) if quick else (memory_time.FULL, given.repeats or 3)
        memory_time.compare(record, given.network, choices=choices, steps=steps, repeats=rounds)
    elif given.command == "same-accuracy":
        counts = same_accuracy.STEPS[:3] if quick else same_accuracy.STEPS
        probes, groups = given.probes or (2 if quick else 16), given.repeats or (2 if quick else 3)
        same_accuracy.compare(record, given.network, probes=probes, groups=groups, steps=counts, names=given.methods)
    elif given.command == "size":
        rounds = given.repeats or (1 if quick else 2)
        size.compare(record, networks=size.QUICK if quick else size.FULL, steps=few, repeats=rounds)
    elif given.command == "workers":
        networks = workers.QUICK if quick else workers.FULL
        workers.compare(record, networks=networks, products=few, repeats=given.repeats or (1 if quick else 3))
    elif given.command == "many":
        many.compare(record, sizes=many.QUICK if quick else many.FULL, repeats=repeats)
    else:
        sizes = growth.QUICK if quick else growth.Sizes()
        growth.compare(record, sizes=sizes, repeats=given.repeats or (1 if quick else 3), parts=given.parts)


def main() -> int:
    """Run what the command line says; threads are fixed before any library that uses them is loaded."""
    given = arguments()
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(given.threads)
    if given.command == "all":
        return run_all(given)
    run_one(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
