"""A pruned network in one small file: safetensors with the kept weights only.

Layout, version 1. The tensors of the file are

- ``values:NAME``, for each masked parameter, its kept values, in row-major order, one-dimensional, in its own type;
- ``mask:NAME``, where these values belong: one bit per entry, 1 for kept, row-major, packed into uint8 with the first
  entry in the highest bit and zeros at the end; or, where that is smaller, from a sparsity of 31/32 on,
- ``places:NAME``, int32, the row-major positions of the kept entries, ascending;
- ``dense:NAME``, everything else in the state dict, as it is.

The metadata hold ``format`` ("prunelimit-sparse"), ``version``, ``sparsity`` (of all masked parameters together), ``shapes``
(JSON, masked name to shape), ``shared`` (JSON, a name to the earlier one whose tensor it shares) and ``sha256``, a digest of
all tensors and of the other metadata. Any safetensors reader can read the file; no code of this library is needed to make use of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunelimit.errors import PruneLimitError
from prunelimit.files import atomic_file
from prunelimit.models import match_masks
from prunelimit.pruning.magnitude import Masks

FORMAT, VERSION = "prunelimit-sparse", "1"


def save_sparse(path: Path | str, model: nn.Module, masks: Masks) -> Path:
    """Write a pruned network, kept weights only, all or nothing.

    Args:
        path: File to write; replaced if it exists.
        model: The network. Weights that the masks remove are not written, whatever their value.
        masks: Parameter name to a 0-1 tensor of its shape.

    Returns:
        The path.

    Raises:
        PruneLimitError: If a mask fits no parameter or has entries other than 0 and 1, or the state dict holds something
            that is not a tensor.
    """
    path = Path(path)
    match_masks(model, masks)
    tensors: dict[str, Tensor] = {}
    first_of: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise PruneLimitError(f"model keeps {name!r} in its state dict, which is no tensor and cannot be written.")
        identity = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and first_of.setdefault(identity, name) != name:
            shared[name] = first_of[identity]
        elif name in masks:
            tensors |= _sparse(name, value.detach().cpu(), masks[name].detach().cpu())
        else:
            tensors[f"dense:{name}"] = value.detach().cpu().contiguous().clone()
    total = sum(mask.numel() for mask in masks.values())
    removed = sum(int((mask == 0).sum()) for mask in masks.values())
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "sparsity": repr(removed / total if total else 0.0),
        "shapes": json.dumps({name: list(mask.shape) for name, mask in masks.items()}),
        "shared": json.dumps(shared),
    }
    metadata["sha256"] = _digest(tensors, metadata)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata)
    return path


def load_sparse(path: Path | str, model: nn.Module) -> Masks:
    """Read a network written by :func:`save_sparse` into a model of the same architecture.

    Args:
        path: The file.
        model: The network; changed only if the whole file is sound and fits.

    Returns:
        The masks, in the type and on the device of the parameters, as they were given when the file was written.

    Raises:
        PruneLimitError: If the file is missing, damaged, of another format or version, or does not fit the model.
    """
    path = Path(path)
    tensors, metadata = _read(path)
    state = model.state_dict()
    try:
        shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
        shared: dict[str, str] = json.loads(metadata["shared"])
        masks = {name: _mask(name, math.prod(shape), tensors).reshape(shape) for name, shape in shapes.items()}
        found = {name.removeprefix("dense:"): t for name, t in tensors.items() if name.startswith("dense:")}
        for name, mask in masks.items():
            values = tensors[f"values:{name}"]
            found[name] = torch.zeros(mask.shape, dtype=values.dtype)
            found[name][mask] = values
        found |= {name: found[first] for name, first in shared.items()}
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if set(found) != set(state):
        odd = sorted(set(found) ^ set(state))[0]
        raise PruneLimitError(f"path={str(path)!r} is of another network: {odd!r} is on one side only.")
    for name, value in found.items():
        if value.shape != state[name].shape or value.dtype != state[name].dtype:
            raise PruneLimitError(
                f"path={str(path)!r} has {name!r} as {tuple(value.shape)} {value.dtype}, the model as "
                f"{tuple(state[name].shape)} {state[name].dtype}: build the network that was saved."
            )
    with torch.no_grad():
        for name, value in found.items():
            state[name].copy_(value)
    return {name: mask.to(state[name]) for name, mask in masks.items()}


def _sparse(name: str, value: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Store one masked parameter in the smaller of the two ways."""
    kept = mask.reshape(-1) == 1
    if not bool((kept | (mask.reshape(-1) == 0)).all()):
        raise PruneLimitError(f"masks[{name!r}] has entries other than 0 and 1: give it ones where weights are kept.")
    places = kept.nonzero().squeeze(1)
    stored = {f"values:{name}": value.reshape(-1)[kept].clone()}
    if 4 * len(places) < -(-len(kept) // 8) and len(kept) < 2**31:
        return {**stored, f"places:{name}": places.to(torch.int32)}
    return {**stored, f"mask:{name}": torch.from_numpy(np.packbits(kept.numpy()))}


def _mask(name: str, size: int, tensors: dict[str, Tensor]) -> Tensor:
    """Return where the kept values of a parameter belong, as a flat bool tensor."""
    if f"places:{name}" in tensors:
        kept = torch.zeros(size, dtype=torch.bool)
        kept[tensors[f"places:{name}"].long()] = True
        return kept
    return torch.from_numpy(np.unpackbits(tensors[f"mask:{name}"].numpy(), count=size)).bool()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata, and check what can be checked without a model."""
    if not path.is_file():
        raise PruneLimitError(f"path={str(path)!r} is not a file: write it with save_sparse first.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    if metadata.get("format") != FORMAT:
        raise PruneLimitError(f"path={str(path)!r} is not a sparse network of save_sparse: choose another file.")
    if metadata.get("version") != VERSION:
        raise PruneLimitError(
            f"path={str(path)!r} has version {metadata.get('version')!r} of the format, and this library reads "
            f"{VERSION!r}: use the library that wrote it."
        )
    if metadata.get("sha256") != _digest(tensors, metadata):
        raise _damaged(path, "its digest is another")
    return tensors, metadata


def _damaged(path: Path, error: object) -> PruneLimitError:
    return PruneLimitError(f"path={str(path)!r} is damaged ({error}): write it again with save_sparse.")


def _digest(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    described = {name: text for name, text in metadata.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
