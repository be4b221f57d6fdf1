"""Data frames of the recorded weight distributions: figure F7, left."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.experiments.catalogue import PROFILES, Task, find_profiles, find_seeds, find_tasks
from prunelimit.experiments.distributions import (
    EXPERIMENT,
    DistributionsSpec,
    magnitude_edges,
)
from prunelimit.experiments.frames import network_title
from prunelimit.experiments.runner import EXPERIMENT as LIMIT
from prunelimit.experiments.store import joined_provenance, load_record
from prunelimit.training import learning_rate

#: Bins of the recorded histogram that become one of the drawn curve.
MERGED = 2


def distributions_spec(task: Task, profile: str, seeds: Sequence[int]) -> DistributionsSpec:
    """Return the spec of the weight distributions of one task.

    Args:
        task: The task.
        profile: One of its profiles.
        seeds: Training seeds.

    Returns:
        The spec.
    """
    return DistributionsSpec(train=task.spec(profile, seeds[0]).train, seeds=tuple(seeds))


@dataclasses.dataclass(frozen=True)
class Weights:
    """The recorded weight distributions of one task in one profile.

    Attributes:
        task: The task.
        profile: The profile.
        spec: What was run.
        record: What came out.
    """

    task: Task
    profile: str
    spec: DistributionsSpec
    record: dict[str, Any]

    @property
    def title(self) -> str:
        """Name of the network, the data it saw and the profile."""
        return network_title(self.task.title, self.spec.train.dataset, self.profile)

    @property
    def penalty_step(self) -> float:
        """What the L1 penalty moves a weight by in one iteration of the last epoch, momentum left out."""
        train = self.spec.train
        return learning_rate(train, train.epochs - 1) * train.l1

    def counts(self, state: str, seed: int) -> np.ndarray:
        """Return the recorded histogram in the order of the weights: from the most negative to the largest."""
        found = next(n for n in self.record["networks"] if (n["state"], n["seed"]) == (state, seed))["histogram"]
        # Which sign the few beyond the last edge have is not recorded; they are kept apart, at the end.
        return np.array([*found["negative"][::-1], found["below"], *found["positive"], found["above"]])


def load_distributions(
    tasks: str | Sequence[str] | None = None, profile: str = "quick", seeds: int | Sequence[int] = (0, 1, 2)
) -> list[Weights]:
    """Load the recorded weight distributions of some tasks.

    Args:
        tasks: Task names; ``None`` for all.
        profile: Shown beside the most faithful one of which a task has a record.
        seeds: Training seeds; of several records that with most of them, from the first on.

    Returns:
        What there is, ordered by task and profile.

    Raises:
        PruneLimitError: If a name is unknown, or the seeds are none.
    """
    find_profiles(profile)
    found, seeds = [], find_seeds(seeds)
    for task in find_tasks(tasks):
        names = [name for name in PROFILES if name in task.profiles]
        # Two profiles may train alike: the record then belongs to the one whose limit is recorded.
        names.sort(key=lambda name: load_record(LIMIT, task.spec(name, seeds[0])) is None)
        there: dict[str, Weights] = {}
        for name in names:
            if weights := _most_seeds(task, name, seeds):
                there.setdefault(weights.spec.hash, weights)
        ranked = sorted(there.values(), key=lambda weights: PROFILES.index(weights.profile))
        found += [weights for number, weights in enumerate(ranked) if number == 0 or weights.profile == profile]
    return found


def _most_seeds(task: Task, profile: str, seeds: Sequence[int]) -> Weights | None:
    """Load the record with the most seeds: training several takes long, and a page should not wait for the last."""
    for count in range(len(seeds), 0, -1):
        spec = distributions_spec(task, profile, seeds[:count])
        if record := load_record(EXPERIMENT, spec):
            return Weights(task, profile, spec, record)
    return None


def density_frame(found: Sequence[Weights]) -> pd.DataFrame:
    """Turn the recorded histograms into curves.

    Args:
        found: Output of :func:`load_distributions`.

    Returns:
        One row per network, state and bin: ``title``, ``state`` (``"trained"`` or ``"initial"``), ``seed``, ``magnitude``
        (geometric centre of the bin) and ``density``, the share of the weights per factor of ten.
    """
    edges = magnitude_edges()[::MERGED]
    centres = np.sqrt(edges[1:] * edges[:-1])
    width = np.log10(edges[1] / edges[0])
    parts = []
    for weights in found:
        for network in weights.record["networks"]:
            counts = np.add(network["histogram"]["negative"], network["histogram"]["positive"])
            merged = counts.reshape(-1, MERGED).sum(1) / weights.record["total"]
            keys = {"title": weights.title, "state": network["state"], "seed": network["seed"]}
            parts.append(pd.DataFrame({"magnitude": centres, "density": merged / width}).assign(**keys))
    columns = ["title", "state", "seed", "magnitude", "density"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def magnitude_below(weights: Weights, seed: int, share: float) -> float:
    """Read off the recorded histogram below which magnitude so large a share of a trained network's weights lies.

    Args:
        weights: The record.
        seed: Of the network.
        share: Between 0 and 1.

    Returns:
        The magnitude, to a bin's width.
    """
    signed = weights.counts("trained", seed)[:-1]
    half = len(signed) // 2
    counts = signed[half + 1 :] + signed[:half][::-1]
    below = np.cumsum([signed[half], *counts]) / weights.record["total"]
    return float(np.exp(np.interp(share, below, np.log(magnitude_edges()))))


#: Columns of :func:`statistics_frame`.
_STATISTICS = (
    *("title", "profile", "seed", "total", "mean_magnitude", "rms", "kurtosis", "largest", "zero", "effective"),
    *("median", "small", "initial", "step", "limit", "cut"),
)


def statistics_frame(found: Sequence[Weights], curves: pd.DataFrame | None = None) -> pd.DataFrame:
    """Tabulate the statistics of the trained weights.

    Args:
        found: Output of :func:`load_distributions`.
        curves: Output of :func:`~prunelimit.experiments.magnitude_frames.magnitude_frame`, for the limits.

    Returns:
        One row per trained network: ``title``, ``seed``, the recorded statistics, the ``initial`` mean magnitude, the share
        ``small`` of magnitudes below 1e-3, the ``limit`` if it is recorded, and the magnitude of the ``cut`` there.
    """
    own = None if curves is None else curves[curves.factor == 1].set_index(["title", "seed"]).sparsity
    limits: dict[Any, float] = {} if own is None else own.to_dict()
    rows = []
    for weights in found:
        by_seed = {(n["state"], n["seed"]): n["statistics"] for n in weights.record["networks"]}
        for seed in weights.spec.seeds:
            limit = limits.get((weights.title, seed), np.nan)
            values = by_seed["trained", seed]
            names = ("mean_magnitude", "rms", "kurtosis", "largest", "zero", "effective")
            rows.append(
                {"title": weights.title, "profile": weights.profile, "seed": seed, "total": weights.record["total"]}
                | {name: values[name] for name in names}
                | {"median": values["quantiles"]["0.5"], "small": values["below"]["0.001"]}
                | {"initial": by_seed["initial", seed]["mean_magnitude"], "step": weights.penalty_step}
                | {"limit": limit, "cut": np.nan if np.isnan(limit) else magnitude_below(weights, seed, limit)}
            )
    return pd.DataFrame(rows, columns=list(_STATISTICS))


def over_seeds(frame: pd.DataFrame, formats: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Average columns over seeds.

    Args:
        frame: A frame with ``title`` and ``seed``.
        formats: Column to its heading and the format of a number in it.

    Returns:
        One row per title: ``seeds``, and each column as text, mean and standard deviation; a dash where nothing is recorded.
    """

    def text(values: pd.Series, form: str) -> str:
        there = values.dropna()
        if there.empty:
            return "—"
        mean, deviation = there.mean(), there.std(ddof=1)
        # Equal values have a deviation too, of their sum's rounding.
        return form.format(mean) + (f" ± {form.format(deviation)}" if deviation > 1e-12 * abs(mean) else "")

    rows = [
        {"network, data, profile": title, "seeds": ", ".join(map(str, part.seed))}
        | {heading: text(part[name], form) for name, (heading, form) in formats.items()}
        for title, part in frame.groupby("title", sort=False)
    ]
    columns = ["network, data, profile", "seeds", *(heading for heading, _ in formats.values())]
    return pd.DataFrame(rows, columns=columns)


