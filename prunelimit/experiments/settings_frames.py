"""Table T7: with which settings the spectra of the catalogue were probed, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from prunelimit.errors import PruneLimitError
from prunelimit.experiments.catalogue import PROFILES, find_profiles, find_seeds, find_tasks
from prunelimit.experiments.curvature import EXPERIMENT as CURVATURE
from prunelimit.experiments.frames import Cell, load_cells, resolution_frame
from prunelimit.experiments.specs import CurvatureSpec, LimitSpec
from prunelimit.experiments.store import load_record
from prunelimit.models import HIDDEN

#: Lanczos steps of the released code, by the task of its settings.
RELEASED_STEPS = {
    "fc5-cifar10": 128,
    "fc12-cifar10": 128,
    "alexnet-cifar10": 96,
    "vgg16-cifar10": 128,
    "resnet18-cifar100": 128,
    "resnet50-cifar100": 128,
}

#: What is done with the Lanczos coefficients, for all records alike: the rule for the value, and that for the interval.
RULE = "tail average; certified by H²"

#: Every recorded process keeps its basis and is orthogonal to all of it.
REORTHOGONALISATION = "full"


#: Columns that come from records.
_RECORDED = (
    *("examples", "total", "products", "row_space", "dead", "zero", "together", "largest", "mu", "width"),
    *("resolved", "seconds", "device", "torch", "commit"),
)


def slq_frame(
    tasks: str | Sequence[str] | None = None, profile: str | None = None, seeds: int | Sequence[int] = (0, 1, 2)
) -> pd.DataFrame:
    """Tabulate the settings of every spectrum in the catalogue, with what the records say about those that there are.

    Args:
        tasks: Task names; ``None`` for all.
        profile: A profile; ``None`` for all.
        seeds: Training seeds.

    Returns:
        One row per spec: ``title``, ``task``, ``profile``, ``command`` (``run`` or ``resolve``), ``seed``, the settings
        ``images`` (0 for all), ``steps``, ``probes``, and from the record ``examples``, ``total``, ``products``, the
        null space that was removed (``row_space``, ``dead`` and ``zero``, or ``together``), ``largest``, ``mu``, ``width``, ``resolved``,
        ``seconds``, ``device``, ``torch`` and ``commit``; what has no record is missing there.

    Raises:
        PruneLimitError: If a name is unknown, no task has the profile, or the seeds are none.
    """
    rows, wanted, seeds = [], find_profiles(profile, None), find_seeds(seeds)
    for task in find_tasks(tasks):
        for name in reversed(PROFILES):
            if name not in task.profiles or name not in wanted:
                continue
            cells = {cell.seed: cell for cell in load_cells(task.name, name, seeds)}
            resolved = resolution_frame(list(cells.values()))
            for seed in seeds:
                keys = {"task": task.name, "profile": name, "seed": seed}
                keys["title"] = Cell(task, name, seed, task.spec(name, seed), {}).title
                rows.append(keys | _settings(task.spec(name, seed)) | _of_limit(cells.get(seed)))
                for spec in task.curvature_specs(name, seed):
                    rows.append(keys | _settings(spec) | _of_curvature(spec, seed, resolved))
    if not rows:
        raise PruneLimitError(f"profile={profile!r} is not defined for tasks={tasks!r}: see prunelimit status.")
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=[*frame.columns, *(name for name in _RECORDED if name not in frame)])


def _settings(spec: LimitSpec | CurvatureSpec) -> dict[str, Any]:
    images = spec.curvature_examples if isinstance(spec, LimitSpec) else spec.examples
    command = "run" if isinstance(spec, LimitSpec) else "resolve"
    return {"command": command, "images": images or 0, "steps": spec.steps, "probes": spec.probes}


def _of_limit(cell: Cell | None) -> dict[str, Any]:
    """Give what the record of a limit says about its spectrum."""
    if cell is None:
        return {}
    limit, record = cell.limit, cell.record
    assert limit.spectrum is not None  # the formula's always has one
    return {
        "examples": limit.examples,
        "total": limit.total,
        "products": record["spectrum"]["products"],
        "together": limit.spectrum.nullity,  # a limit's record does not tell how the zeros were known
        "largest": limit.spectrum.largest,
        "mu": 2 * limit.epsilon / limit.radius**2,
        "width": limit.interval[1] - limit.interval[0],
        "resolved": limit.resolved,
        "seconds": record["seconds"]["spectrum"],
        **_source(record),
    }


def _of_curvature(spec: CurvatureSpec, seed: int, resolved: pd.DataFrame) -> dict[str, Any]:
    """Give what the record of a spectrum says, if there is one and the limit of the same run is recorded too."""
    record = load_record(CURVATURE, spec)
    if record is None or resolved.empty:
        return {}
    found = resolved[(resolved.seed == seed) & (resolved.examples == record["examples"]) & resolved["last"]]
    if found.empty:
        return {}
    row = found.iloc[0]
    return {
        "examples": record["examples"],
        "total": record["total"],
        "products": record["products"],
        **_removed(spec.train.model, record),
        "largest": row.largest,
        "mu": row.mu,
        "width": row.high - row.low,
        "resolved": bool(row.resolved),
        "seconds": row.seconds,
        **_source(record),
    }


def _source(record: dict[str, Any]) -> dict[str, str]:
    source = record["provenance"]
    commit = (source["commit"] or "none")[:10] + (" and changes" if source["changed"] else "")
    return {"device": source["device"], "torch": source["torch"], "commit": commit}


def _removed(model: str, record: dict[str, Any]) -> dict[str, int]:
    """Split the eigenvalues that were known to be zero by how they were known.

    Args:
        model: Name of the network; only fully connected ones are reduced.
        record: Of its spectrum.

    Returns:
        Directions outside the row space of the inputs (``row_space``), weights of ``dead`` units, and the rows that were
        ``zero`` in the first product of what was left.
    """
    nullity, reduced = record["spectrum"].get("nullity", 0), record["reduced"]
    if reduced is None:
        return {"row_space": 0, "dead": 0, "zero": nullity}
    before, after = reduced["inputs"]
    hidden = np.array(HIDDEN[model])
    alive = hidden - np.array(reduced["dead"])
    inner = int((hidden[:-1] * hidden[1:]).sum())
    classes = (record["total"] - before * int(hidden[0]) - inner) // int(hidden[-1])
    left = before * int(alive[0]) + int((alive[:-1] * alive[1:]).sum()) + int(alive[-1]) * classes
    dead, row_space = record["total"] - left, (before - after) * int(alive[0])
    return {"row_space": row_space, "dead": dead, "zero": nullity - dead - row_space}


def slq_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the settings and what came of them into words, one row per setting.

    Args:
        frame: Output of :func:`slq_frame`.

    Returns:
        Text, numbers averaged over the seeds that are recorded; the width is that of the widest interval.
    """
    rows = []
    for (title, command, images, steps), part in frame.groupby(["title", "command", "images", "steps"], sort=False):
        there = part[part.total.notna()]
        row = {
            "network, data, profile": title,
            "command": command,
            "seeds": ", ".join(map(str, there.seed)) or "—",
            "N": f"{int(there.examples.iloc[0]):,}" if len(there) else f"{images:,}" if images else "all",
            "products": f"{steps:,}",
            "probes": str(part.probes.iloc[0]),
            "rule": RULE,
            "reorthog.": REORTHOGONALISATION,
        }
        row |= _found(there) if len(there) else dict.fromkeys(_FOUND, "—")
        released = RELEASED_STEPS.get(part.task.iloc[0])
        rows.append(row | {"steps as released": "—" if released is None else str(released)})
    return pd.DataFrame(rows)


