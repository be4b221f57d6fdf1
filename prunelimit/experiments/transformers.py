"""Limits of transformers: predicted, and measured by cutting with several criteria."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prunelimit.adapters import Adapted, adapt
from prunelimit.curvature import HessianOperator, spectrum
from prunelimit.curvature.data import bare, call_model, evaluation_mode, mean_loss
from prunelimit.errors import PruneLimitError, unknown_name
from prunelimit.experiments.runner import as_plain, recorded_distance
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.experiments.transformer_networks import (
    GptSpec,
    MiniLMSpec,
    Network,
    NetworkSpec,
    VitSpec,
    prepare_network,
)
from prunelimit.files import cache_folder
from prunelimit.path_limits import directional_limit, search_limit
from prunelimit.pruning.controls import uniform_masks
from prunelimit.pruning.layerwise import WandaOrder
from prunelimit.pruning.magnitude import MagnitudePath, Masks, prunable_parameters
from prunelimit.pruning.semistructured import SemiStructuredOrder
from prunelimit.pruning.sparsegpt import sparsegpt
from prunelimit.specs import Spec
from prunelimit.threads import suited_threads
from prunelimit.training import OutOfTime

EXPERIMENT = "transformers"

#: Maps a sparsity to the prunable weights that a criterion leaves, by name.
Change = Callable[[float], dict[str, Tensor]]

#: Criterion to what tables and figures call it.
CRITERIA = {
    "magnitude": "magnitude",
    "uniform": "layer-wise magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "2:4-magnitude": "2:4 magnitude",
    "2:4-wanda": "2:4 Wanda",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSpec(Spec):
    """One transformer with everything that is predicted and measured about its limit.

    Attributes:
        network: How the network is made.
        examples: Training windows, images or sentences behind every limit.
        epsilon: Tolerated rise of the loss over them, in nats.
        steps: Hessian products of the formula.
        seed: Seed of the probe.
        tolerance: Width of the bracket in sparsity of the limits along a path.
        sweep: Sparsities at which loss and accuracy are recorded.
        criteria: Keys of ``CRITERIA``.
        expanded: Those whose limit is also predicted by the loss's second-order expansion along their path.
    """

    network: NetworkSpec
    examples: int
    epsilon: float = 0.05
    steps: int = 128
    seed: int = 0
    tolerance: float = 0.002
    sweep: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    criteria: tuple[str, ...] = tuple(CRITERIA)
    expanded: tuple[str, ...] = ("magnitude", "wanda", "sparsegpt")

    def __post_init__(self) -> None:
        """Refuse unknown criteria."""
        super().__post_init__()
        for name in (*self.criteria, *self.expanded):
            if name not in CRITERIA:
                raise unknown_name("criteria", name, CRITERIA)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a spec, and the one of the network inside it, from :meth:`to_dict`."""
        kinds: dict[str, type[NetworkSpec]] = {"gpt": GptSpec, "vit": VitSpec, "minilm": MiniLMSpec}
        network = values.get("network")
        if not isinstance(network, dict) or network.get("kind") not in kinds:
            raise PruneLimitError(f"{cls.__name__} needs network={{...}} with a kind of {', '.join(kinds)}.")
        return super().from_dict(values | {"network": kinds[network["kind"]].from_dict(network)})


#: Title of a network to what is recorded about it.
SPECS = {
    "vit": TransformerSpec(network=VitSpec(), examples=512, steps=192),
    "gpt": TransformerSpec(network=GptSpec(), examples=64, steps=96),
    "minilm": TransformerSpec(
        network=MiniLMSpec(),
        examples=96,
        steps=32,
        tolerance=0.01,
        sweep=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        expanded=("magnitude", "wanda"),  # a run of SparseGPT takes a minute
    ),
}


def find_transformer(name: str) -> TransformerSpec:
    """Look up what is recorded about a network.

    Args:
        name: A key of ``SPECS``.

    Returns:
        The spec.

    Raises:
        PruneLimitError: If the name is unknown.
    """
    if name not in SPECS:
        raise unknown_name("network", name, SPECS)
    return SPECS[name]


