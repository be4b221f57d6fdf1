"""From the formula to the cut, assumption by assumption: the record of one small network with its dense Hessian."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunelimit.curvature import HessianOperator
from prunelimit.curvature.dense import relu_hessian
from prunelimit.experiments.prepare import Prepared, prepare
from prunelimit.experiments.rungs import Rungs, directions
from prunelimit.experiments.runner import as_plain, recorded_distance, round_significant
from prunelimit.experiments.specs import LadderSpec
from prunelimit.experiments.steps import Steps
from prunelimit.experiments.store import load_record, provenance, save_record
from prunelimit.files import cache_folder
from prunelimit.limit import default_epsilon
from prunelimit.predict import predict_limit
from prunelimit.pruning.magnitude import MagnitudePath, flatten
from prunelimit.pruning.measured import fine_tuned_limit, largest_sparsity
from prunelimit.refit import refit_limit
from prunelimit.threads import suited_threads
from prunelimit.training import MEASURES, OutOfTime, evaluate

EXPERIMENT = "ladder"

#: Sparsities at which the rise of the loss along the cut is recorded, true and expanded.
PATH = tuple(round(0.05 * k, 2) for k in range(1, 16)) + tuple(round(0.75 + 0.01 * k, 2) for k in range(1, 25))

#: Shares of the step to the predicted limit at which it is recorded.
LINE = tuple(round(0.05 * k, 2) for k in range(1, 21))

#: Seeds of the random subspaces begin here, so that they are not those of the training.
FIRST_ROTATION = 1000


class _Loss:
    """The rise of the mean training loss in float64, as a function of a flat step of the prunable weights."""

    def __init__(self, model: nn.Module, path: MagnitudePath, sample: tuple[Tensor, Tensor]) -> None:
        self._model = copy.deepcopy(model).double()
        parameters = dict(self._model.named_parameters())
        self._parameters = [parameters[name] for name in path.names]
        self._inputs, self._targets = sample[0].double(), sample[1]
        self._trained = [p.detach().clone() for p in self._parameters]
        self.gradient = flatten(torch.autograd.grad(self._mean(), self._parameters)).numpy()
        self.weights = flatten(self._trained).numpy()
        self.dense = float(self._mean().detach())

    def _mean(self) -> Tensor:
        return cross_entropy(self._model(self._inputs), self._targets)

    @torch.no_grad()
    def __call__(self, step: np.ndarray) -> float:
        parts = torch.from_numpy(step).split([p.numel() for p in self._parameters])
        for parameter, trained, part in zip(self._parameters, self._trained, parts, strict=True):
            parameter.copy_(trained + part.reshape(trained.shape))
        return float(self._mean()) - self.dense


def run_ladder(
    spec: LadderSpec,
    *,
    label: dict[str, str] | None = None,
    device: str = "cpu",
    deadline: float | None = None,
    progress: bool | None = None,
) -> dict[str, Any] | None:
    """Make the record of one network's ladder, or return the one there is.

    Finished parts lie in the cache folder: a run that was stopped goes on from there.

    Args:
        spec: What to run.
        label: Task and profile that the spec stands for; kept in the record for people.
        device: Where to train and to refit; the dense Hessian is made on the CPU.
        deadline: Value of ``time.monotonic()`` after which nothing new is begun.
        progress: Whether to show the progress of the training.

    Returns:
        The record, or ``None`` if the deadline passed.
    """
    if found := load_record(EXPERIMENT, spec):
        return found
    ready = prepare(spec, device, deadline, progress)
    if ready is None:
        return None
    steps = Steps(cache_folder() / EXPERIMENT / spec.hash / "steps.json", deadline)
    with suited_threads(ready.model):
        try:
            body = _climb(spec, ready, steps)
        except OutOfTime:
            return None
        source = provenance(device, torch.get_num_threads())
    seconds = {name: step["seconds"] for name, step in steps.done.items()}
    record = {"label": label or {}, "data": ready.dataset.digests, "provenance": source, "seconds": seconds, **body}
    return save_record(EXPERIMENT, spec, record)


def _climb(spec: LadderSpec, ready: Prepared, steps: Steps) -> dict[str, Any]:
    """Fill the record's body, one remembered step after the other."""
    model, data, sample = ready.model, ready.data, ready.sample
    test = ready.dataset.on_device("test", data.device)
    path = MagnitudePath(model)
    dense = dict(zip(MEASURES, steps("dense", lambda: [*evaluate(model, data), *evaluate(model, test)]), strict=True))
    epsilon = float(steps("epsilon", lambda: default_epsilon(model, cross_entropy, list(data.batches(128)))))
    on_cpu = copy.deepcopy(model).cpu(), tuple(part.cpu() for part in sample)
    loss = _Loss(on_cpu[0], path, on_cpu[1])  # type: ignore[arg-type]
    quadratic = _lazily(
        lambda: Rungs(loss.weights, relu_hessian(on_cpu[0], *on_cpu[1]).numpy(), loss.gradient, epsilon)
    )

    curvature = dict(steps("curvature", lambda: _curvature(quadratic())))
    limits = {"formula": {"sparsity": curvature.pop("formula")}}
    measured = steps(
        "measured", lambda: as_plain(predict_limit(model, cross_entropy, sample, epsilon=epsilon, method="measured"))
    )
    accuracy = steps(
        "accuracy",
        lambda: largest_sparsity(model, test, {"accuracy": dense["test_accuracy"]}, spec.accuracy_step, path),
    )
    limits |= _quadratic_rungs(spec, quadratic, loss, limits["formula"]["sparsity"], steps)
    limits |= {"measured": _of_search(measured), "accuracy": {"sparsity": accuracy["accuracy"]}}
    limits |= _real_rungs(spec, ready, epsilon, limits["measured"]["sparsity"], steps)
    places = {name: limits[name]["sparsity"] for name in ("formula", "measured")}
    return {
        "dense": dense,
        "epsilon": epsilon,
        "total": path.total,
        "examples": len(sample[1]),
        "radius": recorded_distance(path),
        "curvature": curvature,
        "gradient": steps("gradient", lambda: _gradient(loss, spec.train.l1, path, places)),
        "limits": limits,
        "directions": steps("directions", lambda: _directions(spec, quadratic(), loss, places)),
        "path": steps("path", lambda: _along_the_cut(quadratic(), loss)),
        "line": steps("line", lambda: _along_the_line(quadratic(), loss, places["formula"])),
    }


