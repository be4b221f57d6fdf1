"""From the records of pruners to tidy data frames: tables T3 to T5 and T9."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from prunelimit.experiments.catalogue import TASKS, find_profiles, find_seeds
from prunelimit.experiments.comparisons import COMPARISONS, Comparison, find_comparisons
from prunelimit.experiments.frames import in_percent, load_cells, network_title
from prunelimit.experiments.prune import EXPERIMENT as PRUNE
from prunelimit.experiments.store import load_record
from prunelimit.training import TrainSpec

#: Columns of :func:`prune_frame`.
COLUMNS = (
    *("comparison", "title", "profile", "row", "method", "sparsity", "seed", "kept", "total"),
    *("test_accuracy", "test_loss", "train_loss", "dense_accuracy", "dense_epochs", "pruner_epochs", "seconds"),
    *("device", "torch", "commit", "record"),
)


def table_comparisons(table: str) -> list[Comparison]:
    """Return the comparisons of a table, for example ``"T3"``."""
    return [one for one in COMPARISONS.values() if one.table == table]


def prune_frame(
    comparisons: str | Sequence[str] | None = None, profile: str = "best", seeds: int | Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """Tabulate the recorded pruned networks.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        profile: A profile, or ``"best"`` for the most faithful one of which a comparison has a record.
        seeds: Training seeds.

    Returns:
        One row per network, with the columns of ``COLUMNS``.
    """
    return pd.DataFrame(best_rows(comparisons, profile, seeds, _recorded), columns=list(COLUMNS))


def best_rows(
    comparisons: str | Sequence[str] | None,
    profile: str,
    seeds: int | Sequence[int],
    recorded: Callable[[Comparison, str, int], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Collect the rows of some comparisons, each in one profile.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        profile: A profile, or ``"best"`` for the most faithful one that has any rows.
        seeds: Training seeds.
        recorded: Gives the rows of a comparison, a profile and a seed that have a record.

    Returns:
        The rows, ordered by comparison and seed.

    Raises:
        PruneLimitError: If a name is unknown, or the seeds are none.
    """
    rows: list[dict[str, Any]] = []
    profiles, seeds = find_profiles(profile), find_seeds(seeds)
    for one in find_comparisons(comparisons):
        found = ([row for seed in seeds for row in recorded(one, name, seed)] for name in profiles)
        rows += next(filter(None, found), [])
    return rows


def title_of(one: Comparison, profile: str) -> str:
    """Name of the network, the data it saw and the profile."""
    return network_title(one.title, one.profiles[profile].entries[0].train.dataset, profile)


def _recorded(one: Comparison, profile: str, seed: int) -> list[dict[str, Any]]:
    """Give the rows of one comparison, profile and seed that have a record."""
    rows = []
    for entry, spec in one.rows(profile, seed):
        record = load_record(PRUNE, spec)
        if record is None:
            continue
        shared = {
            "comparison": one.name,
            "title": title_of(one, profile),
            "profile": profile,
            "row": entry.title,
            "method": entry.method,
            "seed": seed,
            "total": record["total"],
            "dense_accuracy": record["dense"]["test_accuracy"],
            "dense_epochs": record["epochs"],
            "device": record["provenance"]["device"],
            "torch": record["provenance"]["torch"],
            "commit": (record["provenance"]["commit"] or "none")[:10],
            # Two tasks may have one stand-in, and share what is not trained differently.
            "record": spec.hash,
        }
        names = ("sparsity", "kept", "test_accuracy", "test_loss", "train_loss", "seconds")
        rows += [
            shared | {name: found[name] for name in names} | {"pruner_epochs": found["epochs"]}
            for found in record["networks"]
        ]
    return rows