def distributions_origin(found: Sequence[Weights]) -> pd.DataFrame:
    """Say where the numbers come from: profile, seeds, device, commit, and the command that makes them again."""
    rows = []
    for weights in found:
        rows.append(
            {
                "task": weights.task.name,
                "profile": weights.profile,
                "seeds": ", ".join(map(str, weights.spec.seeds)),
                **joined_provenance([weights.record["provenance"]]),
                "command": _command(weights.task, weights.profile, len(weights.spec.seeds)),
            }
        )
    return pd.DataFrame(rows, columns=["task", "profile", "seeds", "device", "torch", "commit", "command"])


def missing_distributions(
    tasks: str | Sequence[str] | None = None, seeds: int | Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """List the weight distributions of the catalogue without a record of all seeds, with the command that fills them.

    Args:
        tasks: Task names; ``None`` for all.
        seeds: Training seeds.

    Returns:
        Columns ``task``, ``profile`` and ``command``.
    """
    seeds = find_seeds(seeds)
    rows = [
        {"task": task.name, "profile": profile, "command": _command(task, profile, len(seeds))}
        for task in find_tasks(tasks)
        for profile in task.profiles
        if load_record(EXPERIMENT, distributions_spec(task, profile, seeds)) is None
    ]
    return pd.DataFrame(rows, columns=["task", "profile", "command"])


def _command(task: Task, profile: str, seeds: int) -> str:
    return f"prunelimit distributions {task.name} --profile {profile} --seeds {seeds}"