def _lazily(make: Callable[[], Rungs]) -> Callable[[], Rungs]:
    """Put off what takes minutes until a step needs it: a run that goes on may not."""
    made: list[Rungs] = []

    def get() -> Rungs:
        if not made:
            made.append(make())
        return made[0]

    return get


def _curvature(rungs: Rungs) -> dict[str, float]:
    """Solve the formula and describe the spectrum."""
    values = rungs.eigenvalues
    largest = float(np.abs(values).max())
    return {
        "formula": rungs.formula(),
        "largest": float(values.max()),
        "smallest": float(values.min()),
        "negative_share": float((values < -1e-9 * largest).mean()),
        "null_share": float((np.abs(values) <= 1e-9 * largest).mean()),
        "trace": float(values.sum()),
        "trace_absolute": float(np.abs(values).sum()),
    }


def _of_search(found: dict[str, Any]) -> dict[str, Any]:
    return {"sparsity": found["sparsity"], "low": found["interval"][0], "high": found["interval"][1]}


def _quadratic_rungs(
    spec: LadderSpec, quadratic: Callable[[], Rungs], loss: _Loss, formula: float, steps: Steps
) -> dict[str, Any]:
    """Find the limits of all rungs on which the loss is a quadratic, each search beginning at the limit before."""
    found: dict[str, Any] = {}
    guess = formula
    for name in ("rotated", "perpendicular", "shuffled"):
        draws = [
            steps(f"{name} {k}", partial(_drawn, quadratic, name, k, guess, spec.tolerance))
            for k in range(FIRST_ROTATION, FIRST_ROTATION + spec.rotations)
        ]
        guess = float(np.mean(draws))
        found[name] = {"sparsity": guess, "low": min(draws), "high": max(draws), "draws": draws}
    for name in ("pruned", "ball", "signs", "slope"):
        found[name] = steps(name, partial(_landing, quadratic, name, loss, guess, spec.tolerance))
        guess = found[name]["sparsity"]
    found["judged"] = steps("judged", partial(_judged, quadratic, loss, found["ball"]["sparsity"], spec.tolerance))
    for name in ("absolute", "signed", "sloped"):
        found[name] = steps(name, partial(_alone, quadratic, name, formula, spec.tolerance))
    return found


def _judged(quadratic: Callable[[], Rungs], loss: _Loss, guess: float, tolerance: float) -> dict[str, float]:
    """Find how far the loss itself stays within epsilon where |H| within the ball leads: one step, and no promise."""
    rungs = quadratic()
    low, high = rungs.bracket(lambda m: loss(rungs.ball(m)[1]), guess, tolerance)
    return {"sparsity": low, "low": low, "high": high}


def _alone(quadratic: Callable[[], Rungs], name: str, guess: float, tolerance: float) -> dict[str, float]:
    rungs = quadratic()
    low, high = rungs.bracket(lambda m: rungs.expanded(rungs.step(m))[name], guess, tolerance)
    return {"sparsity": low, "low": low, "high": high}


def _drawn(quadratic: Callable[[], Rungs], name: str, seed: int, guess: float, tolerance: float) -> float:
    rungs = quadratic()
    return rungs.bracket(lambda m: getattr(rungs, name)(m, seed), guess, tolerance)[0]


