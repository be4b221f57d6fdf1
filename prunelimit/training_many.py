"""Training many small networks at once: their parameters are stacked, so that one operation moves all of them.

A small network spends its time on starting operations, not on arithmetic, and a stack of networks starts as many as one. Each
network gets the initial weights, the order of the data and the augmentation that :func:`prunelimit.training.fit` gives it when
it is alone, and takes the same steps; only sums are taken in another order. In float64 the results agree to rounding. In float32
they do until a unit comes so close to zero that rounding decides whether its ReLU is on for one image; from there on they part,
as do networks whose initial weights differ in their last bit (``python -m benchmarks many`` measures both). Dropout is an
exception: its masks are drawn for all networks together, so a result is repeatable, but not what one at a time gives.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunelimit.datasets import Dataset, DeviceSplit, load_dataset
from prunelimit.errors import PruneLimitError
from prunelimit.files import cache_folder
from prunelimit.progress import ProgressLine
from prunelimit.threads import suited_threads
from prunelimit.throughput import Runtime
from prunelimit.train_spec import TrainSpec
from prunelimit.training import TrainedModel, evaluate, fit, initial_network, is_tested
from prunelimit.training_loop import Loop
from prunelimit.training_stack import Masks, Member, Stack, mlp_layers

#: What the networks of a stack have in common, and what each may have of its own.
SHARED = ("dataset", "model", "epochs", "batch_size", "augment", "train_size")
OWN = ("seed", "lr", "momentum", "l1", "l2", "schedule", "milestones", "gamma", "warmup_epochs")

#: Stacking pays on a CPU for plain MLPs of up to so many parameters; above, the arithmetic takes all the time.
LARGEST = 300_000

#: Parameters of all networks of a stack, so that memory stays bounded; more networks make several stacks.
MOST_PARAMETERS = 8_000_000

#: Seconds between two savings of all networks of a stack.
SAVE_INTERVAL = 30.0

#: Seconds that saving one network is taken to need before the first was saved.
SAVE_SECONDS = 0.01


class DivergedError(PruneLimitError):
    """Some networks could not be trained; the others were, and are saved where they have a folder.

    Args:
        failures: Place in the list of specs to what went wrong.
        trained: The networks in the order of the specs; those that failed are taken out.

    Attributes:
        failures: Place in the list of specs to what went wrong.
        trained: The networks in the order of the specs, ``None`` in place of those that failed.
    """

    def __init__(self, failures: dict[int, str], trained: Sequence[TrainedModel | None]) -> None:
        self.failures = dict(sorted(failures.items()))
        self.trained = [None if i in failures else found for i, found in enumerate(trained)]
        told = [f"specs[{i}]: {failure}" for i, failure in self.failures.items()]
        super().__init__(" ".join([*told, f"The other {len(trained) - len(failures)} of {len(trained)} are trained."]))


def fit_many(
    models: Sequence[nn.Module],
    data: DeviceSplit,
    specs: Sequence[TrainSpec],
    *,
    masks: Sequence[Masks | None] | None = None,
    test: DeviceSplit | None = None,
    test_every: int = 10,
    test_last: int = 1,
    folders: Sequence[Path | None] | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
) -> list[TrainedModel]:
    """Train given networks of one architecture at once, in place, as :func:`prunelimit.training.fit` trains each alone.

    Networks whose saved states are of different ages go on in one stack per age; one that was left within an epoch, by
    ``fit``, goes on alone.

    Args:
        models: The networks, on the device of ``data``; left in evaluation mode.
        data: Training images and labels.
        specs: Settings of each; the fields in ``SHARED`` are the same for all.
        masks: For each network, parameter name to a 0-1 tensor; masked weights stay exactly zero.
        test: Where to measure loss and accuracy, every ``test_every`` epochs and at the end.
        test_every: Epochs between two measurements on ``test``.
        test_last: How many of the last epochs are measured in any case.
        folders: For each network, where to save the state between epochs and to look for one to resume from, as ``fit``
            does: either goes on from what the other saved. ``None`` keeps nothing.
        deadline: Value of ``time.monotonic()`` before which the states are to be saved.
        progress: Whether to show a progress line.

    Returns:
        The networks with their histories, as from ``fit``. The seconds of an epoch are the stack's over the number of its
        networks, which stands beside them as ``stacked``.

    Raises:
        DivergedError: If the loss of a network stops being finite; the others are trained and saved first.
        PruneLimitError: If the networks cannot be trained together.
    """
    if not specs:
        return []
    _check(specs, models=models, masks=masks, folders=folders)
    count, members = len(specs), []
    for model, spec, mask, folder in zip(
        models, specs, masks or [None] * count, folders or [None] * count, strict=True
    ):
        loop = Loop(model, data, spec, mask, runtime=Runtime(channels_last=False, compiled=False))
        if folder is not None:
            loop.load(folder)
        members.append(Member(loop, mask or {}, folder))
    course = _Course(data, test, test_every, test_last, deadline, progress)
    for member in (m for m in members if m.loop.place):
        course.alone(member)
    unfinished = sorted((m for m in members if m.left > 0 and not m.loop.place), key=lambda m: m.left)
    with suited_threads(models[0]):
        for _, same in itertools.groupby(unfinished, key=lambda m: m.left):
            course.together(list(same))
    for model in models:
        model.eval()
    trained = [TrainedModel(m.loop.model, m.loop.spec, m.loop.history) for m in members]
    if failures := {i: m.failure for i, m in enumerate(members) if m.failure}:
        raise DivergedError(failures, trained)
    return trained


def train_many(
    specs: Sequence[TrainSpec],
    *,
    device: str | torch.device = "cpu",
    dataset: Dataset | None = None,
    masks: Sequence[Masks | None] | None = None,
    initial: Sequence[dict[str, Tensor] | None] | None = None,
    folders: Sequence[Path | None] | None = None,
    test_last: int = 1,
    deadline: float | None = None,
    progress: bool | None = None,
) -> list[TrainedModel]:
    """Train the networks that the specs describe at once; those that were trained before are loaded.

    Args:
        specs: What to train; the fields in ``SHARED`` are the same for all.
        device: Where to train.
        dataset: The data set, if it is loaded already.
        masks: For each network, parameter name to a 0-1 tensor; masked weights stay exactly zero.
        initial: For each network, the state to begin with in place of the seed's.
        folders: For each network, the folder of its checkpoints. By default, where :func:`prunelimit.train` looks for it; with
            masks or initial states, which a spec does not name, nothing is kept by default.
        test_last: How many of the last epochs are measured on the test split; of those before, every tenth is.
        deadline: Value of ``time.monotonic()`` before which the states are to be saved.
        progress: Whether to show a progress line.

    Returns:
        The networks, in the order of the specs. If the deadline passed, histories are shorter than ``epochs``; the next call
        goes on from there.

    Raises:
        DivergedError: If the loss of a network stops being finite; the others are trained and saved first.
        PruneLimitError: If the networks cannot be trained together.
    """
    if not specs:
        return []
    _check(specs, masks=masks, initial=initial, folders=folders)
    folders = _own_folders(specs, masks, initial, folders)
    dataset = dataset or load_dataset(specs[0].dataset)
    states = initial or [None] * len(specs)
    models = [_build(spec, dataset, state).to(device) for spec, state in zip(specs, states, strict=True)]
    data, test = dataset.on_device("train", device, specs[0].train_size), dataset.on_device("test", device)
    options: dict[str, Any] = {"test_last": test_last, "deadline": deadline, "progress": progress}
    return fit_many(models, data, specs, masks=masks, test=test, folders=folders, **options)


def train_groups(
    specs: Sequence[TrainSpec],
    *,
    device: str | torch.device = "cpu",
    masks: Sequence[Masks | None] | None = None,
    initial: Sequence[dict[str, Tensor] | None] | None = None,
    folders: Sequence[Path | None] | None = None,
    test_last: int = 1,
    deadline: float | None = None,
    progress: bool | None = None,
) -> list[TrainedModel]:
    """Train any networks: at once those for which that is possible and pays, the others one at a time.

    Args:
        specs: What to train.
        device: Where to train.
        masks: As for :func:`train_many`.
        initial: As for :func:`train_many`.
        folders: As for :func:`train_many`.
        test_last: As for :func:`train_many`.
        deadline: Value of ``time.monotonic()`` before which the states are to be saved.
        progress: Whether to show progress lines.

    Returns:
        The networks, in the order of the specs.

    Raises:
        DivergedError: If the loss of a network stops being finite; all others are trained and saved first.
        PruneLimitError: If a spec cannot be trained.
    """
    given: dict[str, Sequence[Any] | None] = {"masks": masks, "initial": initial, "folders": folders}
    _check_lengths(specs, given)
    given["folders"] = _own_folders(specs, masks, initial, folders)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, spec in enumerate(specs):
        key = tuple(getattr(spec, field.name) for field in dataclasses.fields(spec) if field.name not in OWN)
        groups.setdefault(key, []).append(place)
    trained: list[TrainedModel | None] = [None] * len(specs)
    failures: dict[int, str] = {}
    for members in groups.values():
        first = specs[members[0]]
        dataset = load_dataset(first.dataset)
        size = stack_size(first, dataset, device)
        for start in range(0, len(members), size):
            places = members[start : start + size]
            part = {name: None if every is None else [every[i] for i in places] for name, every in given.items()}
            run = train_many if len(places) > 1 else _train_alone
            found: Sequence[TrainedModel | None]
            try:
                found = run(
                    [specs[i] for i in places],
                    dataset=dataset,
                    device=device,
                    test_last=test_last,
                    deadline=deadline,
                    progress=progress,
                    **part,
                )
            except DivergedError as error:
                found = error.trained
                failures |= {places[i]: failure for i, failure in error.failures.items()}
            for i, one in zip(places, found, strict=True):
                trained[i] = one
    if failures:
        raise DivergedError(failures, trained)
    return [one for one in trained if one is not None]


def stack_size(spec: TrainSpec, dataset: Dataset, device: str | torch.device = "cpu") -> int:
    """Return how many networks of a kind to train at once; 1 if stacking does not pay.

    On a CPU it pays for plain MLPs of up to ``LARGEST`` parameters. Convolutions become grouped ones there, which gain
    little. On other devices, where starting an operation takes longer, any small network is stacked.

    Args:
        spec: What to train.
        dataset: Its data set.
        device: Where to train.

    Returns:
        The number of networks.
    """
    model = _build(spec, dataset)
    count = sum(p.numel() for p in model.parameters())
    small = count <= LARGEST and (mlp_layers(model) is not None or torch.device(device).type != "cpu")
    return MOST_PARAMETERS // count if small and not _unusual(spec) else 1


def _unusual(spec: TrainSpec) -> str | None:
    """Name a field that a stack does not know and that is not at its default."""
    other = [field for field in dataclasses.fields(spec) if field.name not in SHARED + OWN]
    return next((field.name for field in other if getattr(spec, field.name) != field.default), None)


def _own_folders(
    specs: Sequence[TrainSpec], masks: Any, initial: Any, folders: Sequence[Path | None] | None
) -> Sequence[Path | None] | None:
    """Choose the folders that ``train`` uses, where the spec alone determines the result."""
    if folders is not None or masks is not None or initial is not None:
        return folders
    return [cache_folder() / "checkpoints" / spec.hash for spec in specs]


def _build(spec: TrainSpec, dataset: Dataset, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Build a network with its initial weights."""
    model = initial_network(spec, dataset)
    if state is not None:
        model.load_state_dict(state)
    return model


