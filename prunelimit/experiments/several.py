"""The records of several tasks and seeds, made one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.experiments.catalogue import PROFILES, find_tasks
from prunelimit.experiments.runner import check_seeds


def make_records(
    experiment: str,
    profile: str,
    seeds: int,
    list_specs: Callable[[Any, str, int], Sequence[Any]],
    make: Callable[..., dict[str, Any] | None],
    *,
    find: Callable[[str | None], Sequence[Any]] = find_tasks,
    device: str = "cpu",
    deadline: float | None = None,
) -> Iterator[tuple[str, Any, bool]]:
    """Make the records that a task has of one kind, or those of all tasks.

    Args:
        experiment: Name of a task, or ``"all"``.
        profile: One of ``PROFILES``.
        seeds: How many training seeds, from 0.
        list_specs: Gives the specs of a task, a profile and a seed; each can say ``about()`` itself.
        make: Makes the record of a spec, or gives ``None`` if the deadline passed.
        find: Looks up tasks by name; ``None`` for all of them.
        device: Where to run.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.

    Yields:
        What to call the record, its spec, and whether it is there; nothing follows one that is not.

    Raises:
        PruneLimitError: If a name is unknown or there is nothing to make.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    tasks = find(None if experiment == "all" else experiment)
    cells = [(t, seed, spec) for t in tasks for seed in check_seeds(seeds) for spec in list_specs(t, profile, seed)]
    if not cells:
        raise PruneLimitError(f"profile={profile!r} has nothing of this kind for {experiment}: choose another profile.")
    for task, seed, spec in cells:
        label = {"task": task.name, "profile": profile}
        record = make(spec, label=label, device=device, deadline=deadline, progress=True)
        yield f"{task.name} {profile} seed {seed}, {spec.about()}", spec, record is not None
        if record is None:
            return
