"""Train, prune, retrain, compare: the cells of a grid, as a graph of cached runs.

A dense network is trained once for all densities, and an early-stopped one once for all later stops. Small multilayer perceptrons
are trained many at once; other networks one after the other, or side by side in the processes of an engine.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.datasets import Dataset, DeviceSplit, load_dataset
from prunelimit.experiments.engines import Engine, LocalEngine, from_wall_clock, to_wall_clock
from prunelimit.experiments.regime_specs import RegimeSpec
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.landscape.children import final_error, measure_pair, prune_parent
from prunelimit.pruning.magnitude import Masks
from prunelimit.threads import suited_threads
from prunelimit.train_spec import TrainSpec
from prunelimit.training import TrainedModel, evaluate_both
from prunelimit.training_many import stack_size, train_groups
from prunelimit.training_prefix import begin_from_shorter, is_prefix

EXPERIMENT = "regimes"

_Cells = list[tuple[RegimeSpec, dict[str, Any]]]
_Parents = dict[TrainSpec, TrainedModel]


class _Shared:
    """Data that several cells see, and measurements of parents that several cells prune: each is made once.

    Args:
        device: Where the data are needed.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._datasets: dict[str, Dataset] = {}
        self._splits: dict[tuple[str, str, int | None], DeviceSplit] = {}
        self._dense: dict[TrainSpec, dict[str, float]] = {}

    def dataset(self, name: str) -> Dataset:
        """Load a data set."""
        if name not in self._datasets:
            self._datasets[name] = load_dataset(name)
        return self._datasets[name]

    def split(self, name: str, split: str, size: int | None = None) -> DeviceSplit:
        """Copy a split of a data set, or its first images, to the device."""
        key = name, split, size
        if key not in self._splits:
            self._splits[key] = self.dataset(name).on_device(split, self._device, size)
        return self._splits[key]

    def measure(self, model: nn.Module, spec: TrainSpec) -> dict[str, float]:
        """Measure a network on the images that its training saw, and on those for testing."""
        train = self.split(spec.dataset, "train", spec.train_size)
        return evaluate_both(model, train, self.split(spec.dataset, "test"))

    def measure_parent(self, parent: TrainedModel) -> dict[str, float]:
        """Measure a dense network, or tell what was measured before."""
        if parent.spec not in self._dense:
            self._dense[parent.spec] = self.measure(parent.model, parent.spec)
        return self._dense[parent.spec]


@dataclasses.dataclass(frozen=True)
class _Means:
    """How the cells of one call are computed.

    Attributes:
        label: Grid and profile; kept in the records for people.
        device: Where to run.
        ends: Seconds since the epoch after which nothing new is begun.
        progress: Whether to show progress.
        remote: Whether parents and records are returned instead of being left in folders: those here may be another machine's.
    """

    label: dict[str, str]
    device: str
    ends: float | None
    progress: bool | None
    remote: bool = False

    @property
    def deadline(self) -> float | None:
        """Value of this machine's ``time.monotonic()`` after which nothing new is begun."""
        return from_wall_clock(self.ends)

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.ends is not None and time.time() > self.ends

    @property
    def training(self) -> dict[str, Any]:
        """Arguments of a training."""
        return {"device": self.device, "deadline": self.deadline, "progress": self.progress}


