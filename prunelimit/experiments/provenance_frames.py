"""Where the numbers of a page come from, what is not recorded yet, and the commands that make either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from prunelimit.experiments.catalogue import find_seeds
from prunelimit.experiments.store import joined_provenance, load_record
from prunelimit.specs import Spec


def origin_frame(command: str, records: Iterable[tuple[str, str, int, Mapping[str, Any]]]) -> pd.DataFrame:
    """Say where records come from.

    Args:
        command: The command that made them, for example ``"run"``.
        records: Task, profile, seed and record of each.

    Returns:
        One row per task and profile: ``seeds``, ``device``, ``torch``, ``commit`` and the command line that makes them again.
    """
    groups: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for task, profile, seed, record in records:
        groups.setdefault((task, profile), []).append((seed, record))
    rows = []
    for (task, profile), here in groups.items():
        seeds = sorted({seed for seed, _ in here})
        row = {"task": task, "profile": profile, "seeds": ", ".join(map(str, seeds))}
        row |= joined_provenance([record["provenance"] for _, record in here])
        rows.append(row | {"command": f"prunelimit {command} {task} --profile {profile} --seeds {seeds[-1] + 1}"})
    return pd.DataFrame(rows)


def missing_frame(
    command: str,
    experiment: str,
    runs: Iterable[tuple[str, Iterable[str], Callable[[str, int], Sequence[Spec]]]],
    seeds: int | Sequence[int],
    kind: str = "task",
    options: str = "",
) -> pd.DataFrame:
    """List the cells of a catalogue without a record, with the command that fills them.

    Args:
        command: The command that makes records, for example ``"run"``.
        experiment: Folder of the records.
        runs: Name and profiles of each, and what it runs for a profile and a training seed.
        seeds: Training seeds.
        kind: What a name stands for.
        options: Put at the end of the command line.

    Returns:
        Columns ``kind``, ``profile``, ``seeds without a record`` and ``command``.
    """
    rows, seeds = [], find_seeds(seeds)
    for name, profiles, specs in runs:
        for profile in profiles:
            absent = [s for s in seeds if any(load_record(experiment, spec) is None for spec in specs(profile, s))]
            if absent:
                line = f"prunelimit {command} {name} --profile {profile} --seeds {max(absent) + 1}{options}"
                rows.append((name, profile, ", ".join(map(str, absent)), line))
    return pd.DataFrame(rows, columns=[kind, "profile", "seeds without a record", "command"])
