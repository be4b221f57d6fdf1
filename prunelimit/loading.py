"""Networks, data and losses by name, and weights from files that cannot run code."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.pruning.export import FORMAT, load_sparse

#: Where training programs put a network's weights in a larger checkpoint.
NESTED = ("state_dict", "model_state_dict", "model")

#: What wrappers put in front of every name.
PREFIXES = ("module.", "_orig_mod.")


def load_object(reference: str, what: str) -> Any:
    """Find what a reference names.

    Args:
        reference: ``package.module:name``; the present folder is searched first.
        what: Name of the argument, for messages.

    Returns:
        The object.

    Raises:
        PruneLimitError: If the module or the name in it does not exist, or the module cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PruneLimitError(
            f"{what}={reference!r} needs the module {error.name!r}, which is not found: call from its folder or install it."
        ) from error
    except Exception as error:
        raise _failed(what, reference, "cannot be imported", error) from error
    if not hasattr(module, name):
        raise unknown_name(what, name, [n for n in vars(module) if not n.startswith("_")])
    return getattr(module, name)


def load_made(reference: str, what: str) -> Any:
    """Call the function that a reference names.

    Args:
        reference: ``package.module:function``, a function without arguments; anything that cannot be called, and a
            network, is taken as it is.
        what: Name of the argument, for messages.

    Returns:
        What it makes.

    Raises:
        PruneLimitError: If there is no such function, or it fails.
    """
    found = load_object(reference, what)
    if not callable(found) or isinstance(found, nn.Module):
        return found
    try:
        return found()
    except PruneLimitError:
        raise
    except Exception as error:
        raise _failed(what, reference, "fails", error) from error


def is_sparse(path: Path | str) -> bool:
    """Tell whether a file was written by :func:`~prunelimit.pruning.export.save_sparse`.

    Args:
        path: Any file, or none.

    Returns:
        Whether its metadata say so.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError, ValueError):
        return False


def read_weights(path: Path | str, *, trust: bool = False) -> dict[str, Tensor]:
    """Read a network's weights.

    Args:
        path: A safetensors file, or a file of ``torch.save`` with a state dict, which may lie under one of the names
            in ``NESTED``.
        trust: Whether to load pickled Python objects, such as whole modules. That runs whatever code the file holds.

    Returns:
        Names to tensors, on the CPU.

    Raises:
        PruneLimitError: If the file is missing or damaged, holds pickled objects and is not trusted, holds no weights, or
            those of :func:`~prunelimit.pruning.export.save_sparse`, which need their model.
    """
    path = Path(path)
    if not path.is_file():
        raise PruneLimitError(f"weights={str(path)!r} is not a file: give a safetensors file or a saved state dict.")
    if is_sparse(path):
        raise PruneLimitError(
            f"weights={str(path)!r} was written by save_sparse: read it into its model by load_weights."
        )
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if path.suffix == ".safetensors" or trust or "weights_only" not in str(error).lower():
            raise _unreadable(path, error) from error
        raise PruneLimitError(
            f"weights={str(path)!r} is damaged or holds pickled Python objects, which can run code when loaded: save "
            "model.state_dict() instead, or trust the file with --trust-pickle if it is your own."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if isinstance(found, Mapping):
        inner = next((found[name] for name in NESTED if isinstance(found.get(name), (Mapping, nn.Module))), found)
        found = inner.state_dict() if isinstance(inner, nn.Module) else inner
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise PruneLimitError(f"weights={str(path)!r} holds no state dict: save model.state_dict().")
    weights = {str(name): value for name, value in found.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def load_weights(model: nn.Module, path: Path | str, *, trust: bool = False) -> nn.Module:
    """Read weights from a file into a network.

    Args:
        model: The network; changed only if every name fits.
        path: As for :func:`read_weights`, or a pruned network of :func:`~prunelimit.pruning.export.save_sparse`, whose
            removed weights become zeros.
        trust: As there.

    Returns:
        The same network, in evaluation mode.

    Raises:
        PruneLimitError: If the file cannot be read or belongs to another network. A tensor that is tied to one in the
            file may be missing.
    """
    if is_sparse(path):
        if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
            raise PruneLimitError(
                f"weights={str(path)!r} is sparse and has no shapes for a lazy model: call it on a batch first."
            )
        load_sparse(path, model)
        return model.eval()
    weights = read_weights(path, trust=trust)
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in weights if name in state}
    missing = [name for name, value in state.items() if name not in weights and id(value) not in there]
    odd = missing + [name for name in weights if name not in state]
    if odd:
        where = "the model and not in the file" if missing else "the file and not in the model"
        raise PruneLimitError(f"weights={str(path)!r} is of another network: {odd[0]!r} is in {where}.")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".").replace(". ", "; ")
        raise PruneLimitError(f"weights={str(path)!r} does not fit the model: {reason}.") from error
    return model.eval()


def _failed(what: str, reference: str, how: str, error: Exception) -> PruneLimitError:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".").replace(". ", "; ")
    return PruneLimitError(
        f"{what}={reference!r} {how}, with {type(error).__name__} ({reason[:200]}): try it in Python first."
    )


def _unreadable(path: Path, error: Exception) -> PruneLimitError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".").replace(". ", "; ")
    return PruneLimitError(f"weights={str(path)!r} cannot be read ({reason[:200]}): save it again.")
