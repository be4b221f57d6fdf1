"""One exception type for everything a user can mend, and the sentences it carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneLimitError(ValueError):
    """Input that the user can mend: the message names the argument, its value and the fix.

    The command line prints the message alone and exits with status 2; a notebook shows it without the traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """Say to IPython what a notebook shows."""
        return [f"{type(self).__name__}: {self}"]


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> PruneLimitError:
    """Build the error for a name that is not in a registry, suggesting the nearest one.

    Args:
        kind: What the name stands for, for example ``"dataset"``.
        name: The name that was given.
        choices: Every name that would have been accepted.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(choices)
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return PruneLimitError(f"{kind}={name!r} is unknown.{hint} Choose one of: {', '.join(names)}.")