def prune_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Lay out test accuracies, one line per network and method, one column per sparsity.

    Args:
        frame: Output of :func:`prune_frame`.

    Returns:
        Mean and standard deviation over seeds in per cent, "—" where nothing is recorded; ``dense`` is the network without
        pruning, trained as the method's own, and ``epochs`` what it costs from the initial weights to the pruned network.
    """
    if frame.empty:
        return pd.DataFrame(columns=["network, data, profile", "method", "dense"])
    keys = ["title", "row"]
    table = frame.groupby([*keys, "sparsity"], sort=False).test_accuracy.agg(in_percent).unstack("sparsity")
    columns = sorted(table.columns)
    table = table[columns].fillna("—")
    table.columns = pd.Index([f"{sparsity:.4g}" for sparsity in columns])
    dense = frame.drop_duplicates([*keys, "seed"]).groupby(keys, sort=False).dense_accuracy.agg(in_percent)
    table.insert(0, "dense", dense)
    table["epochs"] = pd.Series({key: _epochs(rows) for key, rows in frame.groupby(keys)})
    table.insert(0, "seeds", frame.groupby(keys).seed.nunique())
    order = frame[keys].drop_duplicates()
    table = table.loc[pd.MultiIndex.from_frame(order)].reset_index()
    return table.rename(columns={"title": "network, data, profile", "row": "method"})


def _epochs(rows: pd.DataFrame) -> str:
    """Say how many epochs a method takes, the dense training included where the method begins with it."""
    from prunelimit.pruning.methods import METHODS

    begins = METHODS[rows.method.iloc[0]].spec.begins
    total = rows.pruner_epochs + (rows.dense_epochs if begins == "trained" else 0)
    low, high = round(total.min()), round(total.max())
    return f"{low}" if low == high else f"{low} to {high}"


def predicted_limits(comparisons: str | Sequence[str] | None, profile: str = "best") -> dict[str, float]:
    """Look up the formula's limit of the task with the same name and profile, mean over seeds, by title of the comparison."""
    limits, profiles = {}, find_profiles(profile)
    for one in find_comparisons(comparisons):
        for name in profiles:
            cells = load_cells(one.name, name) if name in one.profiles and one.name in TASKS else []
            if cells:
                limits[title_of(one, name)] = float(np.mean([cell.limit.sparsity for cell in cells]))
    return limits


