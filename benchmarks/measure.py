"""Clocks, interleaving, gradients and memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.problems import Problem


def apart(part: str, network: str, *words: str, start: Sequence[str] = (sys.executable,)) -> dict[str, Any]:
    """Measure a part of a comparison in a process of its own, with as many threads as this one.

    Args:
        part: Its command.
        network: A key of ``PROBLEMS``.
        *words: More of the command line.
        start: What starts Python.

    Returns:
        What the part printed.
    """
    threads = ["--threads", str(torch.get_num_threads())]
    command = [*start, "-m", "benchmarks", part, "--network", network, *words, *threads]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Clock:
    """CPU seconds of all threads of this process, and seconds on the wall.

    CPU time decides: it does not count what other processes take on a machine that is shared.

    Attributes:
        cpu: CPU seconds, one entry per measurement.
        wall: Seconds, likewise.
    """

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measure what happens inside; rubbish is collected before, not during."""
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def to_dict(self) -> dict[str, Any]:
        """Return medians, extremes and all measurements."""
        return {
            **{f"{kind}_median": statistics.median(all_) for kind, all_ in (("cpu", self.cpu), ("wall", self.wall))},
            "cpu_range": [min(self.cpu), max(self.cpu)],
            "wall_range": [min(self.wall), max(self.wall)],
            "cpu": self.cpu,
            "wall": self.wall,
        }

    @property
    def seconds(self) -> float:
        """Median of the CPU seconds."""
        return statistics.median(self.cpu)


def interleave(tasks: dict[str, Callable[[], Any]], repeats: int, told: Callable[[str], None]) -> dict[str, Clock]:
    """Measure several tasks in turn, so that a slow minute of the machine falls on all of them.

    Args:
        tasks: Name to what is to be done; each starts one place later in every following round.
        repeats: Rounds.
        told: Called with a line after each measurement.

    Returns:
        Name to the clock.
    """
    clocks = {name: Clock() for name in tasks}
    names = list(tasks)
    for number in range(repeats):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with clocks[name].measure():
                tasks[name]()
            told(f"  {number + 1}/{repeats} {name:20s} {clocks[name].cpu[-1]:9.3f} s CPU")
    return clocks


def gradient(problem: Problem, rows: int) -> list[torch.Tensor]:
    """Compute the gradient of the mean loss, batch by batch: the unit that products are counted in."""
    total = [torch.zeros_like(p) for p in problem.parameters]
    for inputs, targets in problem.batches(rows):
        loss = problem.loss_fn(problem.model(inputs), targets)
        for part, found in zip(total, torch.autograd.grad(loss, problem.parameters), strict=True):
            part.add_(found, alpha=len(targets) / len(problem.targets))
    return total


def fitted_exponent(sizes: list[float], seconds: list[float]) -> float:
    """Fit ``seconds ~ size ** exponent`` by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def resident() -> tuple[int, int]:
    """Return this process's memory and its peak since :func:`reset_peak`, in bytes (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def reset_peak() -> int:
    """Give freed memory back, forget the peak so far and return the memory in use, in bytes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident()[0]
