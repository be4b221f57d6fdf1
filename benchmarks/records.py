"""Records of comparisons: one JSON file each."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from prunelimit.experiments.store import provenance, results_folder
from prunelimit.files import write_json


def folder() -> Path:
    """Return where records of full comparisons live."""
    return results_folder() / "benchmarks"


def plain(value: Any) -> Any:
    """Bring a value into what JSON can hold; what is not finite becomes ``None``."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _words(words: list[str]) -> list[str]:
    """Leave out where the record went: that is a path on one machine."""
    place = words.index("--out") if "--out" in words else len(words)
    return words[:place] + words[place + 2 :]


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return None


class Record:
    """A record under way: saved after every part, so that a long comparison that is ended leaves what it has.

    Args:
        name: Name of the file.
        out: Folder; ``None`` prints the record at the end and writes nothing.
    """

    def __init__(self, name: str, out: Path | None) -> None:
        self.name, self.out = name, out
        about = provenance("cpu", torch.get_num_threads())
        self.values: dict[str, Any] = {
            "name": name,
            "command": shlex.join(["python", "-m", "benchmarks", *_words(sys.argv[1:])]),
            "complete": False,
            "provenance": about | {"processor": _processor() or about["processor"], "cores": os.cpu_count()},
            "load": os.getloadavg()[0],
        }

    def save(self, *, complete: bool = False, **values: Any) -> None:
        """Add values, and write or print the record.

        Args:
            complete: Whether this was the last part.
            **values: What is new or has changed.
        """
        self.values |= plain(values) | {"complete": complete}
        if self.out is not None:
            write_json(self.out / f"{self.name}.json", self.values)
        elif complete:
            print(json.dumps(self.values))


def told(line: str) -> None:
    """Show a line of progress."""
    print(line, file=sys.stderr, flush=True)
