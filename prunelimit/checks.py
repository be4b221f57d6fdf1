"""Checks of arguments that all modules share: each gives the value back, or says in a sentence what it should be."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from prunelimit.errors import PruneLimitError, unknown_name


def positive(name: str, value: Any) -> float:
    """Return a positive finite number.

    Args:
        name: What the argument is called.
        value: What was given.

    Returns:
        The number.

    Raises:
        PruneLimitError: If it is not one.
    """
    if not isinstance(value, (int, float, np.number)) or not (np.isfinite(value) and value > 0):
        raise PruneLimitError(f"{name}={value!r} must be a positive number.")
    return float(value)


def integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number in a range.

    Args:
        name: What the argument is called.
        value: What was given.
        least: Smallest number that is accepted.
        most: Largest number that is accepted; ``None`` for no bound.

    Returns:
        The number.

    Raises:
        PruneLimitError: If it is not a whole number or lies outside.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"at least {least}" if most is None else f"between {least} and {most}"
        raise PruneLimitError(f"{name}={value!r} must be a whole number, {span}.")
    return int(value)


def within(name: str, value: Any, low: float, high: float) -> float:
    """Return a number that lies strictly between two others.

    Args:
        name: What the argument is called.
        value: What was given.
        low: Below it.
        high: Above it.

    Returns:
        The number.

    Raises:
        PruneLimitError: If it does not.
    """
    if not isinstance(value, (int, float, np.number)) or not low < value < high:
        raise PruneLimitError(f"{name}={value!r} must lie between {low:g} and {high:g}.")
    return float(value)


def several(name: str, values: Any) -> list[Any]:
    """Return values as a list; one alone, and a string, counts as a list of one.

    Args:
        name: What the argument is called.
        values: What was given.

    Returns:
        At least one value.

    Raises:
        PruneLimitError: If there is none.
    """
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if not found:
        raise PruneLimitError(f"{name}={values!r} is empty: give at least one.")
    return found


def integers(name: str, values: Any, least: int = 1) -> list[int]:
    """Return whole numbers, each once.

    Args:
        name: What the argument is called.
        values: One of them, or several.
        least: Smallest number that is accepted.

    Returns:
        The numbers, in their order.

    Raises:
        PruneLimitError: If there is none, one is no whole number or too small, or one is there twice.
    """
    if isinstance(values, str):
        raise PruneLimitError(f"{name}={values!r} is text: give numbers; for papermill, -y '{name}: [{least}]'.")
    found = [integer(name, value, least) for value in several(name, values)]
    if len(set(found)) < len(found):
        raise PruneLimitError(f"{name}={values!r} has a number twice: give each once.")
    return found


def positives(name: str, values: Any) -> list[float]:
    """Return positive finite numbers.

    Args:
        name: What the argument is called.
        values: One of them, or several.

    Returns:
        The numbers, in their order.

    Raises:
        PruneLimitError: If there is none, or one is not positive.
    """
    return [positive(name, value) for value in several(name, values)]


def pick_names(kind: str, wanted: Any, known: Collection[str]) -> list[str]:
    """Return names out of a registry, each once.

    Args:
        kind: What a name stands for, for example ``"task"``.
        wanted: One name, several, or ``None`` for all.
        known: The registry.

    Returns:
        The names, in the order in which they were given.

    Raises:
        PruneLimitError: If there is none, or one is unknown.
    """
    found = list(known) if wanted is None else several(kind, wanted)
    for name in found:
        if not isinstance(name, str) or name not in known:
            raise unknown_name(kind, name, known)
    return list(dict.fromkeys(found))
