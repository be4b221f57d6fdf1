"""Records of runs: one JSON file per spec hash, written whole, read with a check."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunelimit.errors import PruneLimitError
from prunelimit.files import write_json
from prunelimit.specs import RESULT_FORMAT, Spec

#: Folders whose code records are made with.
CODE = ("prunelimit", "benchmarks")


def repository() -> Path | None:
    """Return the root of the checkout that this library runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "_toc.yml").is_file() else None


def results_folder() -> Path:
    """Return where records live: ``$PRUNELIMIT_RESULTS``, the checkout's ``results``, or ``results`` here."""
    given = os.environ.get("PRUNELIMIT_RESULTS")
    return Path(given) if given else (repository() or Path.cwd()) / "results"


def record_path(experiment: str, spec: Spec) -> Path:
    """Return the file of a record, whether or not it exists."""
    return results_folder() / experiment / f"{spec.hash}.json"


def _digest(record: dict[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def save_record(experiment: str, spec: Spec, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record, atomically, with the digest that :func:`load_record` checks.

    Args:
        experiment: Folder of the record.
        spec: What determined it; its hash is the file's name.
        record: Anything JSON can hold, without NaN.

    Returns:
        The record in plain JSON values, as it is written.
    """
    plain: dict[str, Any] = json.loads(json.dumps(record, allow_nan=False))
    whole = {"format": RESULT_FORMAT, "hash": spec.hash, "spec": spec.to_dict(), **plain}
    write_json(record_path(experiment, spec), whole | {"digest": _digest(whole)})
    return plain


def joined_provenance(sources: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say where several records come from.

    Args:
        sources: The ``provenance`` of each.

    Returns:
        Devices, versions of torch and commits, each once: ``device``, ``torch`` and ``commit``.
    """
    together = {
        "device": [source["device"] for source in sources],
        "torch": [source["torch"] for source in sources],
        "commit": [(s["commit"] or "none")[:10] + (" and changes" if s["changed"] else "") for s in sources],
    }
    return {name: ", ".join(dict.fromkeys(values)) for name, values in together.items()}


def load_record(experiment: str, spec: Spec) -> dict[str, Any] | None:
    """Read a record.

    Args:
        experiment: Folder of the record.
        spec: What determined it.

    Returns:
        The record, or ``None`` if there is none.

    Raises:
        PruneLimitError: If the file is not the record that was written.
    """
    path = record_path(experiment, spec)
    trace(path)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        intact = record["digest"] == _digest(record) and record["hash"] == spec.hash
    except (OSError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise PruneLimitError(
            f"record={str(path)!r} is corrupted: restore it from version control, or delete it and run again."
        )
    return record


def trace(path: Path) -> None:
    """Note that a record was looked for, in the file that ``$PRUNELIMIT_TRACE`` names.

    The book builder executes a notebook again when a record that it looked for, found or not, has changed.
    """
    target = os.environ.get("PRUNELIMIT_TRACE")
    if target:
        with open(target, "a", encoding="utf-8") as file:
            file.write(f"{path}\n")


def provenance(device: str, threads: int) -> dict[str, Any]:
    """Describe where a result comes from.

    Args:
        device: Device of the computation.
        threads: Threads that torch used.

    Returns:
        Commit, whether the code in the tree differed from it (new files too), versions, device and processor.
    """
    import numpy
    import torch

    import prunelimit

    root = repository()
    commit, changed = None, None
    if root is not None:
        commit = _git(root, "rev-parse", "HEAD")
        changed = bool(_git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)) if commit else None
    name = torch.cuda.get_device_name(0) if device.startswith("cuda") else (platform.processor() or platform.machine())
    return {
        "commit": commit,
        "changed": changed,
        "device": device,
        "processor": name,
        "threads": threads,
        "prunelimit": prunelimit.__version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
