"""Training state on disk: safetensors in shards of at most 15 MiB, replaced as a whole.

A checkpoint is a folder ``step-000120`` with an ``index.json`` (names, shapes, digests, metadata) and its shards. A
newer one is renamed into place before the older one is deleted, so a process killed at any moment leaves a whole one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from prunelimit.errors import PruneLimitError
from prunelimit.files import atomic_folder, sha256

#: Largest shard, so that a long job can move between machines in pieces.
SHARD_BYTES = 15 * 2**20


def _shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Cut tensors into pieces and pack the pieces, in order, into shards of at most ``SHARD_BYTES``."""
    shards: list[dict[str, Tensor]] = [{}]
    free = room = SHARD_BYTES - 2**12
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        start = 0
        while start < flat.numel() or (flat.numel() == 0 and start == 0):
            header = len(name) + 150  # what a piece adds to the file besides its numbers
            if free < header + flat.element_size():
                shards.append({})
                free = room
            free -= header
            end = min(flat.numel(), start + free // flat.element_size())
            shards[-1][f"{name}@{start}"] = flat[start:end].clone()
            free -= max(end - start, 1) * flat.element_size()
            start = max(end, 1)
    return shards


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Path:
    """Write a checkpoint and remove the older ones of the same folder.

    Args:
        folder: Folder of the run.
        step: Number that grows from one checkpoint to the next, for example epochs done.
        tensors: Any tensors by name; moved to the CPU.
        metadata: Anything JSON can hold.

    Returns:
        The checkpoint's folder.
    """
    final = folder / f"step-{step:06d}"
    with atomic_folder(final) as temporary:
        files = {}
        for number, shard in enumerate(_shards(tensors)):
            path = temporary / f"{number:03d}.safetensors"
            save_file(shard, path)
            files[path.name] = sha256(path.read_bytes())
        layout = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()}
        index = {"step": step, "files": files, "tensors": layout, "metadata": metadata}
        (temporary / "index.json").write_text(json.dumps(index, allow_nan=False), encoding="utf-8")
    for old in folder.glob("step-*"):
        if old != final:
            old.rename(folder / f".{old.name}.old")  # first out of sight, then away: a half-deleted one is never read
    for litter in [*folder.glob(".step-*.old"), *folder.glob(".step-*.part")]:
        shutil.rmtree(litter, ignore_errors=True)  # of this call, and of processes that were killed
    return final


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest checkpoint of a run.

    Args:
        folder: Folder of the run.

    Returns:
        Tensors by name and the metadata, or ``None`` if there is no checkpoint.

    Raises:
        PruneLimitError: If a file is missing or does not have the recorded digest.
    """
    # Numbers of seven digits come after those of six.
    found = sorted(folder.glob("step-*/index.json"), key=lambda path: (len(path.parent.name), path.parent.name))
    if not found:
        return None
    path = found[-1].parent
    try:
        index = json.loads(found[-1].read_text(encoding="utf-8"))
        pieces: dict[str, Tensor] = {}
        for name, digest in index["files"].items():
            raw = (path / name).read_bytes()
            if sha256(raw) != digest:
                raise PruneLimitError(
                    f"checkpoint={str(path)!r} is corrupted ({name}): delete that folder and run again."
                )
            pieces.update(load(raw))
        return _assemble(index["tensors"], pieces), index["metadata"]
    except PruneLimitError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise PruneLimitError(
            f"checkpoint={str(path)!r} cannot be read ({error}): delete that folder and run again."
        ) from error


def check_settings(folder: Path, metadata: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse a checkpoint that another run has left.

    Args:
        folder: Folder of the run.
        metadata: What the checkpoint says.
        settings: What it has to say, by name.

    Raises:
        PruneLimitError: If it says something else.
    """
    if any(metadata.get(name) != value for name, value in settings.items()):
        raise PruneLimitError(
            f"folder={str(folder)!r} holds a run with other settings: give each run a folder of its own."
        )


def _assemble(layouts: dict[str, dict[str, Any]], pieces: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the pieces of each tensor in their order."""
    parts: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in layouts}
    for key, piece in pieces.items():
        name, _, start = key.rpartition("@")
        parts[name].append((int(start), piece))
    ordered = {name: [piece for _, piece in sorted(found, key=lambda item: item[0])] for name, found in parts.items()}
    return {name: torch.cat(ordered[name]).reshape(layout["shape"]) for name, layout in layouts.items()}