def _train_alone(
    specs: Sequence[TrainSpec],
    *,
    device: str | torch.device,
    dataset: Dataset,
    masks: Sequence[Masks | None] | None,
    initial: Sequence[dict[str, Tensor] | None] | None,
    folders: Sequence[Path | None] | None,
    test_last: int,
    deadline: float | None,
    progress: bool | None,
) -> list[TrainedModel]:
    """Train one network by the usual loop."""
    (spec,), (state,) = specs, initial or [None]
    (mask,), (folder,) = masks or [None], folders or [None]
    model = _build(spec, dataset, state).to(device)
    data, test = dataset.on_device("train", device, spec.train_size), dataset.on_device("test", device)
    options: dict[str, Any] = {"test_last": test_last, "deadline": deadline, "progress": progress}
    try:
        history = fit(model, data, spec, masks=mask, test=test, folder=folder, **options)
    except PruneLimitError as error:
        raise DivergedError({0: str(error)}, [None]) from error
    return [TrainedModel(model, spec, history)]


@dataclasses.dataclass
class _Course:
    """What the networks of one call have in common while they are trained."""

    data: DeviceSplit
    test: DeviceSplit | None
    test_every: int
    test_last: int
    deadline: float | None
    progress: bool | None

    def alone(self, member: Member) -> None:
        """Finish a network that was left within an epoch."""
        loop = member.loop
        try:
            loop.history = fit(
                loop.model,
                self.data,
                loop.spec,
                masks=member.masks,
                test=self.test,
                test_every=self.test_every,
                test_last=self.test_last,
                folder=member.folder,
                deadline=self.deadline,
                progress=self.progress,
            )
        except PruneLimitError as error:
            member.failure = str(error)

    def together(self, members: Sequence[Member]) -> None:
        """Train networks that have done the same number of epochs; those that diverge are left behind."""
        stack, spec = Stack(members), members[0].loop.spec
        now = saved = time.monotonic()
        epoch_seconds, save_seconds = 0.0, SAVE_SECONDS * len(members)
        with ProgressLine(f"{len(members)} x {spec.model} on {spec.dataset}", spec.epochs, self.progress) as line:
            for number in range(members[0].loop.number + 1, spec.epochs + 1):
                late = self.deadline is not None and now + epoch_seconds + save_seconds > self.deadline
                if late or now - saved >= SAVE_INTERVAL:
                    _save(stack)
                    saved = time.monotonic()
                    save_seconds, now = saved - now, saved
                if late:
                    return
                entries = stack.epoch(self.data)
                going = _record(stack, entries)
                if going is None:
                    return
                stack = going
                if is_tested(number, spec.epochs, self.test_every, self.test_last):
                    self.measure(stack)
                line.update(number, **{k: sum(e[k] for e in entries) / len(entries) for k in ("loss", "accuracy")})
                before, now = now, time.monotonic()
                epoch_seconds = now - before
        _save(stack)

    def measure(self, stack: Stack) -> None:
        """Measure loss and accuracy of every network on the test split, if there is one."""
        if self.test is not None:
            stack.write_back()
            for loop in stack.loops:
                measured = evaluate(loop.model, self.test)
                loop.history[-1] |= dict(zip(("test_loss", "test_accuracy"), measured, strict=True))