#: Columns of the table that come from records.
_FOUND = (
    *("D", "null space removed", "row space", "dead units", "zero rows"),
    *("largest |λ|", "µ at the limit", "width (points)", "resolved", "seconds"),
)


def _found(there: pd.DataFrame) -> dict[str, str]:
    """Put what the records of one setting say into words."""
    total = there.total.iloc[0]
    parts = [float(there[name].mean()) / total for name in ("row_space", "dead", "zero")]
    removed = np.nansum([*parts, float(there.together.mean()) / total])
    values = (
        f"{total:,.0f}",
        f"{removed:.2%}" if removed else "none",
        *("—" if np.isnan(share) else f"{share:.2%}" for share in parts),
        f"{there.largest.mean():.3g}",
        f"{there.mu.mean():.2g}",
        f"{100 * there.width.max():.2f}",
        "yes" if there.resolved.astype(bool).all() else "no",
        f"{there.seconds.mean():,.1f}",
    )
    return dict(zip(_FOUND, values, strict=True))


def slq_origin(frame: pd.DataFrame) -> pd.DataFrame:
    """Say where the numbers come from: seeds, device, commit, and the command that makes them again."""
    rows = []
    for (task, profile, command), part in frame[frame.total.notna()].groupby(
        ["task", "profile", "command"], sort=False
    ):
        seeds = sorted(set(part.seed))
        rows.append(
            {
                "task": task,
                "profile": profile,
                "seeds": ", ".join(map(str, seeds)),
                **{name: "; ".join(dict.fromkeys(part[name])) for name in ("device", "torch", "commit")},
                "command": f"prunelimit {command} {task} --profile {profile} --seeds {max(seeds) + 1}",
            }
        )
    return pd.DataFrame(rows)


def missing_spectra(frame: pd.DataFrame) -> pd.DataFrame:
    """List the spectra of the catalogue without a record, with the command that fills them.

    Args:
        frame: Output of :func:`slq_frame`.

    Returns:
        Columns ``task``, ``profile``, ``without a record`` (images and seeds) and ``command``.
    """
    rows = []
    for (task, profile, command), part in frame[frame.total.isna()].groupby(["task", "profile", "command"], sort=False):
        absent = []
        for _, group in part.groupby("images", sort=False):
            images = int(group.images.iloc[0])
            absent.append(f"{f'{images:,}' if images else 'all'} images: seeds {', '.join(map(str, group.seed))}")
        words = f"prunelimit {command} {task} --profile {profile} --seeds {part.seed.max() + 1}"
        words += " --missing" if command == "run" else ""
        rows.append({"task": task, "profile": profile, "without a record": "; ".join(absent), "command": words})
    return pd.DataFrame(rows, columns=["task", "profile", "without a record", "command"])