class CriterionPath:
    """What a criterion makes of the weights, as a path that limits can be found along.

    Args:
        weights: The dense prunable weights by name; copies.
        change: The criterion.

    Attributes:
        total: Number of prunable weights, D.
        distance: Only its ends, which reports ask for.
    """

    def __init__(self, weights: dict[str, Tensor], change: Change) -> None:
        self._weights, self.change = weights, change
        self.total = sum(w.numel() for w in weights.values())
        self.distance = np.array([0.0, math.sqrt(sum(float(w.double().square().sum()) for w in weights.values()))])

    def displacement(self, sparsity: float) -> Tensor:
        """Return the ``(D,)`` step from the dense weights to those that the criterion leaves."""
        new = self.change(sparsity)
        return torch.cat([(new[name] - weight).reshape(-1) for name, weight in self._weights.items()])


def make_criterion(name: str, network: Network) -> Change:
    """Make ready a criterion for a dense network.

    Args:
        name: A key of ``CRITERIA``.
        network: The network; the criterion looks at its present weights, now.

    Returns:
        What maps a sparsity to the weights it leaves.

    Raises:
        PruneLimitError: If the name is unknown.
    """
    if name not in CRITERIA:
        raise unknown_name("criterion", name, CRITERIA)
    model, prunable = network.model, network.prunable
    weights = {n: p.detach().clone() for n, p in prunable_parameters(model, prunable).items()}

    def masked(masks: Callable[[float], Masks]) -> Change:
        return lambda sparsity: {n: weights[n] * mask for n, mask in masks(sparsity).items()}

    if name == "magnitude":
        return masked(MagnitudePath(model, prunable).masks)
    if name == "uniform":
        return masked(lambda sparsity: uniform_masks(model, sparsity, prunable))
    if name == "2:4-magnitude":
        return masked(SemiStructuredOrder(model, prunable=prunable).masks)
    if name == "sparsegpt":
        run = partial(sparsegpt, model, cross_entropy, network.train, prunable=prunable)
        return lambda sparsity: run(sparsity).weights
    wanda = WandaOrder(model, cross_entropy, network.train, prunable=prunable)
    if name == "wanda":
        return masked(wanda.masks)
    return masked(SemiStructuredOrder(model, scores=wanda.scores).masks)


@contextmanager
def changed_weights(network: Network, weights: dict[str, Tensor]) -> Iterator[None]:
    """Give a network other weights for a while.

    Args:
        network: The network.
        weights: The new ones by name.

    Yields:
        Nothing.
    """
    parameters = dict(network.model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in weights}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(weight)
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                parameters[name].copy_(weight)


def loss_and_accuracy(adapted: Adapted) -> tuple[float, float]:
    """Measure the mean loss and the share of targets that have the largest score.

    Args:
        adapted: A classifier of examples or of tokens, with its data.

    Returns:
        Both.
    """
    loss, _ = mean_loss(adapted.model, adapted.loss_fn, adapted.batches)
    hits = count = 0
    with evaluation_mode(adapted.model), torch.no_grad():
        for inputs, targets in adapted.batches:
            right = call_model(adapted.model, inputs).argmax(-1) == bare(targets)
            hits, count = hits + int(right.sum()), count + right.numel()
    return loss, hits / count