def settings_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Say with which settings the rows of a frame were made.

    Args:
        frame: Output of :func:`prune_frame`.

    Returns:
        One line per network and row: how the dense network is trained, and the settings of the method.
    """
    rows = []
    for name, profile in dict.fromkeys(zip(frame.comparison, frame.profile, strict=True)):
        shown = set(frame.row[(frame.comparison == name) & (frame.profile == profile)])
        for entry, spec in COMPARISONS[name].rows(profile, 0):
            if entry.title in shown:
                fields = {f.name: getattr(spec.settings, f.name) for f in dataclasses.fields(spec.settings)}
                if fields.get("train") == spec.train:
                    fields["train"] = "as the dense network"
                words = [_in_words(key, value) for key, value in fields.items() if key != "seed"]
                rows.append(
                    {
                        "network": title_of(COMPARISONS[name], profile),
                        "method": entry.title,
                        "dense network": _in_words("", spec.train),
                        "settings": "; ".join(words) or "none",
                    }
                )
    return pd.DataFrame(rows, columns=["network", "method", "dense network", "settings"])


def _in_words(name: str, value: Any) -> str:
    """Write a field of a spec; of a training, what matters."""
    if not isinstance(value, TrainSpec):
        return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
    rates = f"{value.schedule} at {', '.join(map(str, value.milestones))}" if value.milestones else value.schedule
    penalties = "".join(f", {kind} {getattr(value, kind):g}" for kind in ("l1", "l2") if getattr(value, kind))
    text = f"{value.epochs} epochs, batches of {value.batch_size}, rate {value.lr:g} {rates}{penalties}"
    return f"{name}: {text}" if name else text


def missing_networks(
    comparisons: str | Sequence[str] | None = None, seeds: int | Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """List what nobody has pruned yet, with the command that does it.

    Args:
        comparisons: Names of comparisons; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``comparison``, ``profile``, ``rows without a record`` and ``command``.
    """
    rows, seeds = [], find_seeds(seeds)
    for one in find_comparisons(comparisons):
        for profile in one.profiles:
            specs = [spec for seed in seeds for spec in one.specs(profile, seed)]
            absent = sum(load_record(PRUNE, spec) is None for spec in specs)
            if absent:
                command = f"prunelimit prune {one.name} --profile {profile} --seeds {max(seeds) + 1}"
                text = f"{absent} of {len(specs)}"
                rows.append(
                    {
                        "comparison": one.name,
                        "profile": profile,
                        "rows without a record": text,
                        "command": command,
                    }
                )
    return pd.DataFrame(rows, columns=["comparison", "profile", "rows without a record", "command"])


def absent_rows(frame: pd.DataFrame, beside: str = "LOMP") -> list[str]:
    """Name the rows that have no record where another row has one.

    Args:
        frame: Output of :func:`prune_frame`.
        beside: That other row.

    Returns:
        Names of rows, each once.
    """
    names = []
    own = frame[frame.row == beside]
    for name, profile, seed in dict.fromkeys(zip(own.comparison, own.profile, own.seed, strict=True)):
        there = set(frame.row[(frame.comparison == name) & (frame.profile == profile) & (frame.seed == seed)])
        names += [entry.title for entry, _ in COMPARISONS[name].rows(profile, int(seed)) if entry.title not in there]
    return list(dict.fromkeys(names))


def prune_origin(frame: pd.DataFrame) -> pd.DataFrame:
    """Say where the numbers of a page come from.

    Args:
        frame: Output of :func:`prune_frame`.

    Returns:
        One row per network and profile: seeds, device, version of torch, commits and the command that makes them again.
    """
    return origin_of(frame, "prune")


def origin_of(frame: pd.DataFrame, command: str) -> pd.DataFrame:
    """Say where the rows of a frame come from.

    Args:
        frame: With the columns ``title``, ``comparison``, ``profile``, ``seed``, ``device``, ``torch`` and ``commit``.
        command: The command that made their records.

    Returns:
        One row per title: seeds, devices, versions of torch, commits and the command line that makes the records again.
    """
    rows = []
    for (title, name, profile), here in frame.groupby(["title", "comparison", "profile"], sort=False):
        together = {key: ", ".join(map(str, sorted(set(here[key])))) for key in ("seed", "device", "torch", "commit")}
        line = f"prunelimit {command} {name} --profile {profile} --seeds {here.seed.max() + 1}"
        rows.append({"network": title, "seeds": together.pop("seed"), **together, "command": line})
    return pd.DataFrame(rows, columns=["network", "seeds", "device", "torch", "commit", "command"])


def paired_gain(frame: pd.DataFrame, row: str, against: str) -> pd.DataFrame:
    """Compare two rows seed by seed.

    Args:
        frame: Output of :func:`prune_frame`.
        row: Name of a row.
        against: Name of the row that it is compared with.

    Returns:
        One line per network and sparsity: the mean gain in test accuracy, in points, with the 95 % interval of Student's t
        over the pairs, and the number of pairs.
    """
    keys = ["title", "sparsity", "seed"]
    both = [frame[frame.row == name].set_index(keys).test_accuracy for name in (row, against)]
    gains = (100 * (both[0] - both[1])).dropna()
    rows = []
    for (title, sparsity), values in gains.reset_index().groupby(["title", "sparsity"], sort=False).test_accuracy:
        count, mean = len(values), values.mean()
        interval = "—"
        if count > 1:
            half = float(stats.t.ppf(0.975, count - 1)) * values.std(ddof=1) / np.sqrt(count)
            interval = f"{mean - half:.1f} to {mean + half:.1f}"
        rows.append(
            {
                "network, data, profile": title,
                "removed": f"{sparsity:.4g}",
                "gain (points)": f"{mean:.1f}",
                "interval": interval,
                "pairs": count,
            }
        )
    return pd.DataFrame(rows, columns=["network, data, profile", "removed", "gain (points)", "interval", "pairs"])
