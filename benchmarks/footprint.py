"""Footprint: the peak of a prediction above its network, with and without a Lanczos basis, against weights and steps (Linux).

``python -m benchmarks.footprint`` writes the record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import reset_peak, resident
from benchmarks.records import Record, folder, told
from prunelimit import predict_limit

#: Widths of the two hidden layers, and Lanczos steps; ``None`` is the mode without a basis.
WIDTHS, STEPS = (700, 1400, 2800), (16, 48, None)
QUICK_WIDTHS, QUICK_STEPS = (100, 200), (4, None)

#: Few, so that what grows with the data does not count.
EXAMPLES = 32

#: Tolerated rise of the loss: given, since its default needs more examples.
EPSILON = 0.1

#: Width of the network of the run before the base line.
WARM_WIDTH = 64


def network(width: int) -> nn.Module:
    """Make a network that has no rule of its own: it goes the way of any network."""
    torch.manual_seed(0)
    middle = (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), *middle, nn.Linear(width, 10))


def one(width: int, steps: int | None) -> dict[str, Any]:
    """Measure one prediction, in this process.

    Args:
        width: Width of the network.
        steps: Lanczos steps with a basis; ``None`` for a few without.

    Returns:
        Number of prunable weights, and bytes at the peak above what was there before.
    """

    def predict(model: nn.Module, width: int) -> None:
        data = torch.randn(EXAMPLES, width), torch.randint(0, 10, (EXAMPLES,))
        options: dict[str, Any] = {"steps": steps or min(QUICK_STEPS[0], width), "low_memory": steps is None}
        predict_limit(model, nn.CrossEntropyLoss(), data, epsilon=EPSILON, progress=False, **options)

    predict(network(WARM_WIDTH), WARM_WIDTH)
    model = network(width)
    base = reset_peak()
    predict(model, width)
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    return {"weights": weights, "width": width, "steps": steps, "peak": resident()[1] - base}


def compare(record: Record, widths: tuple[int, ...], counts: tuple[int | None, ...]) -> None:
    """Measure every size in a process of its own.

    Args:
        record: Where results go.
        widths: Widths of the networks.
        counts: Lanczos steps; ``None`` for the mode without a basis.
    """
    found = []
    record.save(examples=EXAMPLES, command="python -m benchmarks.footprint")
    for width in widths:
        for steps in counts:
            words = ["--one", str(width), *([] if steps is None else [str(steps)])]
            command = [sys.executable, "-m", "benchmarks.footprint", *words]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            told(f"  {found[-1]['weights']:12,d} weights, steps {steps}: {found[-1]['peak'] / 2**20:8.0f} MiB")
            record.save(sizes=found)
    record.save(complete=True)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, nargs="+", default=None, help="width, and steps if with a basis")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; writes no record")
    parser.add_argument("--out", type=Path, default=None, help="folder of the record")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(one(given.one[0], given.one[1] if len(given.one) > 1 else None)))
        return
    out = given.out or (None if given.quick else folder())
    quick = QUICK_WIDTHS, QUICK_STEPS
    compare(Record("footprint", out), *(quick if given.quick else (WIDTHS, STEPS)))


if __name__ == "__main__":
    main()