def _landing(quadratic: Callable[[], Rungs], name: str, loss: _Loss, guess: float, tolerance: float) -> dict[str, Any]:
    """Find the limit of one rung, and ask the loss itself about the point to which its quadratic leads."""
    rungs = quadratic()
    rise = getattr(rungs, name)
    low, high = rungs.bracket(lambda m: rise(m)[0], guess, tolerance)
    removed = round(low * rungs.total)
    promised, step = rise(removed)
    moved = step[rungs.kept(removed)]
    return {
        "sparsity": low,
        "low": low,
        "high": high,
        "promised": promised,
        "reached": loss(step),
        "unmoved": loss(rungs.step(removed)),
        "length": float(np.linalg.norm(moved) / rungs.distance[removed]),
    }


def _real_rungs(spec: LadderSpec, ready: Prepared, epsilon: float, guess: float, steps: Steps) -> dict[str, Any]:
    """Find the limits of the loss itself with kept weights that move: by trust-region steps, and by training on."""
    model, path = ready.model, MagnitudePath(ready.model)

    def refitted(control: str) -> dict[str, Any]:
        operator = HessianOperator(model, cross_entropy, ready.sample)
        return as_plain(refit_limit(operator, path, epsilon, control=control, tolerance=spec.tolerance))

    tune = dataclasses.replace(spec.train, epochs=spec.tune_epochs, seed=spec.train.seed + 1000, warmup_epochs=0)
    tuned = fine_tuned_limit(
        model, ready.data, tune, epsilon=epsilon, guess=guess, tolerance=spec.tune_tolerance, memo=steps
    )
    return {
        "reached": _of_search(steps("refit none", lambda: refitted("none"))),
        "refit": _of_search(steps("refit stationary", lambda: refitted("stationary"))),
        "fine_tuned": {
            "sparsity": tuned.sparsity,
            "low": tuned.interval[0],
            "high": tuned.interval[1],
            "reference": tuned.reference_loss,
        },
    }


def _gradient(loss: _Loss, l1: float, path: MagnitudePath, places: dict[str, float]) -> dict[str, Any]:
    """Say how much of the gradient is the slope of the penalty, where it is large, and what it makes of the cut."""
    g, w = loss.gradient, loss.weights
    penalty = -l1 * np.sign(w)

    def cosine(chosen: np.ndarray) -> float | None:
        lengths = float(np.linalg.norm(g[chosen]) * np.linalg.norm(penalty[chosen]))
        return float(g[chosen] @ penalty[chosen]) / lengths if lengths > 0 else None

    cuts = {}
    for name, sparsity in places.items():
        d = path.displacement(sparsity).cpu().double().numpy()
        gone = d != 0
        cuts[name] = {
            "sparsity": sparsity,
            "cosine_kept": cosine(~gone),
            "cosine_removed": cosine(gone),
            "linear": float(g @ d),
            "stationary": float(l1 * np.abs(d).sum()),
        }
    return {
        "norm": float(np.linalg.norm(g)),
        "penalty_norm": float(np.linalg.norm(penalty)),
        "cosine": cosine(np.ones(len(w), dtype=bool)),
        "cuts": cuts,
    }


def _directions(spec: LadderSpec, rungs: Rungs, loss: _Loss, places: dict[str, float]) -> list[dict[str, Any]]:
    """Hold the rise of the loss along the cut against that along other steps of the same length."""
    rows = []
    for place, sparsity in places.items():
        removed = round(sparsity * rungs.total)
        for kind, found in directions(rungs, removed, spec.draws, spec.train.seed).items():
            for step in found:
                rows.append(
                    {"place": place, "kind": kind, "removed": int((step == -rungs.weights).sum())}
                    | {"rise": loss(step), "length": float(np.linalg.norm(step) / rungs.distance[removed])}
                    | rungs.expanded(step)
                )
    return rows


def _rises(rungs: Rungs, loss: _Loss, found: list[np.ndarray]) -> dict[str, list[float]]:
    rows = [{"rise": loss(step)} | rungs.expanded(step) for step in found]
    return {name: round_significant(np.array([row[name] for row in rows])) for name in rows[0]}


def _along_the_cut(rungs: Rungs, loss: _Loss) -> dict[str, list[float]]:
    """Record the rise of the loss at sparse points, true and by the three expansions."""
    found = [rungs.step(round(sparsity * rungs.total)) for sparsity in PATH]
    return {"sparsity": list(PATH)} | _rises(rungs, loss, found)


def _along_the_line(rungs: Rungs, loss: _Loss, sparsity: float) -> dict[str, list[float]]:
    """Record the same on the straight line from the trained weights to one sparse point."""
    step = rungs.step(round(sparsity * rungs.total))
    return {"share": list(LINE)} | _rises(rungs, loss, [share * step for share in LINE])