def _save(stack: Stack) -> None:
    """Save every network of a stack that has a folder."""
    stack.write_back()
    for member in stack.members:
        if member.folder is not None and member.loop.changed:
            member.loop.save(member.folder)


def _record(stack: Stack, entries: list[dict[str, Any]]) -> Stack | None:
    """Add an epoch to the histories; if a loss is not finite, go on in a stack without it, if any others are left."""
    for member, entry in zip(stack.members, entries, strict=True):
        if math.isfinite(entry["loss"]):
            member.loop.history.append(entry)
        else:
            lost = f"the loss became {entry['loss']} in epoch {entry['epoch']}"
            member.failure = f"lr={member.loop.spec.lr!r}: {lost}; lower lr or add warm-up."
    kept = [member for member in stack.members if not member.failure]
    if len(kept) == len(stack.members):
        return stack
    stack.write_back()
    return Stack(kept) if kept else None


def _check_lengths(specs: Sequence[TrainSpec], given: dict[str, Sequence[Any] | None]) -> None:
    """Refuse lists that do not have one entry per spec."""
    for name, every in given.items():
        if every is not None and len(every) != len(specs):
            raise PruneLimitError(f"{name} has {len(every)} entries: give one for each of the {len(specs)} specs.")


def _check(specs: Sequence[TrainSpec], **given: Sequence[Any] | None) -> None:
    """Refuse networks that cannot be stacked."""
    _check_lengths(specs, given)
    for name in SHARED:
        found = list(dict.fromkeys(getattr(spec, name) for spec in specs))
        if len(found) > 1:
            raise PruneLimitError(
                f"specs have the {name} {found[0]!r} and {found[1]!r}: networks that are trained at once share it; use train_groups."
            )
    for spec in specs:
        if other := _unusual(spec):
            raise PruneLimitError(
                f"{other}={getattr(spec, other)!r} is not possible for networks that are trained at once: use train_groups."
            )
    kinds = {str(m) + str([(n, p.shape) for n, p in m.named_parameters()]) for m in given.get("models") or []}
    if len(kinds) > 1:
        raise PruneLimitError("models differ: only networks of one architecture can be trained at once.")
    places = [folder for folder in given.get("folders") or [] if folder is not None]
    if len(set(places)) < len(places):
        raise PruneLimitError("folders has the same folder twice: give each network its own.")
