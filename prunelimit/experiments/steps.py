"""The steps of a run, remembered: what is finished is not done again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunelimit.files import write_json
from prunelimit.processes import from_first, processes
from prunelimit.progress import LOG_INTERVAL
from prunelimit.training import OutOfTime

#: Seconds of computation that a killed process may lose between two parts of a step.
PART_INTERVAL = 1.0


class Steps:
    """Remember the finished steps of a run, with their seconds, so that a killed run goes on from there.

    A step may be made of parts, which are steps called while it runs: ``sweep 0.500000`` is part of ``sweep``. A part is
    not begun if the longest of its step so far would not be done before the deadline.

    Args:
        path: JSON file in the cache.
        deadline: Value of ``time.monotonic()`` after which no step is begun.
        title: What the steps are of, if a line is to be shown now and then for one that is finished.
    """

    def __init__(self, path: Path, deadline: float | None = None, title: str | None = None) -> None:
        self.path, self.deadline = path, deadline
        self._rank, self._world = processes(None)
        self._title, self._told = None if self._rank else title, time.monotonic()
        self._begun = self._written = time.monotonic()
        self._open: list[str] = []
        self._spent = 0.0
        try:
            self.done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.done = {}
        self.done = from_first(self.done, self._world)

    def __call__(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what the step gave, from the file or by running it.

        Args:
            name: Name of the step.
            compute: Its computation; the result must be plain JSON.

        Returns:
            The result.

        Raises:
            OutOfTime: If the deadline has passed before the step.
        """
        known = self.done.get(name, {})
        if "value" not in known:
            part = name.partition(" ")[0] in self._open
            self.check_time(self._longest_part(name) if part else 0.0)
            start, before = time.monotonic(), self._spent
            result = {}
            self._open.append(name)
            try:
                result = {"value": from_first(json.loads(json.dumps(compute())), self._world)}
            finally:
                self._open.pop()
                # The time of the parts counts for them.
                seconds = time.monotonic() - start - (self._spent - before)
                self._spent += seconds
                self.done[name] = result | {"seconds": round(known.get("seconds", 0.0) + seconds, 4 if part else 2)}
                if not part or time.monotonic() - self._written >= PART_INTERVAL:
                    self._write()
            self._tell(name)
        return self.done[name]["value"]

    def _write(self) -> None:
        if self._rank == 0:
            write_json(self.path, self.done)
        self._written = time.monotonic()

    def _tell(self, name: str) -> None:
        now = time.monotonic()
        if self._title is not None and now - self._told >= LOG_INTERVAL:
            self._told = now
            print(f"{self._title}: {name}  {self.done[name]['seconds']:.0f} s", file=sys.stderr, flush=True)

    def _parts(self, step: str) -> list[dict[str, Any]]:
        return [found for name, found in self.done.items() if name.startswith(f"{step} ")]

    def _longest_part(self, name: str) -> float:
        return max((found["seconds"] for found in self._parts(name.partition(" ")[0])), default=0.0)

    def check_time(self, reserve: float = 0.0) -> None:
        """Raise :class:`OutOfTime` once the deadline has passed, or is too near.

        Args:
            reserve: Seconds that are still needed. More than half of the time that was given does not count, or a slow
                machine would never get anywhere.
        """
        if self.deadline is None:
            return
        late = time.monotonic() + min(reserve, (self.deadline - self._begun) / 2) > self.deadline
        if from_first(late, self._world):
            raise OutOfTime  # the step around it writes what is done

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each step, those of its parts included."""
        whole = [name for name in self.done if name.partition(" ")[0] not in self.done or " " not in name]
        return {
            name: round(self.done[name]["seconds"] + sum(part["seconds"] for part in self._parts(name)), 2)
            for name in whole
        }