def run_transformer(
    spec: TransformerSpec,
    *,
    label: dict[str, str] | None = None,
    deadline: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Make the record of a transformer, or return the one there is.

    Everything but training is remembered step by step, so a run that was stopped goes on. Steps that criteria have no part in
    are shared by specs that differ by them alone.

    Args:
        spec: What to run.
        label: What the spec stands for; kept in the record for people.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.
        progress: Told what begins.

    Returns:
        The record, or ``None`` if the deadline passed.
    """
    if recorded := load_record(EXPERIMENT, spec):
        return recorded
    tell = progress or (lambda text: None)
    network = prepare_network(spec.network, spec.examples, progress)
    with suited_threads(network.model):
        shared = dataclasses.replace(spec, criteria=()).hash
        folder = cache_folder() / "transformers" / f"{shared}-{_fingerprint(network)}"
        steps = Steps(folder / "steps.json", deadline)
        try:
            body = _measure(spec, network, steps, folder, tell)
        except OutOfTime:
            return None
        source = provenance("cpu", torch.get_num_threads())
    record = {"label": label or {}, "data": network.digests, "provenance": source, "seconds": steps.seconds, **body}
    save_record(EXPERIMENT, spec, record)
    return load_record(EXPERIMENT, spec)


def _fingerprint(network: Network) -> str:
    """Name a network's data and weights, which a spec alone does not: the text, and rounding, differ between machines."""
    found = hashlib.sha256(repr(sorted(network.digests.items())).encode())
    for p in network.model.parameters():
        found.update(p.detach().numpy().tobytes())
    return found.hexdigest()[:16]


def _measure(
    spec: TransformerSpec, network: Network, steps: Steps, folder: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Fill the record's body, one remembered step after the other."""
    train, test = (adapt(network.model, cross_entropy, data) for data in (network.train, network.test))
    operator = HessianOperator(train.model, train.loss_fn, train.batches, prunable=network.prunable)
    path = MagnitudePath(network.model, network.prunable)

    def probe() -> dict[str, Any]:
        tell(f"spectrum: {spec.steps} products")
        found = spectrum(
            operator, steps=spec.steps, seed=spec.seed, folder=folder / "lanczos", each=steps.check_time, progress=False
        )
        return found.to_dict() | {"products": sum(len(one.alpha) for one in found.probes)}

    measured: dict[str, float | list[float]] = steps(
        "dense", lambda: [*loss_and_accuracy(train), *loss_and_accuracy(test)]
    )
    return {
        "dense": dict(zip(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), measured, strict=True)),
        "total": path.total,
        "parameters": sum(p.numel() for p in network.model.parameters()),
        "examples": operator.examples,
        "terms": train.terms,
        "radius": recorded_distance(path),
        "spectrum": steps("spectrum", probe),
        "criteria": {
            name: _criterion(name, spec, network, operator, (train, test), steps, tell) for name in spec.criteria
        },
    }


def _criterion(
    name: str,
    spec: TransformerSpec,
    network: Network,
    operator: HessianOperator,
    data: tuple[Adapted, Adapted],
    steps: Steps,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Find the limits of one criterion, expanded and measured, and its losses."""
    train, test = data
    made: list[Change] = []

    def change(sparsity: float) -> dict[str, Tensor]:
        if not made:  # not if every step is remembered
            tell(f"{name}: made ready")
            made.append(make_criterion(name, network))
        return made[0](sparsity)

    weights = {n: p.detach().clone() for n, p in prunable_parameters(network.model, network.prunable).items()}
    path: Any = CriterionPath(weights, change)
    dense = steps.done["dense"]["value"][0]

    def rise(sparsity: float) -> float:
        with changed_weights(network, change(sparsity)):
            return mean_loss(train.model, train.loss_fn, train.batches)[0] - dense

    def measured() -> dict[str, Any]:
        tell(f"{name}: measured limit")
        return as_plain(
            search_limit(f"measured-{name}", rise, path, spec.epsilon, spec.tolerance, operator.examples, steps)
        )

    def directional() -> dict[str, Any]:
        tell(f"{name}: directional limit")

        def memo(key: str, run: Callable[[], Any]) -> Any:
            return steps(key.replace("directional", f"directional-{name}"), run)

        return as_plain(directional_limit(operator, path, spec.epsilon, tolerance=spec.tolerance, memo=memo))

    def sweep() -> list[dict[str, float]]:
        tell(f"{name}: sweep")
        most = 0.5 if name.startswith("2:4") else 1.0  # beyond, single weights leave and nothing is 2:4
        return [steps(f"sweep-{name} {s:.6f}", partial(point, s)) for s in spec.sweep if s <= most]

    def point(sparsity: float) -> dict[str, float]:
        new = change(sparsity)
        zeros = sum(int((w == 0).sum()) for w in new.values())
        with changed_weights(network, new):
            values = [*loss_and_accuracy(train), *loss_and_accuracy(test)]
        found = dict(zip(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), values, strict=True))
        return {"sparsity": sparsity, "zeros": zeros / path.total, **found}

    found: dict[str, Any] = {"measured": _trimmed(steps(f"measured-{name}", measured))}
    found["sweep"] = steps(f"sweep-{name}", sweep)
    if name in spec.expanded:
        found["directional"] = _trimmed(steps(f"directional-{name}", directional))
    return found


def _trimmed(limit: dict[str, Any]) -> dict[str, Any]:
    """Keep what a path without distances knows of its limit."""
    points = {key: limit["points"][key] for key in ("sparsity", "rise")}
    return {"sparsity": limit["sparsity"], "interval": limit["interval"], "points": points}