def run_regimes(
    specs: Sequence[RegimeSpec],
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    workers: int = 1,
    engine: Engine | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> Iterator[tuple[RegimeSpec, dict[str, Any]]]:
    """Make the records of some cells, or find those that there are.

    Args:
        specs: The cells, the most valuable first.
        label: Grid and profile that they stand for; kept in the records for people.
        device: Where to run.
        workers: Processes to run networks side by side in that are not trained many at once.
        engine: Where all networks are trained instead, in place of ``workers`` processes.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun. Networks are saved while they are trained:
            the next call goes on from there.
        progress: Whether to show progress.

    Yields:
        Each cell with its record, as it is there; those that the deadline prevented are left out.

    Raises:
        PruneLimitError: If there is no worker, or a network cannot be trained.
    """
    pool = engine or LocalEngine(workers)
    means, shared = _Means(label or {}, device, to_wall_clock(deadline), progress), _Shared(device)
    missing = []
    for spec in dict.fromkeys(specs):
        if record := load_record(EXPERIMENT, spec):
            shutil.rmtree(_folder(spec), ignore_errors=True)  # of a process killed just after it wrote the record
            yield spec, record
        else:
            missing.append(spec)
    for batch in _batches(missing, means, shared):
        if means.late:
            return
        if engine or (workers > 1 and len(batch) == 1):
            break
        yield from _run_batch(batch, means, shared)
        missing = missing[len(batch) :]
    else:
        return
    yield from _run_side_by_side(missing, means, shared, pool)


def _batches(specs: Sequence[RegimeSpec], means: _Means, shared: _Shared) -> Iterator[list[RegimeSpec]]:
    """Cut the cells, in their order, into batches whose children are trained at once."""

    def kind(spec: RegimeSpec) -> tuple[str, str, int]:
        return spec.retrain.dataset, spec.retrain.model, spec.children

    for (name, _, children), same in itertools.groupby(specs, key=kind):
        cells = list(same)
        size = max(1, stack_size(cells[0].retrain, shared.dataset(name), means.device) // children)
        yield from (cells[start : start + size] for start in range(0, len(cells), size))


def train_parents(specs: Sequence[TrainSpec], **options: Any) -> dict[TrainSpec, TrainedModel]:
    """Train dense networks, each early-stopped one on the way to those that stop later.

    Args:
        specs: The trainings.
        **options: ``device``, ``deadline`` and ``progress``, as for :func:`~prunelimit.training_many.train_groups`.

    Returns:
        Training to network; histories are shorter than their specs if the deadline passed.
    """
    every = list(dict.fromkeys(specs))
    found: dict[TrainSpec, TrainedModel] = {}
    while len(found) < len(every):
        rest = [spec for spec in every if spec not in found]
        ready = [spec for spec in rest if not any(is_prefix(other, spec) for other in rest)]
        for spec in ready:
            begin_from_shorter(spec, every)
        found |= dict(zip(ready, train_groups(ready, **options), strict=True))
    return found


def _is_finished(found: TrainedModel) -> bool:
    return len(found.history) == found.spec.epochs


@dataclasses.dataclass
class _Child:
    """A child that is to be retrained: its training, its mask and where it begins."""

    spec: TrainSpec
    masks: Masks
    state: dict[str, Tensor]
    folder: Path


def _run_batch(
    specs: Sequence[RegimeSpec], means: _Means, shared: _Shared, parents: _Parents | None = None
) -> Iterator[tuple[RegimeSpec, dict[str, Any]]]:
    """Train the parents of some cells, unless they are given, then all of their children, then measure."""
    if parents is None:
        parents = train_parents([spec.train for spec in specs], **means.training)
    ready = [spec for spec in specs if _is_finished(parents[spec.train])]
    if not ready or means.late:
        return
    start = time.monotonic()
    trained = retrain_children(ready, parents, keep=True, test_last=max(spec.last for spec in ready), **means.training)
    seconds = (time.monotonic() - start) / len(ready)
    for spec, (masks, children) in trained.items():
        if all(_is_finished(child) for child in children):
            yield spec, _record(spec, parents[spec.train], masks, children, seconds, means, shared)


def retrain_children(
    specs: Sequence[RegimeSpec], parents: _Parents, *, keep: bool, **options: Any
) -> dict[RegimeSpec, tuple[Masks, list[TrainedModel]]]:
    """Prune the parents of some cells, and retrain their children at once.

    Args:
        specs: The cells.
        parents: Their dense networks, trained.
        keep: Whether to save the children while they are trained, and to go on from what is saved.
        **options: As for :func:`~prunelimit.training_many.train_groups`.

    Returns:
        Cell to its masks and its children.
    """
    each = {spec: _children(spec, parents[spec.train]) for spec in specs}
    children = [child for group in each.values() for child in group]
    trained = iter(
        train_groups(
            [child.spec for child in children],
            masks=[child.masks for child in children],
            initial=[child.state for child in children],
            folders=[child.folder if keep else None for child in children],
            **options,
        )
    )
    return {spec: (group[0].masks, list(itertools.islice(trained, len(group)))) for spec, group in each.items()}


def _children(spec: RegimeSpec, parent: TrainedModel) -> list[_Child]:
    """Prune a parent, and say how its children are retrained."""
    masks = prune_parent(parent.model, spec.density, spec.distribution)
    state = copy.deepcopy(parent.model.state_dict())
    return [
        _Child(spec.child(number), masks, state, _folder(spec) / f"child-{number}") for number in range(spec.children)
    ]


def _folder(spec: RegimeSpec) -> Path:
    """Say where the children of a cell are kept until it is recorded."""
    return cache_folder() / "regimes" / spec.hash


def _record(
    spec: RegimeSpec,
    parent: TrainedModel,
    masks: Masks,
    children: Sequence[TrainedModel],
    seconds: float,
    means: _Means,
    shared: _Shared,
) -> dict[str, Any]:
    """Measure a parent and its children, and write the record."""
    start = time.monotonic()
    data = shared.split(spec.retrain.dataset, "train", spec.retrain.train_size)
    kept = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    with suited_threads(parent.model):
        dense = shared.measure_parent(parent)
        pairs = [
            {"children": [i, j]} | dataclasses.asdict(measure_pair(children[i].model, children[j].model, data))
            for i, j in itertools.combinations(range(spec.children), 2)
        ]
        described = [
            {"seed": child.spec.seed, "test_error": final_error(child.history, spec.last)}
            | shared.measure(child.model, spec.retrain)
            for child in children
        ]
        source = provenance(means.device, torch.get_num_threads())
    record = {
        "label": means.label,
        "data": shared.dataset(spec.retrain.dataset).digests,
        "provenance": source,
        "kept": kept[0],
        "total": kept[1],
        "parent": dense,
        "children": described,
        "pairs": [{k: None if v != v else v for k, v in pair.items()} for pair in pairs],
        "seconds": {"retraining": round(seconds, 2), "measuring": round(time.monotonic() - start, 2)},
    }
    if not means.remote:
        save_record(EXPERIMENT, spec, record)
    shutil.rmtree(_folder(spec), ignore_errors=True)
    return json.loads(json.dumps(record))


def _run_side_by_side(
    specs: Sequence[RegimeSpec], means: _Means, shared: _Shared, engine: Engine
) -> Iterator[tuple[RegimeSpec, dict[str, Any]]]:
    """Run cells in other processes; parents that share epochs are trained together in one of them, before their children."""
    chains: dict[TrainSpec, list[RegimeSpec]] = {}
    for spec in specs:
        later = [other.train for other in specs if is_prefix(spec.train, other.train)]
        longest = max(later, key=lambda train: train.epochs, default=spec.train)
        chains.setdefault(longest, []).append(spec)
    theirs = dataclasses.replace(means, remote=engine.remote, progress=False if engine.remote else means.progress)
    with engine:
        waiting: dict[Any, list[RegimeSpec] | None] = {
            engine.submit(_train_chain, [spec.train for spec in chain], theirs): chain for chain in chains.values()
        }
        while waiting:
            for job in engine.wait(waiting):
                chain = waiting.pop(job)
                if chain is not None:
                    batches = _batches(chain, means, shared)
                    waiting |= {engine.submit(_run_cells, batch, theirs, job): None for batch in batches}
                    continue
                for spec, record in engine.result(job):
                    if theirs.remote:
                        save_record(EXPERIMENT, spec, record)
                    yield spec, record


def _train_chain(specs: Sequence[TrainSpec], means: _Means) -> _Parents | None:
    """Train the parents of a chain, in another process; they are found in the cache, or returned, on the CPU."""
    parents = {} if means.late else train_parents(specs, **means.training)
    for parent in parents.values():
        parent.model.cpu()
    return parents if means.remote else None


def _run_cells(specs: Sequence[RegimeSpec], means: _Means, parents: _Parents | None) -> _Cells:
    """Run some cells in another process."""
    if means.late or parents == {}:
        return []
    for parent in (parents or {}).values():
        parent.model.to(means.device)
    return list(_run_batch(specs, means, _Shared(means.device), parents))
